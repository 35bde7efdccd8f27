"""The command ``echo-ext encode``, which writes the codes of data under the model of a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext import _checks
from echo_ext.cli.machine import add_data_dir, add_device, check_writable, find_device
from echo_ext.cli.train import PACKAGES
from echo_ext.training.configuration import SETTINGS

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "write the codes of data under the model of a run directory"
EXAMPLES = (
    "echo-ext encode runs/echo-digits-beta1-seed0 digits --part test --out codes.npz",
    "echo-ext encode runs/echo-digits-beta1-seed0 mine.npz --out codes.npz",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("directory", type=Path, metavar="RUN_DIR", help="run directory that train has written")
    add("data", metavar="DATA", help=SETTINGS["data"].help)
    what = "file to write: z (a sample for each row), mean (the code without noise) and labels, if there are any"
    add("--out", type=Path, required=True, metavar="FILE.npz", help=what)
    add("--part", default="all", metavar="all|train|valid|test", help="rows to encode")
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise")
    add_data_dir(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Encode the rows and write the codes."""
    _checks.installed(*PACKAGES, purpose="encode")
    check_writable("out", arguments.out.parent)
    from echo_ext import training

    options = {name: getattr(arguments, name) for name in ("part", "seed", "data_dir")}
    device = find_device(arguments.device)
    codes = training.encode(arguments.directory, arguments.data, arguments.out, device=device, **options)
    rows, latents = codes["z"].shape
    print(f"{rows} rows of {latents} latents, {', '.join(codes)}; written to {arguments.out}")
