"""The information estimators as the papers state them, in NumPy and SciPy.

They compute one sample after another from all pairs, which is slow and easy to read: the oracle of the tests. Arguments
are those of the functions of the same name in :mod:`echo_ext`; results are floats or arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import digamma, gammaln, ndtri

Numbers: TypeAlias = npt.NDArray[Any]
# From k and the variables of one item of the batch, (N, d) each, to the N local values.
LocalValues: TypeAlias = Callable[..., Numbers]


def mutual_information(
    x: Any,
    y: Any,
    *,
    k: Any = 3,
    method: str = "ksg1",
    discrete_x: Any = False,
    discrete_y: Any = False,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Any = None,
    nan_policy: str = "raise",
    transform: str | None = None,
) -> Any:
    """Estimate mutual information, with the arguments of :func:`echo_ext.mutual_information`.

    The methods are those of Kraskov et al. 2004 ("ksg1", "ksg2"), Gao et al. 2018 ("bi-ksg") and Gao et al. 2017
    ("mixed"); "plug-in" and "miller-madow" are sums of entropies of frequencies.

    Example:
        >>> x, y = np.random.default_rng(0).standard_normal((2, 100))
        >>> abs(echo_ext.reference.mutual_information(x, y) - echo_ext.mutual_information(x, y)) < 1e-12
        True
    """

    def values(k: int, rows: Numbers, *variables: Numbers) -> Numbers:
        if method == "bi-ksg":
            return _bi_ksg(variables, k, rows, exclude_within)
        return _total(variables, k, method, rows, exclude_within)

    variables, transforms = _separate([x, y], [discrete_x, discrete_y], transform)
    return _estimate(values, variables, k, unit, local, groups if exclude_within else None, nan_policy, transforms)


def total_correlation(
    x: Any,
    *,
    k: Any = 3,
    method: str = "ksg1",
    groups: Sequence[Sequence[int]] | None = None,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: str = "raise",
    transform: str | None = None,
) -> Any:
    """Estimate total correlation, with the arguments of :func:`echo_ext.total_correlation`.

    The methods are those of Kraskov et al. 2004, equation 23 ("ksg1") and 24 ("ksg2"), and those of
    :func:`mutual_information` for more than two variables.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((100, 3))
        >>> abs(echo_ext.reference.total_correlation(x) - echo_ext.total_correlation(x)) < 1e-12
        True
    """

    def values(k: int, rows: Numbers, points: Numbers) -> Numbers:
        columns = groups if groups is not None else [[c] for c in range(points.shape[1])]
        return _total([points[:, list(group)] for group in columns], k, method, rows, exclude_within)

    return _estimate(values, [x], k, unit, local, None, nan_policy, transform)


def conditional_mutual_information(
    x: Any,
    y: Any,
    z: Any,
    *,
    k: Any = 3,
    method: str = "ksg1",
    discrete_x: Any = False,
    discrete_y: Any = False,
    discrete_z: Any = False,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Any = None,
    nan_policy: str = "raise",
    transform: str | None = None,
) -> Any:
    """Estimate conditional mutual information, with the arguments of :func:`echo_ext.conditional_mutual_information`.

    The methods are those of Frenzel and Pompe 2007 ("ksg1"), Lizier 2014 ("ksg2") and Mesner and Shalizi 2021
    ("mixed"); "plug-in" and "miller-madow" are sums of entropies of frequencies.

    Example:
        >>> x, y, z = np.random.default_rng(0).standard_normal((3, 100))
        >>> found = echo_ext.reference.conditional_mutual_information(x, y, z)
        >>> abs(found - echo_ext.conditional_mutual_information(x, y, z)) < 1e-12
        True
    """

    def values(k: int, rows: Numbers, x: Numbers, y: Numbers, z: Numbers) -> Numbers:
        return _conditional(x, y, z, k, method, rows, exclude_within)

    variables, transforms = _separate([x, y, z], [discrete_x, discrete_y, discrete_z], transform)
    return _estimate(values, variables, k, unit, local, groups if exclude_within else None, nan_policy, transforms)


def entropy(
    x: Any,
    *,
    k: Any = 3,
    method: str = "knn",
    metric: str = "chebyshev",
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Any = None,
    nan_policy: str = "raise",
    transform: str | None = None,
) -> Any:
    """Estimate entropy, with the arguments of :func:`echo_ext.entropy`.

    The methods are that of Kozachenko and Leonenko 1987, as in Kraskov et al. 2004, equation 20, and those from
    frequencies.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((100, 2))
        >>> abs(echo_ext.reference.entropy(x) - echo_ext.entropy(x)) < 1e-12
        True
    """

    def values(k: int, rows: Numbers, points: Numbers) -> Numbers:
        if method != "knn":
            return _surprise([points], method)
        n, dim = points.shape
        log_volume = 0.0 if metric == "chebyshev" else _log_ball(dim) - dim * np.log(2)
        result = np.empty(n)
        for i in range(n):
            others = _others(rows, i, exclude_within)
            eps = np.float64(np.sort(_distances(points, i, others, metric))[k - 1])
            eps = np.sqrt(eps) if metric == "euclidean" else eps
            with np.errstate(divide="ignore"):
                result[i] = digamma(len(others) + 1) - digamma(k) + log_volume + dim * np.log(2 * eps)
        return result

    return _estimate(values, [x], k, unit, local, groups if exclude_within else None, nan_policy, transform)


def mutual_information_discrete(
    x: Any,
    labels: Any,
    given: Any = None,
    *,
    k: Any = 3,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: str = "raise",
    transform: str | None = None,
) -> Any:
    """Estimate mutual information with labels, with the arguments of :func:`echo_ext.mutual_information_discrete`.

    The method is that of Ross 2014, among the samples of equal conditions (N,). Samples whose label occurs once among
    these are left out, and NaN among the local values.

    Example:
        >>> x = np.random.default_rng(0).standard_normal(100)
        >>> found = echo_ext.reference.mutual_information_discrete(x, x > 0)
        >>> abs(found - echo_ext.mutual_information_discrete(x, x > 0)) < 1e-12
        True
    """

    def values(k: int, rows: Numbers, points: Numbers, labels: Numbers) -> Numbers:
        label, stratum = labels.T
        n = len(label)
        kept = np.array([np.sum((label == label[i]) & (stratum == stratum[i])) > 1 for i in range(n)])
        result = np.full(n, np.nan)
        for i in np.flatnonzero(kept).tolist():
            others = _others(rows, i, exclude_within)
            others = others[kept[others] & (stratum[others] == stratum[i])]
            same = others[label[others] == label[i]]
            own_k = min(k, len(same))
            radius = np.sort(_distances(points, i, same))[own_k - 1]
            near = np.sum(_distances(points, i, others) < radius)
            result[i] = digamma(len(others) + 1) + digamma(own_k) - digamma(len(same) + 1) - digamma(near + 1)
        return result

    codes = _codes(labels)
    conditions = np.broadcast_to(0.0 if given is None else _codes(given), codes.shape)
    return _estimate(
        values, [x, np.stack([codes, conditions], -1)], k, unit, local, None, nan_policy, [transform, None]
    )


def mutual_information_matrix(x: Any, y: Any = None, *, given: Any = None, **options: Any) -> Any:
    """Estimate the mutual information of each column of x with each column of y, perhaps given conditions.

    The arguments are those of :func:`echo_ext.mutual_information_matrix`, except those of tests.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((100, 2))
        >>> found = echo_ext.reference.mutual_information_matrix(x[:, :1], x)
        >>> np.allclose(found, echo_ext.mutual_information_matrix(x[:, :1], x))
        True
    """
    left = _columns(x)
    right = left if y is None else _columns(y)
    estimate, conditions = (mutual_information, ()) if given is None else (conditional_mutual_information, (given,))
    rows = [
        [estimate(left[..., [a]], right[..., [b]], *conditions, **options) for b in range(right.shape[-1])]
        for a in range(left.shape[-1])
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def knn(
    points: Any, queries: Any = None, k: int = 3, *, metric: str = "chebyshev", exclude_within: int = 0
) -> tuple[Numbers, Numbers]:
    """Find the k nearest points of each query, with the arguments of :func:`echo_ext.knn`, but no batches.

    Of equally near points, the one with the lower index comes first.

    Example:
        >>> distances, indices = echo_ext.reference.knn([0.0, 1.0, 3.0, 7.0], [2.5], 2)
        >>> distances.tolist(), indices.tolist()
        ([[0.5, 1.5]], [[2, 1]])
    """
    base = _columns(points)
    sought = base if queries is None else _columns(queries)
    distances = np.empty((len(sought), k), base.dtype)
    indices = np.empty((len(sought), k), np.int64)
    for i, query in enumerate(sought):
        others = np.arange(len(base)) if queries is not None else _others(np.arange(len(base)), i, exclude_within)
        apart = _lengths(base[others] - query, metric)
        nearest = np.argsort(apart, kind="stable")[:k]
        distances[i], indices[i] = apart[nearest], others[nearest]
    return (np.sqrt(distances) if metric == "euclidean" else distances), indices


def count_within(
    points: Any,
    radii: Any,
    queries: Any = None,
    *,
    metric: str = "chebyshev",
    inclusive: bool = False,
    exclude_within: int = 0,
) -> Numbers:
    """Count the points (N, d) within a radius, with the arguments of :func:`echo_ext.count_within`, but no batches.

    Example:
        >>> echo_ext.reference.count_within([0.0, 1.0, 3.0, 7.0], 2.5).tolist()
        [1, 2, 1, 0]
    """
    base = _columns(points)
    sought = base if queries is None else _columns(queries)
    counts = np.empty(len(sought), np.int64)
    for i, radius in enumerate(np.broadcast_to(np.asarray(radii), len(sought))):
        others = np.arange(len(base)) if queries is not None else _others(np.arange(len(base)), i, exclude_within)
        apart = _lengths(base[others] - sought[i], metric)
        limit = radius * radius if metric == "euclidean" else radius
        counts[i] = np.sum((apart <= limit if inclusive else apart < limit) & (radius >= 0))
    return counts


# ---- One item, one k -------------------------------------------------------------------------------------------------


def _ksg(variables: Sequence[Numbers], k: int, method: str, rows: Numbers, w: int) -> Numbers:
    joint = np.concatenate(variables, axis=1)
    n = len(joint)
    margins = len(variables) - 1
    result = np.empty(n)
    for i in range(n):
        others = _others(rows, i, w)
        apart = _distances(joint, i, others)
        nearest = np.argsort(apart, kind="stable")[:k]
        each = [_distances(v, i, others) for v in variables]
        if method == "ksg1":
            counts = [np.sum(a < apart[nearest[-1]]) + 1 for a in each]
            result[i] = digamma(k) + margins * digamma(len(others) + 1) - sum(map(digamma, counts))
        else:
            counts = [np.sum(a <= a[nearest].max()) for a in each]
            result[i] = digamma(k) - margins / k + margins * digamma(len(others) + 1) - sum(map(digamma, counts))
    return result


def _bi_ksg(variables: Sequence[Numbers], k: int, rows: Numbers, w: int) -> Numbers:
    joint = np.concatenate(variables, axis=1)
    n = len(joint)
    volumes = sum(_log_ball(v.shape[1]) for v in variables) - _log_ball(joint.shape[1])
    result = np.empty(n)
    for i in range(n):
        others = _others(rows, i, w)
        radius = np.sort(_distances(joint, i, others, "euclidean"))[k - 1]
        counts = [np.sum(_distances(v, i, others, "euclidean") <= radius) for v in variables]
        result[i] = digamma(k) + np.log(len(others) + 1) + volumes - sum(map(np.log, counts))
    return result


def _total(variables: Sequence[Numbers], k: int, method: str, rows: Numbers, w: int) -> Numbers:
    if method in ("ksg1", "ksg2"):
        return _ksg(variables, k, method, rows, w)
    if method == "mixed":
        return _mixed(variables, k, rows, w)
    return np.asarray(sum(_surprise([v], method) for v in variables) - _surprise(variables, method))


def _surprise(variables: Sequence[Numbers], method: str) -> Numbers:
    """Return the local values of the entropy of frequencies, corrected by Miller 1955 if the method says so."""
    joint = np.concatenate(variables, axis=1)
    n = len(joint)
    sizes = np.array([np.sum((joint == row).all(axis=1)) for row in joint])
    correction = 0.5 * (1 / sizes - 1 / n) if method == "miller-madow" else 0.0
    return np.asarray(np.log(n / sizes) + correction)


def _mixed(variables: Sequence[Numbers], k: int, rows: Numbers, w: int) -> Numbers:
    joint = np.concatenate(variables, axis=1)
    n = len(joint)
    result = np.empty(n)
    for i in range(n):
        others = _others(rows, i, w)
        apart = _distances(joint, i, others)
        radius = np.sort(apart)[k - 1]
        each = [_distances(v, i, others) for v in variables]
        if radius == 0:
            own_k = np.sum(apart == 0) + 1
            counts = [np.sum(a == 0) + 1 for a in each]
        else:
            own_k = k
            counts = [np.sum(a < radius) + 1 for a in each]
        margins = len(variables) - 1
        result[i] = digamma(own_k) + margins * np.log(len(others) + 1) - sum(map(digamma, counts))
    return result


def _conditional(x: Numbers, y: Numbers, z: Numbers, k: int, method: str, rows: Numbers, w: int) -> Numbers:
    if method in ("plug-in", "miller-madow"):
        terms = (([x, z], 1), ([y, z], 1), ([z], -1), ([x, y, z], -1))
        return np.asarray(sum(sign * _surprise(variables, method) for variables, sign in terms))
    joint = np.concatenate([x, y, z], axis=1)
    n = len(joint)
    result = np.empty(n)
    for i in range(n):
        others = _others(rows, i, w)
        apart = _distances(joint, i, others)
        nearest = np.argsort(apart, kind="stable")[:k]
        to_x, to_y, to_z = (_distances(v, i, others) for v in (x, y, z))
        if method == "ksg1":
            near_x, near_y, near_z = (a < apart[nearest[-1]] for a in (to_x, to_y, to_z))
            nxz, nyz, nz = np.sum(near_x & near_z) + 1, np.sum(near_y & near_z) + 1, np.sum(near_z) + 1
            result[i] = digamma(k) + digamma(nz) - digamma(nxz) - digamma(nyz)
        elif method == "mixed":
            radius = apart[nearest[-1]]
            near_x, near_y, near_z = (a <= radius for a in (to_x, to_y, to_z))
            nxz, nyz, nz = np.sum(near_x & near_z), np.sum(near_y & near_z), np.sum(near_z)
            result[i] = digamma(np.sum(apart <= radius)) + digamma(nz) - digamma(nxz) - digamma(nyz)
        else:
            near_x, near_y, near_z = (a <= a[nearest].max() for a in (to_x, to_y, to_z))
            nxz, nyz, nz = np.sum(near_x & near_z), np.sum(near_y & near_z), np.sum(near_z)
            result[i] = digamma(k) - 2 / k + digamma(nz) - digamma(nxz) + 1 / nxz - digamma(nyz) + 1 / nyz
    return result


def _others(rows: Numbers, i: int, w: int) -> Numbers:
    """Return the places of the samples whose row is more than w away from that of sample i."""
    others = np.abs(rows - rows[i]) > w
    others[i] = False
    return np.flatnonzero(others)


def _distances(points: Numbers, i: int, others: Numbers, metric: str = "chebyshev") -> Numbers:
    """Return the distances from sample i to some others, in the precision of the points; squared if Euclidean."""
    return _lengths(points[others] - points[i], metric)


def _lengths(differences: Numbers, metric: str) -> Numbers:
    if metric == "chebyshev":
        return np.asarray(np.abs(differences).max(axis=1))
    squares = np.zeros(len(differences), differences.dtype)
    for column in differences.T:
        squares = squares + column * column
    return squares


def _log_ball(dim: int) -> float:
    return float(dim / 2 * np.log(np.pi) - gammaln(dim / 2 + 1))


# ---- Batches, several k, units ---------------------------------------------------------------------------------------


def _columns(given: Any) -> Numbers:
    array = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    return np.asarray(array[:, None] if array.ndim == 1 else array)


def _codes(labels: Any) -> Numbers:
    """Return labels as numbers, NaN where one is missing."""
    array = np.asarray(labels)
    missing = np.array([each is None or each != each for each in array.flat], bool).reshape(array.shape)
    known = np.where(missing, array[~missing][:1] if array.size else array, array)
    return np.where(missing, np.nan, np.unique(known, return_inverse=True)[1].reshape(array.shape).astype(np.float64))


def _separate(given: Sequence[Any], discrete: Sequence[Any], transform: str | None) -> tuple[list[Any], list[Any]]:
    """Return the variables with their discrete columns separated, and the transforms of those that have none."""
    separated = [_separated(each, flags) for each, flags in zip(given, discrete, strict=True)]
    return separated, [None if np.any(flags) else transform for flags in discrete]


def _separated(given: Any, discrete: Any) -> Numbers:
    """Replace each discrete column by an indicator of each category: different ones are at Chebyshev distance 1."""
    if discrete is True and np.asarray(given).dtype.kind in "US":
        given = _codes(given)
    columns = _columns(given)
    flags = np.broadcast_to(discrete, columns.shape[-1:])
    parts = [
        (columns[..., [c]] == np.unique(columns[..., c])).astype(columns.dtype) if flag else columns[..., [c]]
        for c, flag in enumerate(flags)
    ]
    return np.concatenate(parts, axis=-1)


def _estimate(
    values: LocalValues,
    given: Sequence[Any],
    k: Any,
    unit: str,
    local: bool,
    groups: Any,
    nan_policy: str,
    transform: Any,
    rows: Numbers | None = None,
) -> Any:
    variables = [_columns(each) for each in given]
    batch = np.broadcast_shapes(*(v.shape[:-2] for v in variables))
    full = [np.broadcast_to(v, batch + v.shape[-2:]) for v in variables]
    n = full[0].shape[-2]
    rows = _row_numbers(groups, n) if rows is None else rows
    transforms = transform if isinstance(transform, list) else [transform] * len(full)
    ks = [k] if np.ndim(k) == 0 else list(k)
    local_values = np.full((len(ks), *batch, n), np.nan)
    for item in np.ndindex(batch):
        kept = np.arange(n)
        if nan_policy == "omit":
            kept = np.flatnonzero(~np.any([np.isnan(v[item]).any(1) for v in full], axis=0))
        order = np.argsort(rows[kept], kind="stable")
        used = [_transformed(v[item][kept], each)[order] for v, each in zip(full, transforms, strict=True)]
        for place, one_k in enumerate(ks):
            number = max(1, int(one_k * len(kept))) if 0 < one_k < 1 else one_k
            local_values[(place, *item, kept[order])] = values(number, rows[kept][order], *used)
    local_values = local_values / (np.log(2) if unit == "bits" else 1.0)
    result = local_values if local else np.nanmean(local_values, axis=-1)
    result = result[0] if np.ndim(k) == 0 else result
    return float(result) if result.ndim == 0 else result


def _transformed(points: Numbers, transform: str | None) -> Numbers:
    """Return the points (N, d) with each column transformed."""
    if transform is None:
        return points
    if transform == "standardize":
        wide = points.astype(np.float64)
        varies = wide.max(0) > wide.min(0)
        result = (wide - wide.mean(0)) * varies / np.where(varies, wide.std(0), 1)
    else:
        ranks = np.argsort(np.argsort(points, 0, kind="stable"), 0)
        scores = ndtri((np.minimum(ranks, len(points) - 1 - ranks) + 0.5) / len(points))  # exactly symmetric
        result = ranks if transform == "rank" else np.where(2 * ranks < len(points), scores, -scores)
    return np.asarray(result.astype(points.dtype))


def _row_numbers(groups: Any, n: int) -> Numbers:
    """Return the place of each row within its group; those of different groups are n apart and more."""
    numbers = np.arange(n)
    if groups is not None:
        label = np.asarray(groups)
        for place, each in enumerate(dict.fromkeys(label.tolist())):
            numbers[label == each] = 2 * n * place + np.arange(np.sum(label == each))
    return numbers
