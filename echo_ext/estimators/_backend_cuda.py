"""The backend of CUDA devices: points are sorted along a space-filling curve, kernels do the rest.

Nothing here waits for the device. Kernels take points with their batch flattened to one dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echo_ext import _C
from echo_ext._native import address, constants, device_and_stream, dtype_code, workspace
from echo_ext._types import Metric
from echo_ext.estimators import _all_pairs
from echo_ext.estimators._metric import reaches_of

if TYPE_CHECKING:
    from echo_ext.estimators._backend import Margin
    from echo_ext.estimators.options import Options

SAMPLE = 1024  # values of each column that divide it into parts of equal size, for the space-filling curve
TILE = 32  # points of a tree's leaf, as in csrc


class Cuda:
    """See `Backend`. Points are prepared as a tree, which all their searches and counts share."""

    core = _C  # tests put the kernels' emulation here
    block_scale = 2

    def place(self, tensor: Tensor) -> dict[str, int]:
        """Return the tensor's device, and the stream that is current there now: results are expected on that one."""
        return device_and_stream("x", tensor.device)

    # ---- Kernels

    def prepare(self, points: Tensor) -> Tree:
        batch = points.shape[:-2]
        return self._build(_flatten_batch(points), math.prod(batch[1:]))

    def part(self, prepared: Tree, begin: int, end: int) -> Tree:
        return prepared.part(begin * prepared.stride, end * prepared.stride)

    def search(
        self,
        prepared: Tree,
        k: int,
        *,
        queries: Tensor | None,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
        indices: Tensor | None,
    ) -> None:
        place = self.place(prepared.points)
        flat = None if queries is None else _flatten_batch(queries)
        if not self._can_keep(k, place["device"]):
            _all_pairs.search(
                prepared.points,
                queries=flat,
                metric=metric,
                exclude_within=exclude_within,
                rows=rows,
                distances=_flatten_batch(distances),
                indices=None if indices is None else _flatten_batch(indices),
            )
            return
        query_tree = start = None
        if flat is not None:
            query_tree = self._build(flat, like=prepared)
            start = _first_tiles(prepared, query_tree)
        self.core.knn_cuda_search(
            points=prepared.native,
            queries=None if query_tree is None else query_tree.native,
            rows=address(rows),
            start=address(start),
            k=k,
            metric=metric,
            exclude_within=exclude_within,
            distances=distances.data_ptr(),
            indices=address(indices),
            **place,
        )

    def search_kth(
        self,
        prepared: Tree,
        ks: Sequence[int],
        *,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
    ) -> None:
        k = max(ks)
        if not self._can_keep(k, self.place(prepared.points)["device"]):
            _all_pairs.search_kth(
                prepared.points,
                ks,
                metric=metric,
                exclude_within=exclude_within,
                rows=rows,
                distances=distances.view(len(ks), *prepared.points.shape[:2]),
            )
            return
        found = distances.new_empty((*distances.shape[1:], k))
        self.search(
            prepared,
            k,
            queries=None,
            metric=metric,
            exclude_within=exclude_within,
            rows=rows,
            distances=found,
            indices=None,
        )
        distances.copy_(self.select_kth(found, ks))

    def search_reaches(
        self,
        prepared: Tree,
        ks: Sequence[int],
        groups: Sequence[int],
        *,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
        reaches: Tensor,
    ) -> None:
        found = prepared.points.new_empty((*prepared.points.shape[:2], max(ks)))
        indices = torch.empty_like(found, dtype=torch.int64)
        self.search(
            prepared,
            max(ks),
            queries=None,
            metric="chebyshev",
            exclude_within=exclude_within,
            rows=rows,
            distances=found,
            indices=indices,
        )
        distances.copy_(self.select_kth(found, ks).view_as(distances))
        reaches.copy_(reaches_of(prepared.points, prepared.points, indices, ks, groups).view_as(reaches))

    def count(
        self,
        prepared: Tree,
        radii: Tensor,
        *,
        groups: Sequence[int],
        num_radii: int,
        inclusive: bool,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        counts: Tensor,
    ) -> None:
        of_columns = constants(groups, torch.int32, radii.device)
        self.core.knn_cuda_count(
            points=prepared.native,
            radii=radii.data_ptr(),
            groups=of_columns.data_ptr(),
            rows=address(rows),
            num_radii=num_radii,
            num_groups=max(groups) + 1,
            metric=metric,
            inclusive=inclusive,
            exclude_within=exclude_within,
            counts=counts.data_ptr(),
            **self.place(prepared.points),
        )

    def boundary(
        self,
        prepared: Tree,
        radii: Tensor,
        skip: Tensor,
        *,
        width: int,
        exclude_within: int,
        rows: Tensor | None,
        indices: Tensor,
    ) -> None:
        place = self.place(prepared.points)
        if not self._can_keep(width + 1, place["device"]):
            flat = (each.view(*prepared.points.shape[:2], *each.shape[radii.ndim :]) for each in (radii, skip, indices))
            radii, skip, indices = flat
            _all_pairs.boundary(
                prepared.points, radii, skip, width=width, exclude_within=exclude_within, rows=rows, indices=indices
            )
            return
        self.core.knn_cuda_boundary(
            points=prepared.native,
            radii=radii.data_ptr(),
            skip=skip.data_ptr(),
            rows=address(rows),
            width=width,
            exclude_within=exclude_within,
            indices=indices.data_ptr(),
            **place,
        )

    def estimate_pairs(self, x: Tensor, y: Tensor | None, ks: Sequence[int]) -> Tensor | None:
        most = self.core.knn_cuda_pairs_max_points(dtype=dtype_code(x.dtype), device=self.place(x)["device"])
        if x.shape[-1] > most or max(ks) > self.core.knn_cuda_pairs_max_neighbors:
            return None
        columns_x = SortedColumns.of(x)
        columns_y = columns_x if y is None else SortedColumns.of(y)
        values = torch.stack([self._estimate_pairs(columns_x, columns_y, k) for k in ks])
        return values.view(len(ks), *x.shape[:-1], values.shape[-1])

    def add_margins(
        self, values: Tensor, variables: Sequence[Tensor], margins: Sequence[Margin], options: Options
    ) -> None:
        return None

    def estimate_surrogates(self, variables: Sequence[Tensor], orders: Tensor, options: Options) -> None:
        return None

    def add_digamma(self, values: Tensor, counts: Tensor, *, shift: int = 0, factor: float = 1.0) -> None:
        values.add_(torch.digamma((counts + shift).double()), alpha=factor)

    def _build(self, points: Tensor, stride: int = 1, *, like: Tree | None = None) -> Tree:
        """Build the tree of points (B, N, d); in the order of another tree, where these are its queries."""
        place = self.place(points)
        batch, n, dim = points.shape
        keys = sample = None
        if dim == 1 and like is None:
            order = torch.sort(points.squeeze(-1), -1).indices
        else:
            sample = _sample_columns(points) if like is None or like.sample is None else like.sample
            keys, order = torch.sort(self._keys(points, sample), -1)
        native = self.core.KnnTree(
            dtype=dtype_code(points.dtype),
            points=points.data_ptr(),
            order=order.data_ptr(),
            batch=batch,
            num_points=n,
            dim=dim,
        )
        memory = workspace(native.bytes(), points.device)
        self.core.knn_cuda_build(tree=native, memory=memory.data_ptr(), **place)
        return Tree(native, points, order, memory, keys, sample, stride)

    def _keys(self, points: Tensor, sample: Tensor) -> Tensor:
        """Return the place of each point along the space-filling curve."""
        batch, n, dim = points.shape
        keys = torch.empty((batch, n), dtype=torch.int64, device=points.device)
        self.core.knn_cuda_keys(
            dtype=dtype_code(points.dtype),
            points=points.data_ptr(),
            sample=sample.data_ptr(),
            batch=batch,
            num_points=n,
            sample_size=sample.shape[-1],
            dim=dim,
            keys=keys.data_ptr(),
            **self.place(points),
        )
        return keys

    def _estimate_pairs(self, x: SortedColumns, y: SortedColumns, k: int) -> Tensor:
        """Estimate each column of x (B, p, N) with each of y (B, q, N): float64 (B, p, q)."""
        batch, p, n = x.values.shape
        psi = torch.digamma(torch.arange(1, n + 1, dtype=torch.float64, device=x.values.device))
        estimates = psi.new_zeros((batch, p, y.values.shape[1]))
        near = math.isqrt(k * n) // 2 + 1  # about so many values on either side are within the k-th neighbor's distance
        gaps = [columns.gaps(near) for columns in ([x] if y is x else [x, y])]
        native_x, native_y = (
            self.core.KnnColumns(
                values=columns.values.data_ptr(),
                sorted=columns.ascending.data_ptr(),
                order=columns.order.data_ptr(),
                gaps=gaps_of_columns.data_ptr(),
                count=columns.values.shape[1],
            )
            for columns, gaps_of_columns in ((x, gaps[0]), (y, gaps[-1]))
        )
        self.core.knn_cuda_pairs(
            dtype=dtype_code(x.values.dtype),
            x=native_x,
            y=native_y,
            symmetric=y is x,
            batch=batch,
            num_points=n,
            k=k,
            psi=psi.data_ptr(),
            estimates=estimates.data_ptr(),
            **self.place(x.values),
        )
        return estimates

    def _can_keep(self, k: int, device: int) -> bool:
        """Return whether the lists of k neighbors of a block fit into its shared memory."""
        return k <= 32 or k <= self.core.knn_cuda_max_neighbors(device)

    # ---- Array steps

    def contiguous(self, tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous()

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), -1)

    def select_kth(self, sorted_values: Tensor, ks: Sequence[int]) -> Tensor:
        return torch.stack([sorted_values[..., k - 1] for k in ks])

    def fill(self, each: Sequence[float], shape: Sequence[int], device: torch.device) -> Tensor:
        first = constants(each, torch.float64, device).view(-1, *[1] * (len(shape) - 1))
        return first.expand(*shape).contiguous()

    def mean(self, values: Tensor) -> Tensor:
        return values.mean(-1)

    def share_of_zeros(self, values: Tensor) -> Tensor:
        return (values == 0).double().mean(-1)

    def all_finite(self, values: Tensor) -> bool:
        return bool(torch.isfinite(values.detach()).all())

    def maybe_any(self, mask: Tensor) -> bool:
        return True


