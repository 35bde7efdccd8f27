"""``echo-ext recipes``: what can be trained."""

from __future__ import annotations

import argparse

from echo_ext import models

__all__ = ["HELP", "add_arguments", "run"]

HELP = "list the recipes that train knows, one line each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(arguments: argparse.Namespace) -> None:
    """Print each name and what it is."""
    summaries = models.recipes()
    width = max(map(len, summaries), default=0)
    for name, summary in summaries.items():
        print(f"{name:<{width}}  {summary}")
