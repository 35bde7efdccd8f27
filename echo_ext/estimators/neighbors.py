"""Nearest neighbors: searches and counts on batches of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from echo_ext._types import Metric
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators._metric import reaches_of

# All points, where a part of them could be asked for.
ALL = slice(None)


class PointSet:
    """Points (*batch, N, d) that several searches and counts may share; on CUDA they share a tree as well.

    Distances are those of the kernels: squared where the metric is Euclidean. ``exclude_within`` is the Theiler window:
    points at most so many rows away are not neighbors. ``rows``, int64 (N,) and ascending, are the row numbers that it
    refers to; by default the points are consecutive rows. ``part`` limits the results to some of the points; all
    points remain their possible neighbors.
    """

    def __init__(self, points: Tensor) -> None:
        self.backend = backend_of(points)
        self.points = self.backend.contiguous(points)

    @cached_property
    def prepared(self) -> Any:
        """What the backend needs of the points."""
        return self.backend.prepare(self.points)

    @property
    def num_points(self) -> int:
        """N."""
        return self.points.shape[-2]

    @property
    def dim(self) -> int:
        """d."""
        return self.points.shape[-1]

    @property
    def batch(self) -> torch.Size:
        """The batch of independent sets of points."""
        return self.points.shape[:-2]

    def take(self, begin: int, end: int) -> PointSet:
        """Return some of the first dimension of the batch; they share what is prepared for all."""
        taken = PointSet(self.points[begin:end])
        taken.prepared = self.backend.part(self.prepared, begin, end)
        return taken

    def expand(self, batch: torch.Size) -> Tensor:
        """Return the points, broadcast to a batch."""
        return self.points if self.batch == batch else self.points.expand(*batch, *self.points.shape[-2:])

    def search(
        self,
        k: int,
        *,
        queries: Tensor | None = None,
        metric: Metric = "chebyshev",
        exclude_within: int = 0,
        rows: Tensor | None = None,
        part: slice = ALL,
    ) -> tuple[Tensor, Tensor]:
        """Find the k nearest points of each query (*batch, M, d), or the k nearest others of each point.

        Returns:
            Distances (*batch, M, k), ascending, and indices of the same shape, int64: of equally near points, the one
            with the lower index comes first.
        """
        if part != ALL:
            return self._search_part(k, metric=metric, exclude_within=exclude_within, part=part)
        distances = self._empty_lists(k, queries)
        indices = torch.empty_like(distances, dtype=torch.int64)
        self._fill(distances, indices, queries, metric, exclude_within, rows)
        return distances, indices

    def search_distances(
        self,
        k: int,
        *,
        metric: Metric = "chebyshev",
        exclude_within: int = 0,
        rows: Tensor | None = None,
        part: slice = ALL,
    ) -> Tensor:
        """Find the distances from each point to the k nearest others: (*batch, N, k), ascending."""
        if part != ALL:
            return self._search_part(k, metric=metric, exclude_within=exclude_within, part=part)[0]
        distances = self._empty_lists(k, None)
        self._fill(distances, None, None, metric, exclude_within, rows)
        return distances

    def search_kth(
        self,
        ks: Sequence[int],
        *,
        metric: Metric = "chebyshev",
        exclude_within: int = 0,
        rows: Tensor | None = None,
        part: slice = ALL,
    ) -> Tensor:
        """Find the distances from each point to its ks-th nearest others: (K, *batch, N), without lists of them."""
        if part != ALL:
            lists = self._search_part(max(ks), metric=metric, exclude_within=exclude_within, part=part)[0]
            return self.backend.select_kth(lists, ks)
        distances = self.points.new_empty((len(ks), *self.points.shape[:-1]))
        if distances.numel() > 0:
            self.backend.search_kth(
                self.prepared, ks, metric=metric, exclude_within=exclude_within, rows=rows, distances=distances
            )
        return distances

    def search_reaches(
        self,
        ks: Sequence[int],
        groups: Sequence[int],
        *,
        exclude_within: int = 0,
        rows: Tensor | None = None,
        part: slice = ALL,
    ) -> tuple[Tensor, Tensor]:
        """Find how far the k nearest others (Chebyshev) of each point reach in each group of columns.

        Args:
            ks: The numbers of neighbors. Of equally near points, those with the lower index are taken.
            groups: The group of each column, of G.

        Returns:
            The distances to the ks-th neighbors, (K, *batch, N), and the reaches, (K, G, *batch, N).
        """
        if part != ALL:
            lists, indices = self._search_part(max(ks), metric="chebyshev", exclude_within=exclude_within, part=part)
            each_of = (self.points, self.points[..., part, :], indices)
            points, queries, found = (each.reshape(math.prod(self.batch), *each.shape[-2:]) for each in each_of)
            reaches = reaches_of(points, queries, found, ks, groups)
            return self.backend.select_kth(lists, ks), reaches.view(*reaches.shape[:2], *indices.shape[:-1])
        distances = self.points.new_empty((len(ks), *self.points.shape[:-1]))
        reaches = self.points.new_empty((len(ks), max(groups) + 1, *self.points.shape[:-1]))
        if reaches.numel() > 0:
            self.backend.search_reaches(
                self.prepared,
                ks,
                groups,
                exclude_within=exclude_within,
                rows=rows,
                distances=distances,
                reaches=reaches,
            )
        return distances, reaches

    def _empty_lists(self, k: int, queries: Tensor | None) -> Tensor:
        num_queries = self.num_points if queries is None else queries.shape[-2]
        return self.points.new_empty((*self.batch, num_queries, k))

    def _fill(
        self,
        distances: Tensor,
        indices: Tensor | None,
        queries: Tensor | None,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
    ) -> None:
        if distances.numel() == 0:  # no queries
            return
        self.backend.search(
            self.prepared,
            distances.shape[-1],
            queries=None if queries is None else self.backend.contiguous(queries),
            metric=metric,
            exclude_within=exclude_within,
            rows=rows,
            distances=distances,
            indices=indices,
        )

    def _search_part(self, k: int, *, metric: Metric, exclude_within: int, part: slice) -> tuple[Tensor, Tensor]:
        """Search with some of the points as queries: they find the excluded points too, which are then removed."""
        num_excluded = min(2 * exclude_within + 1, self.num_points - k)
        queries = self.points[..., part, :]
        found, indices = self.search(k + num_excluded, queries=queries, metric=metric)
        own = torch.arange(self.num_points, device=self.points.device)[part].unsqueeze(-1)
        is_excluded = (indices - own).abs() <= exclude_within
        # A stable sort moves the excluded behind the others, which keep their order.
        keep = is_excluded.to(torch.uint8).sort(dim=-1, stable=True).indices[..., :k]
        return found.gather(-1, keep), indices.gather(-1, keep)

    def count(
        self,
        radii: Tensor,
        *,
        groups: Sequence[int] | None = None,
        inclusive: bool = False,
        metric: Metric = "chebyshev",
        exclude_within: int = 0,
        rows: Tensor | None = None,
        part: slice = ALL,
    ) -> Tensor:
        """Count the other points that are nearer than a radius, or as near if ``inclusive``: int64 (K, *batch, N).

        Args:
            radii: (K, *batch, N), of the points' dtype. The points' batch broadcasts to this batch; what is broadcast
                is sorted once. With ``part``, radii and counts are those of the part.
            groups: The group of each column, if each of G groups has its own radius: radii (K, *batch, G, N).
        """
        if part != ALL:
            radii = _radii_of_all(radii, self.num_points, part)
        if groups is None:
            groups, radii = [0] * self.dim, radii.unsqueeze(-2)
        order, num_own = _shared_first(self.batch, radii.shape[1:-2])
        is_in_order = order == sorted(order)  # mostly; to permute takes longer than to look
        ordered = radii if is_in_order else radii.permute(*order, radii.ndim - 2, radii.ndim - 1)
        ordered = self.backend.contiguous(ordered)
        counts = torch.empty((*ordered.shape[:-2], self.num_points), dtype=torch.int64, device=radii.device)
        self.backend.count(
            self.prepared,
            ordered,
            groups=groups,
            num_radii=math.prod(ordered.shape[:-2]) // max(num_own, 1),
            inclusive=inclusive,
            metric=metric,
            exclude_within=exclude_within,
            rows=rows,
            counts=counts,
        )
        if not is_in_order:
            counts = counts.permute(*sorted(range(len(order)), key=order.__getitem__), len(order))
        return counts if part == ALL else counts[..., part]

    def boundary(
        self, radii: Tensor, skip: Tensor, *, width: int, exclude_within: int, rows: Tensor | None = None
    ) -> Tensor:
        """Find the neighbors whose rank by distance is nearest to the boundary of each point's ball.

        Args:
            radii: (*batch, N).
            skip: One neighbor of each point to pass over, int64 (*batch, N).

        Returns:
            Up to ``width`` neighbors inside and ``width + 1`` outside: int64 (*batch, N, 2 width + 1), -1 for none.
        """
        radii, skip = self.backend.contiguous(radii), self.backend.contiguous(skip)
        shape = (*self.points.shape[:-1], 2 * width + 1)
        indices = torch.empty(shape, dtype=torch.int64, device=self.points.device)
        self.backend.boundary(
            self.prepared, radii, skip, width=width, exclude_within=exclude_within, rows=rows, indices=indices
        )
        return indices


def count_neighbors(n: int, exclude_within: int, device: torch.device | None = None) -> Tensor:
    """Return how many neighbors each of n consecutive samples may have: float64 (n,), or (1,) if all have as many."""
    if exclude_within == 0:
        return torch.full((1,), n - 1.0, dtype=torch.float64, device=device)
    row = torch.arange(n, dtype=torch.float64, device=device)
    window = min(exclude_within, n - 1)
    return (n - 1) - row.clamp(max=window) - (n - 1 - row).clamp(max=window)


def count_neighbors_among(rows: Tensor, exclude_within: int) -> Tensor:
    """Return how many neighbors each of some rows, which ascend, has among the others: int64."""
    if exclude_within == 0:
        return torch.full_like(rows, len(rows) - 1)
    first = torch.searchsorted(rows, rows - exclude_within)
    last = torch.searchsorted(rows, rows + exclude_within, right=True)
    return len(rows) - (last - first)


def _radii_of_all(radii: Tensor, n: int, part: slice) -> Tensor:
    """Return radii for all n points where only some are to be counted around."""
    of_all = radii.new_full((*radii.shape[:-1], n), -1.0)  # nothing lies within a negative radius
    of_all[..., part] = radii
    return of_all


def _shared_first(points_batch: torch.Size, batch: torch.Size) -> tuple[list[int], int]:
    """Return the order of radii's leading dimensions (K, *batch) in which the kernels take them.

    First come K and the dimensions along which one set of points is shared, then those of which each has its own set;
    also returned is how many sets that makes.
    """
    sizes = (1,) * (len(batch) - len(points_batch)) + tuple(points_batch)
    shared = [i for i, size in enumerate(sizes) if size == 1]
    own = [i for i, size in enumerate(sizes) if size != 1]
    return [0, *(i + 1 for i in (*shared, *own))], math.prod(batch[i] for i in own)
