"""Searches and counts on CUDA tensors: points are put in spatial order by a sort, kernels do the rest.

Tensors are contiguous, with their batches flattened to one dimension. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echo_ext import _C
from echo_ext._native import device_and_stream, dtype_code

SAMPLE = 1024  # points whose values divide each column into parts of equal size, for the spatial order
TILE = 32  # as in csrc


@dataclass(frozen=True)
class Tree:
    """Points (B, N, d) in spatial order, and the memory that the native tree lies in."""

    native: _C.KnnTree
    points: Tensor
    order: Tensor
    memory: Tensor
    keys: Tensor | None  # sorted
    sample: Tensor | None

    def part(self, items: slice) -> Tree:
        """The tree of some of the items."""
        points = self.points[items]
        native = self.native.part(items.indices(len(self.points))[0], len(points))
        return replace(self, native=native, points=points, order=self.order[items])

    def device_and_stream(self) -> tuple[int, int]:
        """The stream is the one that is current now, on which results are expected; it may not be the tree's first."""
        where = device_and_stream("x", self.points.device)
        return where["device"], where["stream"]


def build(points: Tensor, like: Tree | None = None) -> Tree:
    """The tree of points (B, N, d); with the order of another tree, where these are its queries."""
    device, stream = device_and_stream("x", points.device).values()
    keys = sample = None
    batch, n, dim = points.shape
    if dim == 1 and like is None:
        order = torch.sort(points.squeeze(-1), -1).indices
    else:
        sample = _sample(points) if like is None else like.sample
        keys, order = torch.sort(_keys(points, _sample(points) if sample is None else sample, device, stream), -1)
    native = _C.KnnTree(
        dtype=dtype_code(points.dtype),
        points=points.data_ptr(),
        order=order.data_ptr(),
        batch=batch,
        num_points=n,
        dim=dim,
    )
    memory = torch.empty(native.bytes(), dtype=torch.uint8, device=points.device)
    _C.knn_cuda_build(tree=native, memory=memory.data_ptr(), device=device, stream=stream)
    return Tree(native, points, order, memory, keys, sample)


def search(
    tree: Tree,
    k: int,
    *,
    queries: Tensor | None,
    euclidean: bool,
    exclude_within: int,
    rows: Tensor | None,
    distances: Tensor,
    indices: Tensor | None,
) -> None:
    """As the CPU's search, with the batch flattened, into ``distances`` and ``indices``."""
    device, stream = tree.device_and_stream()
    _check_k(k, device)
    sought = start = None
    if queries is not None:
        sought = build(queries, tree)
        start = _start(tree, sought)
    _C.knn_cuda_search(
        points=tree.native,
        queries=None if sought is None else sought.native,
        rows=0 if rows is None else rows.data_ptr(),
        start=0 if start is None else start.data_ptr(),
        k=k,
        euclidean=euclidean,
        exclude_within=exclude_within,
        distances=distances.data_ptr(),
        indices=0 if indices is None else indices.data_ptr(),
        device=device,
        stream=stream,
    )


def count(
    tree: Tree,
    radii: Tensor,
    *,
    groups: Tensor,
    num_groups: int,
    num_radii: int,
    inclusive: bool,
    euclidean: bool,
    exclude_within: int,
    rows: Tensor | None,
    counts: Tensor,
) -> None:
    """As the CPU's count, with the batch flattened, into ``counts``."""
    device, stream = tree.device_and_stream()
    _C.knn_cuda_count(
        points=tree.native,
        radii=radii.data_ptr(),
        groups=groups.data_ptr(),
        rows=0 if rows is None else rows.data_ptr(),
        num_radii=num_radii,
        num_groups=num_groups,
        euclidean=euclidean,
        inclusive=inclusive,
        exclude_within=exclude_within,
        counts=counts.data_ptr(),
        device=device,
        stream=stream,
    )


def boundary(tree: Tree, radii: Tensor, skip: Tensor, *, width: int, exclude_within: int, indices: Tensor) -> None:
    """As the CPU's boundary search, with the batch flattened, into ``indices``."""
    device, stream = tree.device_and_stream()
    _check_k(width + 1, device)
    _C.knn_cuda_boundary(
        points=tree.native,
        radii=radii.data_ptr(),
        skip=skip.data_ptr(),
        width=width,
        exclude_within=exclude_within,
        indices=indices.data_ptr(),
        device=device,
        stream=stream,
    )


