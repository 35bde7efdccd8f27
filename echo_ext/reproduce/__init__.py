"""The papers' small experiments by name, each a module whose ``EXPERIMENT`` says what it is and runs it."""

from __future__ import annotations

import importlib

from echo_ext import _checks
from echo_ext.reproduce.experiment import Bench, Case, Experiment, Outcome, Row, reproduce

__all__ = ["NAMES", "Bench", "Case", "Experiment", "Outcome", "Row", "experiments", "find", "reproduce"]

NAMES = ("mim-mixture", "mim-entropy", "consistency-1d", "noise-tc", "mutual-toys", "anchors", "stacked-corex")


def experiments() -> dict[str, str]:
    """Each name with one line on what it shows."""
    return {name: find(name).summary for name in NAMES}


def find(name: str) -> Experiment:
    """The experiment of this name, or a ValueError that lists the nearest names."""
    if name not in NAMES:
        raise _checks.unknown("experiment", name, sorted(NAMES))
    experiment: Experiment = importlib.import_module(f"echo_ext.reproduce.{name.replace('-', '_')}").EXPERIMENT
    return experiment
