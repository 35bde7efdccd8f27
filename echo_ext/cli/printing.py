"""The tables that commands print."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["print_table", "with_error"]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in columns, of which the first is aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *aligned]).rstrip())


def with_error(mean: float, error: float, digits: int = 2) -> str:
    """A mean with its standard error, unless that is not known, or nothing if the mean is not known either."""
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" +- {error:.{digits}f}")
