"""``echo-ext train``: train a recipe on a data set, measure it, write a run directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_ext.cli.machine import check_installed, find_device

if TYPE_CHECKING:
    from echo_ext.training import Configuration

__all__ = ["HELP", "add_arguments", "add_settings", "run", "settings"]

HELP = "train a recipe on a data set; writes a folder with the model, its measures and pictures"

PACKAGES = ("lightning", "matplotlib", "tqdm", "yaml")
SETTINGS = (
    *("epochs", "limit", "latent_dim", "batch_size", "learning_rate", "schedule", "warm_up_epochs", "patience"),
    *("gradient_clip", "normalize_gradients", "binarization", "precision"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, on what, how long, and where to."""
    parser.add_argument("--recipe", metavar="NAME", help="what to train; echo-ext recipes lists them")
    parser.add_argument("--data", metavar="NAME", help="on what; echo-ext data lists it")
    parser.add_argument("--beta", type=float, help="the price of a nat of rate; default: the recipe's, mostly 1")
    parser.add_argument("--seed", type=int, help="of weights, order, noise and binarization; default: 0")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the folder of the run; default: runs/RECIPE-DATA-betaBETA-seedSEED"
    )
    parser.add_argument("--resume", action="store_true", help="go on after the last finished epoch of the run in --out")
    parser.add_argument("--tensorboard", action="store_true", help="also log to DIR/tensorboard")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What ``train`` and ``sweep`` have in common; what is not given is as the recipe says."""
    whole = {"type": int, "metavar": "N"}
    parser.add_argument("--epochs", **whole, help="passes over the training rows")  # type: ignore[arg-type]
    parser.add_argument("--limit", **whole, help="take only the first N training rows")  # type: ignore[arg-type]
    parser.add_argument("--latent-dim", **whole, help="dimensions of z; default: as in the paper, mostly 32")  # type: ignore[arg-type]
    parser.add_argument("--batch-size", **whole, help="rows of a step, in each process")  # type: ignore[arg-type]
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="Adam's")
    parser.add_argument("--schedule", help="of the learning rate: constant-then-linear or constant")
    parser.add_argument("--warm-up-epochs", **whole, help="over which the model's warm_up_weight rises")  # type: ignore[arg-type]
    parser.add_argument(
        "--early-stopping",
        dest="patience",
        **whole,  # type: ignore[arg-type]
        help="stop after N epochs without a better validation loss",
    )
    parser.add_argument("--gradient-clip", type=float, metavar="NORM", help="largest norm of all gradients together")
    parser.add_argument(
        "--normalize-gradients", action="store_const", const=True, help="bring each tensor's gradient to norm 1"
    )
    parser.add_argument(
        "--binarize",
        dest="binarization",
        metavar="HOW",
        help="pixels to zeros and ones: none, static, or dynamic (anew in each epoch)",
    )
    parser.add_argument("--precision", help="32-true (default), bf16-mixed or 16-mixed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="model",
        metavar="NAME=VALUE",
        help="another argument of the model, the value in YAML, as --set hidden=[256,256]; may be repeated",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of the data's files; default: ECHO_EXT_DATA")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: cpu")
    parser.add_argument("--compile", action="store_true", help="run the loss through torch.compile")
    parser.add_argument(
        "--no-cuda-graph",
        dest="cuda_graph",
        action="store_false",
        help="on a GPU, launch each kernel of a step by itself instead of replaying the step from a CUDA graph",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train, and say what came out."""
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
    """What :func:`add_settings` was given, as ``Configuration.of`` takes it; None where nothing was."""
    given = {name: getattr(arguments, name) for name in SETTINGS}
    return {**given, "model": _model_arguments(arguments.model) or None}


def _configuration(arguments: argparse.Namespace) -> Configuration:
    from echo_ext import training

    given = {"beta": arguments.beta, "seed": arguments.seed, **settings(arguments)}
    if arguments.recipe and arguments.data:
        return training.Configuration.of(arguments.recipe, arguments.data, **given)
    if not arguments.resume:
        raise ValueError(f"--{'data' if arguments.recipe else 'recipe'} is missing")
    # With --resume, --out says it all; what is given beside it must agree.
    if not arguments.out:
        raise ValueError("--resume needs --out, or the run's --recipe and --data")
    saved = training.RunDirectory(arguments.out).configuration()
    stated = {"recipe": arguments.recipe, "data": arguments.data, **given}
    return training.Configuration.from_mapping(
        {**saved.as_mapping(), **{name: value for name, value in stated.items() if value is not None}}
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
            raise ValueError(f"--set {name}: {brief(value)} is not YAML") from None
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
