"""Saved models: their weights, and the call of ``build`` that makes the model again.

A model is saved as ``config.json`` and ``model.safetensors``, with a model card. Neither file can contain code.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from echo_ext import __version__, _checks, _parsing
from echo_ext.models.base import Model, load_weights

if TYPE_CHECKING:
    from echo_ext._hub import Shared

__all__ = ["CONFIG_FILE", "HOME", "WEIGHTS_FILE", "card_head", "load", "need_hub", "read_config", "shared", "write"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = 1  # of config.json; another format cannot be read
HOME = "https://github.com/echo-ext/echo-ext"
_SCHEMA = {"format": int, "class": str}
_RECIPE_SCHEMA = {"recipe": str, "data_shape": [int], "latent_dim": int, "model_settings": dict}
_MAX_DIMENSIONS = 8

AnyModel = TypeVar("AnyModel", bound=Model)


def shared(model: Model) -> Shared:
    """The model in the form in which huggingface_hub saves and pushes it."""
    need_hub()
    from echo_ext._hub import Shared

    return Shared(lambda folder: write(model, folder), _card(model))


def need_hub() -> None:
    """Raise a ModuleNotFoundError with the command that installs what sharing needs, if it is missing."""
    _checks.installed("huggingface_hub", "safetensors", purpose="sharing models", extra="hub")


def write(model: Model, folder: Path, **more: Any) -> None:
    """Write ``config.json``, with what ``more`` has, and ``model.safetensors``.

    Raises:
        TypeError: A setting cannot be written as JSON.
        ValueError: The model has other parts than those of its recipe.
    """
    from safetensors.torch import save_model

    built: dict[str, Any] = {"recipe": None, **(model.built_by or {})}
    for name, value in built.get("model_settings", {}).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            what = "numbers, strings, lists and mappings to be saved"
            raise TypeError(f"{name} must contain only {what}, got {_checks.brief(value)}") from None
    if model.built_by is not None:
        misfit = f"the parts of a model must be those of its recipe {built['recipe']!r} to be saved"
        load_weights(_built(built, "meta"), model.state_dict(), assign=True, misfit=misfit)
    config = {"library": "echo-ext", "version": __version__, "format": FORMAT, "class": type(model).__name__}
    save_model(model, str(folder / WEIGHTS_FILE))
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **built, **more}, indent=2) + "\n")
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors keeps it from other users


def load(kind: type[AnyModel], name: str | os.PathLike[str], parts: Mapping[str, Any], **options: Any) -> AnyModel:
    """Load a saved model, which must be of this class; :meth:`Model.from_pretrained` describes the arguments."""
    need_hub()
    from echo_ext._hub import find

    files = find(name, CONFIG_FILE, WEIGHTS_FILE, **options)
    model: Model
    config, state = read_config(files[0]), _read_weights(files[1])
    misfit = f"{files[1]} does not fit the model"
    if config["recipe"] is None:
        model = _composed(kind, name, config, parts)
    elif parts:
        given = ", ".join(parts)
        raise ValueError(f"parts must be left out for a model of the recipe {config['recipe']!r}, got {given}")
    else:
        # First without memory for the model, as the files may be hostile.
        load_weights(_built(config, "meta"), state, assign=True, misfit=misfit)
        model = _built(config)
    if not isinstance(model, kind):
        raise TypeError(f"{os.fspath(name)} must be of class {kind.__name__}, got {type(model).__name__}")
    load_weights(model, state, misfit=misfit)
    return model.eval()


def _built(config: Mapping[str, Any], device: str = "cpu") -> Model:
    """The model of a recipe."""
    from echo_ext.models.recipes import build

    shape, latent_dim = config["data_shape"], config["latent_dim"]
    with torch.device(device):
        return build(config["recipe"], shape, latent_dim=latent_dim, **config["model_settings"])


def _composed(kind: type[AnyModel], name: str | os.PathLike[str], config: Mapping[str, Any], parts: Any) -> AnyModel:
    """The model of the parts that are given."""
    if inspect.isabstract(kind) or not parts:
        call = f"{config['class']}.from_pretrained({os.fspath(name)!r}, encoder=..., decoder=..., ...)"
        what = f"parts must be given for a {config['class']} that was not built by a recipe"
        raise ValueError(f"{what}: {call} takes the arguments of the class")
    return kind(**parts)


def read_config(file: Path) -> dict[str, Any]:
    """The content of ``config.json``; raises ValueError if it is damaged or does not describe a model."""
    try:
        config: Any = _parsing.read_json(file)
        _parsing.check_structure("it", config, _SCHEMA)
        if config["format"] != FORMAT:
            version = _checks.brief(config.get("version"))
            raise ValueError(f"echo-ext {version} has written it in format {config['format']}, not {FORMAT}")
        if config.setdefault("recipe", None) is not None:
            _parsing.check_structure("it", config, _RECIPE_SCHEMA)
            if len(config["data_shape"]) > _MAX_DIMENSIONS:
                raise ValueError(f"data_shape must be a few integers, got {_checks.brief(config['data_shape'])}")
            _built(config, "meta")
    except Exception as wrong:  # settings of any type may make the parts of a model raise anything
        reason = " ".join(str(wrong).split())[:300]
        raise ValueError(f"{file} does not describe a model of echo-ext {__version__}: {reason}") from wrong
    return dict(config)


def _read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises ValueError if it is damaged."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt", device="cpu") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
            aliases = opened.metadata() or {}  # of tensors that two modules share, which are saved once
    except Exception as wrong:
        raise ValueError(f"{file} is damaged: {' '.join(str(wrong).split())[:100]}") from wrong
    return {**{alias: state[kept] for alias, kept in aliases.items() if kept in state}, **state}


# ---- The model card --------------------------------------------------------------------------------------------------


def card_head(recipe: str | None, license: str | None = None) -> str:
    """The metadata at the beginning of a model card."""
    tags = ["echo-ext", "autoencoder", "information-theory", *([recipe] if recipe else [])]
    lines = ["library_name: echo-ext", *([f"license: {json.dumps(license)}"] if license else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _card(model: Model) -> str:
    """The card of a model that was not trained by a run."""
    kind, built = type(model).__name__, model.built_by
    recipe = None if built is None else built["recipe"]
    about = f"A model of class `{kind}`, composed of parts" if recipe is None else f"A model of the recipe `{recipe}`"
    call = f'{kind}.from_pretrained("user/name", encoder=..., decoder=..., ...)  # the parts it was composed of'
    if recipe is not None:
        call = 'Model.from_pretrained("user/name")'
    code = f"```python\nimport echo_ext\n\nmodel = echo_ext.models.{call}\n```"
    text = f"{about}, saved by [echo-ext]({HOME}) {__version__}.\n\n`pip install 'echo-ext[hub]'`\n\n{code}\n"
    return f"{card_head(recipe)}\n\n# {recipe or kind}\n\n{text}"
