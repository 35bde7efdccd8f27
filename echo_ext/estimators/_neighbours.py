"""Searches and counts on batches of tensors; which device computes them is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from echo_ext import _C
from echo_ext._native import dtype_code

from . import _neighbours_cuda

# All points, where a part of them could be asked for.
ALL = slice(None)


def on_cuda(tensor: Tensor) -> bool:
    """Whether the device computes, so that asking for a value would be waiting for it."""
    return tensor.is_cuda


class Cloud:
    """Points (*batch, N, d) to be searched or counted more than once: on CUDA all share one tree."""

    def __init__(self, points: Tensor) -> None:
        self.points = _dense(points)

    @cached_property
    def tree(self) -> _neighbours_cuda.Tree:
        """Of the points with their batch flattened."""
        return _neighbours_cuda.build(_flat(self.points))

    def part(self, begin: int, end: int) -> Cloud:
        """Of some of the first dimension of the batch: on CUDA a part of the same tree."""
        part = Cloud(self.points[begin:end])
        if on_cuda(self.points):
            each = _size(self.points.shape[1:-2])
            part.tree = self.tree.part(slice(begin * each, end * each))
        return part


def points_of(points: Tensor | Cloud) -> Tensor:
    """The points alone."""
    return points.points if isinstance(points, Cloud) else points


def search(
    points: Tensor | Cloud,
    k: int,
    *,
    queries: Tensor | None = None,
    euclidean: bool = False,
    exclude_within: int = 0,
    rows: Tensor | None = None,
    indices: bool = False,
    part: slice = ALL,
) -> tuple[Tensor, Tensor | None]:
    """Distances (*batch, N, k), ascending, to the k nearest of ``points`` (*batch, N, d), and their indices if asked.

    Euclidean distances are squared. ``rows`` (N,), ascending, are the row numbers that ``exclude_within`` speaks of.
    ``part``: of these points only, with all as neighbours.
    """
    cloud = as_cloud(points)
    if part != ALL:
        return _search_part(cloud, k, euclidean=euclidean, exclude_within=exclude_within, part=part)
    points = cloud.points
    *batch, n, dim = points.shape
    sought = points if queries is None else _dense(queries)
    shape = (*batch, sought.shape[-2], k)
    distances = points.new_empty(shape)
    found = torch.empty(shape, dtype=torch.int64, device=points.device) if indices else None
    if distances.numel() == 0:  # no queries
        return distances, found
    if on_cuda(points):
        _neighbours_cuda.search(
            cloud.tree,
            k,
            queries=None if queries is None else _flat(sought),
            euclidean=euclidean,
            exclude_within=exclude_within,
            rows=rows,
            distances=distances,
            indices=found,
        )
        return distances, found
    _C.knn_search(
        dtype=dtype_code(points.dtype),
        points=points.data_ptr(),
        queries=0 if queries is None else sought.data_ptr(),
        rows=0 if rows is None else rows.data_ptr(),
        batch=_size(batch),
        num_points=n,
        num_queries=sought.shape[-2],
        dim=dim,
        k=k,
        euclidean=euclidean,
        exclude_within=exclude_within,
        distances=distances.data_ptr(),
        indices=0 if found is None else found.data_ptr(),
        num_threads=torch.get_num_threads(),
    )
    return distances, found


def _search_part(cloud: Cloud, k: int, *, euclidean: bool, exclude_within: int, part: slice) -> tuple[Tensor, Tensor]:
    """`search` of some points: as queries they find the excluded ones too, which are then taken out."""
    points = cloud.points
    n = points.shape[-2]
    num_excluded = min(2 * exclude_within + 1, n - k)
    found, indices = search(cloud, k + num_excluded, queries=points[..., part, :], euclidean=euclidean, indices=True)
    assert indices is not None
    own = torch.arange(n, device=points.device)[part].unsqueeze(-1)
    is_excluded = (indices - own).abs() <= exclude_within
    # A stable sort moves the excluded behind the others, which keep their order.
    keep = is_excluded.to(torch.uint8).sort(dim=-1, stable=True).indices[..., :k]
    return found.gather(-1, keep), indices.gather(-1, keep)


def count(
    points: Tensor | Cloud,
    radii: Tensor,
    *,
    groups: list[int] | None = None,
    inclusive: bool = False,
    euclidean: bool = False,
    exclude_within: int = 0,
    rows: Tensor | None = None,
    part: slice = ALL,
) -> Tensor:
    """How many other points are nearer than a radius (or as near): int64 (K, *batch, N).

    points: (*some, N, d), whose batch broadcasts to ``radii``'s (K, *batch, N); what is broadcast is sorted once.
    groups: the group of each column, where each of G groups has its own radius: radii (K, *batch, G, N).
    part: radii and counts are those of these points only.
    """
    cloud = as_cloud(points)
    points = cloud.points
    n, dim = points.shape[-2:]
    if part != ALL:
        everyone = radii.new_full((*radii.shape[:-1], n), -1.0)  # within which nothing lies
        everyone[..., part] = radii
        counts = count(
            cloud,
            everyone,
            groups=groups,
            inclusive=inclusive,
            euclidean=euclidean,
            exclude_within=exclude_within,
            rows=rows,
        )
        return counts[..., part]
    num_groups = 1 if groups is None else max(groups) + 1
    if groups is None:
        radii = radii.unsqueeze(-2)
    batch = radii.shape[1:-2]
    sizes = (1,) * (len(batch) - points.ndim + 2) + points.shape[:-2]
    shared = [i for i, size in enumerate(sizes) if size == 1]
    own = [i for i in range(len(batch)) if i not in shared]
    to_front = [0, *(i + 1 for i in shared), *(i + 1 for i in own)]
    ordered = _dense(radii.permute(*to_front, radii.ndim - 2, radii.ndim - 1))
    columns = constants(groups if groups is not None else [0] * dim, torch.int32, points.device)
    counts = torch.empty((*ordered.shape[:-2], n), dtype=torch.int64, device=points.device)
    num_own = _size([batch[i] for i in own])
    num_radii = _size(ordered.shape[:-2]) // max(num_own, 1)
    back = sorted(range(len(to_front)), key=to_front.__getitem__)
    if on_cuda(points):
        _neighbours_cuda.count(
            cloud.tree,
            ordered,
            groups=columns,
            num_groups=num_groups,
            num_radii=num_radii,
            inclusive=inclusive,
            euclidean=euclidean,
            exclude_within=exclude_within,
            rows=rows,
            counts=counts,
        )
        return counts.permute(*back, len(to_front))
    _C.knn_count(
        dtype=dtype_code(points.dtype),
        points=points.data_ptr(),
        radii=ordered.data_ptr(),
        groups=columns.data_ptr(),
        rows=0 if rows is None else rows.data_ptr(),
        batch=num_own,
        num_points=n,
        num_radii=num_radii,
        num_groups=num_groups,
        dim=dim,
        euclidean=euclidean,
        inclusive=inclusive,
        exclude_within=exclude_within,
        counts=counts.data_ptr(),
        num_threads=torch.get_num_threads(),
    )
    return counts.permute(*back, len(to_front))


def boundary(points: Tensor | Cloud, radii: Tensor, skip: Tensor, *, width: int, exclude_within: int) -> Tensor:
    """The neighbours nearest in rank to the boundary of each point's ball: int64 (*batch, N, 2 width + 1), -1 for none.

    points: (*batch, N, d); radii: (*batch, N); skip: int64 (*batch, N), one neighbour of each to pass over.
    """
    cloud, radii, skip = as_cloud(points), _dense(radii), _dense(skip)
    points = cloud.points
    *batch, n, dim = points.shape
    found = torch.empty((*batch, n, 2 * width + 1), dtype=torch.int64, device=points.device)
    if on_cuda(points):
        _neighbours_cuda.boundary(cloud.tree, radii, skip, width=width, exclude_within=exclude_within, indices=found)
        return found
    _C.knn_boundary(
        dtype=dtype_code(points.dtype),
        points=points.data_ptr(),
        radii=radii.data_ptr(),
        skip=skip.data_ptr(),
        batch=_size(batch),
        num_points=n,
        dim=dim,
        width=width,
        exclude_within=exclude_within,
        indices=found.data_ptr(),
        num_threads=torch.get_num_threads(),
    )
    return found


def constants(values: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A few numbers on a device, which fills them in itself: nothing is copied from the host."""
    runs = [torch.full((len(list(run)),), value, dtype=dtype, device=device) for value, run in groupby(values)]
    return torch.cat(runs)


