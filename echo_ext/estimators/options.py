"""The keywords that all estimators have: how they are checked, and what they mean for some of the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import CellMethod, Discrete, Groups, NumNeighbors, Transform, Unit
from echo_ext.estimators.neighbors import ALL, count_neighbors_among
from echo_ext.estimators.samples import MAX_SAMPLES
from echo_ext.estimators.tables import read_groups

UNITS: dict[Unit, float] = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}
TRANSFORMS: tuple[Transform | None, ...] = (None, *get_args(Transform))
CELL_METHODS: tuple[CellMethod, ...] = get_args(CellMethod)


@dataclass(frozen=True)
class Options:
    """The keywords that all estimators have, checked.

    Attributes:
        ks: The numbers of neighbors to estimate with.
        single_k: Whether ``k`` was one number, so that the result has no dimension for it.
        unit: "nats" or "bits".
        local: Whether the values of the samples are asked for, instead of their mean.
        exclude_within: The Theiler window.
        total: N, the number of samples that are one another's possible neighbors.
        part: The samples to evaluate; all of them, except on one rank of several.
        rows: The row numbers that the window refers to, int64 (N,): those of different groups are farther apart than
            it. None stands for 0, 1, 2, ..., and for any numbers where there is no window. `evaluate` sorts the
            samples by them: a function that it calls finds them ascending and on the device of the samples.
        transform: The transformation of each column.
        given_k: ``k`` as it was given, with fractions of N.
        counts_cells: Whether the method has no neighbors, so that k and exclude_within have no bounds.
        discrete: Which columns of each variable hold categories.
        tied_shares: Where estimators note, for the warning, the share of the samples whose k-th neighbor is at
            distance 0: (K, *batch) for each search.
    """

    ks: tuple[int, ...]
    single_k: bool
    unit: Unit
    local: bool
    exclude_within: int
    total: int
    part: slice
    rows: Tensor | None
    transform: Transform | None
    given_k: tuple[int | float, ...]
    counts_cells: bool = False
    discrete: Mapping[str, Discrete] = field(default_factory=dict)
    tied_shares: list[Tensor] = field(default_factory=list)

    @property
    def max_k(self) -> int:
        """The number of neighbors to search."""
        return max(self.ks)

    def keep(self, kept: Tensor, *, reason: str = "") -> Options:
        """Return the options of an estimate from some of the samples, which keep their row numbers.

        Args:
            kept: Their places, int64 (M,), on the CPU.
            reason: What a refusal adds: why the others are not there.

        Raises:
            ValueError: They are too few for k.
        """
        rows = None
        if self.exclude_within > 0:
            rows = kept if self.rows is None else self.rows.cpu()[kept]
        return self._resized(len(kept), rows, reason)

    def resize(self, n: int, *, reason: str = "") -> Options:
        """Return the options of an estimate from any n consecutive samples.

        Raises:
            ValueError: They are too few for k.
        """
        return self._resized(n, None, reason)

    def _resized(self, n: int, rows: Tensor | None, reason: str) -> Options:
        ks = _numbers_of_neighbors(self.given_k, n, self.exclude_within, rows, self.counts_cells, reason)
        return replace(self, ks=ks, total=n, rows=rows)


def read_options(
    n: int,
    *,
    k: NumNeighbors,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    transform: Transform | None = None,
    part: slice = ALL,
    method: str = "knn",
    discrete: Mapping[str, Discrete] | None = None,
) -> Options:
    """Check the keywords that all estimators have, for n samples.

    Raises:
        TypeError: k is neither a number nor a sequence of numbers, or exclude_within is not an int.
        ValueError: The unit or transform is unknown, a fraction for k is not in (0, 1), groups have another length, or
            k and exclude_within leave a sample too few neighbors.
    """
    several = not isinstance(k, int) and isinstance(k, (Sequence, np.ndarray)) and np.ndim(k) == 1 and len(k) > 0
    each_k = k if isinstance(k, (Sequence, np.ndarray)) and several else [k]
    given_k = tuple(_read_k(each) for each in each_k)
    _checks.choice("unit", unit, UNITS)
    _checks.choice("transform", transform, TRANSFORMS)
    counts_cells = method in CELL_METHODS
    if counts_cells and transform is not None:
        raise ValueError(f"transform is for methods of neighbors, got transform={transform!r} with method={method!r}")
    window = _checks.whole("exclude_within", exclude_within, minimum=0)
    rows = None
    if groups is not None:
        window = min(window, MAX_SAMPLES)
        rows = number_rows(torch.from_numpy(read_groups(groups, n)), window)
    rows = rows if window > 0 else None
    return Options(
        ks=_numbers_of_neighbors(given_k, n, window, rows, counts_cells),
        single_k=not several,
        unit=unit,
        local=bool(local),
        exclude_within=window,
        total=n,
        part=part,
        rows=rows,
        transform=transform,
        given_k=given_k,
        counts_cells=counts_cells,
        discrete={name: flags for name, flags in (discrete or {}).items() if flags is not False},
    )


def number_rows(groups: Tensor, window: int) -> Tensor:
    """Return row numbers (N,) that ascend within each group, and jump by more than the window between groups.

    Args:
        groups: The group of each row, int64 (N,), which are 0, 1, 2, ...
        window: The Theiler window.
    """
    by_group = torch.sort(groups, stable=True)
    place = torch.arange(len(groups), device=groups.device)
    return torch.empty_like(groups).scatter_(0, by_group.indices, place + by_group.values * window)


def read_seed(seed: int | None) -> int:
    """Return the seed, or a random one from PyTorch's generator."""
    if seed is None:
        return int(torch.randint(_checks.INT64[1], (), device="cpu"))
    return _checks.whole("seed", seed, minimum=_checks.INT64[0], maximum=_checks.INT64[1])


def read_generator(seed: int | None) -> torch.Generator:
    """Return a generator on the CPU with the seed, or with a random one."""
    return torch.Generator().manual_seed(read_seed(seed))


def _read_k(k: object) -> int | float:
    """Return a number of neighbors or a fraction."""
    what = "an int, a fraction in (0, 1) or a sequence of these"
    if not isinstance(k, int) and isinstance(k, Real) and not isinstance(k, Integral):  # the first is the fastest
        if not 0 < float(k) < 1:
            raise ValueError(f"k must be an int or a fraction in (0, 1), got {_checks.brief(k)}")
        return float(k)
    return _checks.whole("k", k, minimum=1, what=what)


def _numbers_of_neighbors(
    given_k: Sequence[int | float], n: int, window: int, rows: Tensor | None, counts_cells: bool, reason: str = ""
) -> tuple[int, ...]:
    """Return k for n samples; refuse one that leaves a sample too few neighbors, for the given reason."""
    ks = tuple(k if isinstance(k, int) else max(1, int(k * n)) for k in given_k)
    if counts_cells:
        if n < 1:
            raise ValueError(f"methods that count symbols need at least 1 sample, got {n}{reason}")
        return ks
    if rows is None:
        fewest = max(n - 1 - 2 * window, 0)  # of a sample in the middle
    else:
        fewest = int(count_neighbors_among(rows.sort().values, window).min()) if n > 0 else 0
    if max(ks) > fewest:
        raise ValueError(
            f"k must be less than the number of samples, got {max(ks)} of {n}{reason}"
            if window == 0
            else f"k must be at most {fewest}, the number of neighbors that exclude_within={window} leaves to some of "
            f"the {n} samples, got {max(ks)}{reason}"
        )
    return ks
