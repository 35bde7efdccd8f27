"""Arrays, lists, pandas Series and DataFrames, read as numbers or as labels.

pandas is not imported: without it, nobody can pass one of its tables.
"""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks

MAX_EXACT = 2**53  # up to here float64 represents every integer

# What the values of a column are, by the kind of its dtype, and what to do with them.
KINDS = {
    "U": "strings; encode them as numbers",
    "S": "strings; encode them as numbers",
    "M": "dates; convert them to numbers, such as seconds since the first",
    "m": "durations; convert them to numbers, such as seconds",
    "c": "complex numbers; pass the real and the imaginary parts as two columns",
    "O": "objects; convert them to numbers, e.g. with astype(float)",
}


def is_table(value: object) -> TypeGuard[Any]:
    """Return whether the value is a pandas DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def is_series(value: object) -> TypeGuard[Any]:
    """Return whether the value is a pandas Series, or an Index, which holds values in the same way."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, (pandas.Series, pandas.Index))


def read_array(name: str, value: object, *, masked: float | None = None) -> npt.NDArray[Any]:
    """Return a contiguous array in the byte order of the machine.

    Only its values are read, so a mask must not hide any of them, unless ``masked`` is what stands for those.
    """
    if isinstance(value, np.ma.MaskedArray) and (count := int(np.ma.getmaskarray(value).sum())) > 0:
        if masked is None:
            raise ValueError(f"{name} must have no masked values, got {count}; leave those samples out or fill them in")
        numbers = value.astype(np.result_type(value.dtype, np.float32))
        value = np.where(np.ma.getmaskarray(value), masked, np.ma.getdata(numbers))
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be one array, but its parts have different shapes") from None
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def read_numbers(name: str, value: object, *, masked: float | None = None) -> npt.NDArray[Any]:
    """Return float64 or float32 numbers; integers and booleans become float64, and missing values of pandas NaN.

    Raises:
        TypeError: The values are not numbers, or of a precision that the kernels do not have.
        ValueError: An integer is too large for float64.
    """
    if is_table(value):
        if set(value.dtypes) in ({np.dtype(np.float64)}, {np.dtype(np.float32)}):
            return np.ascontiguousarray(value.to_numpy())
        columns = [_read_column(name, value.iloc[:, i], label) for i, label in enumerate(value.columns)]
        return np.stack(columns, -1) if columns else np.empty((len(value), 0))
    if is_series(value):
        return _read_column(name, value, value.name)
    array = read_array(name, value, masked=masked)
    if array.dtype.kind in "biu":
        _check_exact(name, array)
        return array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be numeric, got {_kind(array)}")
    if array.dtype not in (np.float64, np.float32):
        raise TypeError(f"{name} must be float64 or float32, got {array.dtype}")
    return array


def encode_labels(name: str, labels: object) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """Return a code for each label, and which labels are missing (None, NaN or pandas' NA), or None if none are.

    Labels are equal if Python says so: numbers, strings, or anything else that is hashable.

    Raises:
        TypeError: A label is not hashable.
    """
    pandas: Any = sys.modules.get("pandas")
    if is_table(labels):
        raise TypeError(f"{name} must be one column of labels, got a DataFrame")
    if is_series(labels):
        try:
            codes, _ = pandas.factorize(labels)
        except TypeError as error:
            raise TypeError(f"{name} must be hashable, got a Series with an {error}") from None
        return _without_missing(codes.astype(np.int64), codes < 0)
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else read_array(name, labels)
    if array.dtype.kind != "O":
        missing = np.isnat(array) if array.dtype.kind in "Mm" else array != array
        codes = np.unique(array, return_inverse=True)[1].reshape(array.shape)
        return _without_missing(codes.astype(np.int64), missing)
    unknown = {id(None), id(getattr(pandas, "NA", None)), id(getattr(pandas, "NaT", None))}
    missing = np.array([id(each) in unknown or _is_nan(each) for each in array.flat], bool)
    seen: dict[Any, int] = {}
    codes = np.zeros(array.size, np.int64)
    for i, label in enumerate(array.flat):
        if not missing[i]:
            try:
                codes[i] = seen.setdefault(label, len(seen))
            except TypeError:
                raise TypeError(f"{name} must be hashable, got {_checks.brief(label)}") from None
    return _without_missing(codes.reshape(array.shape), missing.reshape(array.shape))


