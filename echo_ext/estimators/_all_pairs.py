"""Searches by all distances, sorted in blocks: for more neighbors than a CUDA kernel can keep.

The distances are those of the kernels, bit for bit: column by column, each operation of its own and rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from echo_ext._types import Metric

BLOCK = 1 << 24  # distances that are computed together
NO_ROW = 2**31 - 1  # the kernels' index of a neighbor that does not exist


def search(
    points: Tensor,
    *,
    queries: Tensor | None,
    metric: Metric,
    exclude_within: int,
    rows: Tensor | None,
    distances: Tensor,
    indices: Tensor | None,
) -> None:
    """Find the nearest of points (B, N, d), as many as there is room for in distances (B, M, k)."""
    k = distances.shape[-1]
    for item, block, apart in _blocks(points, queries, metric, exclude_within, rows):
        found, neighbors = apart.sort(stable=True)  # NaN comes last
        exists = found[:, :k] == found[:, :k]
        distances[item, block] = found[:, :k].where(exists, torch.inf)
        if indices is not None:
            indices[item, block] = neighbors[:, :k].where(exists, NO_ROW)


def search_kth(
    points: Tensor,
    ks: Sequence[int],
    *,
    metric: Metric,
    exclude_within: int,
    rows: Tensor | None,
    distances: Tensor,
) -> None:
    """Find the distances from each point to its ks-th nearest others: (K, B, N)."""
    for item, block, apart in _blocks(points, None, metric, exclude_within, rows):
        found = apart.sort().values
        for kth, k in zip(distances[:, item, block], ks, strict=True):
            kth.copy_(found[:, k - 1].where(found[:, k - 1] == found[:, k - 1], torch.inf))


def boundary(
    points: Tensor,
    radii: Tensor,
    skip: Tensor,
    *,
    width: int,
    exclude_within: int,
    rows: Tensor | None,
    indices: Tensor,
) -> None:
    """Find the ``width`` farthest neighbors within each radius, and the ``width + 1`` nearest beyond it."""
    for item, block, apart in _blocks(points, None, "chebyshev", exclude_within, rows):
        apart.scatter_(1, skip[item, block].unsqueeze(1), torch.nan)
        is_inside = apart < radii[item, block].unsqueeze(1)
        farthest, inside = torch.where(is_inside, apart, -1).sort(descending=True, stable=True)
        nearest, outside = torch.where(is_inside, torch.nan, apart).sort(stable=True)
        inside = inside.where(farthest >= 0, -1)[:, :width]
        outside = outside.where(nearest == nearest, -1)[:, : width + 1]
        found = indices[item, block].fill_(-1)
        found[:, : inside.shape[1]] = inside
        found[:, width : width + outside.shape[1]] = outside


def _blocks(
    points: Tensor, queries: Tensor | None, metric: Metric, exclude_within: int, rows: Tensor | None
) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield the distances (m, N) of some queries of an item to all its points: NaN from a point to excluded ones."""
    n = points.shape[1]
    row = torch.arange(n, device=points.device) if rows is None else rows
    asked = points if queries is None else queries
    for item in range(points.shape[0]):
        for begin in range(0, asked.shape[1], max(1, BLOCK // n)):
            block = slice(begin, min(begin + max(1, BLOCK // n), asked.shape[1]))
            apart = points.new_zeros((block.stop - begin, n))
            for column, own in zip(points[item].T, asked[item, block].T, strict=True):
                difference = column - own.unsqueeze(1)
                apart = torch.maximum(apart, difference.abs()) if metric == "chebyshev" else apart + difference.square()
            if queries is None:
                apart.masked_fill_((row - row[block].unsqueeze(1)).abs() <= exclude_within, torch.nan)
            yield item, block, apart
