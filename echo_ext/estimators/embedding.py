"""The times of a time series at which rows before them exist, and what the series holds there."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext._types import Groups
from echo_ext.estimators.options import Options
from echo_ext.estimators.tables import read_groups

__all__ = ["Times"]


class Times:
    """The times at which every term of an embedding exists, in the order of the series' rows.

    Attributes:
        count: How many there are.
    """

    def __init__(self, n: int, first: int, groups: Groups | None) -> None:
        """Find the times of n rows that have ``first`` rows before them, all in their own group."""
        self.n, self.first = n, min(first, n)
        self.order: Tensor | None = None
        self.count = n - self.first
        if groups is None:
            return
        codes = torch.from_numpy(read_groups(groups, n))
        order = codes.sort(stable=True).indices  # group by group, each in the order of time
        by_group = codes[order]
        later = torch.arange(self.first, n, device="cpu")
        place = later[by_group[later] == by_group[later - self.first]]
        self.places = place[order[place].argsort()]  # within `order`
        self.order = order
        self.count = len(place)

    @property
    def where(self) -> str:
        """Where the rows have to be, for an error."""
        return "" if self.order is None else "in some group "

    @property
    def rows(self) -> Tensor:
        """The rows of the times, int64, ascending."""
        return torch.arange(self.first, self.n, device="cpu") if self.order is None else self.order[self.places]

    def restrict(self, options: Options, *, reason: str) -> Options:
        """Return the options of an estimate at these times, from those of the n rows.

        Raises:
            ValueError: The times are too few for k. ``reason`` says why the others are not there.
        """
        if self.order is None:
            return options.resize(self.count, reason=reason)
        return options.keep(self.rows, reason=reason)

    def embed(self, rows: Tensor, delay: int, length: int) -> Tensor:
        """Return, at each time, the rows (..., N, d) from ``delay`` rows before, and those before them."""
        delays = range(delay, delay + length)
        if self.order is None:
            return torch.cat([rows[..., self.first - each : self.n - each, :] for each in delays], -1)
        return torch.cat([rows[..., self.order[self.places - each].to(rows.device), :] for each in delays], -1)
