"""A group of processes, and the collectives that report which ranks disagree."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

# The first all-gather has this size whatever the ranks call and hold: a header that describes the call, then as many of
# the numbers as fit. Ranks that disagree therefore never meet in collectives of different sizes.
BLOCK_BYTES = 4096
HEADER_BYTES = 1024

_PREFIX = struct.Struct("<8s4q")  # the mark, the status, the rows, the call's number and the size of the text
_MARK = b"echo-ext"
_TEXT_BYTES = HEADER_BYTES - _PREFIX.size
_LONGEST_VALUE = 64  # characters; of a longer value, the beginning and a hash are sent
_CALLED = 0
_ERRORS: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError)  # status 1, 2 and 3

CALL = "the function called"


class _Header(NamedTuple):
    """The description of a rank's call: how many rows it holds, and what the ranks must agree on, or its error."""

    status: int
    rows: int
    number: int
    text: str

    def encode(self) -> bytes:
        text = self.text.encode()
        if len(text) > _TEXT_BYTES:
            raise ValueError(f"the description of a call must have at most {_TEXT_BYTES} bytes, got {len(text)}")
        prefix = _PREFIX.pack(_MARK, self.status, self.rows, self.number, len(text))
        return (prefix + text).ljust(HEADER_BYTES, b"\0")

    @staticmethod
    def decode(data: bytes) -> _Header | None:
        """Invert encode; None for a rank that sent something else."""
        mark, status, rows, number, size = _PREFIX.unpack_from(data)
        if mark != _MARK:
            return None
        return _Header(status, rows, number, data[_PREFIX.size : _PREFIX.size + size].decode(errors="replace"))


class Ranks:
    """The processes of a group for one call and its backward pass; without torch.distributed, this process alone."""

    _latest_number = 0

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank, self.size = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group must contain this process, got one that does not")
        self.number = 0  # identifies the backward pass of this call; the ranks agree on it in the exchange
        self._has_exchanged = False

    @contextmanager
    def guard(self, *inputs: object) -> Iterator[None]:
        """Send an error that this rank raises before the exchange to the other ranks, so that they do not wait."""
        self._has_exchanged = False  # the backward pass of a call has an exchange of its own
        try:
            yield
        except Exception as error:
            if not self._has_exchanged:
                self._refuse(error, inputs)
            raise

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, which have one shape and dtype: (size, *shape)."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=self.group)
        return gathered

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by the sum of all ranks' tensors."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def exchange(self, rows: int, agreed: Mapping[str, object], numbers: Tensor) -> tuple[list[int], Tensor]:
        """Return how many rows each rank holds, and the numbers of all ranks (size, n).

        Args:
            rows: How many rows this rank holds.
            agreed: What all ranks must agree on, by name; CALL comes first. It determines the size of ``numbers``.
            numbers: What this rank sends to all others.

        Raises:
            ValueError, TypeError: The ranks disagree; all of them raise the same error.
            ValueError, TypeError, RuntimeError: A rank rejected its arguments.
        """
        if self.size == 1:
            self._has_exchanged = True
            return [rows], numbers.unsqueeze(0)
        own = _Header(_CALLED, rows, Ranks._latest_number + 1, _describe(agreed))
        blocks = self._all_gather_block(own, numbers)
        # Nothing can wait for a stream that is being captured; the step was checked when it ran before the capture.
        everyone = [own] * self.size if is_capturing(numbers.device) else _agree(blocks)
        self.number = Ranks._latest_number = max([header.number for header in everyone])
        return [header.rows for header in everyone], self._rest(blocks, numbers)

    def exchange_back(self, name: str, numbers: Tensor) -> Tensor:
        """Return the numbers of all ranks (size, n) in the backward pass of this call of the function ``name``.

        Where all numbers fit into the block, this does not wait for a GPU; if ranks disagree, the numbers then are NaN.

        Raises:
            ValueError, RuntimeError: Another rank is not in this backward pass, or has an error in it.
        """
        if self.size == 1:
            self._has_exchanged = True
            return numbers.unsqueeze(0)
        call = f"the backward pass of {name} (call {self.number})"
        blocks = self._all_gather_block(_Header(_CALLED, 0, 0, _describe({CALL: call})), numbers)
        if is_capturing(numbers.device):
            return self._rest(blocks, numbers)
        if blocks.is_cuda and 0 < _size(numbers) <= BLOCK_BYTES - HEADER_BYTES:
            return invalid_unless_equal(blocks[:, :HEADER_BYTES], self._rest(blocks, numbers))
        _agree(blocks)
        return self._rest(blocks, numbers)

    def _all_gather_block(self, header: _Header, numbers: Tensor) -> Tensor:
        """The blocks of all ranks (size, BLOCK_BYTES)."""
        device = numbers.device
        if device.type == "cpu" and dist.get_backend(self.group) == "nccl":
            raise ValueError("tensors must be on a CUDA device in a process group with NCCL, got tensors on the CPU")
        payload = _bytes(numbers)[: BLOCK_BYTES - HEADER_BYTES]
        padding = payload.new_zeros(BLOCK_BYTES - HEADER_BYTES - len(payload))
        if is_capturing(device):  # a captured copy would read the host's memory again at each replay
            head = payload.new_zeros(HEADER_BYTES)
        else:
            head = torch.frombuffer(bytearray(header.encode()), dtype=torch.uint8).to(device, non_blocking=True)
        block = torch.cat([head, payload, padding])
        self._has_exchanged = True
        return self.all_gather(block)

    def _rest(self, blocks: Tensor, numbers: Tensor) -> Tensor:
        """The numbers of all ranks, of which the blocks hold the first ones."""
        size = _size(numbers)
        if size == 0:
            return numbers.new_empty(self.size, 0)
        parts = [blocks[:, HEADER_BYTES : HEADER_BYTES + size]]
        if size > BLOCK_BYTES - HEADER_BYTES:
            parts.append(self.all_gather(_bytes(numbers)[BLOCK_BYTES - HEADER_BYTES :]))
        return torch.cat(parts, 1).view(numbers.dtype)

    def _refuse(self, error: Exception, inputs: Sequence[object]) -> None:
        """Send the error of this rank to the others, which are in an exchange or will enter one."""
        devices = [each.device for each in inputs if isinstance(each, Tensor) and each.device.type in ("cpu", "cuda")]
        device = devices[0] if devices else torch.device("cpu")
        if self.size == 1 or is_capturing(device):
            return
        if device.type == "cpu" and dist.get_backend(self.group) == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        status = next((i for i, kind in enumerate(_ERRORS) if i > 0 and isinstance(error, kind)), 0)
        kind = "" if isinstance(error, _ERRORS) else f"{type(error).__name__}: "
        text = (kind + (str(error).splitlines() or ["no reason given"])[0]).encode()[:_TEXT_BYTES]
        header = _Header(1 + status, 0, 0, text.decode(errors="ignore"))
        with suppress(Exception):  # the error of this rank says more than that of a missing rank
            self._all_gather_block(header, torch.empty(0, device=device))


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def invalid_unless_equal(headers: Tensor, numbers: Tensor) -> Tensor:
    """Return the numbers, or NaN where the headers of the ranks (size, n) differ, without waiting for a device."""
    return torch.where((headers == headers[:1]).all(), numbers, torch.nan)


