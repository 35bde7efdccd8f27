"""The command ``echo-ext train``, which trains a recipe on a data set and writes a run directory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from echo_ext import _checks
from echo_ext._checks import brief
from echo_ext.cli.machine import add_data_dir, add_device, check_writable, find_device
from echo_ext.cli.printing import print_table
from echo_ext.metrics.likelihood import RATE_WORDS, rate_name_in
from echo_ext.training.configuration import SETTINGS, Configuration

__all__ = ["EXAMPLES", "HELP", "add_arguments", "add_settings", "model_setting", "options", "run", "settings"]

HELP = "train a recipe on a data set and write a folder with the model, its metrics and figures"
USAGE = "echo-ext train --recipe NAME --data NAME [options]"
EXAMPLES = (
    "echo-ext train --recipe echo --data digits",
    "echo-ext train --recipe vae --data fashion-mnist --beta 2 --epochs 20 --out runs/fashion",
    "echo-ext train --recipe echo --data mine.npz --set hidden=[64,64] --device cuda",
    "echo-ext train --resume --out runs/fashion",
)

PACKAGES = ("lightning_fabric", "matplotlib", "tqdm", "yaml")
OFF = "none"  # the word for None, which switches an optional setting off
_METAVARS: dict[type, str] = {str: "NAME", int: "N", float: "X"}
# The groups of settings in the help; those that are in none of the others belong to the last.
_GROUPS = {"model": None, "data": None, "training": "Defaults are in parentheses; a recipe may have its own."}
_GROUP_OF = {
    **dict.fromkeys(("recipe", "beta", "latent_dim", "model_settings", "initial_run"), "model"),
    **dict.fromkeys(("data", "limit", "valid", "binarization"), "data"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/RECIPE-DATA-betaBETA-seedSEED)")
    add("--resume", action="store_true", help="continue the run in --out after its last finished epoch")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add a flag for each setting of a run, and those that say how and where it is trained."""
    groups = {title: parser.add_argument_group(title, about) for title, about in _GROUPS.items()}
    for name, each in SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        metavar = "DIR" if name == "initial_run" else _METAVARS.get(each.kind)
        kind: dict[str, Any] = {"type": each.kind, "metavar": metavar}
        if each.optional:
            kind = {"type": _optional(each.kind), "metavar": f"{metavar}|{OFF}"}
        if name == "model_settings":
            flag, kind = "--set", {"action": "append", "metavar": "NAME=VALUE"}
        elif "choices" in each.bounds:
            kind["metavar"] = "|".join(each.bounds["choices"])
        elif each.kind is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        if name not in without:
            default = "" if each.default is None else f" (default: {each.default})"
            group = groups[_GROUP_OF.get(name, "training")]
            group.add_argument(flag, dest=name, help=each.help + default, default=argparse.SUPPRESS, **kind)
    machine = parser.add_argument_group("machine")
    add_data_dir(machine)
    add_device(machine)
    machine.add_argument("--compile", action="store_true", help="compile the loss with torch.compile")
    what = "on a GPU, launch the kernels of a step one by one instead of replaying a CUDA graph"
    machine.add_argument("--no-cuda-graph", dest="cuda_graph", action="store_false", help=what)
    what = "where to log, separated by commas: csv (metrics.csv, always written), tensorboard, wandb"
    machine.add_argument("--logger", dest="loggers", default="csv", metavar="LIST", help=what)


def _optional(kind: type) -> Callable[[str], Any]:
    """The type of a flag whose value may be the word for None."""

    def convert(text: str) -> Any:
        return None if text == OFF else kind(text)

    convert.__name__ = f"{kind.__name__} or {OFF}"  # argparse shows it
    return convert


def run(arguments: argparse.Namespace) -> None:
    """Train the model and print its result."""
    _checks.installed(*PACKAGES, purpose="train")
    from echo_ext import training

    configuration = _configuration(arguments)
    recipe, data, beta, seed = configuration.recipe, configuration.data, configuration.beta, configuration.seed
    name = Path(data).name.removesuffix(".npz")  # of one's own data, which are given by their path
    out = arguments.out or Path(f"runs/{recipe}-{name}-beta{beta:g}-seed{seed}")
    was_finished = arguments.resume and training.RunDirectory(out).is_finished
    if not was_finished:
        check_writable("out", out)
    result = training.train(configuration, out, resume=arguments.resume, **options(arguments))
    if not result:  # not the first of several processes
        return
    rate = rate_name_in(result)
    labels = {rate: RATE_WORDS[rate], "distortion": "distortion", "neg_elbo": "-ELBO"}
    print(f"{result['recipe']} on {result['data']}, {result['rows']['test']} test rows, nats per sample")
    print_table([(label, f"{result[name]:.3f}") for name, label in labels.items()])
    best = f", of which epoch {result['best_epoch']} is the best," if "best_epoch" in result else ""
    epochs = f"{result['epochs']} epoch{'' if result['epochs'] == 1 else 's'}{best}"
    done = f"the run was finished before; nothing was changed in {out}" if was_finished else f"written to {out}"
    print(f"after {epochs} in {result['seconds']:.0f} s; {done}")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`echo_ext.training.train` and ``sweep`` that say how and where they train."""
    given = {name: getattr(arguments, name) for name in ("data_dir", "compile", "cuda_graph")}
    return {**given, "device": find_device(arguments.device), "loggers": arguments.loggers.split(",")}


def model_setting(name: str, text: str) -> Any:
    """The value of ``--set NAME=TEXT``."""
    from echo_ext._parsing import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError:
        raise ValueError(f"--set {name} must be YAML, got {brief(text)}") from None


def settings(arguments: argparse.Namespace, parse: Callable[[str, str], Any] = model_setting) -> dict[str, Any]:
    """The settings that are given as flags; ``parse`` converts the name and the text of each ``--set``."""
    given = {name: getattr(arguments, name) for name in SETTINGS if name in arguments}
    if "model_settings" in given:
        given["model_settings"] = {name: parse(name, text) for name, text in map(_assignment, given["model_settings"])}
    return given


def _assignment(given: str) -> tuple[str, str]:
    name, equals, text = given.partition("=")
    if not (name and equals):
        raise ValueError(f"--set must be NAME=VALUE, got {brief(given)}")
    return name, text


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
