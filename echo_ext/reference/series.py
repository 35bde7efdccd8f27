"""Information between time series by its definition: embeddings for the estimators of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from echo_ext.reference.information import (
    Numbers,
    _columns,
    _conditional,
    _estimate,
    _row_numbers,
    mutual_information,
)


def transfer_entropy(
    source: Any,
    target: Any,
    *,
    given: Any = None,
    history: int = 1,
    source_history: int = 1,
    given_history: int = 1,
    lag: int = 1,
    k: Any = 3,
    method: str = "ksg1",
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Any = None,
    nan_policy: str = "raise",
    transform: str | None = None,
) -> Any:
    """Estimate transfer entropy, with the arguments of :func:`echo_ext.transfer_entropy`.

    It is the quantity of Schreiber 2000 by the methods of :func:`conditional_mutual_information`. With ``given`` it is
    the conditional transfer entropy of Lizier, Prokopenko and Zomaya 2008.

    Example:
        >>> x, y = np.random.default_rng(0).standard_normal((2, 100))
        >>> abs(echo_ext.reference.transfer_entropy(x, y) - echo_ext.transfer_entropy(x, y)) < 1e-12
        True
    """
    first = max(history, lag + source_history - 1, 0 if given is None else given_history)
    series = [_columns(each) for each in (source, target, given) if each is not None]
    n = series[0].shape[-2]
    past = _pasts(n, first, groups)

    def embedded(values: Numbers, delay: int, length: int) -> list[Numbers]:
        return [values[..., past[:, delay + i], :] for i in range(length)]

    def local_values(k: int, rows: Numbers, *variables: Numbers) -> Numbers:
        x, y, *condition = variables
        return _conditional(x, y, np.concatenate(condition, 1), k, method, rows, exclude_within)

    terms = [*embedded(series[1], 0, 1), np.concatenate(embedded(series[0], lag, source_history), -1)]
    terms += embedded(series[1], 1, history)
    terms += [term for other in series[2:] for term in embedded(other, 1, given_history)]
    rows = _row_numbers(groups if exclude_within else None, n)[past[:, 0]]
    return _estimate(local_values, terms, k, unit, local, None, nan_policy, transform, rows)


def delayed_mutual_information(x: Any, y: Any, *, lags: Sequence[int], k: Any = 3, **options: Any) -> Any:
    """Estimate delayed mutual information, with the arguments of :func:`echo_ext.delayed_mutual_information`.

    It is the mutual information of x[t - lag] and y[t], at the times of one group for which both exist.

    Example:
        >>> x, y = np.random.default_rng(0).standard_normal((2, 100))
        >>> found = echo_ext.reference.delayed_mutual_information(x, y, lags=[0, 1])
        >>> np.allclose(found, echo_ext.delayed_mutual_information(x, y, lags=[0, 1]))
        True
    """
    x, y = _columns(x), _columns(y)
    groups = options.pop("groups", None)
    estimates = []
    for lag in lags:
        past = _pasts(x.shape[-2], abs(lag), groups)
        early, late = (past[:, -1], past[:, 0]) if lag >= 0 else (past[:, 0], past[:, -1])
        label = None if groups is None else np.asarray(groups)[past[:, 0]]
        estimates.append(mutual_information(x[..., early, :], y[..., late, :], k=k, groups=label, **options))
    return np.stack(estimates, np.ndim(k))


def _pasts(n: int, first: int, groups: Any) -> Numbers:
    """Return, at each time, its row and so many rows before it in its group, the latest first: (times, first + 1)."""
    label = np.zeros(n) if groups is None else np.asarray(groups)
    members = [np.flatnonzero(label == each) for each in dict.fromkeys(label.tolist())]
    pasts = [rows[i - first : i + 1][::-1].tolist() for rows in members for i in range(first, len(rows))]
    return np.array(sorted(pasts)).reshape(-1, first + 1)
