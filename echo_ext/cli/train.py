"""The command ``echo-ext train``, which trains a recipe on a data set and writes a run directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_ext.cli.machine import add_data_dir, add_device, check_installed, find_device

if TYPE_CHECKING:
    from echo_ext.training import Configuration

__all__ = ["HELP", "add_arguments", "add_settings", "run", "settings"]

HELP = "train a recipe on a data set and write a folder with the model, its metrics and figures"

PACKAGES = ("lightning", "matplotlib", "tqdm", "yaml")
SETTINGS = (
    *("epochs", "limit", "latent_dim", "batch_size", "learning_rate", "schedule", "warm_up_epochs", "patience"),
    *("gradient_clip", "normalize_gradients", "binarization", "precision"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("--recipe", metavar="NAME", help="model to train; echo-ext recipes lists them")
    parser.add_argument("--data", metavar="NAME", help="data set; echo-ext data lists them")
    parser.add_argument(
        "--beta", type=float, help="weight of the rate; a larger one gives a smaller rate (default: that of the recipe)"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of the weights, the order of rows, the noise and the binarization (default: 0)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/RECIPE-DATA-betaBETA-seedSEED)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out after its last finished epoch")
    parser.add_argument("--tensorboard", action="store_true", help="log to DIR/tensorboard as well")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``train`` and ``sweep`` share, whose defaults are those of the recipe."""
    whole = {"type": int, "metavar": "N"}
    parser.add_argument("--epochs", **whole, help="number of passes over the training rows")  # type: ignore[arg-type]
    parser.add_argument("--limit", **whole, help="use only the first N training rows")  # type: ignore[arg-type]
    parser.add_argument("--latent-dim", **whole, help="number of dimensions of z")  # type: ignore[arg-type]
    parser.add_argument("--batch-size", **whole, help="number of rows in a step, in each process")  # type: ignore[arg-type]
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="learning rate of Adam")
    parser.add_argument("--schedule", help="schedule of the learning rate: constant-then-linear or constant")
    parser.add_argument(
        "--warm-up-epochs",
        **whole,  # type: ignore[arg-type]
        help="number of epochs over which the warm-up weight rises from 0 to 1",
    )
    parser.add_argument(
        "--early-stopping",
        dest="patience",
        **whole,  # type: ignore[arg-type]
        help="stop after N epochs without a better validation loss",
    )
    parser.add_argument("--gradient-clip", type=float, metavar="NORM", help="maximum norm of all gradients together")
    parser.add_argument(
        "--normalize-gradients",
        action="store_const",
        const=True,
        help="scale the gradient of each parameter tensor to norm 1",
    )
    parser.add_argument(
        "--binarize",
        dest="binarization",
        metavar="HOW",
        help="turn pixels into zeros and ones: none, static (once) or dynamic (again in every epoch)",
    )
    parser.add_argument("--precision", help="numeric precision: 32-true (default), bf16-mixed or 16-mixed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="model",
        metavar="NAME=VALUE",
        help="another argument of the model with a value in YAML, such as --set hidden=[256,256]; can be repeated",
    )
    add_data_dir(parser)
    add_device(parser)
    parser.add_argument("--compile", action="store_true", help="compile the loss with torch.compile")
    parser.add_argument(
        "--no-cuda-graph",
        dest="cuda_graph",
        action="store_false",
        help="on a GPU, launch the kernels of a step one by one instead of replaying a CUDA graph",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train the model and print its result."""
    check_installed(*PACKAGES, command="train", extra="train")
    from echo_ext import training

    configuration = _configuration(arguments)
    out = arguments.out or Path(
        f"runs/{configuration.recipe}-{configuration.data}-beta{configuration.beta:g}-seed{configuration.seed}"
    )
    result = training.train(
        configuration,
        out,
        data_dir=arguments.data_dir,
        resume=arguments.resume,
        device=find_device(arguments.device),
        compile=arguments.compile,
        cuda_graph=arguments.cuda_graph,
        tensorboard=arguments.tensorboard,
    )
    if result:
        _report(result, out)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of :func:`add_settings` as arguments of ``Configuration.of``; None for those that are not set."""
    given = {name: getattr(arguments, name) for name in SETTINGS}
    return {**given, "model": _model_arguments(arguments.model) or None}


def _configuration(arguments: argparse.Namespace) -> Configuration:
    from echo_ext import training

    given = {"beta": arguments.beta, "seed": arguments.seed, **settings(arguments)}
    if arguments.recipe and arguments.data:
        return training.Configuration.of(arguments.recipe, arguments.data, **given)
    if not arguments.resume:
        raise ValueError(f"--{'data' if arguments.recipe else 'recipe'} is missing")
    # With --resume the configuration is that of the folder, and further flags must agree with it.
    if not arguments.out:
        raise ValueError("--resume needs --out, or --recipe and --data of the run")
    saved = training.RunDirectory(arguments.out).configuration()
    flags = {"recipe": arguments.recipe, "data": arguments.data, **given}
    return training.Configuration.from_mapping(
        {**saved.as_mapping(), **{name: value for name, value in flags.items() if value is not None}}
    )


def _model_arguments(assignments: list[str]) -> dict[str, Any]:
    from echo_ext._checks import brief
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


def _report(result: Mapping[str, Any], out: Path) -> None:
    from echo_ext.training.run_directory import RATES

    kind = next(name for name in RATES if name in result)
    print(f"{result['recipe']} on {result['data']}, {result['rows']['test']} test rows, nats per sample")
    for label, value in (
        (RATES[kind], result[kind]),
        ("distortion", result["distortion"]),
        ("-ELBO", result["neg_elbo"]),
    ):
        print(f"  {label:<11} {value:10.3f}")
    print(f"after {result['epochs']} epochs in {result['seconds']:.0f} s; written to {out}")
