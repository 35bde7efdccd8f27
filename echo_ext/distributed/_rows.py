"""The rows of all ranks on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from echo_ext.distributed._collectives import Ranks


def gather_rows(tensor: Tensor, ranks: Ranks, agreed: Mapping[str, object]) -> tuple[list[Tensor], list[int]]:
    """Gather the rows of every rank's (B, *) tensor, without gradient.

    Args:
        tensor: The rows of this rank.
        ranks: The ranks of this call.
        agreed: What the ranks must agree on. It includes all that decides the shape and dtype of a row.

    Returns:
        The rows of each rank, and how many each has.
    """
    tensor = tensor.detach()
    sizes, _ = ranks.exchange(tensor.shape[0], agreed, tensor.new_empty(0))
    padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    return [rows[:size] for rows, size in zip(ranks.all_gather(padded), sizes, strict=True)], sizes


def own_first(parts: Sequence[Tensor], rank: int) -> Tensor:
    """Join the rows of all ranks: those of this rank first, then those of the others in their order."""
    return torch.cat([parts[rank], *parts[:rank], *parts[rank + 1 :]])


def in_rank_order(joined: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    """Invert `own_first`: return the rows in the order of the ranks."""
    own, rest = joined[: sizes[rank]], joined[sizes[rank] :]
    before = sum(sizes[:rank])
    return torch.cat([rest[:before], own, rest[before:]])
