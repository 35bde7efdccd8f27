"""The Mutual Information Machine (Livne, Swersky & Fleet 2019), a symmetric joint distribution of x and z."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from echo_ext import _checks
from echo_ext.models.base import LatentModel, eval_mode
from echo_ext.models.likelihoods import GaussianLikelihood
from echo_ext.models.objectives import score_function
from echo_ext.models.priors import Prior, as_prior

__all__ = ["MIM", "OBJECTIVES"]

OBJECTIVES = {
    "vae": "negative ELBO",
    "vae-h": "negative ELBO plus the entropy of the encoder",
    "a-mim": "MIM loss of encoder samples only",
    "mim": "MIM loss of encoder and decoder samples, half of each",
    "mim-h": "MIM loss minus the entropy of the encoder",
    "cross-entropy": "cross-entropy of the mixture of both joint distributions, which the MIM loss bounds from above",
}


class MIM(LatentModel):
    """An encoder and a decoder, trained so that their joint distributions agree and x and z share information.

    Let P(x) be the data distribution, P(z) the reference prior and M_S = (q(z|x) P(x) + p(x|z) P(z)) / 2. The MIM loss
    is

        L_MIM = -1/2 E_{M_S}[log p(x|z) + log p(z) + log q(z|x) + log q(x)]

    and "a-mim" (asymmetric) takes the expectation over q(z|x) P(x) only. "cross-entropy" is
    -E_{M_S} log((p(x, z) + q(x, z)) / 2), which by Jensen's inequality is at most L_MIM. The entropy of the encoder in
    "vae-h" and "mim-h" is that of q(z|x); it leaves out the entropy of the data, which is constant.

    Without a ``data_marginal``, q(x) is the marginal of the decoder, estimated with one importance sample:
    log q(x) = log p(x|z') + log p(z') - log q(z'|x). For encoder samples z' is z itself, for decoder samples it is a
    fresh sample of q(z|x).

    ``warm_up_weight`` multiplies the rate of "vae". In the other objectives it multiplies log q(z|x) + log q(x), the
    loss of the decoder samples, and the entropy. "cross-entropy" does not use it.

    The decoder and the likelihood draw and evaluate decoder samples in eval mode, so that these are evaluated under the
    distribution that they come from also with batch normalization.

    Args:
        encoder, decoder, prior, likelihood, data_shape: As for :class:`~echo_ext.models.Autoencoder`.
        channel: A channel that returns q(z|x). For continuous x it and the likelihood need a minimum variance, because
            the MIM losses are unbounded below without one.
        objective: One of :data:`OBJECTIVES`.
        data_marginal: A learned q(x), a module with ``log_prob(x)``, which "cross-entropy" requires.
        reference_prior: The fixed distribution P(z) that decoder samples start from. None means the prior, whose
            samples have no gradients to it.

    Raises:
        TypeError: A part is no module, or lacks a method; the error names it.
        ValueError: A part has the wrong shape, a name is unknown, or "cross-entropy" is chosen without a learned q(x).

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
        data_shape: Sequence[int] | None = None,
    ) -> None:
        _checks.choice("objective", objective, OBJECTIVES)
        if objective == "cross-entropy" and data_marginal is None:
            raise ValueError("data_marginal must be a learned q(x) for objective 'cross-entropy', got None")
        super().__init__(encoder, decoder, channel, prior=prior, likelihood=likelihood)
        self.objective = objective
        self.data_marginal = None if data_marginal is None else as_prior("data_marginal", data_marginal)
        self.reference_prior = None if reference_prior is None else as_prior("reference_prior", reference_prior)
        self.fit_parts(data_shape)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The loss of a batch (B, *data_shape) and its terms, each 0-d and in nats per sample.

        "rate_bound" and "distortion" are those of the encoder samples, whose sum is the negative ELBO for every
        objective. Objectives with decoder samples add "encoder_half" and "decoder_half".
        """
        q = self.posterior(x)
        z = q.rsample()
        log_posterior, log_decoding = q.log_prob(z), self.observation(z).log_prob(x)
        log_prior = self.prior.log_prob(z)
        rate_bound, distortion = (log_posterior - log_prior).mean(), -log_decoding.mean()
        terms = {"rate_bound": rate_bound, "distortion": distortion}
        weight, entropy = self.warm_up_weight, -log_posterior.mean()
        if self.objective == "vae":
            return {"loss": distortion + weight * rate_bound, **terms}
        if self.objective == "vae-h":
            return {"loss": distortion + weight * (rate_bound + entropy), **terms}

        log_decoding = log_decoding + log_prior
        marginal = log_decoding - log_posterior if self.data_marginal is None else self.data_marginal.log_prob(x)
        encoder_half = self._cost(log_decoding, log_posterior + marginal).mean()
        if self.objective == "a-mim":
            return {"loss": encoder_half, **terms}
        likelihood = [self.likelihood] if isinstance(self.likelihood, nn.Module) else []
        with eval_mode(self.decoder, *likelihood):
            decoder_half = self._decoder_half(len(x))
        loss = 0.5 * (encoder_half + (1.0 if self.objective == "cross-entropy" else weight) * decoder_half)
        if self.objective == "mim-h":
            loss = loss - weight * entropy
        return {"loss": loss, **terms, "encoder_half": encoder_half, "decoder_half": decoder_half}

    def _decoder_half(self, rows: int) -> Tensor:
        """The mean cost of decoder samples."""
        z = (self.prior if self.reference_prior is None else self.reference_prior).sample(rows)
        p = self.observation(z)
        x = p.rsample() if p.has_rsample else p.sample()
        q, log_likelihood = self.posterior(x), p.log_prob(x)
        marginal = self._importance_sample(x, q) if self.data_marginal is None else self.data_marginal.log_prob(x)
        cost = self._cost(log_likelihood + self.prior.log_prob(z), q.log_prob(z) + marginal)
        if not p.has_rsample:
            cost = cost + score_function(cost, log_likelihood)
        return cost.mean()

    def _importance_sample(self, x: Tensor, q: Distribution) -> Tensor:
        """The estimate of ``log p(x)`` from one sample of z for each x, a lower bound in expectation: (B,)."""
        z = q.rsample()
        return self.observation(z).log_prob(x) + self.prior.log_prob(z) - q.log_prob(z)

    def _cost(self, log_decoding: Tensor, log_encoding: Tensor) -> Tensor:
        """The cost of samples with these log densities of both joint distributions: (B,)."""
        if self.objective == "cross-entropy":
            return math.log(2) - torch.logaddexp(log_decoding, log_encoding)
        return -0.5 * (log_decoding + self.warm_up_weight * log_encoding)