@dataclass(frozen=True)
class Tree:
    """Points (B, N, d) in spatial order, and the memory that the native tree lies in."""

    native: _C.KnnTree
    points: Tensor
    order: Tensor
    memory: Tensor
    keys: Tensor | None  # ascending
    sample: Tensor | None
    stride: int  # how many items of the flattened batch one of its first dimension has

    def part(self, begin: int, end: int) -> Tree:
        """Return the tree of some items of the flattened batch, in the same memory."""
        native = self.native.part(begin, end - begin)
        return replace(self, native=native, points=self.points[begin:end], order=self.order[begin:end])


@dataclass(frozen=True)
class SortedColumns:
    """Columns (B, p, N), each sorted once for all its pairs."""

    values: Tensor
    ascending: Tensor
    order: Tensor

    @staticmethod
    def of(values: Tensor) -> SortedColumns:
        """Sort columns (*batch, p, N), with their batch flattened."""
        values = _flatten_batch(values).contiguous()
        return SortedColumns(values, *torch.sort(values, -1))

    def gaps(self, places: int) -> Tensor:
        """Return how far apart the values are that lie so many places before and after each row's: (B, p, N)."""
        n = self.values.shape[-1]
        place = torch.arange(n, device=self.values.device)
        after, before = (place + places).clamp_(max=n - 1), (place - places).clamp_(min=0)
        gaps = self.ascending[..., after] - self.ascending[..., before]
        return torch.empty_like(gaps).scatter_(-1, self.order, gaps)


def _flatten_batch(tensor: Tensor) -> Tensor:
    return tensor.reshape(math.prod(tensor.shape[:-2]), *tensor.shape[-2:])


def _sample_columns(points: Tensor) -> Tensor:
    """Return some of the values of each column, ascending: (B, d, at most SAMPLE)."""
    n = points.shape[-2]
    return points[:, :: max(1, -(-n // SAMPLE))].transpose(1, 2).sort(-1).values.contiguous()


def _first_tiles(tree: Tree, queries: Tree) -> Tensor:
    """Return the tile of points near the first query of each tile of queries, where its search begins."""
    n = tree.points.shape[-2]
    if tree.keys is None or queries.keys is None:
        sorted_values = tree.points.squeeze(-1).gather(-1, tree.order)
        wanted = queries.points.squeeze(-1).gather(-1, queries.order)[..., ::TILE].contiguous()
    else:
        sorted_values, wanted = tree.keys, queries.keys[..., ::TILE].contiguous()
    return torch.searchsorted(sorted_values, wanted).clamp_(max=n - 1).div_(TILE, rounding_mode="floor")
