"""The definitions as the papers state them: the oracle of every test and the baseline of every benchmark.

Those of Echo noise are plain PyTorch. The information estimators have the same names as in :mod:`echo_ext` and need
SciPy; they are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from echo_ext.reference.echo import echo_circle, echo_matrix_circle, echo_noise, echo_sample, random_orderings

_INFORMATION = (
    "conditional_mutual_information",
    "count_within",
    "entropy",
    "knn",
    "mutual_information",
    "mutual_information_discrete",
    "mutual_information_matrix",
    "total_correlation",
)
_SERIES = ("delayed_mutual_information", "transfer_entropy")

__all__ = [
    "echo_circle",
    "echo_matrix_circle",
    "echo_noise",
    "echo_sample",
    "random_orderings",
    *_INFORMATION,
    *_SERIES,
]


def __getattr__(name: str) -> Any:
    if name not in (*_INFORMATION, *_SERIES):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "information" if name in _INFORMATION else "series"
    return getattr(importlib.import_module(f"echo_ext.reference.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
