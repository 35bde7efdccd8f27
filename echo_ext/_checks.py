"""Checks of arguments. Every error names the argument, its value and what would be right."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Hashable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

SAMPLINGS = ("permutation", "replacement", "ring")
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MAX_ROWS = 2**31 - 1
INT64 = (-(2**63), 2**63 - 1)


def floating_tensor(name: str, value: object) -> Tensor:
    """Any tensor that the kernels take."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise TypeError(f"{name} must be one of {allowed}, got {str(value.dtype).removeprefix('torch.')}")
    if value.layout is not torch.strided or value.is_nested:  # a call to check_layout would cost as much again
        check_layout(name, value)
    if value.ndim == 0:
        raise ValueError(f"{name} must have the sample as its dimension 0, got 0-dimensional")
    return value


def check_layout(name: str, tensor: Tensor) -> None:
    """Refuse sparse, nested and other tensors that do not store their numbers at strides."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").removeprefix("_")
        raise TypeError(f"{name} must be a dense tensor, got {layout}")


def dense(tensor: Tensor) -> Tensor:
    """The tensor with its numbers contiguous in memory, as a kernel reads them from its address.

    A tensor with the negative bit holds the negatives of its values, and a zero tensor has no memory at all.
    """
    if tensor.is_neg() or tensor._is_zerotensor():
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()


def matching_pair(name_f: str, f: object, name_s: str, s: object) -> tuple[Tensor, Tensor]:
    """Signal and scale: one shape, dtype and device."""
    f, s = floating_tensor(name_f, f), floating_tensor(name_s, s)
    if f.shape != s.shape:
        raise ValueError(f"{name_f} and {name_s} must have one shape, got {tuple(f.shape)} and {tuple(s.shape)}")
    if f.dtype != s.dtype:
        raise TypeError(f"{name_f} and {name_s} must have one dtype, got {f.dtype} and {s.dtype}")
    if f.device != s.device:
        raise ValueError(f"{name_f} and {name_s} must be on one device, got {f.device} and {s.device}")
    return f, s


def bank_pair(bank: object, like: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows to draw from, with the trailing shape, dtype and device of ``like``."""
    if not isinstance(bank, tuple | Sequence) or len(bank) != 2:  # of a tuple, Sequence is slow to ask
        raise TypeError(f"bank must be a pair (f_bank, s_bank) of tensors, got {brief(bank)}")
    bank_f, bank_s = matching_pair("bank[0]", bank[0], "bank[1]", bank[1])
    if bank_f.shape[0] == 0:
        raise ValueError(f"bank must have at least one row, got shape {tuple(bank_f.shape)}")
    if like is not None:
        same_rows("bank", bank_f, "f", like)
    return bank_f, bank_s


def same_rows(name: str, tensor: Tensor, name_like: str, like: Tensor) -> None:
    """Rows of one shape, dtype and device, however many."""
    if tensor.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"{name} must have rows of {name_like}'s shape {tuple(like.shape[1:])}, "
            f"but its rows have {tuple(tensor.shape[1:])}"
        )
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} must have {name_like}'s dtype {like.dtype}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {name_like}'s device {like.device}, got {tensor.device}")


def sampling_code(sampling: object) -> int:
    """The native core's number for a sampling."""
    choice("sampling", sampling, SAMPLINGS)
    return SAMPLINGS.index(sampling)


def row_count(name: str, value: object, *, least: int) -> int:
    """A number of rows or terms."""
    return whole(name, value, minimum=least, maximum=MAX_ROWS)


def whole(
    name: str, value: object, *, minimum: int | None = None, maximum: int | None = None, what: str = "an int"
) -> int:
    """Return an integer between two bounds, which are both allowed.

    Raises:
        TypeError: the value is not an integer; ``what`` says what would be right.
        ValueError: the integer is out of bounds.
    """
    # A tuple, because torch.compile of torch 2.4 to 2.6 cannot trace isinstance with a union.
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        number: int = value  # type: ignore[assignment]  # a SymInt stands for an int
    elif isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {what}, got {brief(value)}")
    else:
        number = int(value)  # one of NumPy's
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {brief(number)}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {brief(number)}")
    return number


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> float:
    """Return a finite number above one bound, or not below another, and not above a third.

    Raises:
        TypeError: the value is not a number.
        ValueError: the number is infinite, NaN or out of bounds.
    """
    limits = ""
    if above is not None:
        limits = f" above {above}"
    elif minimum is not None:
        limits = f" of at least {minimum}"
    if maximum is not None:
        limits += f"{' and' if limits else ' of'} at most {maximum}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a finite number{limits}, got {brief(value)}")
    try:
        found = float(value)
    except OverflowError:  # an int beyond all floats
        found = math.inf
    too_small = (above is not None and found <= above) or (minimum is not None and found < minimum)
    if not math.isfinite(found) or too_small or (maximum is not None and found > maximum):
        raise ValueError(f"{name} must be a finite number{limits}, got {brief(value)}")
    return found


def widths(name: str, value: object) -> tuple[int, ...]:
    """Return the sizes of layers or of data as a tuple of positive integers."""
    if not isinstance(value, (list, tuple)) or not all(_is_positive_int(each) for each in value):
        raise ValueError(f"{name} must be a list or tuple of positive integers, got {brief(value)}")
    return tuple(value)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is not one of the choices."""
    if not isinstance(value, Hashable) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {brief(value)}")


def unknown(kind: str, name: str, known: Collection[str]) -> ValueError:
    """Return the error for a name that does not exist; it suggests the most similar ones that do."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.4) or known
    return ValueError(f"there is no {kind} {brief(name)}; the most similar are {', '.join(near)}")


def term_count(num_terms: object, *, bank_rows: int, exclude_self: bool) -> int:
    """How many terms a noise has: all that there are, or ``num_terms`` of them."""
    if exclude_self and bank_rows < 2:
        raise ValueError(
            f"f must have at least 2 rows, since a row's noise is made of the others, got {bank_rows}; "
            "give a bank to draw from instead"
        )
    row_count("f's or the bank's number of rows", bank_rows, least=1)
    available = bank_rows - 1 if exclude_self else bank_rows
    if num_terms is None:
        return available
    count = row_count("num_terms", num_terms, least=1)
    if count > available:
        source = "other rows in the batch" if exclude_self else "rows in the bank"
        raise ValueError(f"num_terms is {count}, but there are only {available} {source}")
    return count


def seed_tensor(seed: object, device: torch.device) -> Tensor:
    """The seed as an int64 tensor on the device; None draws it from torch's generator there, without synchronising."""
    if seed is None:
        return torch.randint(0, INT64[1], (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        check_layout("seed", seed)
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(
                f"seed must be an int64 tensor of one element, got dtype {seed.dtype} and shape {tuple(seed.shape)}"
            )
        if seed.device != device:
            raise ValueError(f"seed must be on f's device {device}, got {seed.device}")
        return seed
    seed = whole("seed", seed, what="None, an int or an int64 tensor")
    if not INT64[0] <= seed <= INT64[1]:
        raise ValueError(f"seed must fit into 64 bits, between {INT64[0]} and {INT64[1]}, got {seed}")
    return torch.full((), int(seed), dtype=torch.int64, device=device)


def brief(value: object) -> str:
    """Return the value in at most 60 characters, or its type, so that an error stays one short line."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxother = 2, 60, 60
    try:
        text = shortened.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 and "\n" not in text else f"a value of type {type(value).__name__}"
