"""The command ``echo-ext recipes``, which lists the models that can be trained."""

from __future__ import annotations

import argparse

from echo_ext import models

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "list the recipes for train, one per line"
EXAMPLES = ("echo-ext recipes",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(arguments: argparse.Namespace) -> None:
    """Print each name with its summary."""
    summaries = models.recipes()
    width = max(map(len, summaries), default=0)
    for name, summary in summaries.items():
        print(f"{name:<{width}}  {summary}")
