"""Mutual information between time series as a function of the delay between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Array, Groups, Method, NanPolicy, NumNeighbors, TensorOrArray, Transform, Unit
from echo_ext.estimators.embedding import Times
from echo_ext.estimators.evaluation import convert_estimates, evaluate, mean_of_samples, warn_if_tied
from echo_ext.estimators.ksg import METHODS, USE_MIXED, formula_of_pairs
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.options import read_options
from echo_ext.estimators.samples import Samples, read_samples, rows_with_nan

__all__ = ["delayed_mutual_information"]

Lags: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]


@overload
def delayed_mutual_information(
    x: Tensor,
    y: Tensor,
    *,
    lags: Lags,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Tensor: ...
@overload
def delayed_mutual_information(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    lags: Lags,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array: ...
def delayed_mutual_information(
    x: TensorOrArray,
    y: TensorOrArray,
    *,
    lags: Lags,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Any:
    """Estimate the mutual information I(x[t-lag]; y[t]) between two time series for each of several lags.

    The estimate for a lag is that of :func:`mutual_information`, over all times t for which both rows exist. It is a
    description and not a measure of influence: a series that only remembers its own past is also informative about
    another one at many lags. For the direction of influence there is :func:`transfer_entropy`.

    Args:
        x, y: Time series (..., N, d), each with its own d, or (N,) for one column; rows are consecutive times, of any
            kind that :func:`mutual_information` reads. Leading dimensions are a batch and broadcast.
        lags: The numbers of rows from x to y, a sequence of ints. At a positive lag x comes first, at a negative one y.
        k, method, unit, exclude_within, transform: As in :func:`mutual_information`. N is the number of times, and the
            columns that are transformed are those at these times.
        groups: The trial or recording of each row, (N,) labels of any kind. A time exists where both rows lie in one
            group, and the window reaches rows of the same group alone.
        nan_policy: "raise", or "omit" to leave out the times at which a term is NaN.

    Returns:
        An array, or a tensor for tensors, with one estimate for each lag in its first dimension, (L, ...); with several
        k (K, L, ...). The gradient is that of :func:`mutual_information`.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also no lags, lags that are not ints, and a lag that
            leaves too few times.

    Warns:
        DegenerateDataWarning, UserWarning: As in :func:`mutual_information`.

    Example:
        >>> import numpy as np
        >>> from echo_ext import delayed_mutual_information
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal(2000)
        >>> y = np.roll(x, 2) + rng.standard_normal(2000)  # 0.35 nats from x to y, two rows later
        >>> delayed_mutual_information(x, y, lags=[-2, 0, 1, 2, 3]).round(2)
        array([ 0.01, -0.01,  0.01,  0.35,  0.01])
    """
    _checks.choice("method", method, METHODS)
    named = read_categories(method, {"x": x, "y": y}, {}, nan_policy)
    series = read_samples(nan_policy=nan_policy, warn_if_wide=True, **named)
    options = read_options(
        series.count,
        k=k,
        unit=unit,
        exclude_within=exclude_within,
        groups=groups,
        transform=transform,
        method=method,
    )
    formula = formula_of_pairs(method)
    estimates = []
    for lag in _read_lags(lags):
        times = Times(series.count, abs(lag), groups)
        if times.count < 2:
            raise ValueError(
                f"lags must leave at least 2 times, got lag {lag}, which leaves {times.count} of {series.count} rows"
            )
        at_lag = times.restrict(options, reason=f" (lag {lag} leaves {times.count} of {series.count} rows)")
        early, late = series.variables
        variables = (times.embed(early, max(lag, 0), 1), times.embed(late, max(-lag, 0), 1))
        missing = None if series.missing is None else rows_with_nan(variables)
        samples = Samples(variables, series.names, series.are_arrays, missing)
        estimates.append(mean_of_samples(evaluate(formula, samples, at_lag), samples))
    warn_if_tied(options.tied_shares, USE_MIXED)
    return convert_estimates(torch.stack(estimates, 1), series, options)


def _read_lags(lags: Lags) -> list[int]:
    if not isinstance(lags, Sequence) and not (isinstance(lags, np.ndarray) and lags.ndim == 1):
        raise TypeError(f"lags must be a sequence of ints, got {_checks.brief(lags)}")
    if len(lags) == 0:
        raise ValueError("lags must be a sequence of at least one int, got none")
    return [_checks.whole("lags", lag, what="a sequence of ints") for lag in lags]