def add_digamma(values: Tensor, counts: Tensor, *, shift: int = 0, factor: float = 1.0) -> None:
    """values += factor * psi(counts + shift), in place: float64 and int64 tensors of one shape, values contiguous."""
    if on_cuda(values):
        values.add_(torch.digamma((counts + shift).double()), alpha=factor)
        return
    counts = _dense(counts)
    _C.knn_add_digamma(
        counts=counts.data_ptr(),
        values=values.data_ptr(),
        size=counts.numel(),
        shift=shift,
        factor=factor,
        num_threads=torch.get_num_threads(),
    )


def digamma(counts: Tensor) -> Tensor:
    """The digamma function of counts, float64."""
    values = torch.zeros(counts.shape, dtype=torch.float64, device=counts.device)
    add_digamma(values, counts)
    return values


# ---- Simple steps on large tensors -----------------------------------------------------------------------------------
# On the CPU they are NumPy's: after each of its own operations torch keeps its threads spinning for a while, on the
# very cores that the kernels' threads want next.


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Along the last dimension."""
    if on_cuda(tensors[0]):
        return torch.cat(list(tensors), -1)
    return torch.from_numpy(np.concatenate([t.numpy() for t in tensors], axis=-1))


def kth(sorted_values: Tensor, ks: Sequence[int]) -> Tensor:
    """From (..., k) to (K, ...), contiguous: the ks-th values, counted from 1."""
    if on_cuda(sorted_values):
        return torch.stack([sorted_values[..., k - 1] for k in ks])
    return torch.from_numpy(np.stack([sorted_values.numpy()[..., k - 1] for k in ks]))


def spread(values: Tensor, shape: torch.Size) -> Tensor:
    """A contiguous copy of the values, broadcast."""
    if on_cuda(values):
        return values.expand(shape).contiguous()
    return torch.from_numpy(np.broadcast_to(values.numpy(), shape).copy())


def mean(values: Tensor) -> Tensor:
    """Over the last dimension."""
    if on_cuda(values) or values.requires_grad:
        return values.mean(-1)
    return torch.from_numpy(np.asarray(values.numpy().mean(-1)))


def all_finite(values: Tensor) -> bool:
    """Whether none is NaN or infinite."""
    values = values.detach()
    return bool(torch.isfinite(values).all() if on_cuda(values) else np.isfinite(values.numpy()).all())


def as_cloud(points: Tensor | Cloud) -> Cloud:
    """To be searched or counted more than once, if it is not yet."""
    return points if isinstance(points, Cloud) else Cloud(points)


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_contiguous() or on_cuda(tensor):
        return tensor.contiguous()
    return torch.from_numpy(np.ascontiguousarray(tensor.numpy()))


def _size(shape: list[int] | torch.Size) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _flat(points: Tensor) -> Tensor:
    """(B, N, d)"""
    return points.reshape(_size(points.shape[:-2]), *points.shape[-2:])
