"""The Mutual Information Machine (Livne, Swersky & Fleet 2019), a symmetric joint distribution of x and z."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from echo_ext import _checks
from echo_ext.models._numerics import log_mean_exp
from echo_ext.models.base import LatentModel, eval_mode
from echo_ext.models.likelihoods import GaussianLikelihood
from echo_ext.models.objectives import score_function
from echo_ext.models.priors import Prior, as_prior

__all__ = ["ENTROPIES", "MIM", "OBJECTIVES", "WARM_UPS"]

OBJECTIVES = {
    "vae": "negative ELBO",
    "vae-h": "negative ELBO plus the joint entropy of the encoding",
    "a-mim": "MIM loss of encoder samples only",
    "mim": "MIM loss of encoder and decoder samples, half of each",
    "mim-h": "MIM loss minus the joint entropy of the sampling mixture",
    "cross-entropy": "cross-entropy of the mixture of both joint distributions, which the MIM loss bounds from above",
}
# The objectives that have no term of q(x), or in which q(x) is the marginal of the decoder by definition.
_WITHOUT_DATA_MARGINAL = ("vae", "vae-h", "a-mim")
WARM_UPS = {
    "decoding": "multiplies log p(x|z) + log p(z), as the paper says",
    "encoding": "multiplies log q(z|x) + log q(x), and decoder samples join at weight 1, as in the authors' code",
}
ENTROPIES = {
    "anchored": "of P(x) q(z|x) and P(z) p(x|z), which the samples come from, as the paper says",
    "model": "the cross-entropy of the samples relative to q(x) q(z|x) and p(z) p(x|z), as in the authors' code",
}


class _LogDensities(NamedTuple):
    """The log densities of samples (x, z), (B,) each: log p(x|z), log p(z), log q(z|x) and log q(x)."""

    likelihood: Tensor
    prior: Tensor
    posterior: Tensor
    marginal: Tensor


class MIM(LatentModel):
    """The Mutual Information Machine, trained so that encoder and decoder agree, and x and z share information.

    Let P(x) be the data distribution, P(z) the reference prior and M_S = (q(z|x) P(x) + p(x|z) P(z)) / 2, from which
    all samples come. The MIM loss is ::

        L_MIM = -1/2 E_{M_S}[log p(x|z) + log p(z) + log q(z|x) + log q(x)]

    (eq. 8) and "a-mim" (asymmetric; eq. 12) takes the expectation over q(z|x) P(x) only. "cross-entropy" is
    -E_{M_S} log((p(x, z) + q(x, z)) / 2) (eq. 7), which by Jensen's inequality is at most L_MIM. "vae-h" adds the
    entropy H_q(x, z) of P(x) q(z|x) to the negative ELBO, without the entropy of the data, which is constant; "mim-h"
    subtracts the entropy of M_S from L_MIM (appendix F.1). With a warm-up weight of 1, "vae-h" is the same loss as
    "a-mim".

    Without a ``data_marginal``, q(x) is the marginal of the decoder, estimated with one importance sample:
    ``log q(x) = log p(x|z') + log p(z') - log q(z'|x)`` (section 4.2). For encoder samples z' is z itself, for decoder
    samples it is a fresh sample of q(z|x).

    ``warm_up_weight`` multiplies the rate of "vae", the rate and the entropy of "vae-h", and the entropy of "mim-h"; in
    L_MIM and "a-mim" it multiplies what ``warm_up`` chooses. "cross-entropy" does not use it.

    The decoder and the likelihood draw and evaluate decoder samples in eval mode, so that these are evaluated under the
    distribution that they come from also with batch normalization.

    Args:
        encoder, decoder, prior, likelihood, data_shape: As for :class:`~echo_ext.models.Autoencoder`.
        channel: A channel that returns q(z|x). For continuous x it and the likelihood need a minimum variance, because
            the MIM losses are unbounded below without one.
        objective: "vae", "vae-h", "a-mim", "mim", "mim-h" or "cross-entropy", as above.
        data_marginal: An explicit q(x), a module with ``log_prob(x)`` and ``sample(n)``, which "cross-entropy"
            requires. The objectives of encoder samples only do not allow one: it would be independent of all their
            other terms (section 3.3).
        reference_prior: The fixed distribution P(z) that decoder samples start from. None means the prior, whose
            samples have no gradients to it.
        data_distribution: The known P(x), a module like data_marginal, for the anchored entropy of "mim-h".
        joint_entropy: What "vae-h" adds and "mim-h" subtracts. "anchored": the entropy of P(x) q(z|x) and P(z) p(x|z),
            which the samples come from, as the paper says. "model": the cross-entropy of the samples relative to
            q(x) q(z|x) and p(z) p(x|z), as in the authors' code, which has its full weight from the first epoch, also
            during a warm-up. Without a data_marginal both densities of encoder samples are then equal, and at a warm-up
            weight of 1 the data have no gradient in "mim-h".
        warm_up: What the warm-up weight multiplies in L_MIM and "a-mim". "decoding": log p(x|z) + log p(z), as the
            paper says. "encoding": log q(z|x) + log q(x), and decoder samples join at weight 1, as in the authors'
            code. For 20 columns and more than 12 latents, only "encoding" had clearly more information than a VAE
            (docs/results/mim-bottleneck).
        reuses_latents: Whether decoder samples estimate log q(x) by log p(x|z) of the z that they come from (appendix
            D.1), and not with a fresh sample of q(z|x) (algorithm 2).

    Raises:
        TypeError: A part is no module, or lacks a method; the error names it.
        ValueError: A part has the wrong shape, a name is unknown, or the objective lacks a part or does not allow one.

    Example:
        >>> from echo_ext.models import MIM, GaussianChannel, GaussianLikelihood, StandardNormal, mlp
        >>> channel, likelihood = GaussianChannel(min_log_variance=-6.0), GaussianLikelihood(min_log_variance=-6.0)
        >>> model = MIM(mlp(2, 32, 4), mlp(2, 32, 4), channel, prior=StandardNormal(2), likelihood=likelihood)
        >>> sorted(model.loss(torch.randn(50, 2)))
        ['decoder_half', 'distortion', 'encoder_half', 'loss', 'rate_bound']
    """

    prior: Prior

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        channel: nn.Module,
        *,
        prior: nn.Module,
        likelihood: Callable[[Tensor], Distribution] = GaussianLikelihood(),  # noqa: B008  # it is immutable
        objective: str = "mim",
        data_marginal: nn.Module | None = None,
        reference_prior: nn.Module | None = None,
        data_distribution: nn.Module | None = None,
        joint_entropy: str = "anchored",
        warm_up: str = "decoding",
        reuses_latents: bool = False,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        _checks.choice("objective", objective, OBJECTIVES)
        _checks.choice("joint_entropy", joint_entropy, ENTROPIES)
        _checks.choice("warm_up", warm_up, WARM_UPS)
        if objective == "cross-entropy" and data_marginal is None:
            raise ValueError("data_marginal must be a learned q(x) for objective 'cross-entropy', got None")
        if objective in _WITHOUT_DATA_MARGINAL and data_marginal is not None:
            raise ValueError(
                f"data_marginal must be None for objective {objective!r}, whose q(x) is the marginal of the decoder, "
                f"got {type(data_marginal).__name__}; an explicit q(x) needs decoder samples, as in objective 'mim'"
            )
        if objective == "mim-h" and joint_entropy == "anchored" and data_distribution is None:
            raise ValueError(
                "data_distribution must be the known P(x) for the anchored entropy of objective 'mim-h', got None; a "
                "recipe makes it of data_means, and joint_entropy='model' needs none"
            )
        super().__init__(encoder, decoder, channel, prior=prior, likelihood=likelihood)
        self.objective = objective
        self.data_marginal = None if data_marginal is None else as_prior("data_marginal", data_marginal)
        self.reference_prior = None if reference_prior is None else as_prior("reference_prior", reference_prior)
        self.data_distribution = None if data_distribution is None else as_prior("data_distribution", data_distribution)
        self.joint_entropy = joint_entropy
        self.warm_up = warm_up
        self.reuses_latents = reuses_latents
        self.fit_parts(data_shape)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The loss of a batch ``(B, *data_shape)`` and its terms, each 0-d and in nats per sample.

        "rate_bound" and "distortion" are those of the encoder samples, whose sum is the negative ELBO for every
        objective. Objectives with decoder samples add "encoder_half" and "decoder_half".
        """
        q = self.posterior(x)
        z = q.rsample()
        log_posterior, log_likelihood = q.log_prob(z), self.observation(z).log_prob(x)
        log_prior = self.prior.log_prob(z)
        rate_bound, distortion = (log_posterior - log_prior).mean(), -log_likelihood.mean()
        terms = {"rate_bound": rate_bound, "distortion": distortion}
        weight = self.warm_up_weight
        if self.objective in ("vae", "vae-h"):
            loss = distortion + weight * rate_bound
            if self.objective == "vae-h" and self.joint_entropy == "anchored":
                loss = loss - weight * log_posterior.mean()
            elif self.objective == "vae-h":  # q(x) q(z|x) is p(x, z), by the estimate of q(x)
                loss = loss - (log_likelihood + log_prior).mean()
            return {"loss": loss, **terms}

        if self.data_marginal is None:
            log_marginal = log_likelihood + log_prior - log_posterior
        else:
            log_marginal = self.data_marginal.log_prob(x)
        log_densities = _LogDensities(log_likelihood, log_prior, log_posterior, log_marginal)
        encoder_half = self._cost(x, z, log_densities).mean()
        if self.objective == "a-mim":
            return {"loss": encoder_half, **terms}
        likelihood = [self.likelihood] if isinstance(self.likelihood, nn.Module) else []
        with eval_mode(self.decoder, *likelihood):
            decoder_half = self._decoder_half(len(x))
        joins = weight >= 1 or self.warm_up == "decoding" or self.objective == "cross-entropy"
        loss = 0.5 * (encoder_half + (1.0 if joins else 0.0) * decoder_half)
        return {"loss": loss, **terms, "encoder_half": encoder_half, "decoder_half": decoder_half}

    def _decoder_half(self, rows: int) -> Tensor:
        """The mean cost of decoder samples."""
        z = self.sampling_prior.sample(rows)
        p = self.observation(z)
        x = p.rsample() if p.has_rsample else p.sample()
        q, log_likelihood = self.posterior(x), p.log_prob(x)
        if self.data_marginal is not None:
            log_marginal = self.data_marginal.log_prob(x)
        else:
            log_marginal = log_likelihood if self.reuses_latents else self._importance_sample(x, q)
        cost = self._cost(x, z, _LogDensities(log_likelihood, self.prior.log_prob(z), q.log_prob(z), log_marginal))
        if not p.has_rsample:
            cost = cost + score_function(cost, log_likelihood)
        return cost.mean()

    @property
    def sampling_prior(self) -> Prior:
        """The distribution P(z) of decoder samples, which is the reference prior or, without one, the prior."""
        return self.prior if self.reference_prior is None else self.reference_prior

    def _importance_sample(self, x: Tensor, q: Distribution) -> Tensor:
        """The estimate of ``log p(x)`` from one sample of z for each x, a lower bound in expectation: (B,)."""
        z = q.rsample()
        return self.observation(z).log_prob(x) + self.prior.log_prob(z) - q.log_prob(z)

    def _cost(self, x: Tensor, z: Tensor, log_densities: _LogDensities) -> Tensor:
        """The cost of samples (x, z): (B,)."""
        likelihood, prior, posterior, marginal = log_densities
        decoding, encoding = likelihood + prior, posterior + marginal
        if self.objective == "cross-entropy":
            return -_log_mixture(decoding, encoding)
        weight = self.warm_up_weight
        weighted, other = (decoding, encoding) if self.warm_up == "decoding" else (encoding, decoding)
        cost = -0.5 * (other + weight * weighted)
        if self.objective != "mim-h":
            return cost
        if self.joint_entropy == "model":
            return cost + _log_mixture(decoding, encoding)
        assert self.data_distribution is not None
        anchored = posterior + self.data_distribution.log_prob(x), likelihood + self.sampling_prior.log_prob(z)
        return cost + weight * _log_mixture(*anchored)


def _log_mixture(first: Tensor, second: Tensor) -> Tensor:
    """The log density of the mixture of two distributions with equal weights, from their log densities."""
    return log_mean_exp(torch.stack([first, second]), 0)
