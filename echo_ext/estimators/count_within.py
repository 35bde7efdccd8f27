"""How many points lie within a radius."""

from __future__ import annotations

from numbers import Real
from typing import overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Indices, Metric, TensorOrArray
from echo_ext.estimators._metric import rules_of
from echo_ext.estimators.knn import read_queries
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.samples import broadcast_batches, in_one_dtype, read_samples, read_tensor
from echo_ext.estimators.tables import double, read_numbers, tensor_of

__all__ = ["count_within"]


@overload
def count_within(
    points: Tensor,
    radii: float | TensorOrArray,
    queries: Tensor | None = None,
    *,
    metric: Metric = "chebyshev",
    inclusive: bool = False,
    exclude_within: int = 0,
) -> Tensor: ...
@overload
def count_within(
    points: npt.ArrayLike,
    radii: float | npt.ArrayLike,
    queries: npt.ArrayLike | None = None,
    *,
    metric: Metric = "chebyshev",
    inclusive: bool = False,
    exclude_within: int = 0,
) -> Indices: ...
def count_within(
    points: TensorOrArray,
    radii: float | TensorOrArray,
    queries: TensorOrArray | None = None,
    *,
    metric: Metric = "chebyshev",
    inclusive: bool = False,
    exclude_within: int = 0,
) -> Tensor | Indices:
    """Count the points that are nearer to each query than a radius.

    This is the count that the estimators of mutual information are made of. Distances are compared in the precision of
    the points; Euclidean ones as their squares.

    Args:
        points: (..., N, d), or (N,) for one column; numbers of any kind, tensor or array.
        radii: One number, or one for each query: (M,) or (..., M), with a batch that broadcasts. Nothing lies within a
            negative radius, and every point within an infinite one.
        queries: (..., M, d) of the same kind, with a batch that broadcasts with that of the points. None counts around
            the points themselves, M = N; no point is then counted as its own neighbor.
        metric: "chebyshev" or "euclidean".
        inclusive: Whether points at exactly the radius are counted too.
        exclude_within: The Theiler window, without queries: points at most so many rows apart are not counted.

    Returns:
        The counts, int64 (..., M), an array or a tensor as the points are.

    Raises:
        TypeError: The points or the radii are not numbers, or some are tensors and others arrays.
        ValueError: Points are not finite; radii are NaN or of a shape that does not broadcast; the numbers of columns
            differ; the metric is unknown; ``exclude_within`` with queries.

    Example:
        >>> import numpy as np
        >>> from echo_ext import count_within
        >>> count_within([0.0, 1.0, 3.0, 7.0], 2.5)
        array([1, 2, 1, 0])
        >>> count_within([0.0, 1.0, 3.0, 7.0], [0.5, 4.0], queries=[1.0, 3.0], inclusive=True)
        array([1, 4])
    """
    rules_of(metric)
    samples = read_samples(points=points)
    (base,) = samples.variables
    window = _checks.whole("exclude_within", exclude_within, minimum=0)
    asked = base
    if queries is not None:
        if window != 0:
            raise ValueError(f"exclude_within must be 0 where there are queries, got {window}")
        base, asked = read_queries(points, samples, queries)
    if not isinstance(radii, Real) and isinstance(radii, Tensor) != isinstance(points, Tensor):
        raise TypeError("points and radii must be both tensors or both arrays")
    base, asked, radius = _in_one_dtype(base, asked, _read_radii(radii, base))
    shape = _shape(asked, radius, None if queries is None else "queries")
    radius = radius.expand(shape).unsqueeze(0)
    if metric == "euclidean":
        radius = torch.where(radius < 0, -1.0, radius * radius)
    if 0 in shape:
        counts = torch.zeros((1, *shape), dtype=torch.int64, device=base.device)
    elif queries is None:
        counts = PointSet(base).count(radius, inclusive=inclusive, metric=metric, exclude_within=window)
    else:
        # The kernels count around points of the set: count in the set of points and queries, where no ball around a
        # point is needed, and subtract what was counted among the queries.
        none = radius.new_full((*radius.shape[:-1], base.shape[-2]), -1.0)
        both = PointSet(torch.cat([base, asked], -2))
        counts = both.count(torch.cat([none, radius], -1), inclusive=inclusive, metric=metric)[..., base.shape[-2] :]
        counts = counts - PointSet(asked).count(radius, inclusive=inclusive, metric=metric)
    return counts[0].numpy() if samples.are_arrays else counts[0]


def _read_radii(radii: object, points: Tensor) -> Tensor:
    """Return radii (..., M), or (1,) for a single number, on the device of the points."""
    if isinstance(radii, Real):
        tensor = torch.full((1,), float(radii), dtype=points.dtype, device=points.device)
    elif isinstance(radii, Tensor):
        tensor = read_tensor("radii", radii.detach())
        tensor = tensor if tensor.is_floating_point() or tensor.is_complex() else double("radii", tensor)
    else:
        tensor = tensor_of(read_numbers("radii", radii))
    if tensor.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"radii must be float64 or float32, got {_checks.dtype_name(tensor.dtype)}")
    if tensor.device != points.device:
        raise ValueError(f"points and radii must be on the same device, got {points.device} and {tensor.device}")
    if bool(tensor.isnan().any()):
        raise ValueError(f"radii must not be NaN, got {int(tensor.isnan().sum())} NaN")
    return tensor.reshape(1) if tensor.ndim == 0 else tensor


def _in_one_dtype(base: Tensor, asked: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return points, queries and radii, detached, in the wider of their dtypes."""
    base, asked, radii = (each.detach() for each in in_one_dtype([base, asked, radii]))
    return base, asked, radii


def _shape(asked: Tensor, radii: Tensor, queries: str | None) -> tuple[int, ...]:
    """Return the shape of the counts, (*batch, M)."""
    m = asked.shape[-2]
    if radii.shape[-1] not in (1, m):
        raise ValueError(
            f"radii must be one number or have one for each of the {m} {queries or 'points'}, got shape "
            f"{tuple(radii.shape)}"
        )
    return (*broadcast_batches(points=asked.shape[:-2], radii=radii.shape[:-1]), m)