def read_groups(groups: object, n: int) -> npt.NDArray[np.int64]:
    """Return a code for the group of each of n rows: 0, 1, 2, ... in the order in which they appear.

    Raises:
        TypeError: A label is not hashable.
        ValueError: There are not n labels, or some are missing.
    """
    codes, missing = encode_labels("groups", groups)
    if codes.ndim != 1:
        raise ValueError(f"groups must have one dimension, (N,), got shape {codes.shape}")
    if len(codes) != n:
        raise ValueError(f"groups must have one label for each of the {n} rows, got {len(codes)}")
    if missing is not None:
        raise ValueError(f"groups must have no missing labels, got {missing.sum()}, the first at [{missing.argmax()}]")
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes].astype(np.int64)


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """Return the array as a tensor; one that cannot be written to is copied, since PyTorch would warn of it."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def double(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of integers or booleans as float64."""
    if tensor.dtype in (torch.int64, torch.uint32, torch.uint64):
        _check_exact(name, tensor.detach().cpu().numpy())
    return tensor.double()


def _read_column(name: str, column: Any, label: object) -> npt.NDArray[Any]:
    """Return a column of pandas as numbers."""
    kind, size = column.dtype.kind, getattr(column.dtype, "itemsize", 8)
    place = name if label is None else f"{name}: column {label!r}"
    if kind not in "biuf":
        raise TypeError(f"{place} must be numeric, got {_kind(column)}")
    if kind == "f" and size not in (4, 8):
        raise TypeError(f"{place} must be float64 or float32, got {column.dtype}")
    if kind in "iu" and size == 8:
        _check_exact(place, column.dropna().to_numpy(np.dtype(f"{kind}8")))
    dtype = np.float32 if kind == "f" and size == 4 else np.float64
    if isinstance(column.dtype, np.dtype):
        return np.array(column.to_numpy(), dtype)
    return np.array(column.to_numpy(dtype=dtype, na_value=np.nan), dtype)


def _kind(values: Any) -> str:
    """Return what values are that are not numbers, and the remedy."""
    pandas: Any = sys.modules.get("pandas")
    if not isinstance(values.dtype, np.dtype):  # an extension of pandas
        if isinstance(values.dtype, pandas.CategoricalDtype):
            return "categories; encode them as numbers"
        if pandas.api.types.is_string_dtype(values.dtype):
            return KINDS["U"]
        return KINDS.get(values.dtype.kind if values.dtype.kind in "Mm" else "M", KINDS["O"])
    if values.dtype.kind == "O":
        flat = values.ravel() if isinstance(values, np.ndarray) else values
        known = [each for each in flat if each is not None and not _is_nan(each)]
        if known and all(isinstance(each, str) for each in known):
            return KINDS["U"]
    return KINDS.get(values.dtype.kind, f"dtype {values.dtype}")


def _is_nan(value: object) -> bool:
    return isinstance(value, (float, np.floating)) and value != value


def _check_exact(name: str, values: npt.NDArray[Any]) -> None:
    """Refuse integers that float64 would round."""
    beyond = (values > MAX_EXACT) | (values < -MAX_EXACT) if values.dtype.itemsize > 4 else np.zeros(0, bool)
    if beyond.any():
        raise ValueError(
            f"{name} must hold integers of at most 2**53, which float64 represents exactly, got {values[beyond][0]}"
        )


def _without_missing(
    codes: npt.NDArray[np.int64], missing: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    return codes, missing if missing.any() else None
