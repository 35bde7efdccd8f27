"""The configuration of a run: all settings that determine its result, as ``config.yaml`` stores them."""

from __future__ import annotations

import dataclasses
import inspect
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
    """The settings of one run. Use :meth:`of` to start from the defaults of a recipe.

    Args:
        recipe: One of :func:`echo_ext.models.recipes`.
        data: One of :func:`echo_ext.data.names`.
        beta: Weight of the rate, for models that have one. A larger value gives a smaller rate and a larger
            distortion.
        seed: Seed of the initial weights, the order of the rows, the noise and the binarization.
        latent_dim: Number of dimensions of z.
        model: Further arguments of the model's constructor.
        limit: Number of training rows, counted from the first. None means all.
        binarization: How pixels are turned into zeros and ones, as in :func:`echo_ext.data.load`.
        epochs: Number of passes over the training rows.
        batch_size: Number of rows in a step, in each process.
        learning_rate: Learning rate of Adam, which the schedule may lower.
        schedule: Schedule of the learning rate, as in :func:`~echo_ext.training.schedules.learning_rate_factor`.
        warm_up_epochs: Number of epochs over which ``Model.warm_up_weight`` rises from 0 to 1.
        patience: Number of epochs without a better validation loss after which training stops. None means that it
            never stops early.
        normalize_gradients: Whether to scale the gradient of each parameter tensor to norm 1.
        gradient_clip: Maximum norm of all gradients together. A smaller value limits the steps more. None means no
            limit.
        precision: "32-true", "bf16-mixed" or "16-mixed".

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A name is unknown, or a value is out of range.
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
                raise TypeError(f"{name} must be a name, got {_checks.brief(getattr(self, name))}")
        find(self.recipe)
        _checks.number("beta", self.beta, minimum=0)
        _checks.whole("seed", self.seed, minimum=0, maximum=2**32 - 1)
        if not isinstance(self.model, Mapping):
            raise TypeError(f"model must be a mapping of arguments to values, got {_checks.brief(self.model)}")
        for name in ("beta", "latent_dim", "data_shape"):
            if name in self.model:
                raise ValueError(f"{name} must not be among the further arguments of the model; it is set separately")
        for name, minimum in (("latent_dim", 1), ("epochs", 1), ("batch_size", 1), ("warm_up_epochs", 0)):
            _checks.whole(name, getattr(self, name), minimum=minimum)
        for name in ("limit", "patience"):
            if getattr(self, name) is not None:
                _checks.whole(name, getattr(self, name), minimum=1)
        _checks.number("learning_rate", self.learning_rate, above=0)
        if self.gradient_clip is not None:
            _checks.number("gradient_clip", self.gradient_clip, above=0)
        if not isinstance(self.normalize_gradients, bool):
            raise TypeError(f"normalize_gradients must be a bool, got {_checks.brief(self.normalize_gradients)}")
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("binarization", BINARIZATIONS)):
            _checks.choice(name, getattr(self, name), choices)
        if self.normalize_gradients and self.precision == "16-mixed":
            raise ValueError(
                "normalize_gradients must be False for precision '16-mixed', which scales the gradients itself"
            )

    @classmethod
    def of(cls, recipe: str, data: str, **given: Any) -> Configuration:
        """The default configuration of a recipe on a data set, with some settings replaced.

        Args:
            recipe: One of :func:`echo_ext.models.recipes`.
            data: One of :func:`echo_ext.data.names`.
            given: Settings that replace the defaults, unless they are None.

        Raises:
            TypeError: A setting does not exist, or a value has the wrong type.
            ValueError: A name is unknown, or a value is out of range.
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
        """The inverse of :meth:`as_mapping`; raises ValueError if a setting is missing or unknown."""
        if not isinstance(content, Mapping):
            raise ValueError(f"a configuration must be a mapping, got {_checks.brief(content)}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [str(name) for name in content if name not in fields]
        if unknown:
            raise _checks.unknown("setting", unknown[0], list(fields))
        missing = [name for name in ("recipe", "data") if name not in content]
        if missing:
            raise ValueError(f"{missing[0]!r} is missing")
        return cls(**content)

    def as_mapping(self) -> dict[str, Any]:
        """The settings as plain values, in the form of ``config.yaml``."""
        return {
            field.name: dict(self.model) if field.name == "model" else getattr(self, field.name)
            for field in dataclasses.fields(self)
        }

    def first_difference(self, other: Configuration) -> str | None:
        """A description of the first setting that differs in ``other``, or None if there is none."""
        mine, theirs = self.as_mapping(), other.as_mapping()
        for name, value in mine.items():
            if value != theirs[name]:
                return f"{name} {_checks.brief(theirs[name])}, not {_checks.brief(value)}"
        return None

    def build(self, data_shape: Sequence[int]) -> models.Model:
        """Build the untrained model for x of this shape.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: The model has no beta but one is set, or an argument of the model is unknown or out of range.
        """
        overrides = dict(self.model)
        if self._has_beta(find(self.recipe)):
            overrides["beta"] = self.beta
        elif self.beta != 1:
            raise ValueError(f"beta must be 1 for recipe {self.recipe!r}, which has no such weight, got {self.beta}")
        return models.build(self.recipe, data_shape, latent_dim=self.latent_dim, **overrides)

    @staticmethod
    def _has_beta(recipe: Recipe) -> bool:
        return "beta" in inspect.signature(recipe.model).parameters
