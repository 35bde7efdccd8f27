"""The command ``echo-ext pull``, which makes a run directory of a run on the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext import _checks
from echo_ext.cli.train import PACKAGES

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "download a run that push has uploaded, into a run directory for evaluate, encode and sample"
EXAMPLES = (
    "echo-ext pull user/name --out runs/pulled",
    "echo-ext pull shared/echo --out runs/pulled",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("repository", metavar="USER/NAME|DIR", help="repository, or a folder that push --out has written")
    add("--out", type=Path, metavar="RUN_DIR", help="folder of the run (default: runs/NAME)")
    add("--revision", metavar="NAME", help="branch, tag or commit of the repository")


def run(arguments: argparse.Namespace) -> None:
    """Download the run."""
    _checks.installed(*PACKAGES, purpose="pull")
    from echo_ext import training

    out = arguments.out or Path("runs") / Path(arguments.repository).name
    configuration = training.pull(arguments.repository, out, revision=arguments.revision).configuration
    print(f"{configuration.recipe} on {configuration.data}; written to {out}")
