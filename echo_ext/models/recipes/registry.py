"""The registry of recipes: each is a function that composes a model from parts, under a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

from echo_ext import _checks
from echo_ext.models.base import Model
from echo_ext.models.networks import architecture_for

__all__ = ["CONSTANT_RATE", "RECIPES", "Recipe", "build", "find", "recipe", "recipes", "variant"]

# Settings of a training run that several recipes share.
CONSTANT_RATE: dict[str, Any] = {"learning_rate": 1e-3, "schedule": "constant"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model under a name.

    Attributes:
        summary: A one-line description.
        make: The function that composes the model, ``make(data_shape, latent_dim, **model_settings)``.
        model_settings: The settings that ``make`` accepts, with their defaults.
        train_settings: The settings of a training run that differ from the defaults of
            :class:`echo_ext.training.Configuration`.
        latent_dim: The default number of latents, as in the paper of the recipe.
    """

    summary: str
    make: Callable[..., Model]
    model_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latent_dim: int = 32

    def settings_for(self, data_shape: Sequence[int]) -> dict[str, Any]:
        """The training settings for data of this shape; images of 64 x 64 have those of the Echo paper."""
        if architecture_for(data_shape) != "conv64":
            return dict(self.train_settings)
        return {**self.train_settings, "learning_rate": 1e-4, "schedule": "constant", "batch_size": 64}


RECIPES: dict[str, Recipe] = {}


def recipes() -> dict[str, str]:
    """Return the names that :func:`build` accepts, each with a one-line summary.

    Example:
        >>> echo_ext.models.recipes()["echo"]
        'Echo noise, whose rate is exact and needs no prior'
    """
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
        model_settings: Settings of the recipe that replace its defaults, such as ``beta=0.5``.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The recipe or a setting is unknown, or a value is out of range.

    Example:
        >>> model = echo_ext.models.build("echo", (1, 8, 8), latent_dim=4, beta=0.5, num_terms=31)
        >>> model.encode(torch.rand(50, 1, 8, 8)).shape
        torch.Size([50, 4])
    """
    chosen = find(recipe)
    for name in model_settings:
        if name not in chosen.model_settings:
            raise _checks.unknown("setting", name, list(chosen.model_settings), owner=f"recipe {recipe!r}")
    latent_dim = _checks.whole("latent_dim", latent_dim, minimum=1)
    shape, settings = _checks.data_shape(data_shape), {**chosen.model_settings, **model_settings}
    model = chosen.make(shape, latent_dim, **settings)
    model.built_by = {"recipe": recipe, "data_shape": shape, "latent_dim": latent_dim, "model_settings": settings}
    return model


def recipe(
    name: str, summary: str, latent_dim: int = 32, run: Mapping[str, Any] = MappingProxyType({}), **settings: Any
) -> Callable[[Callable[[Any], Model]], Callable[[Any], Model]]:
    """Register a function that composes a model of a namespace: shape, latent_dim and the settings of the recipe.

    Args:
        name: The name of the recipe.
        summary: A one-line description.
        latent_dim: The default number of latents.
        run: The settings of a training run that differ from the defaults.
        settings: The settings of the model with their defaults.
    """

    def register(compose: Callable[[Any], Model]) -> Callable[[Any], Model]:
        def make(shape: Sequence[int], latent_dim: int, **given: Any) -> Model:
            return compose(SimpleNamespace(shape=shape, latent_dim=latent_dim, **given))

        RECIPES[name] = Recipe(summary, make, settings, run, latent_dim)
        return compose

    return register


def variant(name: str, summary: str, *, of: str, **settings: Any) -> None:
    """Register a recipe with other defaults under a name of its own."""
    changed = {**RECIPES[of].model_settings, **settings}
    RECIPES[name] = dataclasses.replace(RECIPES[of], summary=summary, model_settings=changed)
