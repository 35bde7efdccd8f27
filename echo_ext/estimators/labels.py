"""Labels and categories: values that are equal or different, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Discrete, NanPolicy
from echo_ext.estimators.cells import number_cells
from echo_ext.estimators.options import CELL_METHODS, Options
from echo_ext.estimators.samples import check_finite, read_tensor
from echo_ext.estimators.tables import encode_labels, is_series, is_table, read_array, read_numbers, tensor_of
from echo_ext.estimators.transforms import transform_columns

__all__ = ["has_labels", "prepare_columns", "read_categories", "read_flags", "read_labels"]


def read_labels(
    name: str, labels: object, continuous: str, nan_policy: NanPolicy = "raise"
) -> tuple[Tensor, Tensor | None]:
    """Return labels as int64 codes, and which of them are missing, or None if none are: (..., N).

    Args:
        name: The name of the argument.
        labels: Integers, booleans, strings, whole numbers or any hashable objects; a tensor, an array, a list, or a
            column of a table, such as a pandas Series.
        continuous: What errors recommend for continuous variables.
        nan_policy: Whether NaN, None and pandas' NA are refused.
    """
    if isinstance(labels, Tensor):
        return _read_numeric_labels(name, read_tensor(name, labels.detach()), continuous, nan_policy)
    if is_series(labels) and labels.dtype.kind == "f":
        return _read_numeric_labels(name, tensor_of(read_numbers(name, labels)), continuous, nan_policy)
    if not is_series(labels):
        labels = _array_of_labels(name, labels)
        if labels.dtype.kind in "bif" and labels.dtype != np.longdouble:
            return _read_numeric_labels(name, tensor_of(labels), continuous, nan_policy)
        if labels.dtype.kind not in "uUSOMm":
            raise TypeError(f"{name} must be integers, booleans, strings or dates, got dtype {labels.dtype}")
    codes, missing = encode_labels(name, labels)
    if codes.ndim == 0:
        raise ValueError(f"{name} must have shape (..., N), got a single one")
    if missing is not None and nan_policy == "raise":
        place = ", ".join(str(int(i)) for i in np.argwhere(missing)[0])
        raise ValueError(
            f"{name} must have no missing values, got {missing.sum()} None or NaN, the first at [{place}]; "
            "nan_policy='omit' leaves such rows out"
        )
    return torch.from_numpy(codes), None if missing is None else torch.from_numpy(missing)


def _read_numeric_labels(
    name: str, labels: Tensor, continuous: str, nan_policy: NanPolicy
) -> tuple[Tensor, Tensor | None]:
    if labels.ndim == 0:
        raise ValueError(f"{name} must have shape (..., N), got a single one")
    if labels.is_complex():
        raise TypeError(f"{name} must be integers, booleans, strings or dates, got {labels.dtype}")
    if not labels.is_floating_point():
        return labels.to(torch.int64), None  # unsigned labels beyond int64 wrap around, and stay different
    labels = labels.double()
    missing = check_finite(name, labels.unsqueeze(-1), labels, nan_policy)
    labels = labels if missing is None else torch.where(missing, 0.0, labels)
    split = labels != labels.round()
    if bool(split.any()):
        raise ValueError(
            f"{name} must be discrete, but {int(split.sum())} are not whole numbers, "
            f"the first {float(labels[split][0]):g}; for continuous variables there is {continuous}"
        )
    return torch.unique(labels, return_inverse=True)[1], missing  # codes, since int64 does not hold every float


def _array_of_labels(name: str, labels: object) -> npt.NDArray[Any]:
    array = read_array(name, labels)
    if array.dtype.kind in "US" and not isinstance(labels, np.ndarray):
        array = np.array(labels, dtype=object)  # NumPy has made strings of the numbers, None and NaN among them
    if array.dtype.kind == "O" and array.size and all(isinstance(each, (Real, np.bool_)) for each in array.flat):
        array = np.array(array.tolist())
    return array


# ---- Discrete columns ------------------------------------------------------------------------------------------------


def read_categories(
    method: str, given: dict[str, object], discrete: dict[str, Discrete], nan_policy: NanPolicy
) -> dict[str, object]:
    """Return the variables with numbers in the place of labels, in those that are discrete as a whole.

    Args:
        method: The estimator's method: those that count cells take every variable as discrete.
        given: The variables by name.
        discrete: Which of their columns are discrete.
        nan_policy: Whether missing labels are refused; otherwise they become NaN.
    """
    for name, flags in discrete.items():
        if method != "mixed" and not (isinstance(flags, (bool, np.bool_)) and not flags):
            raise ValueError(f"discrete_{name} needs method='mixed', got method={method!r}")
    whole = {name for name in given if method in CELL_METHODS or discrete.get(name, False) is True}
    labels = {name for name in whole if has_labels(given[name])}
    coded = {name: _coded(name, given[name], given, labels, nan_policy) for name in labels}
    return {name: coded.get(name, value) for name, value in given.items()}


def prepare_columns(names: Sequence[str], variables: Sequence[Tensor], options: Options) -> list[Tensor]:
    """Transform the continuous columns of variables (*batch, N, d), and separate the categories of the discrete ones.

    A discrete column becomes the binary digits of its categories' numbers: different categories are then at the
    Chebyshev distance 1. On a GPU, the host waits for the number of categories.
    """
    prepared = []
    for name, points in zip(names, variables, strict=True):
        flags = read_flags(name, options.discrete.get(name, False), points.shape[-1])
        if not any(flags):
            prepared.append(transform_columns(points, options.transform))
            continue
        columns = [
            _digits(column.squeeze(-1).detach()) if flag else transform_columns(column, options.transform)
            for column, flag in zip(points.split(1, -1), flags, strict=True)
        ]
        prepared.append(torch.cat(columns, -1))
    return prepared


def read_flags(name: str, discrete: Discrete, dim: int) -> Sequence[bool] | npt.NDArray[np.bool_]:
    """Return whether each of the columns of a variable is discrete."""
    if isinstance(discrete, (bool, np.bool_)):
        return [bool(discrete)] * dim
    if not isinstance(discrete, (Sequence, np.ndarray)) or not all(
        isinstance(each, (bool, np.bool_)) for each in discrete
    ):
        raise TypeError(f"discrete_{name} must be a bool or a sequence of bools, got {_checks.brief(discrete)}")
    if len(discrete) != dim:
        raise ValueError(f"discrete_{name} must have one bool for each of {dim} columns of {name}, got {len(discrete)}")
    return discrete


def _digits(column: Tensor) -> Tensor:
    """Return the binary digits of the numbers of a column's categories: (*batch, N, digits)."""
    cells = number_cells(column)
    num_digits = max(int(cells.max()).bit_length(), 1) if cells.numel() else 1
    digits = cells.unsqueeze(-1) >> torch.arange(num_digits, device=cells.device)
    return (digits & 1).to(column.dtype)


def has_labels(value: object) -> bool:
    """Return whether the values are labels that are not numbers."""
    if isinstance(value, Tensor):
        return False
    if is_series(value) and not isinstance(value.dtype, np.dtype):  # an extension of pandas
        return value.dtype.kind not in "biuf"
    return not is_table(value) and np.asarray(value).dtype.kind in "USOMm"


def _coded(name: str, value: object, given: dict[str, object], labels: set[str], nan_policy: NanPolicy) -> object:
    """Return labels as numbers in the form of the variables that are numbers: tensors, or arrays of their dtype."""
    codes, missing = read_labels(name, value, "method='mixed' without it", nan_policy)
    numbers = codes.double() if missing is None else torch.where(missing, torch.nan, codes.double())
    others = [other for key, other in given.items() if key not in labels]
    tensor = next((other for other in others if isinstance(other, Tensor)), None)
    if tensor is not None:
        return numbers.to(tensor) if tensor.is_floating_point() else numbers.to(tensor.device)
    dtypes = {np.asarray(other).dtype for other in others}
    return numbers.numpy().astype(np.float32 if dtypes == {np.dtype(np.float32)} else np.float64)
