"""Recipes: a name for a composition of parts with its hyper-parameters, as the papers fix them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from echo_ext import _checks
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model
from echo_ext.models.hierarchical import ConvHVAE, PixelHVAE
from echo_ext.models.mim import MIM
from echo_ext.models.mutual_autoencoder import MutualAutoencoder
from echo_ext.models.networks import architecture_for
from echo_ext.models.stacked_corex import StackedCorEx

__all__ = ["RECIPES", "Recipe", "Training", "build", "find", "recipes"]


@dataclasses.dataclass(frozen=True)
class Training:
    """How a recipe is trained where the user does not say otherwise."""

    learning_rate: float = 3e-4
    batch_size: int = 100
    epochs: int = 200
    schedule: str = "constant-then-linear"  # to 0 over the second half; or "constant"
    warm_up_epochs: int = 0  # over which Model.warmth rises from 0 to 1
    patience: int | None = None  # epochs without a better validation loss after which to stop
    normalise_gradients: bool = False  # each tensor's gradient to norm 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One line for people, the model's class, and the arguments of its constructor that make the recipe."""

    summary: str
    model: type[Model]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Training = Training()
    latent_dim: int = 32  # the paper's, where nobody says otherwise

    def training_for(self, data_shape: Sequence[int]) -> Training:
        """How to train on data of this shape: images of 64 x 64 as the Echo paper trains on dSprites."""
        if architecture_for(data_shape) != "conv64":
            return self.training
        return dataclasses.replace(self.training, learning_rate=1e-4, batch_size=64)


RECIPES: dict[str, Recipe] = {}


def recipes() -> dict[str, str]:
    """What :func:`build` knows: each name with one line on what it is."""
    return {name: recipe.summary for name, recipe in RECIPES.items()}


def find(name: str) -> Recipe:
    """The recipe of this name, or a ValueError that lists the nearest names."""
    if name not in RECIPES:
        raise _checks.unknown("recipe", name, sorted(RECIPES))
    return RECIPES[name]


def build(recipe: str, data_shape: Sequence[int], *, latent_dim: int = 32, **overrides: Any) -> Model:
    """Compose a model.

    Args:
        recipe: one of :func:`recipes`.
        data_shape: shape of one x: (channels, height, width) of an image, (columns,) of a vector.
        latent_dim: dimensions of z.
        overrides: arguments of the model's constructor other than what the recipe says, such as ``beta=0.5``.

    Raises:
        ValueError: an unknown recipe, an argument that its model does not have, or a value out of range.
    """
    chosen = find(recipe)
    known = [
        name
        for name, parameter in inspect.signature(chosen.model).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"recipe {recipe!r} has no argument {unknown[0]!r}; it has {', '.join(known)}")
    return chosen.model(data_shape, latent_dim, **{**chosen.settings, **overrides})


def _register(name: str, summary: str, **settings: Any) -> None:
    RECIPES[name] = Recipe(summary, Autoencoder, settings)


_register("echo", "Echo noise: an exact rate, and no prior to choose", channel="echo")
_register("vae", "Gaussian channel and N(0, I) prior: the variational autoencoder")
_register("beta-vae", "the VAE with a dearer rate, beta = 4", beta=4.0)
_register("infovae", "the VAE with an MMD between z and N(0, I)", mmd_weight=999.0)
_register("vae-maf", "the VAE with an autoregressive flow as its prior", marginal="maf")
_register("vae-vamp", "the VAE with a VampPrior, a mixture of encoded pseudo-inputs", marginal="vamp")
_register("iaf-prior", "inverse autoregressive channel and N(0, I) prior", channel="iaf")
_register("iaf-mmd", "iaf-prior with an MMD between z and N(0, I)", channel="iaf", mmd_weight=999.0)
_register("iaf-maf", "inverse autoregressive channel and flow prior", channel="iaf", marginal="maf")
_register("iaf-vamp", "inverse autoregressive channel and VampPrior", channel="iaf", marginal="vamp")
_register("factor-vae", "the VAE with a penalty on the total correlation of z", tc_weight=20.0)
_register("echo-tc", "Echo with a penalty on the total correlation of z", channel="echo", tc_weight=20.0)
_register("corex", "the VAE as correlation explanation: sampled latent by latent from q(z_j)", sample_from="aggregate")
_register("anchor-vae", "corex with half the price on five latents", sample_from="aggregate", anchored=5)

RECIPES["stacked-corex"] = Recipe(
    "two stochastic layers, the upper one a choice of ten",
    StackedCorEx,
    training=Training(learning_rate=1e-3, schedule="constant", warm_up_epochs=6),
    latent_dim=64,
)
RECIPES["mutual-ae"] = Recipe(
    "the VAE held to an information of M nats, information=M",
    MutualAutoencoder,
    training=Training(learning_rate=1e-3, schedule="constant"),
    latent_dim=1,
)

for _objective, _summary in {
    "mim": "MIM: both joint laws symmetric and informative, half of the samples from either",
    "a-mim": "MIM from encoder samples alone",
    "mim-h": "MIM less the entropy of the encoding",
    "vae-h": "the VAE plus the entropy of the encoding",
}.items():
    RECIPES[_objective] = Recipe(
        _summary,
        MIM,
        {"objective": _objective},
        Training(learning_rate=1e-3, batch_size=128, epochs=50, schedule="constant", warm_up_epochs=10),
        latent_dim=2,
    )

_two_level: dict[str, type[Model]] = {"convhvae": ConvHVAE, "pixelhvae": PixelHVAE}
for _decoder, _model in _two_level.items():
    for _short, _prior in {"s": "standard-normal", "vp": "vamp"}.items():
        for _objective in ("vae", "a-mim", "mim"):
            RECIPES[f"{_decoder}-{_short}-{_objective}"] = Recipe(
                f"two levels of z, {_prior} prior, "
                f"{'convolutional' if _model is ConvHVAE else 'pixel-by-pixel'} decoder, by {_objective.upper()}",
                _model,
                {"objective": _objective, "prior": _prior},
                Training(5e-4, 100, 2000, "constant", warm_up_epochs=100, patience=50, normalise_gradients=True),
                latent_dim=80,
            )
