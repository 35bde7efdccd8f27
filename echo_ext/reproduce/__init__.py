"""Small experiments of the papers, by name; each is the ``EXPERIMENT`` of a module here."""

from __future__ import annotations

import importlib

from echo_ext import _checks
from echo_ext.reproduce.experiment import Case, Context, Experiment, Result, Row, reproduce

__all__ = ["NAMES", "Case", "Context", "Experiment", "Result", "Row", "experiments", "find", "reproduce"]

NAMES = ("mim-mixture", "mim-entropy", "consistency-1d", "noise-tc", "mutual-toys", "anchors", "stacked-corex")


def experiments() -> dict[str, str]:
    """Return the name of each experiment with its one-line summary."""
    return {name: find(name).summary for name in NAMES}


def find(name: str) -> Experiment:
    """Return the experiment of this name, or raise a ValueError that suggests similar names."""
    if name not in NAMES:
        raise _checks.unknown("experiment", name, sorted(NAMES))
    experiment: Experiment = importlib.import_module(f"echo_ext.reproduce.{name.replace('-', '_')}").EXPERIMENT
    return experiment
