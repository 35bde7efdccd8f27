"""``echo-ext reproduce``: the papers' small experiments."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext.cli.machine import check_installed, find_device
from echo_ext.cli.train import PACKAGES

__all__ = ["HELP", "add_arguments", "run"]

HELP = "run a small experiment of the papers: its table, figures and every value; without a name, list them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, where to, and how much of it."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="which experiment")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: reproduced/NAME")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each case; default: the experiment's, mostly 3")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: what the experiment needs")
    parser.add_argument("--limit", type=int, metavar="N", help="take only the first N training rows")
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of the data's files; default: ECHO_EXT_DATA")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: cpu")


def run(arguments: argparse.Namespace) -> None:
    """Do it, or go on where it stopped, and print the table."""
    from echo_ext import reproduce

    if arguments.name is None:
        width = max(map(len, reproduce.NAMES))
        for name, summary in reproduce.experiments().items():
            print(f"{name:<{width}}  {summary}")
        return
    experiment = reproduce.find(arguments.name)
    seeds = experiment.seeds if arguments.seeds is None else arguments.seeds
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    check_installed(*PACKAGES, command="reproduce", extra="train")
    from echo_ext.reproduce.experiment import TABLE, Bench

    out = arguments.out or Path("reproduced", arguments.name)
    bench = Bench(
        out,
        range(seeds),
        epochs=arguments.epochs,
        limit=arguments.limit,
        data_dir=arguments.data_dir,
        device=find_device(arguments.device),
    )
    try:
        reproduce.reproduce(arguments.name, experiment, bench)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it stopped") from None
    print(f"{experiment.summary}\n{experiment.source}\n")
    print((out / TABLE).read_text(encoding="utf-8"))
    print(f"mean ± standard error over {seeds} seeds; written to {out}")
