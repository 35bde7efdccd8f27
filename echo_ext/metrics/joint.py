"""Entropies and divergences of the joint distributions of x and z (Livne, Swersky & Fleet 2019, "MIM")."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.metrics._inputs import Data, measure_rows
from echo_ext.metrics.likelihood import DEFENSIVE_WEIGHT, ImportanceEstimate, importance_batch
from echo_ext.models._numerics import log_mean_exp
from echo_ext.models.base import LatentModel, Model

__all__ = ["DataDistribution", "JointStatistics", "joint_statistics"]


class DataDistribution(Protocol):
    """A known distribution P(x), such as a :class:`torch.distributions.Distribution` of rows."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """``log P(x)`` of each row of ``(B, *data_shape)``, in nats: (B,)."""


@dataclass(frozen=True)
class JointStatistics:
    """Entropies and divergences of joint distributions of x and z, in nats; equations are those of the MIM paper.

    The anchored joint distributions are P(x) q(z|x) and P(z) p(x|z), and M_S is their mixture with equal weights. The
    learned ones are q(x, z) = q(x) q(z|x) and p(x, z) = p(z) p(x|z).

    Attributes:
        encoding_entropy: H_q(x, z), the entropy of P(x) q(z|x).
        decoding_entropy: H_p(x, z), the entropy of P(z) p(x|z).
        mean_entropy: R_H, the mean of both (eq. 5).
        mixture_entropy: The entropy of M_S, which is R_H plus the divergence of both (eq. 6).
        anchored_jsd: The Jensen-Shannon divergence of the anchored joint distributions (eq. 3), at most log 2.
        cross_entropy: L_CE = -E_{M_S} log((p(x, z) + q(x, z)) / 2) (eq. 7).
        mim_loss: L_MIM = -1/2 E_{M_S}[log p(x, z) + log q(x, z)] (eq. 8).
        regularizer: R_MIM = L_MIM - L_CE (eq. 9 and 10), which is 0 only if both learned joint distributions are equal.
        learned_jsd: The Jensen-Shannon divergence of the learned joint distributions.
        data_kl: KL(P(x) || q(x)).
        prior_kl: KL(P(z) || p(z)).
        errors: The standard error of each of these, by its name.

    Example:
        >>> model = echo_ext.models.build("mim", (1,), latent_dim=1)
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> found = echo_ext.metrics.joint_statistics(model, normal.sample((100,)), normal, draws=20)
        >>> found.anchored_jsd < 0.7, found.errors["anchored_jsd"] < 0.1  # at most ln(2) = 0.69 nats
        (True, True)
    """

    encoding_entropy: float
    decoding_entropy: float
    mean_entropy: float
    mixture_entropy: float
    anchored_jsd: float
    cross_entropy: float
    mim_loss: float
    regularizer: float
    learned_jsd: float
    data_kl: float
    prior_kl: float
    errors: dict[str, float]


def joint_statistics(
    model: Model,
    x: Data,
    data_distribution: DataDistribution,
    *,
    draws: int = 100,
    max_batch_size: int = 10_000,
) -> JointStatistics:
    """Estimate entropies and divergences of the joint distributions of x and z from samples, where P(x) is known.

    Each joint distribution has as many samples as there are rows. P(z) is the ``reference_prior`` of the model, or its
    prior if it has none. q(x) is its ``data_marginal``. Without one, q(x) is the marginal E_{p(z)} p(x|z) of the
    decoder, and log q(x) is estimated as by :func:`echo_ext.metrics.importance_estimate`. That is a lower bound in
    expectation, so that ``mim_loss``, ``cross_entropy`` and ``data_kl`` are upper bounds.

    Args:
        model: A :class:`~echo_ext.models.MIM`, or another model with a density q(z|x).
        x: At least two independent samples of P(x), as ``data`` in :func:`echo_ext.metrics.rate_distortion`.
        data_distribution: P(x), an object with ``log_prob(x)``.
        draws: The number of importance samples for each log q(x). More make it tighter and take more time.
        max_batch_size: The maximum number of rows or importance samples at once.

    Warns:
        RuntimeWarning: Importance sampling is unreliable, as in :func:`echo_ext.metrics.importance_estimate`.

    Raises:
        TypeError: The model has no density q(z|x), as with Echo, or the data distribution has no method log_prob.
        ValueError: There are fewer than two rows, a number is out of range, or log_prob has the wrong shape.

    Example:
        >>> model = echo_ext.models.build("mim", (1,), latent_dim=1)
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> found = echo_ext.metrics.joint_statistics(model, normal.sample((100,)), normal, draws=20)
        >>> abs(found.mixture_entropy - found.anchored_jsd - found.mean_entropy) < 1e-12
        True
    """
    _checks.whole("draws", draws, minimum=1)
    _checks.whole("max_batch_size", max_batch_size, minimum=1)
    if not isinstance(model, LatentModel) or model.prior is None:
        kind = type(getattr(model, "channel", model)).__name__
        raise TypeError(f"model must have a prior and a density q(z|x), which {kind} does not have")
    if not callable(getattr(data_distribution, "log_prob", None)):
        raise TypeError(f"data_distribution must have a method log_prob, got {_checks.brief(data_distribution)}")
    prior, marginal = model.prior, getattr(model, "data_marginal", None)
    reference = getattr(model, "sampling_prior", prior)
    options: dict[str, Any] = {"draws": draws, "defensive_weight": DEFENSIVE_WEIGHT, "max_batch_size": max_batch_size}

    def measure(rows: Tensor) -> tuple[Tensor, ...]:
        """The log densities of all four joint distributions at samples of each of them, (B, 4, 4), and of q(x)."""
        n = len(rows)
        z_reference, z_prior = reference.sample(n), prior.sample(n)
        x_reference, x_prior = (model.observation(z).sample() for z in (z_reference, z_prior))
        x_marginal = model.observation(prior.sample(n)).sample() if marginal is None else marginal.sample(n)
        x = torch.cat([rows, x_reference, x_marginal, x_prior])
        z = torch.cat([model.encode(rows), z_reference, model.encode(x_marginal), z_prior])
        log_encoding, log_decoding = model.posterior(x).log_prob(z).double(), model.observation(z).log_prob(x).double()
        # log q(x) and, if it is an estimate, its effective draws.
        estimate = importance_batch(model, x, **options) if marginal is None else (marginal.log_prob(x),)
        anchored = _log_prob(data_distribution, x) + log_encoding, reference.log_prob(z) + log_decoding
        learned = estimate[0] + log_encoding, prior.log_prob(z) + log_decoding
        return torch.stack([*anchored, *learned], 1).unflatten(0, (4, n)).transpose(0, 1), *estimate

    joints, *estimate = measure_rows(model, x, max(1, max_batch_size // 4), measure)
    if len(joints) < 2:
        raise ValueError(f"x must have at least 2 rows, got {len(joints)}")
    if marginal is None and (warning := ImportanceEstimate(estimate[0], estimate[1], draws).warning) is not None:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)
    return _statistics(joints)


def _log_prob(data_distribution: DataDistribution, x: Tensor) -> Tensor:
    """``log P(x)`` of each row."""
    found = data_distribution.log_prob(x)
    if found.shape != x.shape[:1]:
        wanted = f"one log_prob per row, ({len(x)},)"
        raise ValueError(f"data_distribution must have {wanted}, got shape {tuple(found.shape)}")
    return found


def _statistics(joints: Tensor) -> JointStatistics:
    """The statistics for the log densities (N, sampled distribution, evaluated distribution)."""
    anchored, learned = joints[:, :2, :2], joints[:, 2:, 2:]
    at_anchored = joints[:, :2, 2:]  # the learned densities at samples of M_S
    entropies = -anchored.diagonal(dim1=1, dim2=2)
    mixture, model_mixture = log_mean_exp(anchored, -1), log_mean_exp(at_anchored, -1)
    ratios = (joints[:, :2, :2] - at_anchored).diagonal(dim1=1, dim2=2)
    # Each is the mean over these columns.
    columns = {
        "encoding_entropy": entropies[:, :1],
        "decoding_entropy": entropies[:, 1:],
        "mean_entropy": entropies,
        "mixture_entropy": -mixture,
        "anchored_jsd": -entropies - mixture,
        "cross_entropy": -model_mixture,
        "mim_loss": -at_anchored.mean(2),
        "regularizer": model_mixture - at_anchored.mean(2),
        "learned_jsd": learned.diagonal(dim1=1, dim2=2) - log_mean_exp(learned, -1),
        "data_kl": ratios[:, :1],
        "prior_kl": ratios[:, 1:],
    }
    # The columns are independent samples.
    errors = {name: float((each.var(0) / len(each)).sum().sqrt()) / each.shape[1] for name, each in columns.items()}
    return JointStatistics(**{name: float(each.mean()) for name, each in columns.items()}, errors=errors)
