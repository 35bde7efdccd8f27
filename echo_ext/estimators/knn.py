"""The nearest neighbours themselves."""

from __future__ import annotations

from torch import Tensor

from echo_ext import _checks

from . import _gradient
from ._neighbours import search
from ._samples import Array, ArrayLike, broadcast_batches, read_options, read_samples
from .entropy import METRICS


def knn(
    points: ArrayLike,
    queries: ArrayLike | None = None,
    k: int = 3,
    *,
    metric: str = "chebyshev",
    exclude_within: int = 0,
) -> tuple[Tensor, Tensor] | tuple[Array, Array]:
    """The k nearest of some points, for each query.

    Args:
        points: (..., N, d), or (N,) for one column; float64 or float32, tensor or array.
        queries: (..., M, d) of the same kind, whose batch broadcasts with that of the points. None: the points
            themselves, none of which is its own neighbour.
        k: Number of neighbours, at most N (less than N among the points themselves).
        metric: "chebyshev" or "euclidean".
        exclude_within: Among the points themselves, those at most so many rows away are not neighbours.

    Returns:
        Distances (..., M, k), ascending, and indices, int64, of the same shape: of equally near points the lower index
        comes first.

    Raises:
        TypeError: Not float64 or float32, or not one dtype.
        ValueError: Values that are not finite, different numbers of columns, too large a k.
    """
    _checks.choice("metric", metric, METRICS)
    samples = read_samples(points=points)
    (base,) = samples.variables
    k = _checks.whole("k", k, minimum=1)
    if queries is None:
        read_options(samples.count, k=k, exclude_within=exclude_within)
        sought = None
    else:
        asked = read_samples(queries=queries)
        (sought,) = asked.variables
        if asked.are_arrays != samples.are_arrays:
            raise TypeError("points and queries must be both tensors or both arrays")
        if sought.dtype != base.dtype:
            raise TypeError(f"points and queries must have one dtype, got {base.dtype} and {sought.dtype}")
        if sought.device != base.device:
            raise ValueError(f"points and queries must be on one device, got {base.device}, {sought.device}")
        if sought.shape[-1] != base.shape[-1]:
            raise ValueError(
                f"points and queries must have one number of columns, got {base.shape[-1]} and {sought.shape[-1]}"
            )
        if exclude_within != 0:
            raise ValueError(f"exclude_within must be 0 where there are queries, got {exclude_within}")
        if k > samples.count:
            raise ValueError(f"k must be at most the number of points, {samples.count}, got {k}")
        batch = broadcast_batches(points=base.shape[:-2], queries=sought.shape[:-2])
        base, sought = base.expand(*batch, *base.shape[-2:]), sought.expand(*batch, *sought.shape[-2:])
    euclidean = metric == "euclidean"
    distances, indices = search(
        base, k, queries=sought, euclidean=euclidean, exclude_within=exclude_within, indices=True
    )
    assert indices is not None
    if euclidean:
        distances = distances.sqrt()
    if samples.are_arrays:
        return distances.numpy(), indices.numpy()
    return _gradient.attach_none(distances, "knn", base, *([] if sought is None else [sought])), indices
