"""The arguments of Echo's functions: how they are checked, and the one object that they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from echo_ext import _C, _checks
from echo_ext._native import dtype_code

Sampling: TypeAlias = Literal["permutation", "replacement", "ring"]
# The native core knows a sampling by its place here.
SAMPLINGS: tuple[Sampling, ...] = ("permutation", "replacement", "ring")
_SAMPLING_CODES: dict[object, int] = {sampling: code for code, sampling in enumerate(SAMPLINGS)}
RING = _SAMPLING_CODES["ring"]


class EchoCall(NamedTuple):
    """The arguments of the op ``echo``.

    A new argument of the op is a new field here, a word in the schema, and a field of the native core's EchoProblem.

    Attributes:
        f, s: The rows that noise is added to, or None for the noise alone.
        bank_f, bank_s: The rows that the noise is made of. Without a bank of the caller's they are the batch itself,
            and their gradients then are the whole gradients of f and s.
        seed: An int64 tensor of one element on the bank's device.
        rows: The number of noises: of the first rows of the batch, or of draws from the bank.
        num_terms: The number of terms of each noise.
        sampling: An index into SAMPLINGS.
        exclude_self: Whether the batch is its own bank, so that no row is part of its own noise.
    """

    f: Tensor | None
    s: Tensor | None
    bank_f: Tensor
    bank_s: Tensor
    seed: Tensor
    rows: int
    num_terms: int
    sampling: int
    exclude_self: bool

    @property
    def settings(self) -> tuple[int, int, int, bool]:
        """The arguments that are not tensors."""
        return self[5:]

    def problem(self) -> _C.EchoProblem:
        """The call as the native core sees it."""
        _, _, bank_f, _, _, rows, num_terms, sampling, exclude_self = self
        bank_rows = bank_f.shape[0]
        width = bank_f.numel() // bank_rows
        return _C.EchoProblem(rows, bank_rows, width, num_terms, exclude_self, sampling, dtype_code(bank_f.dtype))


ECHO_SCHEMA = (
    "Tensor? f, Tensor? s, Tensor bank_f, Tensor bank_s, Tensor seed, "
    "SymInt rows, SymInt num_terms, int sampling, bool exclude_self"
)


def matching_pair(name_f: str, f: object, name_s: str, s: object) -> tuple[Tensor, Tensor]:
    """Return a signal and its scale, of one shape, dtype and device."""
    f, s = _checks.floating_tensor(name_f, f), _checks.floating_tensor(name_s, s)
    if f.shape != s.shape:
        raise ValueError(f"{name_f} and {name_s} must have the same shape, got {tuple(f.shape)} and {tuple(s.shape)}")
    _checks.same_dtype_and_device(name_f, f, name_s, s)
    return f, s


def bank_pair(bank: object, like: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the rows to draw from, of the row shape, dtype and device of ``like``."""
    if not isinstance(bank, (tuple, Sequence)) or len(bank) != 2:  # asking whether a tuple is a Sequence is slow
        raise TypeError(f"bank must be a pair (f_bank, s_bank) of tensors, got {_checks.brief(bank)}")
    bank_f, bank_s = matching_pair("bank[0]", bank[0], "bank[1]", bank[1])
    if bank_f.shape[0] == 0:
        raise ValueError(f"bank must have at least one row, got shape {tuple(bank_f.shape)}")
    if like is not None:
        same_rows("bank", bank_f, "f", like)
    return bank_f, bank_s


def same_rows(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors whose rows differ in shape, dtype or device; the numbers of rows may differ."""
    if tensor.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"{name} must have rows of the shape of {other_name}'s rows, {tuple(other.shape[1:])}, "
            f"got {tuple(tensor.shape[1:])}"
        )
    _checks.same_dtype_and_device(name, tensor, other_name, other)


def sampling_code(sampling: object) -> int:
    """Return the native core's number for a sampling."""
    try:
        return _SAMPLING_CODES[sampling]
    except (KeyError, TypeError):  # TypeError: not hashable
        _checks.choice("sampling", sampling, SAMPLINGS)
        raise


def term_count(num_terms: object, *, bank_rows: int, exclude_self: bool) -> int:
    """Return the number of terms of each noise: ``num_terms``, or all that the rows allow where it is None."""
    if exclude_self and bank_rows < 2:
        raise ValueError(
            f"f must have at least 2 rows, since a row's noise is made of the others, got {bank_rows}; "
            "give a bank to draw from instead"
        )
    if not 1 <= bank_rows <= _checks.MAX_ROWS:  # the call alone would cost as much as all the rest
        _checks.row_count("f's or the bank's number of rows", bank_rows, minimum=1)
    available = bank_rows - 1 if exclude_self else bank_rows
    if num_terms is None:
        return available
    count = _checks.row_count("num_terms", num_terms, minimum=1)
    if count > available:
        source = "other rows in the batch" if exclude_self else "rows in the bank"
        raise ValueError(f"num_terms must be at most {available}, the number of {source}, got {count}")
    return count


def seed_tensor(seed: object, device: torch.device) -> Tensor:
    """Return the seed as an int64 tensor on the device.

    None draws one from PyTorch's generator of that device, without synchronizing the host.
    """
    smallest, largest = _checks.INT64
    if seed is None:
        return torch.randint(largest, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        _checks.dense_layout("seed", seed)
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(
                "seed must be an int64 tensor of one element, "
                f"got {_checks.dtype_name(seed.dtype)} of shape {tuple(seed.shape)}"
            )
        if seed.device != device:
            raise ValueError(f"seed must be on f's device, {device}, got {seed.device}")
        return seed
    number = _checks.whole("seed", seed, what="None, an int or an int64 tensor")
    if not smallest <= number <= largest:
        raise ValueError(f"seed must fit into 64 bits, between {smallest} and {largest}, got {number}")
    return torch.full((), int(number), dtype=torch.int64, device=device)


def check_draws(
    seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool, device: torch.device
) -> None:
    """Refuse draws that the kernels cannot make."""
    _checks.row_count("rows", rows, minimum=0)
    term_count(num_terms, bank_rows=bank_rows, exclude_self=exclude_self)
    if exclude_self and rows > bank_rows:
        raise ValueError(f"rows must be at most {bank_rows}, the number of rows of the bank, got {rows}")
    if not 0 <= sampling < len(SAMPLINGS):
        raise ValueError(f"sampling must be between 0 and {len(SAMPLINGS) - 1}, got {sampling}")
    seed_tensor(seed, device)
