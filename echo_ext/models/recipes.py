"""Recipes: names for the models of the papers, with their hyperparameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from echo_ext import _checks
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model
from echo_ext.models.hierarchical import ConvHVAE, PixelHVAE
from echo_ext.models.mim import MIM
from echo_ext.models.mutual_autoencoder import MutualAutoencoder
from echo_ext.models.networks import architecture_for
from echo_ext.models.stacked_corex import StackedCorEx

__all__ = ["RECIPES", "Recipe", "build", "find", "recipes"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named model: a one-line summary, the function that makes the model, and how it is trained.

    Args:
        summary: One line about the model.
        make: Called as ``make(data_shape, latent_dim, **model_settings)``.
        train_settings: The settings of a :class:`~echo_ext.training.Configuration` that differ from its defaults.
        latent_dim: The default number of dimensions of z, as in the paper of the recipe.
    """

    summary: str
    make: Callable[..., Model]
    train_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latent_dim: int = 32

    def settings_for(self, data_shape: Sequence[int]) -> dict[str, Any]:
        """``train_settings`` for data of this shape; images of 64 x 64 have those of the Echo paper."""
        large = {"learning_rate": 1e-4, "batch_size": 64} if architecture_for(data_shape) == "conv64" else {}
        return {**self.train_settings, **large}

    @property
    def model_settings(self) -> dict[str, Any]:
        """The names of the keyword arguments of ``make``, with their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


RECIPES: dict[str, Recipe] = {}


def recipes() -> dict[str, str]:
    """Return the names that :func:`build` accepts, each with a one-line summary."""
    return {name: recipe.summary for name, recipe in RECIPES.items()}


def find(name: str) -> Recipe:
    """Return the recipe of this name, or raise a ValueError that suggests similar names."""
    if name not in RECIPES:
        raise _checks.unknown("recipe", name, sorted(RECIPES))
    return RECIPES[name]


def build(recipe: str, data_shape: Sequence[int], *, latent_dim: int = 32, **model_settings: Any) -> Model:
    """Build the model of a recipe.

    Args:
        recipe: One of :func:`recipes`.
        data_shape: Shape of one x: (channels, height, width) for an image, (columns,) for a vector.
        latent_dim: Number of dimensions of z.
        model_settings: Arguments of the model that replace those of the recipe, such as ``beta=0.5``.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The recipe or a setting is unknown, or a value is out of range.
    """
    chosen = find(recipe)
    if unknown := sorted(set(model_settings) - set(chosen.model_settings)):
        raise _checks.unknown("model setting", unknown[0], list(chosen.model_settings))
    return chosen.make(data_shape, latent_dim, **model_settings)


def _register(name: str, summary: str, **settings: Any) -> None:
    RECIPES[name] = Recipe(summary, functools.partial(Autoencoder, **settings))


_register("echo", "Echo noise, whose rate is exact and needs no prior", channel="echo")
_register("vae", "variational autoencoder with a Gaussian channel and an N(0, I) prior")
_register("beta-vae", "VAE with a rate weight of beta = 4", beta=4.0)
_register("infovae", "VAE with a penalty on the MMD between z and N(0, I)", mmd_weight=999.0)
_register("vae-maf", "VAE with an autoregressive flow as prior", marginal="maf")
_register("vae-vamp", "VAE with a VampPrior, a mixture of encoded pseudo-inputs", marginal="vamp")
_register("iaf-prior", "inverse autoregressive channel and N(0, I) prior", channel="iaf")
_register("iaf-mmd", "iaf-prior with a penalty on the MMD between z and N(0, I)", channel="iaf", mmd_weight=999.0)
_register("iaf-maf", "inverse autoregressive channel and flow prior", channel="iaf", marginal="maf")
_register("iaf-vamp", "inverse autoregressive channel and VampPrior", channel="iaf", marginal="vamp")
_register("factor-vae", "VAE with a penalty on the total correlation of z", tc_weight=20.0)
_register("echo-tc", "Echo with a penalty on the total correlation of z", channel="echo", tc_weight=20.0)
_register("corex", "VAE sampled from the product of the marginals q(z_j) of its codes", sample_from="aggregate")
_register("anchor-vae", "corex with half the rate weight on five latents", sample_from="aggregate", anchored=5)

RECIPES["stacked-corex"] = Recipe(
    "VAE with a second layer: a categorical variable of ten states above z",
    StackedCorEx,
    {"learning_rate": 1e-3, "schedule": "constant", "warm_up_epochs": 6},
    latent_dim=64,
)
RECIPES["mutual-ae"] = Recipe(
    "Mutual Autoencoder, a VAE with a prescribed I(x; z) of information=M nats",
    MutualAutoencoder,
    {"learning_rate": 1e-3, "schedule": "constant"},
    latent_dim=1,
)

for _objective, _summary in {
    "mim": "Mutual Information Machine, trained on encoder and decoder samples, half of each",
    "a-mim": "MIM trained on encoder samples only",
    "mim-h": "MIM minus the entropy of the encoder in the loss",
    "vae-h": "VAE plus the entropy of the encoder in the loss",
}.items():
    RECIPES[_objective] = Recipe(
        _summary,
        functools.partial(MIM, objective=_objective),
        {"learning_rate": 1e-3, "batch_size": 128, "epochs": 50, "schedule": "constant", "warm_up_epochs": 10},
        latent_dim=2,
    )

_two_level: dict[str, Callable[..., Model]] = {"convhvae": ConvHVAE, "pixelhvae": PixelHVAE}
for _decoder, _model in _two_level.items():
    for _short, _prior in {"s": "standard-normal", "vp": "vamp"}.items():
        for _objective in ("vae", "a-mim", "mim"):
            RECIPES[f"{_decoder}-{_short}-{_objective}"] = Recipe(
                f"two-level model, {'N(0, I) prior' if _prior == 'standard-normal' else 'VampPrior'}, "
                f"{'convolutional' if _model is ConvHVAE else 'autoregressive'} decoder, {_objective.upper()} loss",
                functools.partial(_model, objective=_objective, prior=_prior),
                {
                    **{"learning_rate": 5e-4, "epochs": 2000, "schedule": "constant", "warm_up_epochs": 100},
                    **{"patience": 50, "normalize_gradients": True},
                },
                latent_dim=80,
            )
