"""The command ``echo-ext reproduce``, which runs the small experiments of the papers."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext import _checks
from echo_ext.cli.machine import add_data_dir, add_device, check_installed, find_device
from echo_ext.cli.train import PACKAGES

__all__ = ["HELP", "add_arguments", "run"]

HELP = "run a small experiment of the papers and write its table and figures; without a name, list the experiments"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the experiment")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (default: reproduced/NAME)")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="number of runs of each case (default: that of the experiment, mostly 3)"
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="number of training epochs (default: that of the experiment)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N training rows")
    add_data_dir(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run or resume the experiment and print its table."""
    from echo_ext import reproduce

    if arguments.name is None:
        width = max(map(len, reproduce.NAMES))
        for name, summary in reproduce.experiments().items():
            print(f"{name:<{width}}  {summary}")
        return
    experiment = reproduce.find(arguments.name)
    seeds = experiment.seeds if arguments.seeds is None else arguments.seeds
    _checks.whole("--seeds", seeds, minimum=1)
    for flag, value in (("--epochs", arguments.epochs), ("--limit", arguments.limit)):
        if value is not None:
            _checks.whole(flag, value, minimum=1)
    check_installed(*PACKAGES, command="reproduce", extra="train")
    from echo_ext.reproduce.experiment import TABLE, Context

    out = arguments.out or Path("reproduced", arguments.name)
    context = Context(
        out,
        range(seeds),
        epochs=arguments.epochs,
        limit=arguments.limit,
        data_dir=arguments.data_dir,
        device=find_device(arguments.device),
    )
    try:
        reproduce.reproduce(arguments.name, experiment, context)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; run the same command again to continue") from None
    print(f"{experiment.summary}\n{experiment.source}\n")
    print((out / TABLE).read_text(encoding="utf-8"))
    print(f"mean ± standard error over {seeds} seeds; written to {out}")
