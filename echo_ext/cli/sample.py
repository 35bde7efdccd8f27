"""The command ``echo-ext sample``, which draws samples from the model of a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext import _checks
from echo_ext.cli.machine import add_device, check_writable, find_device
from echo_ext.cli.train import PACKAGES

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "draw samples from the model of a run directory; write samples.npz and samples.png"
EXAMPLES = (
    "echo-ext sample runs/echo-digits-beta1-seed0",
    "echo-ext sample runs/echo-digits-beta1-seed0 -n 1000 --out samples",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("directory", type=Path, metavar="RUN_DIR", help="run directory that train has written")
    add("-n", type=int, default=64, metavar="N", help="number of samples; the figure shows the first of them")
    add("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    add("--out", type=Path, metavar="DIR", help="folder of the two files (default: the run directory)")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draw the samples and write them."""
    _checks.installed(*PACKAGES, purpose="sample")
    from echo_ext import training

    out, device = arguments.out or arguments.directory, find_device(arguments.device)
    check_writable("out", out)
    training.sample(arguments.directory, arguments.n, out, seed=arguments.seed, device=device)
    print(f"{arguments.n} samples; written to {out / 'samples.npz'} and {out / 'samples.png'}")
