"""The recipe of the Mutual Autoencoder."""

from __future__ import annotations

from typing import Any

from echo_ext import _checks
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianChannel
from echo_ext.models.mutual_autoencoder import MutualAutoencoder
from echo_ext.models.priors import StandardNormal
from echo_ext.models.recipes.composition import NETWORKS, encoder_network, networks
from echo_ext.models.recipes.registry import CONSTANT_RATE, recipe

__all__: list[str] = []

LAYERS: dict[str, Any] = {**NETWORKS, "architecture": "mlp", "hidden": (100,), "initialization": "torch"}
PRESCRIBED: dict[str, Any] = {
    **{"information": 1.0, "penalty": 1.0, "inverse": "separate", "draws": None},
    "min_log_variance": -10.0,
}


@recipe(
    "mutual-ae",
    "Mutual Autoencoder, a VAE with a prescribed I(x; z) of information=M nats",
    latent_dim=1,
    run=CONSTANT_RATE,
    **LAYERS,
    **PRESCRIBED,
)
def mutual_ae(s: Any) -> Model:
    """Mutual Autoencoder (Phuong et al. 2018), whose r(z|x) is a "separate" network or "tied" to the encoder."""
    _checks.choice("inverse", s.inverse, ("tied", "separate"))
    return MutualAutoencoder(
        **networks(s, s.min_log_variance),
        channel=GaussianChannel(s.min_log_variance),
        prior=StandardNormal(s.latent_dim),
        information=s.information,
        penalty=s.penalty,
        inverse=encoder_network(s) if s.inverse == "separate" else None,
        draws=s.draws,
    )
