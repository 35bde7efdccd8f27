"""A group of processes, and the collectives that say who disagrees."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from echo_ext import _checks

# The first all-gather has this size whatever the ranks hold: a header, then as much of the numbers as there is room
# for. Ranks whose numbers differ in size therefore never meet in one collective before they know of it.
BLOCK_BYTES = 1024
HEADER_SLOTS = 16
HEADER_BYTES = 8 * HEADER_SLOTS
MAX_DIMENSIONS = HEADER_SLOTS - 5

_Value = TypeVar("_Value", bound=Hashable)


@dataclass(frozen=True)
class Rows:
    """What a rank holds of one argument: its header in an exchange."""

    count: int
    shape: tuple[int, ...]  # of one row
    dtype: torch.dtype
    needs_grad: bool
    is_refused: bool = False  # the rank raises an error of its own; the others must not wait for it

    def encode(self) -> list[int]:
        """As HEADER_SLOTS integers."""
        if len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"rows must have at most {MAX_DIMENSIONS} dimensions, but have shape {self.shape}")
        code = _checks.FLOATING.index(self.dtype)
        slots = [self.is_refused, self.count, code, self.needs_grad, len(self.shape), *self.shape]
        return [int(slot) for slot in slots] + [0] * (HEADER_SLOTS - len(slots))

    @staticmethod
    def decode(slots: Sequence[int]) -> Rows:
        """The inverse of encode."""
        refused, count, code, needs_grad, ndim, *shape = slots
        return Rows(count, tuple(shape[:ndim]), _checks.FLOATING[code], bool(needs_grad), bool(refused))


REFUSED = Rows(0, (), torch.float64, False, is_refused=True)


class Ranks:
    """The processes of a group; without torch.distributed, this process alone."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank, self.size = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group must contain this process, but does not")

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor, of one shape and dtype: (size, *shape)."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=self.group)
        return gathered

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def exchange(self, name: str, rows: Rows, numbers: Tensor) -> tuple[list[Rows], Tensor]:
        """Every rank's header and numbers, (size, n), where n follows from what the ranks must agree on.

        Raises:
            ValueError, TypeError: the ranks' rows of the argument ``name`` differ in shape or dtype, or whether they
                need a gradient; a rank refused its input.
        """
        if self.size == 1:
            return [rows], numbers.unsqueeze(0)
        payload = numbers.contiguous().view(-1).view(torch.uint8)
        here = min(payload.numel(), BLOCK_BYTES - HEADER_BYTES)
        block = payload.new_zeros(BLOCK_BYTES)
        block[:HEADER_BYTES] = torch.tensor(rows.encode()).view(torch.uint8).to(block.device, non_blocking=True)
        block[HEADER_BYTES : HEADER_BYTES + here] = payload[:here]
        blocks = self.all_gather(block)
        everyone = [rows] * self.size
        # A stream that is being captured cannot be waited for; the step was checked when it ran before.
        if not (block.is_cuda and torch.cuda.is_current_stream_capturing()):
            headers = blocks[:, :HEADER_BYTES].contiguous().view(torch.int64)
            everyone = [Rows.decode(header) for header in headers.tolist()]
            self._agree(name, everyone)
        if payload.numel() == 0:
            return everyone, numbers.new_empty(self.size, 0)
        parts = [blocks[:, HEADER_BYTES : HEADER_BYTES + here]]
        if here < payload.numel():
            parts.append(self.all_gather(payload[here:]))
        return everyone, torch.cat(parts, 1).view(numbers.dtype)

    def refuse(self, name: str, device: torch.device) -> None:
        """Tell the others, who are in `exchange`, that this rank raises an error."""
        if self.size > 1 and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            block = torch.zeros(BLOCK_BYTES, dtype=torch.uint8)
            block[:HEADER_BYTES] = torch.tensor(REFUSED.encode()).view(torch.uint8)
            self.all_gather(block.to(device))

    def _agree(self, name: str, everyone: list[Rows]) -> None:
        refused = [rank for rank, rows in enumerate(everyone) if rows.is_refused]
        if refused:
            raise ValueError(f"{name} was refused on {_named(refused)}: the error there says why")
        self._same(f"{name} must have rows of one shape", [rows.shape for rows in everyone], ValueError)
        self._same(f"{name} must have one dtype", [rows.dtype for rows in everyone], TypeError)
        self._same(f"{name} must or must not need a gradient", [rows.needs_grad for rows in everyone], ValueError)

    def _same(self, wish: str, values: list[_Value], error: type[Exception]) -> None:
        if len(set(values)) > 1:
            where: dict[_Value, list[int]] = {}
            for rank, value in enumerate(values):
                where.setdefault(value, []).append(rank)
            found = ", ".join(f"{value} on {_named(ranks)}" for value, ranks in where.items())
            raise error(f"{wish} on all ranks, but it is {found}")


def _named(ranks: list[int]) -> str:
    few = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {few}" if len(ranks) == 1 else f"ranks {few}"
