"""All ranks' rows on every rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from echo_ext.distributed._ranks import Ranks, Rows


def gather_rows(
    name: str, tensor: Tensor, ranks: Ranks, *, like: Tensor | None = None, own_first: bool = False
) -> tuple[Tensor, list[int]]:
    """Every rank's rows of a (B, *) tensor, joined in the order of the ranks, and how many each has.

    The gradient is the sum over the ranks that use them. ``own_first`` puts this rank's rows before the others'.
    Messages speak of the argument ``name`` with the rows of ``like``, of which the tensor was made.
    """
    shape = tuple((tensor if like is None else like).shape[1:])
    own = Rows(tensor.shape[0], shape, tensor.dtype, tensor.requires_grad and torch.is_grad_enabled())
    everyone, _ = ranks.exchange(name, own, tensor.new_empty(0))
    sizes = [rows.count for rows in everyone]
    joined = _Gather.apply(tensor, ranks, sizes, own_first)  # type: ignore[no-untyped-call]
    return joined, sizes


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks, sizes: list[int], own_first: bool) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        ctx.ranks_in_order = sorted(range(ranks.size), key=lambda rank: own_first and rank != ranks.rank)
        padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        gathered = ranks.all_gather(padded)
        return torch.cat([gathered[rank, : sizes[rank]] for rank in ctx.ranks_in_order])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sizes, order = ctx.sizes, ctx.ranks_in_order
        parts = dict(zip(order, grad.split([sizes[rank] for rank in order]), strict=True))
        total = ctx.ranks.all_reduce(torch.cat([parts[rank] for rank in range(ctx.ranks.size)]))
        own = total.split(sizes)[ctx.ranks.rank]
        return own, None, None, None
