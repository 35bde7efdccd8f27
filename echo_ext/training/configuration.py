"""The configuration of a run: all settings that determine its result, as ``config.yaml`` stores them.

A setting is one field of :class:`Configuration`, with its type, default, help and bounds. Its checks, its flag on the
command line and its line in ``config.yaml`` follow from that. (jsonargparse or pydantic would need a translation of
their errors, and defaults that depend on the recipe, which is as long as this.)
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from echo_ext import _checks, data, models
from echo_ext.data import LabeledDataset, catalog, own
from echo_ext.data.datasets import BINARIZATIONS
from echo_ext.models.recipes import FOLLOW_BATCH, find
from echo_ext.training.schedules import SCHEDULES, learning_rate_factor

__all__ = ["SETTINGS", "Configuration", "Setting", "defaults"]

VALIDATIONS = ("split", "none")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def setting(default: object, help: str, **bounds: Any) -> Any:
    """A field of :class:`Configuration`, whose ``bounds`` are ``choices`` or those of :mod:`echo_ext._checks`."""
    made: dict[str, Any] = {"default_factory": default} if default is dict else {"default": default}
    return dataclasses.field(**made, metadata={"help": help, "bounds": bounds})


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The settings of one run. Use :meth:`of` to start from the defaults of a recipe.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A name is unknown, a value is out of range, or the model has no beta but one is set.

    Example:
        >>> configuration = echo_ext.training.Configuration.of("echo", "digits", model_settings={"hidden": [64]})
        >>> configuration.epochs, configuration.build((1, 8, 8)).latent_dim
        (200, 32)
    """

    recipe: str = setting(dataclasses.MISSING, "model to train; echo-ext recipes lists them")
    data: str = setting(
        dataclasses.MISSING,
        "data set that echo-ext data lists, or the path of an .npz file with an array x or of a folder of images",
    )
    beta: float = setting(1.0, "weight of the rate; larger gives a smaller rate and a larger distortion", minimum=0)
    seed: int = setting(0, "seed of the weights, rows, noise and binarization", minimum=0, maximum=2**32 - 1)
    latent_dim: int = setting(32, "number of dimensions of z", minimum=1)
    model_settings: Mapping[str, Any] = setting(
        dict, "an argument of the model and its value in YAML, such as --set hidden=[256,256]; can be repeated"
    )
    limit: int | None = setting(None, "use only the first N training rows, but all validation and test rows", minimum=1)
    valid: str = setting(
        "split",
        "hold out the validation rows (split), or train on them too, as the papers do (none)",
        choices=VALIDATIONS,
    )
    binarization: str = setting(
        "none", "turn pixels into zeros and ones: once (static) or in every epoch (dynamic)", choices=BINARIZATIONS
    )
    initial_run: str | None = setting(
        None, "folder of a finished run whose weights training starts from, such as one with another loss"
    )
    epochs: int = setting(200, "number of passes over the training rows", minimum=1)
    batch_size: int = setting(100, "number of rows in a step, in each process", minimum=1)
    learning_rate: float = setting(3e-4, "learning rate of Adam, which the schedule may lower", above=0)
    schedule: str = setting(
        "constant-then-linear",
        "schedule of the learning rate; inverse-square-root rises over the warm-up and then falls",
        choices=SCHEDULES,
    )
    warm_up_epochs: int = setting(0, "number of epochs over which the warm-up weight rises to 1", minimum=0)
    warm_up_from_zero: bool = setting(True, "begin the warm-up weight with 0, and not with one over its epochs")
    patience: int | None = setting(None, "stop after N epochs without a better validation loss", minimum=1)
    normalize_gradients: bool = setting(False, "scale the gradient of each parameter tensor to norm 1")
    gradient_clip: float | None = setting(None, "maximum norm of all gradients together", above=0)
    precision: str = setting("32-true", "numeric precision", choices=PRECISIONS)

    def __post_init__(self) -> None:
        for name, each in SETTINGS.items():
            object.__setattr__(self, name, each.checked(getattr(self, name)))
        object.__setattr__(self, "data", catalog.identify(self.data))
        if self.initial_run is not None:
            object.__setattr__(self, "initial_run", str(own.absolute(self.initial_run)))
        known = find(self.recipe).model_settings
        for name in self.model_settings:
            if name in ("beta", "latent_dim", "data_shape"):
                raise ValueError(f"model_settings must not contain {name}, which is a setting of its own")
            if name not in known:
                raise _checks.unknown("model setting", name, [each for each in known if each != "beta"])
        if self.beta != 1 and "beta" not in known:
            raise ValueError(f"beta must be 1 for recipe {self.recipe!r}, which has no such weight, got {self.beta}")
        if self.valid == "none" and self.patience is not None:
            raise ValueError(
                f"patience must be None for valid='none', which leaves no loss to watch, got {self.patience}"
            )
        learning_rate_factor(self.schedule, 0, self.epochs, self.warm_up_epochs)  # refuses a schedule without warm-up
        if self.normalize_gradients and self.precision == "16-mixed":
            raise ValueError("normalize_gradients must be False for precision '16-mixed', which scales them too")

    @classmethod
    def of(cls, recipe: str, data: str | os.PathLike[str], **given: Any) -> Configuration:
        """The default configuration of a recipe on a data set, with some settings replaced.

        Args:
            recipe: One of :func:`echo_ext.models.recipes`.
            data: One of :func:`echo_ext.data.names`, or the path of own data.
            given: Settings that replace the defaults. None switches off an optional one, such as ``patience``.
        """
        names = {"recipe": recipe, "data": catalog.identify(data)}
        return cls.from_mapping({**names, **defaults(recipe, catalog.find(data).data_shape), **given})

    @classmethod
    def from_mapping(cls, content: object) -> Configuration:
        """The inverse of :meth:`as_mapping`; raises ValueError if a setting is missing or unknown."""
        if not isinstance(content, Mapping):
            raise ValueError(f"a configuration must be a mapping, got {_checks.brief(content)}")
        for name in content:
            if name not in SETTINGS:
                raise _checks.unknown("setting", str(name), list(SETTINGS))
        for name in ("recipe", "data"):
            if name not in content:
                raise ValueError(f"{name!r} is missing")
        return cls(**content)

    def as_mapping(self) -> dict[str, Any]:
        """The settings as plain values, in the form of ``config.yaml``."""
        return dataclasses.asdict(self)

    def first_difference(self, found: Mapping[str, Any], names: Iterable[str]) -> str | None:
        """A description of the first of these settings that differs in ``found``, or None if there is none."""
        for name in names:
            mine, theirs = getattr(self, name), found.get(name)
            try:
                differs = bool(mine != theirs)
            except Exception:  # tensors, which have no single truth value
                differs = True
            if differs:
                return f"{name} {_checks.brief(theirs)}, not {_checks.brief(mine)}"
        return None

    def build(self, data_shape: Sequence[int], batch_rows: int | None = None) -> models.Model:
        """Build the untrained model; raises the errors of :func:`echo_ext.models.build`.

        Args:
            data_shape: Shape of one x.
            batch_rows: The number of rows that can share their noise in a step, which determines the number of terms
                of Echo noise unless it is set. None means ``batch_size``, or ``limit`` if that is smaller.
        """
        known = find(self.recipe).model_settings
        settings = {**self.model_settings, **({"beta": self.beta} if "beta" in known else {})}
        rows = min(self.batch_size, self.limit or self.batch_size) if batch_rows is None else batch_rows
        for name in FOLLOW_BATCH:
            if name in known and settings.get(name) is None:
                if rows < 2:
                    raise ValueError(f"batch_size must give batches of at least 2 rows for Echo noise, got {rows}")
                settings[name] = rows - 1
        return models.build(self.recipe, data_shape, latent_dim=self.latent_dim, **settings)

    def load_data(self, data_dir: str | os.PathLike[str] | None = None) -> dict[str, LabeledDataset]:
        """Load the data with their limit and binarization; raises the errors of :func:`echo_ext.data.load`."""
        parts = data.load(self.data, data_dir, binarization=self.binarization, seed=self.seed)
        if self.valid == "none":
            parts["train"] = parts["train"].joined(parts.pop("valid"))
            if not parts["train"].has_test_part:
                parts["train"] = parts["train"].joined(parts["test"])
        return {**parts, "train": parts["train"].select(slice(self.limit))}


