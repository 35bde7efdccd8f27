"""The command ``echo-ext train``, which trains a recipe on a data set and writes a run directory."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from echo_ext._checks import brief
from echo_ext.cli.machine import add_data_dir, add_device, check_installed, find_device
from echo_ext.cli.printing import print_table
from echo_ext.metrics.likelihood import RATE_WORDS, rate_name_in
from echo_ext.training.configuration import SETTINGS, Configuration, Setting

__all__ = ["HELP", "add_arguments", "add_settings", "options", "run", "settings"]

HELP = "train a recipe on a data set and write a folder with the model, its metrics and figures"

PACKAGES = ("lightning", "matplotlib", "tqdm", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/RECIPE-DATA-betaBETA-seedSEED)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out after its last finished epoch")
    parser.add_argument("--tensorboard", action="store_true", help="log to DIR/tensorboard as well")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add a flag for each setting of a run, and those that say how and where it is trained."""
    group = parser.add_argument_group("settings", "Defaults are in parentheses; a recipe may have its own.")
    for each in SETTINGS.values():
        if each.name not in without:
            group.add_argument(_flag(each), dest=each.name, help=_help(each), **_kind(each))
    add_data_dir(parser)
    add_device(parser)
    parser.add_argument("--compile", action="store_true", help="compile the loss with torch.compile")
    parser.add_argument(
        "--no-cuda-graph",
        dest="cuda_graph",
        action="store_false",
        help="on a GPU, launch the kernels of a step one by one instead of replaying a CUDA graph",
    )


def _flag(setting: Setting) -> str:
    return "--set" if setting.name == "model_settings" else f"--{setting.name.replace('_', '-')}"


def _help(setting: Setting) -> str:
    return setting.help if setting.default is None else f"{setting.help} (default: {setting.default})"


def _kind(setting: Setting) -> dict[str, Any]:
    """The arguments of ``add_argument`` for values of this kind."""
    if setting.name == "model_settings":
        return {"action": "append", "metavar": "NAME=VALUE"}
    if setting.kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    names = {int: "N", float: "X"}.get(setting.kind, "NAME")
    return {"type": setting.kind, "metavar": "|".join(setting.bounds.get("choices", [names]))}


def run(arguments: argparse.Namespace) -> None:
    """Train the model and print its result."""
    check_installed(*PACKAGES, command="train", extra="train")
    from echo_ext import training

    configuration = _configuration(arguments)
    out = arguments.out or Path(
        f"runs/{configuration.recipe}-{configuration.data}-beta{configuration.beta:g}-seed{configuration.seed}"
    )
    result = training.train(
        configuration, out, resume=arguments.resume, tensorboard=arguments.tensorboard, **options(arguments)
    )
    if not result:  # not the first of several processes
        return
    rate = rate_name_in(result)
    labels = {rate: RATE_WORDS[rate], "distortion": "distortion", "neg_elbo": "-ELBO"}
    print(f"{result['recipe']} on {result['data']}, {result['rows']['test']} test rows, nats per sample")
    print_table([(label, f"{result[name]:.3f}") for name, label in labels.items()])
    print(f"after {result['epochs']} epochs in {result['seconds']:.0f} s; written to {out}")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`echo_ext.training.train` and ``sweep`` that say how and where they train."""
    given = {name: getattr(arguments, name) for name in ("data_dir", "compile", "cuda_graph")}
    return {**given, "device": find_device(arguments.device)}


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that are given as flags."""
    given = {name: value for name in SETTINGS if (value := getattr(arguments, name, None)) is not None}
    return given | ({"model_settings": _model_settings(given["model_settings"])} if "model_settings" in given else {})


def _configuration(arguments: argparse.Namespace) -> Configuration:
    given = settings(arguments)
    if "recipe" in given and "data" in given:
        return Configuration.of(**given)
    if not arguments.resume:
        raise ValueError(f"--{'data' if 'recipe' in given else 'recipe'} is missing")
    # With --resume the configuration is that of the folder, and further flags must agree with it.
    if not arguments.out:
        raise ValueError("--resume needs --out, or --recipe and --data of the run")
    from echo_ext.training import RunDirectory

    return Configuration.from_mapping({**RunDirectory(arguments.out).configuration().as_mapping(), **given})


def _model_settings(assignments: list[str]) -> dict[str, Any]:
    from echo_ext.training.parsing import parse_yaml

    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise ValueError(f"--set must be NAME=VALUE, got {brief(assignment)}")
        try:
            values[name] = parse_yaml(value)
        except ValueError:
            raise ValueError(f"--set {name} must be YAML, got {brief(value)}") from None
    return values
