"""The nearest neighbors themselves."""

from __future__ import annotations

from typing import overload

import numpy.typing as npt
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Array, Indices, Metric, TensorOrArray
from echo_ext.estimators import gradients
from echo_ext.estimators._metric import rules_of
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import read_options
from echo_ext.estimators.samples import (
    Samples,
    broadcast_batches,
    check_same_kind,
    in_one_dtype,
    read_samples,
)

__all__ = ["knn"]


@overload
def knn(
    points: Tensor,
    queries: Tensor | None = None,
    k: int = 3,
    *,
    metric: Metric = "chebyshev",
    exclude_within: int = 0,
) -> tuple[Tensor, Tensor]: ...
@overload
def knn(
    points: npt.ArrayLike,
    queries: npt.ArrayLike | None = None,
    k: int = 3,
    *,
    metric: Metric = "chebyshev",
    exclude_within: int = 0,
) -> tuple[Array, Indices]: ...
def knn(
    points: TensorOrArray,
    queries: TensorOrArray | None = None,
    k: int = 3,
    *,
    metric: Metric = "chebyshev",
    exclude_within: int = 0,
) -> tuple[Tensor, Tensor] | tuple[Array, Indices]:
    """Find the k nearest points of each query.

    Args:
        points: (..., N, d), or (N,) for one column, of any kind that :func:`mutual_information` reads.
        queries: (..., M, d) of the same kind, with a batch that broadcasts with that of the points. None asks for the
            neighbors of the points themselves; no point is its own neighbor.
        k: The number of neighbors: at most N with queries, less than N without.
        metric: "chebyshev" or "euclidean".
        exclude_within: The Theiler window, without queries: points at most so many rows apart are not neighbors.

    Returns:
        Distances (..., M, k), ascending, and indices of the same shape, int64. Of equally near points, the one with the
        lower index comes first. Neither has a gradient.

    Raises:
        TypeError: The points or queries are not numbers, or some are tensors and others arrays.
        ValueError: Values are not finite; the numbers of columns differ; k or exclude_within is too large; the metric
            is unknown; ``exclude_within`` with queries.

    Example:
        >>> import numpy as np
        >>> from echo_ext import knn
        >>> distances, indices = knn(np.array([0.0, 1.0, 3.0, 7.0]), np.array([2.5]), 2)
        >>> distances, indices
        (array([[0.5, 1.5]]), array([[2, 1]]))
    """
    rules = rules_of(metric)
    samples = read_samples(points=points)
    (base,) = samples.variables
    k = _checks.whole("k", k, minimum=1)
    asked = None
    if queries is None:
        read_options(samples.count, k=k, exclude_within=exclude_within)
    else:
        base, asked = read_queries(points, samples, queries)
        if exclude_within != 0:
            raise ValueError(f"exclude_within must be 0 where there are queries, got {exclude_within}")
        if k > samples.count:
            raise ValueError(f"k must be at most the number of points, {samples.count}, got {k}")
    found, indices = PointSet(base).search(k, queries=asked, metric=metric, exclude_within=exclude_within)
    distances = rules.distances(found)
    if samples.are_arrays:
        return distances.numpy(), indices.numpy()
    return gradients.without_gradient(distances, "knn", base, *([] if asked is None else [asked])), indices


def read_queries(points: object, samples: Samples, queries: object) -> tuple[Tensor, Tensor]:
    """Return the points (*batch, N, d) and the queries (*batch, M, d), both broadcast to one batch."""
    (base,) = samples.variables
    (asked,) = read_samples(queries=queries).variables
    check_same_kind("points and queries", points, base, queries, asked)
    base, asked = in_one_dtype([base, asked])
    if asked.shape[-1] != base.shape[-1]:
        raise ValueError(
            f"points and queries must have the same number of columns, got {base.shape[-1]} and {asked.shape[-1]}"
        )
    batch = broadcast_batches(points=base.shape[:-2], queries=asked.shape[:-2])
    return base.expand(*batch, *base.shape[-2:]), asked.expand(*batch, *asked.shape[-2:])
