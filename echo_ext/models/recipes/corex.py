"""Recipes of CorEx: sampling from the marginals of the codes, cheaper latents, and more layers."""

from __future__ import annotations

from typing import Any

from echo_ext import _checks
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianChannel
from echo_ext.models.networks import mlp
from echo_ext.models.priors import AggregatePosterior, Prior, StandardNormal
from echo_ext.models.recipes.composition import WEIGHTED, networks
from echo_ext.models.recipes.registry import CONSTANT_RATE, recipe, variant
from echo_ext.models.stacked_corex import CategoricalLayer, GaussianLayer, StackedCorEx

__all__: list[str] = []

COREX: dict[str, Any] = {"cheap_latents": 0, "cheap_weight": 0.5, "aggregate_rows": 1024}


@recipe("corex", "VAE sampled from the product of the marginals q(z_j) of its codes", **WEIGHTED, **COREX)
def corex(s: Any) -> Model:
    """CorEx and AnchorVAE (Gao et al. 2019), where the first ``cheap_latents`` have a smaller weight of their rate."""
    cheap = _checks.whole("cheap_latents", s.cheap_latents, minimum=0, maximum=s.latent_dim)
    weight = _checks.number("cheap_weight", s.cheap_weight, minimum=0, maximum=1)
    beta = _checks.number("beta", s.beta, minimum=0)
    betas = [weight * beta] * cheap + [beta] * (s.latent_dim - cheap)
    parts, prior = networks(s), StandardNormal(s.latent_dim)
    aggregate = AggregatePosterior(s.latent_dim, _checks.row_count("aggregate_rows", s.aggregate_rows, minimum=1))
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=betas, aggregate=aggregate)


variant("anchor-vae", "corex with half the rate weight on five latents", of="corex", cheap_latents=5)


STACK: dict[str, Any] = {
    "layers": (10,),  # widths of the layers above z, from the lowest to the top
    "top": "categorical",  # or "gaussian", with an N(0, I) prior
    "upper_hidden": (32, 32, 16, 16),  # widths of the hidden layers of each encoder above z; decoders reverse them
    "initial_lower_weight": 1.0,  # of the lower rates, at the start of a warm-up
    "layerwise_steps": 1000,  # steps of each layer on the codes of that below, before all are trained together
}


@recipe(
    "stacked-corex",
    "VAE with more layers above z, by default one of ten states",
    latent_dim=64,
    run=CONSTANT_RATE,
    **{**WEIGHTED, **STACK, "architecture": "mlp"},
)
def stacked_corex(s: Any) -> Model:
    """Stacked CorEx (Gao et al. 2019): 784-512-512-64 layers, and 64-32-32-16-16-10 above them."""
    _checks.choice("top", s.top, ("categorical", "gaussian"))
    widths = [s.latent_dim, *_checks.widths("layers", s.layers)]
    parts = networks(s)
    prior: Prior = StandardNormal(widths[-1])
    for level in range(len(widths) - 1, 0, -1):
        below, width = widths[level - 1 : level + 1]
        is_categorical = level == len(widths) - 1 and s.top == "categorical"
        up = mlp(below, *s.upper_hidden, width if is_categorical else 2 * width, activation=s.activation)
        down = mlp(width, *reversed(s.upper_hidden), 2 * below, activation=s.activation)
        prior = CategoricalLayer(up, down, width) if is_categorical else GaussianLayer(up, down, prior)
    start = {"initial_lower_weight": s.initial_lower_weight, "layerwise_steps": s.layerwise_steps}
    return StackedCorEx(**parts, channel=GaussianChannel(), prior=prior, beta=s.beta, **start)
