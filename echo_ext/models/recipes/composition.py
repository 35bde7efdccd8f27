"""What the recipes share: settings with their defaults, and the parts that these describe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from echo_ext import _checks
from echo_ext.models.likelihoods import find_likelihood
from echo_ext.models.networks import architecture_for, make_decoder, make_encoder
from echo_ext.models.objectives import LearnedWeight
from echo_ext.models.priors import VampPrior
from echo_ext.models.regularizers import MMDRegularizer, TotalCorrelationRegularizer

__all__ = [
    "AUTOENCODER",
    "DISCRIMINATOR",
    "FLOW",
    "FOLLOW_BATCH",
    "NETWORKS",
    "WEIGHTED",
    "architecture",
    "encoder_network",
    "layers",
    "mmd_penalty",
    "networks",
    "rate_weight",
    "tc_penalty",
    "vamp_prior",
]


# Groups of settings that recipes share, with their defaults.
NETWORKS: dict[str, Any] = {
    "likelihood": None,  # one of likelihoods.LIKELIHOODS; None means "bernoulli" for images and "gaussian" for vectors
    "likelihood_std": 1.0,  # the standard deviation of likelihood "mse"
    "likelihood_components": 10,  # the number of Gaussians for each value of likelihood "mixture"
    "architecture": None,  # one of networks.ARCHITECTURES; None means the convolutions for this image size, or "mlp"
    "hidden": None,  # widths of the hidden layers of an MLP encoder; the decoder has them in reverse order
    "activation": "relu",  # one of networks.ACTIVATIONS
    "initialization": "glorot",  # one of networks.INITIALIZATIONS
}
WEIGHTED: dict[str, Any] = {**NETWORKS, "beta": 1.0}  # beta is the weight of the rate
AUTOENCODER: dict[str, Any] = {**WEIGHTED, "target_rate": None, "target_distortion": None}  # in nats; beta is learned
FLOW: dict[str, Any] = {"flow_steps": 4, "flow_hidden": (640, 640, 640)}
DISCRIMINATOR: dict[str, Any] = {"tc_weight": 20.0, "discriminator_width": 1000}
# Settings whose value, if they are None, is the number of rows with which a row shares its batch.
FOLLOW_BATCH = ("num_terms", "min_other_rows")


def networks(s: Any, min_log_variance: float = -math.inf) -> dict[str, Any]:
    """The encoder, with two outputs for each latent, the decoder, the likelihood and the shape of the data."""
    likelihood = find_likelihood(
        s.likelihood,
        s.shape,
        min_log_variance=min_log_variance,
        std=s.likelihood_std,
        components=s.likelihood_components,
    )
    encoder, outputs = encoder_network(s), likelihood.parameters_per_value
    decoder = make_decoder(architecture(s), s.shape, s.latent_dim, outputs=outputs, **layers(s))
    return {"encoder": encoder, "decoder": decoder, "likelihood": likelihood, "data_shape": s.shape}


def encoder_network(s: Any, outputs: int | None = None) -> nn.Module:
    """An encoder with this many outputs, or two for each latent."""
    return make_encoder(architecture(s), s.shape, 2 * s.latent_dim if outputs is None else outputs, **layers(s))


def layers(s: Any) -> dict[str, Any]:
    """The settings of the layers of both networks."""
    return {"hidden": s.hidden, "activation": s.activation, "initialization": s.initialization}


def architecture(s: Any) -> str:
    """The given architecture, or that for this image size."""
    return s.architecture or architecture_for(s.shape)


def rate_weight(s: Any) -> float | LearnedWeight:
    """The weight of the rate, beta, or one that is learned so that the rate or the distortion meets a target."""
    if s.target_rate is None and s.target_distortion is None:
        return s.beta
    if s.beta != 1:
        raise ValueError(f"beta must be 1, since a target determines the weight of the rate, got {s.beta}")
    return LearnedWeight(target_rate=s.target_rate, target_distortion=s.target_distortion)


def vamp_prior(s: Any, encoder: nn.Module, channel: nn.Module) -> VampPrior:
    """A VampPrior, whose pseudo-inputs have the range of pixels if the data are images."""
    limits = (0.0, 1.0) if len(s.shape) == 3 else None
    return VampPrior(encoder, channel, s.shape, s.pseudo_inputs, limits=limits)


def tc_penalty(s: Any, units: Callable[[Tensor], Tensor] | None = None) -> TotalCorrelationRegularizer:
    """The penalty on the total correlation of z."""
    weight = _checks.number("tc_weight", s.tc_weight, minimum=0)
    return TotalCorrelationRegularizer(s.latent_dim, weight, s.discriminator_width, units)


def mmd_penalty(s: Any) -> MMDRegularizer:
    """The penalty on the MMD between z and N(0, I)."""
    return MMDRegularizer(_checks.number("mmd_weight", s.mmd_weight, minimum=0))
