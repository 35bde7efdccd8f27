"""The command ``echo-ext push``, which shares a run directory on the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext import _checks
from echo_ext.cli.train import PACKAGES

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "upload the model, the measures and the figures of a run directory, with a model card, to the Hugging Face Hub"
EXAMPLES = (
    "echo-ext push runs/echo --out shared/echo",
    "echo-ext push runs/echo user/name --license mit --private",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("directory", type=Path, metavar="RUN_DIR", help="run directory that train has written")
    add("repository", nargs="?", metavar="USER/NAME", help="repository, which is created if necessary")
    add("--out", type=Path, metavar="DIR", help="write the files to this folder, and upload nothing")
    add("--private", action="store_true", default=None, help="make a new repository private")
    add(
        "--license",
        metavar="NAME",
        help="license of the weights, such as mit, for the model card (default: not stated)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Upload the run, or write its files to a folder."""
    if (arguments.repository is None) == (arguments.out is None):
        raise ValueError("give either USER/NAME, to upload the run, or --out DIR, to look at the files before")
    _checks.installed(*PACKAGES, purpose="push")
    from echo_ext import training

    if arguments.out is not None:
        training.export(arguments.directory, arguments.out, license=arguments.license)
        print(f"written to {arguments.out}")
        return
    options = {"license": arguments.license, "private": arguments.private}
    print(f"uploaded: {training.push(arguments.directory, arguments.repository, **options)}")
