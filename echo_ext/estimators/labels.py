"""Labels and categories: values that are equal or different, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import CellMethod
from echo_ext.estimators.cells import number_cells
from echo_ext.estimators.samples import check_finite, read_array, read_tensor

__all__ = ["Discrete", "read_categories", "read_labels", "separate_categories"]

# Which columns of a variable are discrete: all or none, or each as its bool says.
Discrete: TypeAlias = bool | Sequence[bool] | npt.NDArray[np.bool_]


def read_labels(name: str, labels: object, continuous: str) -> Tensor:
    """Return labels as int64 codes of the same shape, (..., N).

    Args:
        name: The name of the argument.
        labels: Integers, booleans, strings, whole numbers or any hashable objects; a tensor, an array or what NumPy
            reads as one, such as a list or a pandas Series.
        continuous: What errors recommend for continuous variables.
    """
    if isinstance(labels, Tensor):
        tensor = read_tensor(name, labels.detach())
    else:
        tensor = _tensor_of_labels(name, _array_of_labels(name, labels))
    if tensor.ndim == 0:
        raise ValueError(f"{name} must have shape (..., N), got a single one")
    if tensor.is_floating_point():
        tensor = tensor.double()
        check_finite(name, tensor, tuple(tensor.shape))
        split = tensor != tensor.round()
        if bool(split.any()):
            raise ValueError(
                f"{name} must be discrete, but {int(split.sum())} are not whole numbers, "
                f"the first {float(tensor[split][0]):g}; for continuous variables there is {continuous}"
            )
        tensor = torch.unique(tensor, return_inverse=True)[1]  # codes, since int64 does not hold every float
    elif tensor.is_complex():
        raise TypeError(f"{name} must be integers, booleans or strings, got {tensor.dtype}")
    return tensor.to(torch.int64)  # unsigned labels beyond int64 wrap around, and stay different


def _array_of_labels(name: str, labels: object) -> npt.NDArray[Any]:
    array = read_array(name, labels)
    if array.dtype.kind in "US" and not isinstance(labels, np.ndarray):
        array = np.array(labels, dtype=object)  # NumPy has made strings of the numbers, None and NaN among them
    if array.dtype.kind == "O" and array.size and all(isinstance(each, (Real, np.bool_)) for each in array.flat):
        array = np.array(array.tolist())
    return array


def _tensor_of_labels(name: str, array: npt.NDArray[Any]) -> Tensor:
    if array.dtype.kind == "O":
        return _codes_of_objects(name, array)
    if array.dtype.kind not in "biufUS" or array.dtype == np.longdouble:
        raise TypeError(f"{name} must be integers, booleans or strings, got dtype {array.dtype}")
    if array.dtype.kind in "US":
        array = np.unique(array, return_inverse=True)[1].reshape(array.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _codes_of_objects(name: str, array: npt.NDArray[Any]) -> Tensor:
    codes: dict[object, int] = {}
    try:
        numbers = [-1 if _is_missing(each) else codes.setdefault(each, len(codes)) for each in array.flat]
    except TypeError as refusal:
        raise TypeError(f"{name} must be hashable: {refusal}") from None
    tensor = torch.tensor(numbers, dtype=torch.int64, device="cpu").reshape(array.shape)
    if missing := int((tensor < 0).sum()):
        place = ", ".join(str(int(i)) for i in np.argwhere(tensor.numpy() < 0)[0])
        raise ValueError(f"{name} must have no missing values, got {missing} None or NaN, the first at [{place}]")
    return tensor


def _is_missing(label: Any) -> bool:
    if label is None or type(label).__name__ == "NAType":  # pandas.NA, which is neither equal nor unequal to itself
        return True
    return isinstance(label, (Real, np.datetime64, np.timedelta64)) and bool(label != label)


# ---- Discrete columns ------------------------------------------------------------------------------------------------


def read_categories(method: str, given: dict[str, object], discrete: dict[str, Discrete]) -> dict[str, object]:
    """Return the variables with numbers in the place of labels, in those that are discrete as a whole.

    Args:
        method: The estimator's method: those that count cells take every variable as discrete.
        given: The variables by name.
        discrete: Which of their columns are discrete.
    """
    for name, flags in discrete.items():
        if method != "mixed" and not (isinstance(flags, (bool, np.bool_)) and not flags):
            raise ValueError(f"discrete_{name} needs method='mixed', got method={method!r}")
    whole = {name for name in given if method in get_args(CellMethod) or discrete.get(name, False) is True}
    labels = {name for name in whole if _has_labels(given[name])}
    return {name: _coded(name, value, given, labels) if name in labels else value for name, value in given.items()}


def separate_categories(name: str, points: Tensor, discrete: Discrete) -> Tensor:
    """Replace each discrete column of points (*batch, N, d) by the binary digits of its categories' numbers.

    Different categories are then at the Chebyshev distance 1. On a GPU, the host waits for the number of categories.
    """
    dim = points.shape[-1]
    flags = [discrete] * dim if isinstance(discrete, (bool, np.bool_)) else discrete
    if not isinstance(flags, (Sequence, np.ndarray)) or not all(isinstance(each, (bool, np.bool_)) for each in flags):
        raise TypeError(f"discrete_{name} must be a bool or a sequence of bools, got {_checks.brief(discrete)}")
    if len(flags) != dim:
        raise ValueError(f"discrete_{name} must have one bool for each of {dim} columns of {name}, got {len(flags)}")
    if not any(flags):
        return points
    columns = points.detach().unbind(-1)
    separated = [_digits(each) if flag else each.unsqueeze(-1) for each, flag in zip(columns, flags, strict=True)]
    return torch.cat(separated, -1)


def _digits(column: Tensor) -> Tensor:
    """Return the binary digits of the numbers of a column's categories: (*batch, N, digits)."""
    cells = number_cells(column)
    num_digits = max(int(cells.max()).bit_length(), 1) if cells.numel() else 1
    digits = cells.unsqueeze(-1) >> torch.arange(num_digits, device=cells.device)
    return (digits & 1).to(column.dtype)


def _has_labels(value: object) -> bool:
    return not isinstance(value, Tensor) and np.asarray(value).dtype.kind in "USO"


def _coded(name: str, value: object, given: dict[str, object], labels: set[str]) -> object:
    """Return labels as numbers in the form of the variables that are numbers: tensors, or arrays of their dtype."""
    codes = read_labels(name, value, "method='mixed' without it")
    others = [other for key, other in given.items() if key not in labels]
    tensor = next((other for other in others if isinstance(other, Tensor)), None)
    if tensor is not None:
        return codes.to(tensor)
    dtypes = {np.asarray(other).dtype for other in others}
    return codes.numpy().astype(np.float32 if dtypes == {np.dtype(np.float32)} else np.float64)
