"""The Mutual Information Machine (Livne, Swersky & Fleet 2019), a symmetric joint distribution of x and z."""

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
    "vae": "negative ELBO",
    "vae-h": "negative ELBO plus the entropy of the encoder",
    "a-mim": "MIM loss of encoder samples only",
    "mim": "MIM loss of encoder and decoder samples, half of each",
    "mim-h": "MIM loss minus the entropy of the encoder",
    "cross-entropy": "cross-entropy of the mixture of both joint distributions, which the MIM loss bounds from above",
}


def joint_losses(
    objective: str, model: JointModel, x: Tensor, *, marginal: Marginal | None = None
) -> dict[str, Tensor]:
    """The loss of a batch (B, *data_shape) and its terms, each 0-d and in nats per sample.

    Let P(x) be the data distribution, P(z) the anchor and M_S = (q(z|x) P(x) + p(x|z) P(z)) / 2. The MIM loss is

        L_MIM = -1/2 E_{M_S}[log p(x|z) + log p(z) + log q(z|x) + log q(x)]

    and "a-mim" (asymmetric) takes the expectation over q(z|x) P(x) only. "cross-entropy" is
    -E_{M_S} log((p(x, z) + q(x, z)) / 2), which by Jensen's inequality is at most L_MIM. The entropy of the encoder in
    "vae-h" and "mim-h" is that of q(z|x); it leaves out the entropy of the data, which is constant.

    If no ``marginal`` is given, q(x) is the marginal of the decoder, estimated with one importance sample:
    log q(x) = log p(x|z') + log p(z') - log q(z'|x). For encoder samples z' is z itself, for decoder samples it is a
    fresh sample of q(z|x).

    ``model.warm_up_weight`` multiplies the rate of "vae". In the other objectives it multiplies log q(z|x) + log q(x),
    the loss of the decoder samples, and the entropy. "cross-entropy" does not use it.

    Args:
        objective: One of :data:`OBJECTIVES`.
        model: The model with the encoder, the decoder and the prior.
        x: A batch of data, (B, *data_shape).
        marginal: A learned q(x), which "cross-entropy" requires; None for the marginal of the decoder.

    Returns:
        The "loss", and the "rate_bound" and "distortion" of the encoder samples, whose sum is the negative ELBO for
        every objective. Objectives with decoder samples add "encoder_half" and "decoder_half".
    """
    posterior = model.infer(x)
    z = posterior.draw()
    log_posterior, log_decoding = posterior.log_prob(z), model.log_likelihood(x, z)
    log_prior = model.log_prior(z)
    rate_bound, distortion = (log_posterior - log_prior).mean(), -log_decoding.mean()
    terms = {"rate_bound": rate_bound, "distortion": distortion}
    warm_up_weight = model.warm_up_weight
    if objective == "vae":
        return {"loss": distortion + warm_up_weight * rate_bound, **terms}
    entropy = -log_posterior.mean()
    if objective == "vae-h":
        return {"loss": distortion + warm_up_weight * (rate_bound + entropy), **terms}

    combine = _mixture_cross_entropy if objective == "cross-entropy" else _mean_cross_entropy
    log_decoding = log_decoding + log_prior
    log_marginal = log_decoding - log_posterior if marginal is None else marginal.log_prob(x)
    encoder_half = combine(log_decoding, log_posterior + log_marginal, warm_up_weight).mean()
    if objective == "a-mim":
        return {"loss": encoder_half, **terms}

    with model.decoding():
        z = model.draw_anchor(len(x))
        x, differentiable = model.draw_data(z)
        posterior = model.infer(x)
        log_likelihood = model.log_likelihood(x, z)
        log_marginal = _importance_sample(model, x, posterior) if marginal is None else marginal.log_prob(x)
        cost = combine(log_likelihood + model.log_prior(z), posterior.log_prob(z) + log_marginal, warm_up_weight)
        if not differentiable:
            cost = cost + score_function(cost, log_likelihood)
    decoder_half = cost.mean()
    loss = 0.5 * (encoder_half + (1.0 if objective == "cross-entropy" else warm_up_weight) * decoder_half)
    if objective == "mim-h":
        loss = loss - warm_up_weight * entropy
    return {"loss": loss, **terms, "encoder_half": encoder_half, "decoder_half": decoder_half}


def _importance_sample(model: JointModel, x: Tensor, posterior: Posterior) -> Tensor:
    """The estimate of ``log p(x)`` from one sample of z for each x, a lower bound in expectation: (B,)."""
    z = posterior.draw()
    return model.log_likelihood(x, z) + model.log_prior(z) - posterior.log_prob(z)


def _mean_cross_entropy(log_decoding: Tensor, log_encoding: Tensor, warm_up_weight: float) -> Tensor:
    return -0.5 * (log_decoding + warm_up_weight * log_encoding)


def _mixture_cross_entropy(log_decoding: Tensor, log_encoding: Tensor, warm_up_weight: float) -> Tensor:
    return math.log(2) - torch.logaddexp(log_decoding, log_encoding)


class MIM(GaussianJointModel):
    """A Gaussian encoder and a decoder, trained so that their joint distributions agree and x and z share information.

    The defaults are those of the two-dimensional toy experiment of the paper. Its one-dimensional experiments have an
    anchor P(z), learn both marginals (``prior="mixture", marginal="mixture"``), and compare "mim" with
    "cross-entropy".

    Args:
        data_shape: Shape of one x.
        latent_dim: Number of dimensions of z.
        objective: One of :data:`OBJECTIVES`.
        prior: The distribution p(z), "standard-normal" or "mixture".
        marginal: The distribution q(x): "importance" for the marginal of the decoder, estimated with one importance
            sample, or "mixture" for a learned mixture.
        components: Number of components of the mixtures p(z) and q(x).
        anchor: Means (components, latent_dim) of a fixed mixture P(z) that decoder samples start from. None means the
            prior, without gradients to its parameters.
        anchor_std: Standard deviation of all components of the anchor.
        likelihood: "bernoulli", "categorical" or "gaussian". None means "bernoulli" for images and "gaussian" for
            vectors.
        architecture: One of :data:`~echo_ext.models.networks.ARCHITECTURES`.
        hidden: Widths of the hidden layers of the encoder, if it is an MLP; the decoder has them in reverse order.
        activation: One of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        min_log_variance: Minimum of the log variances of the encoder and of a Gaussian decoder. The MIM losses are
            unbounded below without a minimum, because x and z can come to determine each other. The default
            corresponds to a standard deviation of 1e-6.

    Attributes:
        anchor: The distribution P(z), or None.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A name is unknown, a value is out of range, or "cross-entropy" is chosen without a learned q(x).
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
        anchor_std: float = 0.25,
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
                raise ValueError(
                    f"anchor must be a sequence of means with {latent_dim} numbers each, one per latent, got {anchor}"
                )
            self.anchor = GaussianMixture.fixed(means, _checks.number("anchor_std", anchor_std, above=0))
        self.marginal = None
        if marginal == "mixture":
            if len(self.data_shape) != 1:
                raise ValueError(f"data_shape must be (columns,) for marginal 'mixture', got {self.data_shape}")
            self.marginal = GaussianMixture(self.data_shape[0], components)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The loss and the terms of :func:`joint_losses`, each 0-d and in nats per sample."""
        return joint_losses(self.objective, self, x, marginal=self.marginal)

    def draw_anchor(self, n: int) -> Tensor:
        """``n`` samples of the anchor P(z): (n, latent_dim)."""
        if self.anchor is None:
            return super().draw_anchor(n)
        with torch.no_grad():
            return self.anchor.sample(n)
