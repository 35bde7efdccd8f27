"""Recipes: a name for a composition of parts with its hyper-parameters, as the papers fix them."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model

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


RECIPES: dict[str, Recipe] = {}


def recipes() -> dict[str, str]:
    """What :func:`build` knows: each name with one line on what it is."""
    return {name: recipe.summary for name, recipe in RECIPES.items()}


def find(name: str) -> Recipe:
    """The recipe of this name, or a ValueError that lists the nearest names."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or sorted(RECIPES)
        raise ValueError(f"there is no recipe {name!r}; the nearest are {', '.join(near)}")
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


RECIPES["echo"] = Recipe("Echo noise, whose rate is exact; no prior", Autoencoder, {"channel": "echo"})
RECIPES["vae"] = Recipe("Gaussian channel, N(0, I) prior: the variational autoencoder", Autoencoder)
RECIPES["beta-vae"] = Recipe("the VAE with dearer rate, beta = 4", Autoencoder, {"beta": 4.0})
