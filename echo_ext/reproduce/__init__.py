"""The papers' small experiments by name, each a module whose ``EXPERIMENT`` says what it is and runs it."""

from __future__ import annotations

import difflib
import importlib

from echo_ext.reproduce.experiment import Bench, Case, Experiment, Outcome, Row, reproduce

__all__ = ["NAMES", "Bench", "Case", "Experiment", "Outcome", "Row", "experiments", "find", "reproduce"]

NAMES = ("mim-mixture", "mim-entropy", "consistency-1d", "noise-tc", "mutual-toys", "anchors", "stacked-corex")


def experiments() -> dict[str, str]:
    """Each name with one line on what it shows."""
    return {name: find(name).summary for name in NAMES}


def find(name: str) -> Experiment:
    """The experiment of this name, or a ValueError that lists the nearest names."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4) or sorted(NAMES)
        raise ValueError(f"there is no experiment {name!r}; the nearest are {', '.join(near)}")
    experiment: Experiment = importlib.import_module(f"echo_ext.reproduce.{name.replace('-', '_')}").EXPERIMENT
    return experiment
