"""The CPU's backend: the native kernels, and NumPy for the array steps between them.

After each of its own operations PyTorch keeps its threads spinning for a while, on the very cores that the threads of
the kernels need next. NumPy does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from echo_ext import _C
from echo_ext._native import address, dtype_code
from echo_ext._types import Metric

if TYPE_CHECKING:
    from echo_ext.estimators._backend import Margin
    from echo_ext.estimators.options import Options


class Cpu:
    """See `Backend`. Nothing is prepared: each kernel builds the trees that it needs, in its own threads."""

    block_scale = 1

    # ---- Kernels

    def prepare(self, points: Tensor) -> Tensor:
        return points

    def part(self, prepared: Tensor, begin: int, end: int) -> Tensor:
        return prepared[begin:end]

    def search(
        self,
        prepared: Tensor,
        k: int,
        *,
        queries: Tensor | None,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
        indices: Tensor | None,
    ) -> None:
        self._search(prepared, k, queries, metric, exclude_within, rows, distances=distances, indices=indices)

    def search_kth(
        self,
        prepared: Tensor,
        ks: Sequence[int],
        *,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
    ) -> None:
        self._search(prepared, max(ks), None, metric, exclude_within, rows, distances=distances, ks=ks)

    def search_reaches(
        self,
        prepared: Tensor,
        ks: Sequence[int],
        groups: Sequence[int],
        *,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
        reaches: Tensor,
    ) -> None:
        self._search(
            prepared,
            max(ks),
            None,
            "chebyshev",
            exclude_within,
            rows,
            distances=distances,
            ks=ks,
            groups=groups,
            reaches=reaches,
        )

    def _search(
        self,
        points: Tensor,
        k: int,
        queries: Tensor | None,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        *,
        distances: Tensor,
        indices: Tensor | None = None,
        ks: Sequence[int] = (),
        groups: Sequence[int] = (),
        reaches: Tensor | None = None,
    ) -> None:
        *batch, n, dim = points.shape
        _C.knn_search(
            dtype=dtype_code(points.dtype),
            points=points.data_ptr(),
            queries=address(queries),
            rows=address(rows),
            batch=math.prod(batch),
            num_points=n,
            num_queries=n if queries is None else queries.shape[-2],
            dim=dim,
            k=k,
            metric=metric,
            exclude_within=exclude_within,
            ks=ks,
            groups=groups,
            num_groups=max(groups, default=-1) + 1,
            distances=distances.data_ptr(),
            indices=address(indices),
            reaches=address(reaches),
            num_threads=torch.get_num_threads(),
        )

    def count(
        self,
        prepared: Tensor,
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
        *batch, n, dim = prepared.shape
        _C.knn_count(
            dtype=dtype_code(prepared.dtype),
            points=prepared.data_ptr(),
            radii=radii.data_ptr(),
            groups=groups,
            rows=address(rows),
            batch=math.prod(batch),
            num_points=n,
            num_radii=num_radii,
            num_groups=max(groups) + 1,
            dim=dim,
            metric=metric,
            inclusive=inclusive,
            exclude_within=exclude_within,
            counts=counts.data_ptr(),
            num_threads=torch.get_num_threads(),
        )

    def boundary(
        self,
        prepared: Tensor,
        radii: Tensor,
        skip: Tensor,
        *,
        width: int,
        exclude_within: int,
        rows: Tensor | None,
        indices: Tensor,
    ) -> None:
        *batch, n, dim = prepared.shape
        _C.knn_boundary(
            dtype=dtype_code(prepared.dtype),
            points=prepared.data_ptr(),
            radii=radii.data_ptr(),
            skip=skip.data_ptr(),
            rows=address(rows),
            batch=math.prod(batch),
            num_points=n,
            dim=dim,
            width=width,
            exclude_within=exclude_within,
            indices=indices.data_ptr(),
            num_threads=torch.get_num_threads(),
        )

    def estimate_pairs(self, x: Tensor, y: Tensor | None, ks: Sequence[int]) -> None:
        return None

    def add_margins(
        self, values: Tensor, variables: Sequence[Tensor], margins: Sequence[Margin], options: Options
    ) -> Tensor:
        tied_shares = torch.empty(values.shape[:-1], dtype=torch.float64, device="cpu")
        _C.knn_add_margins(
            dtype=dtype_code(variables[0].dtype),
            variables=[(points.data_ptr(), points.shape[-1]) for points in variables],
            margins=margins,
            ks=options.ks,
            rows=address(options.rows),
            batch=math.prod(values.shape[1:-1]),
            num_points=values.shape[-1],
            exclude_within=options.exclude_within,
            values=values.data_ptr(),
            tied_shares=tied_shares.data_ptr(),
            num_threads=torch.get_num_threads(),
        )
        return tied_shares

    def estimate_surrogates(self, variables: Sequence[Tensor], orders: Tensor, options: Options) -> Tensor:
        x, y, z = variables
        batch = torch.broadcast_shapes(*(v.shape[:-2] for v in variables))
        n = y.shape[-2]

        def whole(tensor: Tensor) -> Tensor:
            return self.contiguous(tensor.expand(*batch, *tensor.shape[-2:]))

        given, moved = whole(z), whole(y)
        fixed = self.concatenate([whole(x), given])
        orders = orders.view(len(orders), *(1,) * (len(batch) + 2 - orders.ndim), *orders.shape[1:])
        orders = self.contiguous(orders.expand(len(orders), *batch, n))
        estimates = torch.empty((len(orders), *batch), dtype=torch.float64, device="cpu")
        _C.knn_resample(
            dtype=dtype_code(y.dtype),
            fixed=fixed.data_ptr(),
            given=given.data_ptr(),
            moved=moved.data_ptr(),
            orders=orders.data_ptr(),
            rows=address(options.rows),
            batch=math.prod(batch),
            num_points=n,
            num_surrogates=len(orders),
            fixed_dim=fixed.shape[-1],
            given_dim=given.shape[-1],
            moved_dim=moved.shape[-1],
            k=options.max_k,
            exclude_within=options.exclude_within,
            estimates=estimates.data_ptr(),
            num_threads=torch.get_num_threads(),
        )
        return estimates

    def add_digamma(self, values: Tensor, counts: Tensor, *, shift: int = 0, factor: float = 1.0) -> None:
        counts = self.contiguous(counts)
        _C.knn_add_digamma(
            counts=counts.data_ptr(),
            values=values.data_ptr(),
            size=counts.numel(),
            shift=shift,
            factor=factor,
            num_threads=torch.get_num_threads(),
        )

    # ---- Array steps

    def contiguous(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach() if tensor.requires_grad else tensor
        return tensor if tensor.is_contiguous() else torch.from_numpy(np.ascontiguousarray(tensor.numpy()))

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.from_numpy(np.concatenate([t.numpy() for t in tensors], axis=-1))

    def select_kth(self, sorted_values: Tensor, ks: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([sorted_values.numpy()[..., k - 1] for k in ks]))

    def fill(self, each: Sequence[float], shape: Sequence[int], device: torch.device) -> Tensor:
        values = np.empty(shape)
        values.T[...] = each
        return torch.from_numpy(values)

    def mean(self, values: Tensor) -> Tensor:
        if values.requires_grad:  # only PyTorch records it
            return values.mean(-1)
        return torch.from_numpy(np.asarray(np.add.reduce(values.numpy(), -1) / values.shape[-1]))

    def share_of_zeros(self, values: Tensor) -> Tensor:
        zeros = np.add.reduce(values.numpy() == 0, -1, dtype=np.float64)
        return torch.from_numpy(np.asarray(zeros / max(values.shape[-1], 1)))

    def all_finite(self, values: Tensor) -> bool:
        return bool(np.isfinite(values.detach().numpy()).all())

    def maybe_any(self, mask: Tensor) -> bool:
        return bool(mask.any())