def defaults(recipe: str, data_shape: Sequence[int]) -> dict[str, Any]:
    """The settings of a recipe on data of this shape that differ from the defaults of :class:`Configuration`."""
    chosen = find(recipe)
    model = {"beta": chosen.model_settings.get("beta", 1.0), "latent_dim": chosen.latent_dim}
    return {**model, **chosen.settings_for(data_shape)}


class Setting(NamedTuple):
    """The description of a field of :class:`Configuration`: what its values may be, and its help."""

    name: str
    kind: type
    optional: bool
    default: object
    help: str
    bounds: Mapping[str, Any]

    def checked(self, value: object) -> object:
        """The value as ``config.yaml`` stores it; raises TypeError or ValueError if it is not allowed."""
        if value is None and self.optional:
            return value
        if isinstance(value, os.PathLike) and self.kind is str:
            value = os.fspath(value)
        if "choices" in self.bounds:
            _checks.choice(self.name, value, self.bounds["choices"])
        elif self.kind is int:
            return _checks.whole(self.name, value, **self.bounds)
        elif self.kind is float:
            return _checks.number(self.name, value, **self.bounds)
        elif not isinstance(value, self.kind):
            what = {str: "a string", bool: "a bool"}.get(self.kind, "a mapping of names to values")
            raise TypeError(f"{self.name} must be {what}, got {_checks.brief(value)}")
        return _plain(self.name, value)


def _plain(name: str, value: object) -> object:
    """A copy of the value that has no types but those of YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(name, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} must contain only numbers, strings, lists and mappings, got {_checks.brief(value)}")


def _described(field: dataclasses.Field[Any], hint: Any) -> Setting:
    kinds = [get_origin(each) or each for each in (get_args(hint) if NoneType in get_args(hint) else (hint,))]
    default = None if field.default is dataclasses.MISSING else field.default
    return Setting(field.name, kinds[0], NoneType in kinds, default, **field.metadata)


# All settings by name, in the order of ``config.yaml``.
SETTINGS = {
    field.name: _described(field, get_type_hints(Configuration)[field.name])
    for field in dataclasses.fields(Configuration)
}


def _attribute(each: Setting) -> str:
    """The line of a setting in the docstring of :class:`Configuration`."""
    choices = f" One of {', '.join(map(repr, each.bounds['choices']))}." if "choices" in each.bounds else ""
    return f"    {each.name}: {each.help[0].upper()}{each.help[1:]}.{choices}"


if Configuration.__doc__ is not None:  # it is under python -OO
    summary, sections = inspect.cleandoc(Configuration.__doc__).split("\n\n", 1)
    lines = [summary, "", "Attributes:", *map(_attribute, SETTINGS.values()), "", sections]
    Configuration.__doc__ = "\n".join(lines)
