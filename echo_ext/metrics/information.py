"""The information of each latent about x, and of the latents about each other."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor
from torch.distributions import Normal

from echo_ext import _checks
from echo_ext._types import TensorOrArray
from echo_ext.echo.channel import ChannelOutput, EchoChannel
from echo_ext.estimators import entropy, mutual_information
from echo_ext.metrics._inputs import Data, measure_rows, read_codes, refuse_constant_columns
from echo_ext.models._numerics import log_mean_exp
from echo_ext.models.base import LatentModel, Model
from echo_ext.models.channels import gaussian_factors
from echo_ext.models.likelihoods import BernoulliLikelihood, FixedGaussianLikelihood, GaussianLikelihood
from echo_ext.models.objectives import total_correlation_bound
from echo_ext.models.priors import StandardNormal, channel_inputs
from echo_ext.models.stacked_corex import GaussianLayer, Layer, rates

__all__ = ["echo_signal", "gaussian_total_correlation", "latent_information", "layer_terms"]

InformationMethod: TypeAlias = Literal["formula", "knn"]
METHODS: tuple[InformationMethod, ...] = get_args(InformationMethod)
# Densities held at once.
BLOCK = 1 << 21


def gaussian_total_correlation(samples: TensorOrArray) -> float:
    """Compute the total correlation that samples (N, d) would have if they were Gaussian: ``-1/2 log det corr``, nats.

    For other distributions this is the second-order part of the total correlation. It is 0 where nothing is correlated,
    and infinite where a column is a linear combination of others. It is computed in float64. The formula that
    Brekelmans et al. (2019, appendix C) print, ``-log |diag(C)^-1 C|`` for the covariance C, has no factor 1/2: its
    values are twice as large.

    Raises:
        TypeError: The samples are not float64 or float32.
        ValueError: Values are not finite, a column is constant, or there are no more rows than columns.

    Example:
        >>> x = torch.randn(1000, 1)
        >>> y = 0.6 * x + 0.8 * torch.randn(1000, 1)  # the correlation is 0.6
        >>> round(echo_ext.metrics.gaussian_total_correlation(torch.cat([x, y], dim=1)), 1)  # -1/2 ln(1 - 0.36) = 0.22
        0.2
    """
    points = read_codes("samples", samples).double()
    if len(points) <= points.shape[1]:
        raise ValueError(f"samples must have more rows than columns, got shape {tuple(points.shape)}")
    refuse_constant_columns("samples", points)
    centered = points - points.mean(0)
    standard = centered / centered.norm(dim=0)
    # Rounding can leave an eigenvalue of a singular matrix below zero.
    eigenvalues = torch.linalg.eigvalsh(standard.T @ standard)
    rounding = len(eigenvalues) * torch.finfo(torch.float64).eps * eigenvalues[-1]
    return float("inf") if eigenvalues[0] <= rounding else -0.5 * float(eigenvalues.log().sum())


def latent_information(
    model: Model, x: Data, *, method: InformationMethod = "formula", k: int = 3, batch_size: int = 1000
) -> Tensor:
    """Compute the information ``I(z_j; x)`` of each latent, in nats: (latent_dim,), float64.

    * "formula", Echo: the mean over the rows of ``-log s_j(x)``, which is exact.
    * "formula", Gaussian: ``E KL(q(z_j|x) | q(z_j))``, with one sample of z for each row; q(z_j) is the mixture of the
      posteriors of all rows. Its expectation is the exact information for x uniform on the N rows, which is at most
      log N, and at most the information under the distribution that the rows come from. It takes N^2 densities per
      latent.
    * "knn": the KSG estimate between z_j and the two numbers that determine q(z_j|x): mean and standard deviation, or
      f_j and s_j for Echo. They are sufficient for z_j, so their information is ``I(z_j; x)``. Near 0 it may be
      negative.

    Args:
        model: A model with an Echo or a Gaussian posterior.
        x: As ``data`` in :func:`echo_ext.metrics.rate_distortion`.
        method: "formula" or "knn".
        k: The number of neighbors for "knn". A larger k reduces the variance of the estimates and increases their bias.
        batch_size: The number of rows that are encoded at once.

    Raises:
        TypeError: The model has another posterior.
        ValueError: The method is unknown, or there are no more than k rows for "knn", or none.

    Example:
        >>> model = echo_ext.models.build("echo", (1, 8, 8), latent_dim=4, num_terms=31)
        >>> x = torch.rand(100, 1, 8, 8)
        >>> information = echo_ext.metrics.latent_information(model, x)
        >>> information.shape
        torch.Size([4])
    """
    _checks.choice("method", method, METHODS)
    statistics = measure_rows(model, x, batch_size, lambda batch: _statistics(model, batch, method))
    if len(statistics) == 1:
        return statistics[0].double().mean(0)
    z, mean, std = statistics
    if method == "formula":
        return _information_from_aggregate(z, mean, std)
    parameters = torch.stack([mean, std], -1).double().transpose(0, 1)
    return mutual_information(z.double().T.unsqueeze(-1), parameters, k=k)


def layer_terms(model: Model, x: Data, *, k: int = 3, batch_size: int = 1000) -> Tensor:
    """Compute what each layer adds to the CorEx bound on TC(x): (L,), in nats.

    Their sum is the bound, ``sum_i H(x_i) - D - sum_l R_l <= TC(x)`` with the distortion D and the rates of the layers
    (Gao et al. 2019, eqs. 10, 14 and 17).
    A VAE has one layer, and :class:`~echo_ext.models.StackedCorEx` any number, with the terms ::

        sum_i H(x_i) - D - I_1,   I_(l-1) - R_(l-1) - I_l for l > 1,

    where ``I_l = sum_j h(z_lj) + E log q(z_l|z_(l-1))`` is the sum of the informations of the single latents, with k-NN
    estimates of h, and ``I_L = R_L`` for the top layer. A layer is worth keeping while its term is positive: then it
    raises the bound (eq. 16), and its latents are less dependent than those below. TC(x) is that of the distribution of
    the rows. The values of a Bernoulli likelihood are binary; gray levels are their probabilities. The entropies H(x_i)
    of a Gaussian likelihood are k-NN estimates.

    Args:
        model: A model with a Bernoulli or a Gaussian likelihood, a Gaussian q(z|x), and the prior N(0, I) or layers.
        x: As ``data`` in :func:`echo_ext.metrics.rate_distortion`.
        k: The number of neighbors. A larger k reduces the variance of the estimates and increases their bias.
        batch_size: The number of rows that are encoded at once.

    Raises:
        TypeError: The model has another likelihood, posterior or prior.

    Example:
        >>> model = echo_ext.models.build("stacked-corex", (1, 8, 8), latent_dim=4, layers=(3, 2), upper_hidden=(8,))
        >>> echo_ext.metrics.layer_terms(model, torch.rand(100, 1, 8, 8)).shape
        torch.Size([3])
    """
    likelihood, prior = getattr(model, "likelihood", None), getattr(model, "prior", None)
    if not isinstance(likelihood, BernoulliLikelihood | GaussianLikelihood | FixedGaussianLikelihood):
        kind = type(likelihood).__name__
        raise TypeError(
            f"layer_terms needs a Bernoulli or a Gaussian likelihood, but {type(model).__name__} has {kind}"
        )
    if not isinstance(prior, StandardNormal | Layer):
        given = f"{type(model).__name__} has {type(prior).__name__}"
        raise TypeError(f"layer_terms needs the prior N(0, I) or layers, but {given}")

    def measure(batch: Tensor) -> tuple[Tensor, ...]:
        latent = cast(LatentModel, model)
        q = latent.posterior(batch)
        z = q.rsample()
        distortion = -latent.observation(z).log_prob(batch)
        return (batch, distortion, torch.stack(rates(prior, q, z), 1), *_draws_of_layers(prior, q))

    rows, distortion, rate, *draws = measure_rows(model, x, batch_size, measure)
    entropies = _column_entropies(rows.flatten(1).double(), isinstance(likelihood, BernoulliLikelihood), k)
    rate = rate.double().mean(0)
    information = torch.cat([rate.new_zeros(1), rate])  # that of the top layer is its rate
    for layer, (log_q, z) in enumerate(zip(draws[::2], draws[1::2], strict=True), start=1):
        information[layer] = log_q.double().mean() + _column_entropies(z.double(), False, k).sum()
    terms = information[:-1] - information[1:] - torch.cat([rate.new_zeros(1), rate[:-1]])
    terms[0] = total_correlation_bound(entropies, distortion.double().mean(), information[1])
    return terms


def _draws_of_layers(prior: object, q: Any) -> list[Tensor]:
    """``log q(z_l|z_(l-1))`` (B,) and z_l (B, d), in turn, for each layer l below the top."""
    found: list[Tensor] = []
    while isinstance(prior, Layer):
        z = q.rsample()
        found += [q.log_prob(z), z]
        if not isinstance(prior, GaussianLayer):
            break
        q, prior = prior.channel(*channel_inputs(prior.encoder, z)), prior.prior
    return found


def _column_entropies(values: Tensor, are_probabilities: bool, k: int) -> Tensor:
    """The entropy of each column of (N, d): of binary values with these probabilities, or a k-NN estimate."""
    if are_probabilities:
        mean = values.mean(0)
        return -torch.xlogy(mean, mean) - torch.xlogy(1 - mean, 1 - mean)
    return entropy(values.T.unsqueeze(-1), k=k)


def _statistics(model: Model, x: Tensor, method: str) -> tuple[Tensor, ...]:
    """Return the rate alone for Echo and "formula", else z and the parameters of its distribution; each (B, d)."""
    output = model.posterior(x)
    if isinstance(output, ChannelOutput):
        return (output.rate.flatten(1),) if method == "formula" else echo_signal(model, x)[:3]
    factors = gaussian_factors(output)
    if factors is None:
        raise TypeError(
            f"latent_information needs an Echo or a Gaussian q(z|x), but {type(model).__name__} gives "
            f"{type(output).__name__}: the distribution of a latent given x is not known"
        )
    return factors.sample(), factors.mean, factors.stddev


def _information_from_aggregate(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    rows = len(z)
    information: Tensor = Normal(mean, std).log_prob(z).double().mean(0)
    for j in range(z.shape[1]):
        codes = Normal(mean[:, j], std[:, j])
        for chunk in z[:, j].split(max(1, BLOCK // rows)):
            log_marginal = log_mean_exp(codes.log_prob(chunk.unsqueeze(1)), dim=1)
            information[j] -= log_marginal.double().sum() / rows
    return information


def echo_signal(model: Model, x: Tensor) -> tuple[Tensor, ...]:
    """Encode a batch ``(B, *data_shape)`` by an Echo channel; return z, f, s and the rate in nats, (B, d) each.

    ``z = f + s * noise`` is the code, or its log for a multiplicative channel.

    Raises:
        TypeError: The model has no Echo channel.
    """
    channel: Any = getattr(model, "channel", None)
    if not isinstance(channel, EchoChannel):
        raise TypeError(f"{type(model).__name__} must have an EchoChannel as its channel, got {type(channel).__name__}")
    inputs = cast(LatentModel, model).channel_inputs(x)
    (f, log_s), output = channel.signal(*inputs), channel(*inputs)
    z = output.z.log() if channel.multiplicative else output.z
    return tuple(part.flatten(1) for part in (z, f, log_s.exp(), output.rate))