def _agree(blocks: Tensor) -> list[_Header]:
    """The headers of all ranks; raises an error if one disagrees or has rejected the call."""
    sent = blocks if blocks.is_cpu else blocks[:, :HEADER_BYTES]
    data, step = bytes(sent.cpu().numpy()), sent.shape[1]
    headers = [_Header.decode(data[i : i + HEADER_BYTES]) for i in range(0, len(data), step)]
    everyone = [header for header in headers if header is not None]
    if len(everyone) < len(headers):
        others = [rank for rank, header in enumerate(headers) if header is None]
        raise RuntimeError(
            f"all ranks must make the same call, but {_named(others)} captured a CUDA graph or sent other data"
        )
    refused = [(rank, header) for rank, header in enumerate(everyone) if header.status != _CALLED]
    if refused:
        reasons = _places([header.text for _, header in refused], [rank for rank, _ in refused])
        listed = "; ".join(f"{_named(ranks)} rejected the call: {reason}" for reason, ranks in reasons.items())
        raise _ERRORS[refused[0][1].status - 1](listed)
    if any(header.text != everyone[0].text for header in everyone):
        raise _disagreement([header.text for header in everyone])
    return everyone


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(-1).view(torch.uint8)


def _size(numbers: Tensor) -> int:
    return numbers.numel() * numbers.element_size()


def _describe(agreed: Mapping[str, object]) -> str:
    """One line for each name and value."""
    return "\n".join([f"{name}={_brief(value)}" for name, value in agreed.items()])


def _brief(value: object) -> str:
    text = str(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: _LONGEST_VALUE - 30]} ... (SHA-256 {digest})"


def _disagreement(texts: Sequence[str]) -> Exception:
    """The error that names what the ranks do not agree on, and which rank has which value."""
    described = [dict(line.split("=", 1) for line in text.split("\n")) for text in texts]
    name = next(name for name in described[0] if len({each.get(name) for each in described}) > 1)
    places = _places([each[name] for each in described], range(len(texts)))
    found = [f"{value} on {_named(ranks)}" for value, ranks in places.items()]
    listed = ", ".join(found[:-1]) + f" and {found[-1]}"
    kind = TypeError if "dtype" in name else ValueError
    return kind(f"{name} must be the same on all ranks, got {listed}")


def _places(values: Sequence[str], ranks: Sequence[int]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for value, rank in zip(values, ranks, strict=True):
        places.setdefault(value, []).append(rank)
    return places


def _named(ranks: Sequence[int]) -> str:
    few = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {few}" if len(ranks) == 1 else f"ranks {few}"
