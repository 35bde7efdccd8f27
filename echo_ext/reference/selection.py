"""The criteria of feature selection by their definitions, one pair of features at a time, in NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import digamma

Numbers: TypeAlias = npt.NDArray[Any]


class Column(NamedTuple):
    """One column (N,) of a variable, and whether it is discrete."""

    values: Numbers
    discrete: bool


def information(a: Sequence[Column], b: Sequence[Column], given: Sequence[Column] = (), *, k: int = 3) -> float:
    """Estimate I(a; b | given) where different discrete values are infinitely far apart.

    The formula of Frenzel and Pompe 2007 with the number of neighbors of Ross 2014. If every column is discrete, it is
    the information of the empirical distribution.
    """
    n = len(a[0].values)
    joint, z, az, bz = (_distances(v, n) for v in ([*a, *b, *given], given, [*a, *given], [*b, *given]))
    if all(column.discrete for column in [*a, *b, *given]):
        shares = [np.mean(apart == 0, axis=1) for apart in (joint, z, az, bz)]
        return float(np.mean(np.log(shares[0] * shares[1] / (shares[2] * shares[3]))))
    alike = np.isfinite(joint) & ~np.eye(n, dtype=bool)
    kept = np.flatnonzero(alike.any(axis=1))
    values = []
    for i in kept.tolist():
        others = kept[kept != i]
        own_k = min(k, int(alike[i, others].sum()))
        radius = np.sort(joint[i, others])[own_k - 1]
        nz, naz, nbz = (np.sum(apart[i, others] < radius) for apart in (z, az, bz))
        values.append(digamma(own_k) + digamma(nz + 1) - digamma(naz + 1) - digamma(nbz + 1))
    return float(np.mean(values)) if values else 0.0


def criterion_values(
    criterion: str, features: Sequence[Column], y: Column, selected: Sequence[int], *, k: int = 3
) -> Numbers:
    """Compute the criterion of each feature given the selected ones, for which it is NaN."""
    chosen = [features[s] for s in selected]
    values = np.full(len(features), np.nan)
    for j in set(range(len(features))) - set(selected):
        x = features[j]
        relevance = max(information([x], [y], k=k), 0.0)
        if criterion == "mi" or not chosen:
            values[j] = relevance
        elif criterion == "mrmr":
            values[j] = relevance - np.mean([max(information([x], [s], k=k), 0.0) for s in chosen])
        elif criterion == "cmim":
            values[j] = min(information([x], [y], [s], k=k) for s in chosen)
        else:
            pairs = [information([x, s], [y], k=k) for s in chosen]
            values[j] = sum(pairs) if criterion == "jmi" else min(pairs)
    return values


def _distances(columns: Sequence[Column], n: int) -> Numbers:
    """Chebyshev distances (N, N), infinite between different discrete values; 0 if there is no column."""
    apart = np.zeros((n, n))
    for column in columns:
        difference = np.abs(column.values[:, None] - column.values)
        apart = np.maximum(apart, np.where(difference > 0, np.inf, 0.0) if column.discrete else difference)
    return apart
