"""Surrogate data for tests of independence: orders of the rows of a variable.

The orders are keyed functions of a seed and the number of the surrogate. Any of them can be made without those before
it, and they do not depend on the device or the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from echo_ext import _C
from echo_ext.estimators.neighbors import PointSet

# Makes the orders of some surrogates: from the number of the first and how many to int64 (num, *batch, N) on the CPU.
Orders: TypeAlias = Callable[[int, int], Tensor]

_TIES = -1  # the stream of the random numbers that break ties among neighbors


def shuffled(n: int, seed: int, *, stream: int = 0, length: int | None = None) -> Orders:
    """Return random permutations of n rows, or their first ``length`` terms."""

    def orders(first: int, num: int) -> Tensor:
        terms = n if length is None else length
        out = torch.empty((num, terms), dtype=torch.int64, device="cpu")
        _C.knn_permutations(
            seed=seed,
            stream=stream,
            first=first,
            num=num,
            size=n,
            length=terms,
            orders=out.data_ptr(),
            num_threads=torch.get_num_threads(),
        )
        return out

    return orders


def exchanged_locally(z: Tensor, num_neighbors: int, seed: int, *, stream: int = 0) -> Orders:
    """Return permutations that exchange each row with one of its nearest in z: (*batch, N, d).

    Each row is used once as far as possible (Runge 2018). A row is one of its own neighbors. Of rows with equal z, each
    row has random ones for its neighbors.
    """
    *batch, n, _ = z.shape
    rank = shuffled(n, seed, stream=_TIES)(stream, 1)[0].to(z.device, z.dtype)
    # So small that only ties depend on it: distances of 0, or below the smallest normal numbers.
    tie_breaker = (rank * torch.finfo(z.dtype).tiny).expand(*batch, n).unsqueeze(-1)
    points = torch.cat([z, tie_breaker], -1)
    neighbors = PointSet(points).search(num_neighbors, queries=points)[1].cpu().contiguous()

    def orders(first: int, num: int) -> Tensor:
        out = torch.empty((num, *batch, n), dtype=torch.int64, device="cpu")
        _C.knn_local_permutations(
            seed=seed,
            stream=stream,
            first=first,
            num=num,
            neighbors=neighbors.data_ptr(),
            batch=neighbors[..., 0, 0].numel(),
            num_points=n,
            num_neighbors=num_neighbors,
            orders=out.data_ptr(),
            num_threads=torch.get_num_threads(),
        )
        return out

    return orders


def rotated(n: int, exclude_within: int, seed: int, *, stream: int = 0) -> Orders:
    """Return rotations of n rows by random offsets that are larger than the window in both directions."""
    offsets = shuffled(n - 1 - 2 * exclude_within, seed, stream=stream, length=1)

    def orders(first: int, num: int) -> Tensor:
        return (torch.arange(n, device="cpu") + offsets(first, num) + exclude_within + 1) % n

    return orders


def permuted_in_blocks(n: int, block_length: int, seed: int, *, stream: int = 0) -> Orders:
    """Return permutations of blocks of consecutive rows, of which the last may be shorter."""
    blocks = shuffled(-(-n // block_length), seed, stream=stream)

    def orders(first: int, num: int) -> Tensor:
        rows = blocks(first, num).unsqueeze(-1) * block_length + torch.arange(block_length, device="cpu")
        rows = rows.flatten(1)
        return rows[rows < n].view(num, n)

    return orders


def within_groups(make: Callable[[int, int, int], Orders], sizes: Sequence[int]) -> Orders:
    """Return orders that keep each of some groups of consecutive rows to itself.

    Args:
        make: From the begin and the end of a group and its number to the orders of its rows, counted from 0.
        sizes: The sizes of the groups.
    """
    ends = torch.tensor(sizes, device="cpu").cumsum(0).tolist()
    begins = [end - size for size, end in zip(sizes, ends, strict=True)]
    parts = [make(begin, end, stream) for stream, (begin, end) in enumerate(zip(begins, ends, strict=True))]
    if len(parts) == 1:
        return parts[0]

    def orders(first: int, num: int) -> Tensor:
        return torch.cat([part(first, num) + begin for part, begin in zip(parts, begins, strict=True)], -1)

    return orders
