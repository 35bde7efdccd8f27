"""The Mutual Information Machine (Livne, Swersky & Fleet 2019): encoding and decoding as one symmetric joint law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.models.joint import GaussianJointModel, JointModel, Posterior, score_function
from echo_ext.models.marginals import GaussianMixture, Marginal, StandardNormal

__all__ = ["MIM", "OBJECTIVES", "joint_losses"]

OBJECTIVES = {
    "vae": "minus the ELBO",
    "vae-h": "minus the ELBO plus the entropy of the encoding",
    "a-mim": "MIM on encoder samples only",
    "mim": "MIM on encoder and decoder samples, half of each",
    "mim-h": "MIM minus the entropy of the encoding",
    "cross-entropy": "of the samples from the mean of both joint laws, which MIM bounds from above",
}


def joint_losses(
    objective: str, model: JointModel, x: Tensor, *, marginal: Marginal | None = None
) -> dict[str, Tensor]:
    """What to minimise on a batch (B, *data_shape), and what it is made of; 0-d, in nats per sample.

    With P(x) the data, P(z) the anchor and M_S = (q(z|x) P(x) + p(x|z) P(z)) / 2,

        L_MIM = -1/2 E_{M_S}[log p(x|z) + log p(z) + log q(z|x) + log q(x)]

    "a-mim" (asymmetric) takes the encoder's half of M_S alone. Where q(x) is not a law of its own it is that of the
    decoder, by one importance sample: log q(x) = log p(x|z') + log p(z') - log q(z'|x), z' = z on the encoder's half
    and fresh on the decoder's. "cross-entropy" is -E_{M_S} log((p(x, z) + q(x, z)) / 2),
    no more than L_MIM by Jensen's inequality, and takes a q(x) of its own. The entropy H_q(x, z) of the encoding is
    counted without the data's own, which is constant.

    ``model.warmth`` weighs the rate of "vae", and else the second pair of log densities, the decoder's half and the
    added entropy; it is nothing to "cross-entropy".

    Returns:
        "loss"; "rate_bound" and "distortion" of the encoder's half, whose sum is the -ELBO under every objective; with
        decoder samples the "encoder_half" and "decoder_half" too.
    """
    law = model.infer(x)
    z = law.draw()
    log_posterior, log_decoding = law.log_prob(z), model.log_likelihood(x, z)
    log_prior = model.log_prior(z)
    rate_bound, distortion = (log_posterior - log_prior).mean(), -log_decoding.mean()
    made_of = {"rate_bound": rate_bound, "distortion": distortion}
    warmth = model.warmth
    if objective == "vae":
        return {"loss": distortion + warmth * rate_bound, **made_of}
    entropy = -log_posterior.mean()
    if objective == "vae-h":
        return {"loss": distortion + warmth * (rate_bound + entropy), **made_of}

    combine = _mixture_cross_entropy if objective == "cross-entropy" else _mean_cross_entropy
    log_decoding = log_decoding + log_prior
    log_marginal = log_decoding - log_posterior if marginal is None else marginal.log_prob(x)
    encoder_half = combine(log_decoding, log_posterior + log_marginal, warmth).mean()
    if objective == "a-mim":
        return {"loss": encoder_half, **made_of}

    with model.decoding():
        z = model.draw_anchor(len(x))
        x, differentiable = model.draw_data(z)
        law = model.infer(x)
        log_likelihood = model.log_likelihood(x, z)
        log_marginal = _importance_sample(model, x, law) if marginal is None else marginal.log_prob(x)
        cost = combine(log_likelihood + model.log_prior(z), law.log_prob(z) + log_marginal, warmth)
        if not differentiable:
            cost = cost + score_function(cost, log_likelihood)
    decoder_half = cost.mean()
    loss = 0.5 * (encoder_half + (1.0 if objective == "cross-entropy" else warmth) * decoder_half)
    if objective == "mim-h":
        loss = loss - warmth * entropy
    return {"loss": loss, **made_of, "encoder_half": encoder_half, "decoder_half": decoder_half}


def _importance_sample(model: JointModel, x: Tensor, law: Posterior) -> Tensor:
    """``log p(x)``, estimated from below by one z of each x: (B,)."""
    z = law.draw()
    return model.log_likelihood(x, z) + model.log_prior(z) - law.log_prob(z)


def _mean_cross_entropy(log_decoding: Tensor, log_encoding: Tensor, warmth: float) -> Tensor:
    return -0.5 * (log_decoding + warmth * log_encoding)


def _mixture_cross_entropy(log_decoding: Tensor, log_encoding: Tensor, warmth: float) -> Tensor:
    return math.log(2) - torch.logaddexp(log_decoding, log_encoding)


class MIM(GaussianJointModel):
    """An encoder and a decoder of one shape, trained so that both joint laws agree and inform.

    The defaults are the paper's two-dimensional toy. For its experiments in one dimension give an anchor P(z), learned
    laws as ``prior="mixture", marginal="mixture"``, and compare "mim" with "cross-entropy".

    Args:
        data_shape: shape of one x.
        latent_dim: dimensions of z.
        objective: of :data:`OBJECTIVES`.
        prior: p(z), "standard-normal" or "mixture".
        marginal: q(x), "importance" for the decoder's by one importance sample, or "mixture".
        components: of either mixture.
        anchor: the means (components, latent_dim) of a fixed mixture P(z) that decoder samples start from; None for
            the prior as it stands.
        anchor_deviation: the standard deviation of all its components.
        likelihood: "bernoulli", "categorical" or "gaussian"; None for Bernoulli pixels and Gaussian columns.
        architecture: of :data:`~echo_ext.models.networks.ARCHITECTURES`.
        hidden: widths of an MLP's hidden layers, in the encoder's order.
        activation: of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        min_log_variance: the least log variance of encoder and decoder; where x and z can determine each other, the
            MIM losses have no minimum without one. The default is a standard deviation of 1e-6.

    Attributes:
        anchor: the law P(z), or None.

    Raises:
        ValueError: an unknown name, a value out of range, or "cross-entropy" without a law of x.
    """

    anchor: Marginal | None
    marginal: Marginal | None

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 2,
        *,
        objective: str = "mim",
        prior: str = "standard-normal",
        marginal: str = "importance",
        components: int = 10,
        anchor: Sequence[Sequence[float]] | None = None,
        anchor_deviation: float = 0.25,
        likelihood: str | None = None,
        architecture: str = "mlp",
        hidden: Sequence[int] | None = (500, 500),
        activation: str = "tanh",
        min_log_variance: float = -27.6,
    ) -> None:
        _checks.choice("objective", objective, OBJECTIVES)
        _checks.choice("prior", prior, ("standard-normal", "mixture"))
        _checks.choice("marginal", marginal, ("importance", "mixture"))
        if objective == "cross-entropy" and marginal == "importance":
            raise ValueError("marginal must be 'mixture' for objective 'cross-entropy', got 'importance'")
        super().__init__(
            data_shape,
            latent_dim,
            prior=GaussianMixture(latent_dim, components) if prior == "mixture" else StandardNormal(latent_dim),
            likelihood=likelihood,
            architecture=architecture,
            hidden=hidden,
            activation=activation,
            min_log_variance=min_log_variance,
        )
        self.objective = objective
        self.anchor = None
        if anchor is not None:
            means = torch.tensor(anchor, dtype=torch.get_default_dtype())
            if means.ndim != 2 or means.shape[1] != latent_dim:
                raise ValueError(f"anchor must be rows of {latent_dim} numbers, one for each latent, got {anchor}")
            if not anchor_deviation > 0:
                raise ValueError(f"anchor_deviation must be above 0, got {anchor_deviation}")
            self.anchor = GaussianMixture.fixed(means, anchor_deviation)
        self.marginal = None
        if marginal == "mixture":
            if len(self.data_shape) != 1:
                raise ValueError(f"marginal 'mixture' takes x of shape (columns,), but data_shape is {self.data_shape}")
            self.marginal = GaussianMixture(self.data_shape[0], components)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """As :func:`joint_losses` has it; 0-d, nats per sample."""
        return joint_losses(self.objective, self, x, marginal=self.marginal)

    def draw_anchor(self, n: int) -> Tensor:
        """``n`` draws of the anchor P(z): (n, latent_dim)."""
        if self.anchor is None:
            return super().draw_anchor(n)
        with torch.no_grad():
            return self.anchor.sample(n)
