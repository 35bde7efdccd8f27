"""Transfer of information between time series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import (
    Array,
    Estimate,
    Groups,
    MultivariateMethod,
    NanPolicy,
    NumNeighbors,
    TensorOrArray,
    Transform,
    Unit,
)
from echo_ext.estimators import gradients, local_values
from echo_ext.estimators.evaluation import evaluate, reduce_local_values
from echo_ext.estimators.ksg import MULTIVARIATE_METHODS, USE_MIXED
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options, number_rows, read_options
from echo_ext.estimators.samples import MAX_SAMPLES, Samples, read_samples, rows_with_nan
from echo_ext.estimators.tables import read_groups

__all__ = ["transfer_entropy"]


@overload
def transfer_entropy(
    source: Tensor,
    target: Tensor,
    *,
    history: int = 1,
    source_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Tensor: ...
@overload
def transfer_entropy(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    history: int = 1,
    source_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array | float: ...
def transfer_entropy(
    source: TensorOrArray,
    target: TensorOrArray,
    *,
    history: int = 1,
    source_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Estimate:
    """Estimate transfer entropy: what the past of the source adds to the target's own past (Schreiber 2000).

    ``I(target[t]; source[t-lag], ..., source[t-lag-source_history+1] | target[t-1], ..., target[t-history])`` by the
    estimators of :func:`conditional_mutual_information`, over all times t for which every term exists.

    Args:
        source, target: Time series (..., N, d), each with its own d, or (N,) for one column; rows are consecutive
            times, of any kind that :func:`mutual_information` reads. Leading dimensions are a batch and broadcast.
        history: The number of rows of the target's past, at least 1. A longer history conditions on more, so that
            less of the target's own memory is attributed to the source; each row adds columns, and with them bias.
        source_history: The number of rows of the source's past, at least 1.
        lag: The number of rows from the source's latest row to the target's value, at least 1.
        method: As in :func:`conditional_mutual_information`: "ksg1" and "ksg2" for continuous series, "mixed" where
            values repeat, as in counts of events, "plug-in" and "miller-madow" for series of few symbols.
        k, unit, local, exclude_within, transform: As in :func:`mutual_information`. N is the number of times, and the
            columns that are transformed are those of the terms at these times. The local values are those of the times
            from ``max(history, lag + source_history - 1)`` on.
        groups: The trial or recording of each row, (N,) labels of any kind. A time exists where all its terms lie in
            one group, and the window reaches rows of the same group alone.
        nan_policy: "raise", or "omit" to leave out the times at which a term is NaN.

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...). It has no gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also too few rows for the histories and k.

    Example:
        >>> import numpy as np
        >>> from echo_ext import transfer_entropy
        >>> rng = np.random.default_rng(0)
        >>> source = rng.standard_normal(2000)
        >>> target = np.roll(source, 1) + rng.standard_normal(2000)  # 0.35 nats from source to target
        >>> round(transfer_entropy(source, target), 2), round(transfer_entropy(target, source), 2)
        (0.35, 0.0)
    """
    _checks.choice("method", method, MULTIVARIATE_METHODS)
    given = read_categories(method, {"source": source, "target": target}, {}, nan_policy)
    series = read_samples(nan_policy=nan_policy, warn_if_wide=True, **given)
    for name, value in (("history", history), ("source_history", source_history), ("lag", lag)):
        _checks.whole(name, value, minimum=1)
    window = _checks.whole("exclude_within", exclude_within, minimum=0)
    first = max(history, lag + source_history - 1)
    times = Times(series.count, first, groups, min(window, MAX_SAMPLES))
    if times.count < 2:
        raise ValueError(
            f"source and target must have at least {first + 2} rows {times.where}for history={history}, "
            f"source_history={source_history} and lag={lag}, got {series.count}"
        )
    options = read_options(
        times.count,
        k=k,
        unit=unit,
        local=local,
        exclude_within=exclude_within,
        transform=transform,
        rows=times.rows,
        method=method,
    )
    drivers, driven = series.variables
    variables = (
        times.embed(driven, 0, 1),
        times.embed(drivers, lag, source_history),
        times.embed(driven, 1, history),
    )
    missing = None if series.missing is None else rows_with_nan(variables)
    samples = Samples(variables, ("target", "source", "the past of target"), series.are_arrays, missing)

    def formula(variables: Sequence[Tensor], options: Options) -> Tensor:
        values = local_values.CONDITIONAL[method]([PointSet(v) for v in variables], options)
        return gradients.without_gradient(values, "transfer_entropy", *variables)

    return reduce_local_values(evaluate(formula, samples, options, remedy=USE_MIXED), samples, options)


class Times:
    """The times at which every term of an embedding exists, in the order of the series' rows.

    Attributes:
        count: How many there are.
        rows: Their row numbers, those of different groups farther apart than the window; None without groups.
    """

    def __init__(self, n: int, first: int, groups: Groups | None, window: int) -> None:
        """Find the times of n rows that have ``first`` rows before them, all in their own group."""
        self.n, self.first = n, first
        self.rows: Tensor | None = None
        self.count = max(n - first, 0)
        if groups is None:
            return
        codes = torch.from_numpy(read_groups(groups, n))
        order = codes.sort(stable=True).indices  # group by group, each in the order of time
        by_group = codes[order]
        later = torch.arange(first, n, device="cpu")
        place = later[by_group[later] == by_group[later - first]]
        self.places = place[order[place].argsort()]  # within `order`
        self.order = order
        self.rows = number_rows(codes, window)[order[self.places]]
        self.count = len(place)

    @property
    def where(self) -> str:
        """Where the rows have to be, for an error."""
        return "" if self.rows is None else "in some group "

    def embed(self, rows: Tensor, delay: int, length: int) -> Tensor:
        """Return, at each time, the rows (..., N, d) from ``delay`` rows before, and those before them."""
        delays = range(delay, delay + length)
        if self.rows is None:
            return torch.cat([rows[..., self.first - each : self.n - each, :] for each in delays], -1)
        return torch.cat([rows[..., self.order[self.places - each].to(rows.device), :] for each in delays], -1)
