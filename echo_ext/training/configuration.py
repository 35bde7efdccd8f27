"""What decides the outcome of a run: everything that ``config.yaml`` holds, and nothing else."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from echo_ext import _checks, models
from echo_ext.data import BINARIZATIONS, catalog
from echo_ext.models.recipes import Recipe, find
from echo_ext.training.schedules import SCHEDULES

__all__ = ["PRECISIONS", "Configuration"]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One run. :meth:`of` fills in what the recipe says where the user does not.

    Args:
        recipe: of :func:`echo_ext.models.recipes`.
        data: of :func:`echo_ext.data.names`.
        beta: the price of a nat of rate, where the model has one.
        seed: of the weights, the order of rows, the noise and the binarization.
        latent_dim: dimensions of z.
        model: further arguments of the model's constructor.
        limit: only the first so many training rows; None for all.
        binarization: as of :func:`echo_ext.data.load`.
        epochs: passes over the training rows.
        batch_size: rows of a step, in each process.
        learning_rate: Adam's.
        schedule: of the learning rate, see :func:`~echo_ext.training.schedules.learning_rate_factor`.
        warm_up_epochs: over which ``Model.warm_up_weight`` rises from 0 to 1.
        patience: stop after so many epochs without a better validation loss; None for never.
        normalize_gradients: each tensor's gradient to norm 1.
        gradient_clip: the largest norm of all gradients together; None for any.
        precision: "32-true", "bf16-mixed" or "16-mixed".

    Raises:
        ValueError: an unknown name or a value out of range.
    """

    recipe: str
    data: str
    beta: float = 1.0
    seed: int = 0
    latent_dim: int = 32
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limit: int | None = None
    binarization: str = "none"
    epochs: int = 200
    batch_size: int = 100
    learning_rate: float = 3e-4
    schedule: str = "constant-then-linear"
    warm_up_epochs: int = 0
    patience: int | None = None
    normalize_gradients: bool = False
    gradient_clip: float | None = None
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("recipe", "data"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a name, got {_checks.brief(getattr(self, name))}")
        find(self.recipe)
        _check_number("beta", self.beta, least=0)
        _check_whole("seed", self.seed, least=0, below=2**32)
        _check_whole("latent_dim", self.latent_dim, least=1)
        if not isinstance(self.model, Mapping):
            raise ValueError(f"model must map arguments of the model to values, got {_checks.brief(self.model)}")
        for taken in ("beta", "latent_dim", "data_shape"):
            if taken in self.model:
                raise ValueError(f"{taken} must not be among the model's further arguments: it has a place of its own")
        for name, least in (("epochs", 1), ("batch_size", 1), ("warm_up_epochs", 0)):
            _check_whole(name, getattr(self, name), least=least)
        for name in ("limit", "patience"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), least=1)
        _check_number("learning_rate", self.learning_rate, least=0, strictly=True)
        if self.gradient_clip is not None:
            _check_number("gradient_clip", self.gradient_clip, least=0, strictly=True)
        if not isinstance(self.normalize_gradients, bool):
            raise ValueError(
                f"normalize_gradients must be true or false, got {_checks.brief(self.normalize_gradients)}"
            )
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("binarization", BINARIZATIONS)):
            if getattr(self, name) not in choices:
                shown = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {shown}, got {_checks.brief(getattr(self, name))}")
        if self.normalize_gradients and self.precision == "16-mixed":
            raise ValueError("normalize_gradients does not go with precision '16-mixed', which scales the gradients")

    @classmethod
    def of(cls, recipe: str, data: str, **given: Any) -> Configuration:
        """The configuration of a recipe on a data set, with what is ``given`` (and not None) in place of defaults.

        Raises:
            TypeError: something that a configuration does not have.
            ValueError: as the class itself.
        """
        chosen = find(recipe)
        training = chosen.training_for(catalog.find(data).data_shape)
        settings = {
            "beta": chosen.settings.get("beta", 1.0),
            "latent_dim": chosen.latent_dim,
            **dataclasses.asdict(training),
        }
        return cls(recipe, data, **{**settings, **{name: value for name, value in given.items() if value is not None}})

    @classmethod
    def from_mapping(cls, content: object) -> Configuration:
        """The inverse of :meth:`as_mapping`; ValueError where something is missing or unknown."""
        if not isinstance(content, Mapping):
            raise ValueError(f"a configuration must be a mapping, got {_checks.brief(content)}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [str(name) for name in content if name not in fields]
        if unknown:
            near = difflib.get_close_matches(unknown[0], fields, n=1)
            raise ValueError(
                f"there is no setting {_checks.brief(unknown[0])}" + (f"; {near[0]!r} is near" if near else "")
            )
        missing = [name for name in ("recipe", "data") if name not in content]
        if missing:
            raise ValueError(f"{missing[0]!r} is missing")
        return cls(**content)

    def as_mapping(self) -> dict[str, Any]:
        """Plain values, as ``config.yaml`` holds them."""
        return {
            field.name: dict(self.model) if field.name == "model" else getattr(self, field.name)
            for field in dataclasses.fields(self)
        }

    def first_difference(self, other: Configuration) -> str | None:
        """One line on the first setting that is not the same in ``other``; None where all are."""
        mine, theirs = self.as_mapping(), other.as_mapping()
        for name, value in mine.items():
            if value != theirs[name]:
                return f"{name} {_checks.brief(theirs[name])}, not {_checks.brief(value)}"
        return None

    def build(self, data_shape: Sequence[int]) -> models.Model:
        """The untrained model for x of this shape.

        Raises:
            ValueError: beta for a model that has none; and as :func:`echo_ext.models.build`.
        """
        overrides = dict(self.model)
        if self._has_beta(find(self.recipe)):
            overrides["beta"] = self.beta
        elif self.beta != 1:
            raise ValueError(f"recipe {self.recipe!r} has no beta, but it is given as {self.beta}")
        return models.build(self.recipe, data_shape, latent_dim=self.latent_dim, **overrides)

    @staticmethod
    def _has_beta(recipe: Recipe) -> bool:
        return "beta" in inspect.signature(recipe.model).parameters


def _check_whole(name: str, value: object, *, least: int, below: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (below is not None and value >= below):  # type: ignore[operator]
        limits = f"at least {least}" if below is None else f"{least} to {below - 1}"
        raise ValueError(f"{name} must be an integer, {limits}, got {_checks.brief(value)}")


def _check_number(name: str, value: object, *, least: float, strictly: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least or (strictly and value == least):  # type: ignore[arg-type, operator]
        raise ValueError(f"{name} must be {'above' if strictly else 'at least'} {least}, got {_checks.brief(value)}")
