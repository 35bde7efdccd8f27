"""Checks of arguments: every error names the argument, its value and what would be right.

Each check takes the argument's name first and returns what it has checked, in the type that callers go on with.
"""

from __future__ import annotations

import importlib.util
import math
import reprlib
import sys
import warnings
from collections.abc import Collection, Hashable, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor

from echo_ext._native import DTYPES

MAX_ROWS = 2**31 - 1
INT64 = (-(2**63), 2**63 - 1)
PACKAGE = str(Path(__file__).parent / "_")[:-1]  # the folder and the separator


def floating_tensor(name: str, value: object) -> Tensor:
    """Return a dense tensor of a dtype that the kernels take, with at least one dimension.

    Raises:
        TypeError: The value is no tensor, or one of another dtype or layout.
        ValueError: The tensor has no dimensions.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        allowed = ", ".join(map(dtype_name, DTYPES))
        raise TypeError(f"{name} must be one of {allowed}, got {dtype_name(value.dtype)}")
    if value.layout is not torch.strided or value.is_nested:  # a call to dense_layout would cost as much again
        dense_layout(name, value)
    if value.ndim == 0:
        raise ValueError(f"{name} must have the sample as its dimension 0, got a tensor without dimensions")
    return value


def dense_layout(name: str, tensor: Tensor) -> None:
    """Refuse sparse, nested and other tensors that do not store their values at strides."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").removeprefix("_")
        raise TypeError(f"{name} must be a dense tensor, got {layout}")


def same_dtype_and_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors of different dtypes or on different devices."""
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name} and {other_name} must have the same dtype, got {tensor.dtype} and {other.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on the same device, got {tensor.device} and {other.device}")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def row_count(name: str, value: object, *, minimum: int) -> int:
    """Return a number of rows or of terms."""
    return whole(name, value, minimum=minimum, maximum=MAX_ROWS)


def whole(
    name: str, value: object, *, minimum: int | None = None, maximum: int | None = None, what: str = "an int"
) -> int:
    """Return an integer between two bounds, which are both allowed.

    Raises:
        TypeError: The value is not an integer; ``what`` says what would be right.
        ValueError: The integer is out of bounds.
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
        TypeError: The value is not a number.
        ValueError: The number is infinite, NaN or out of bounds.
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


def data_shape(value: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one x as a tuple with at least one dimension."""
    shape = widths("data_shape", tuple(value))
    if not shape:
        raise ValueError("data_shape must have at least one dimension, such as (1, 28, 28) or (2,), got ()")
    return shape


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is not one of the choices."""
    if not isinstance(value, Hashable) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {brief(value)}")


def unknown(kind: str, name: str, known: Collection[str], *, owner: str | None = None) -> ValueError:
    """Return the error for a name that does not exist, or that its owner lacks; it suggests the most similar ones."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.4) or known
    begin = f"there is no {kind}" if owner is None else f"{owner} has no {kind}"
    return ValueError(f"{begin} {brief(name)}; the most similar are {', '.join(near)}")


def installed(*packages: str, purpose: str, extra: str = "train", install: str | None = None) -> None:
    """Raise a ModuleNotFoundError that names the missing packages and the extra, or the package, that installs them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        install = install or f"'echo-ext[{extra}]'"
        raise ModuleNotFoundError(f"{purpose} needs {' and '.join(missing)}: pip install {install}")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside this package that has called it."""
    level, frame = 1, sys._getframe()
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def brief(value: object) -> str:
    """Return the value in at most 60 characters, or its type, so that an error stays one short line."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxother = 2, 60, 60
    try:
        text = shortened.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 and "\n" not in text else f"a value of type {type(value).__name__}"