@dataclass(frozen=True)
class Columns:
    """Columns (B, p, N), each sorted once for all its pairs."""

    values: Tensor
    sorted: Tensor
    order: Tensor

    @staticmethod
    def of(values: Tensor) -> Columns:
        """Of (*batch, p, N), with the batch flattened."""
        values = values.reshape(-1, *values.shape[-2:]).contiguous()
        ascending, order = torch.sort(values, -1)
        return Columns(values, ascending, order)

    def gaps(self, places: int) -> Tensor:
        """How far apart the values are that lie so many places before and after each row's: (B, p, N)."""
        n = self.values.shape[-1]
        place = torch.arange(n, device=self.values.device)
        after, before = (place + places).clamp_(max=n - 1), (place - places).clamp_(min=0)
        gaps = self.sorted[..., after] - self.sorted[..., before]
        return torch.empty_like(gaps).scatter_(-1, self.order, gaps)


def pairs_fit(n: int, k: int, points: Tensor) -> bool:
    """Whether `pairs` takes pairs of columns of n rows like the points, and as many neighbours."""
    device = device_and_stream("x", points.device)["device"]
    most = _C.knn_cuda_pairs_max_points(dtype=dtype_code(points.dtype), device=device)
    return k <= _C.knn_cuda_pairs_max_neighbors and n <= most


def pairs(x: Columns, y: Columns, k: int) -> Tensor:
    """The "ksg1" estimate of each column of x (B, p, N) with each of y (B, q, N): float64 (B, p, q).

    Where y is x, only pairs on and above the diagonal; the others are 0.
    """
    device, stream = device_and_stream("x", x.values.device).values()
    batch, p, n = x.values.shape
    psi = torch.digamma(torch.arange(1, n + 1, dtype=torch.float64, device=x.values.device))
    estimates = psi.new_zeros((batch, p, y.values.shape[1]))
    near = math.isqrt(k * n) // 2 + 1  # about so many values on either side are within the distance of a k-th neighbour
    gaps = [columns.gaps(near) for columns in ([x] if y is x else [x, y])]
    native_x, native_y = (
        _C.KnnColumns(
            values=columns.values.data_ptr(),
            sorted=columns.sorted.data_ptr(),
            order=columns.order.data_ptr(),
            gaps=of_columns.data_ptr(),
            count=columns.values.shape[1],
        )
        for columns, of_columns in ((x, gaps[0]), (y, gaps[-1]))
    )
    _C.knn_cuda_pairs(
        dtype=dtype_code(x.values.dtype),
        x=native_x,
        y=native_y,
        symmetric=y is x,
        batch=batch,
        num_points=n,
        k=k,
        psi=psi.data_ptr(),
        estimates=estimates.data_ptr(),
        device=device,
        stream=stream,
    )
    return estimates


def _sample(points: Tensor) -> Tensor:
    """Some of the values of each column, ascending: (B, d, at most SAMPLE)."""
    n = points.shape[-2]
    return points[:, :: max(1, -(-n // SAMPLE))].transpose(1, 2).sort(-1).values.contiguous()


def _keys(points: Tensor, sample: Tensor, device: int, stream: int) -> Tensor:
    batch, n, dim = points.shape
    keys = torch.empty((batch, n), dtype=torch.int64, device=points.device)
    _C.knn_cuda_keys(
        dtype=dtype_code(points.dtype),
        points=points.data_ptr(),
        sample=sample.data_ptr(),
        batch=batch,
        num_points=n,
        sample_size=sample.shape[-1],
        dim=dim,
        keys=keys.data_ptr(),
        device=device,
        stream=stream,
    )
    return keys


def _start(tree: Tree, queries: Tree) -> Tensor | None:
    """The tile of points near the first query of each tile, or None for any."""
    n, tiles = tree.points.shape[-2], -(-queries.points.shape[-2] // TILE)
    if tree.keys is None or queries.keys is None:
        sorted_values = tree.points.squeeze(-1).gather(-1, tree.order)
        wanted = queries.points.squeeze(-1).gather(-1, queries.order)[..., ::TILE].contiguous()
    else:
        sorted_values, wanted = tree.keys, queries.keys[..., ::TILE].contiguous()
    assert wanted.shape[-1] == tiles
    return torch.searchsorted(sorted_values, wanted).clamp_(max=n - 1).div_(TILE, rounding_mode="floor")


def _check_k(k: int, device: int) -> None:
    if k > 32:
        most = _C.knn_cuda_max_neighbors(device)
        if k > most:
            raise ValueError(f"k must be at most {most} on this CUDA device, got {k}; on the CPU it may be larger")
