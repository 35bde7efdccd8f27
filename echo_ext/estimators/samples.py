"""How estimators read samples, and how they give estimates back in the form of the input.

`echo_ext.metrics` and `echo_ext.distributed` read theirs in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from types import EllipsisType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from echo_ext import _checks
from echo_ext._types import Estimate, NanPolicy
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators.tables import double, read_numbers, tensor_of

NAN_POLICIES: tuple[NanPolicy, ...] = get_args(NanPolicy)

MAX_SAMPLES = 2**30  # the kernels number rows in 32 bits, and bisection steps beyond the last

# ---- Input -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Variables that were observed together: tensors (*batch, N, d) with batches that broadcast.

    Attributes:
        variables: The variables, all of one dtype.
        names: Their names.
        are_arrays: Whether they were given as arrays.
        missing: Which rows have a NaN in any of them, (*batch, N) or fewer leading dimensions; None if none have.
    """

    variables: tuple[Tensor, ...]
    names: tuple[str, ...]
    are_arrays: bool
    missing: Tensor | None = None

    @property
    def count(self) -> int:
        """N, the number of samples."""
        return self.variables[0].shape[-2]

    @property
    def batch(self) -> torch.Size:
        """The shape to which the batches broadcast."""
        return broadcast(*(v.shape[:-2] for v in self.variables))


def read_samples(*, nan_policy: NanPolicy | EllipsisType = ..., warn_if_wide: bool = False, **given: object) -> Samples:
    """Check the named variables and read them as tensors of one dtype; (N,) is read as one column.

    Args:
        nan_policy: "raise" or "omit"; an ellipsis if the caller has no such keyword.
        warn_if_wide: Whether to warn of a variable with more columns than rows.
        given: The variables by name: tensors, or whatever is read as an array.

    Raises:
        TypeError: A variable does not hold numbers, or some are tensors and others arrays.
        ValueError: Values are not finite; numbers of samples or devices differ; batches do not broadcast.
    """
    if nan_policy is not ...:
        _checks.choice("nan_policy", nan_policy, NAN_POLICIES)
    names = tuple(given)
    values = list(given.values())
    tensors = [_read_variable(name, value, nan_policy) for name, value in given.items()]
    for name, value, tensor in zip(names[1:], values[1:], tensors[1:], strict=True):
        both = f"{names[0]} and {name}"
        check_same_kind(both, values[0], tensors[0], value, tensor)
        if tensor.shape[-2] != tensors[0].shape[-2]:
            raise ValueError(
                f"{both} must have the same number of samples, got {tensors[0].shape[-2]} and {tensor.shape[-2]} "
                f"(shapes {_shape(values[0])} and {_shape(value)})"
            )
    broadcast_batches(**{name: tensor.shape[:-2] for name, tensor in zip(names, tensors, strict=True)})
    each = zip(names, tensors, values, strict=True)
    missing = [check_finite(name, tensor, value, nan_policy) for name, tensor, value in each]
    if warn_if_wide:
        for name, tensor in zip(names, tensors, strict=True):
            if tensor.ndim == 2 and 1 < tensor.shape[0] < tensor.shape[1]:
                _checks.warn(
                    f"{name} has shape {tuple(tensor.shape)} and is read as {tensor.shape[0]} samples of "
                    f"{tensor.shape[1]} columns: rows are samples; transpose it if its columns are"
                )
    return Samples(in_one_dtype(tensors), names, not isinstance(values[0], Tensor), merge_missing(*missing))


def in_one_dtype(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors as they are if all have one dtype, and as float64 otherwise."""
    if all(tensor.dtype == tensors[0].dtype for tensor in tensors):
        return tuple(tensors)
    return tuple(tensor.double() for tensor in tensors)


def check_same_kind(both: str, given: object, tensor: Tensor, other_given: object, other: Tensor) -> None:
    """Refuse a tensor with an array, and different devices; ``both`` names the two arguments."""
    if isinstance(given, Tensor) != isinstance(other_given, Tensor):
        raise TypeError(f"{both} must be both tensors or both arrays")
    if tensor.device != other.device:
        raise ValueError(f"{both} must be on the same device, got {tensor.device} and {other.device}")


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """Return the shape to which all shapes broadcast."""
    if all(shape == shapes[0] for shape in shapes):  # to ask PyTorch would take longer than a small search
        return torch.Size(shapes[0])
    return torch.Size(torch.broadcast_shapes(*shapes))


def broadcast_batches(**batches: Sequence[int]) -> torch.Size:
    """Return the shape to which the batches of the named variables broadcast."""
    try:
        return broadcast(*batches.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(batch)}" for name, batch in batches.items())
        raise ValueError(f"the leading dimensions must broadcast, got {shapes}") from None


def read_tensor(name: str, tensor: Tensor) -> Tensor:
    """Return a dense tensor whose memory holds its values: without the negative bit, and not a zero tensor."""
    _checks.dense_layout(name, tensor)
    if tensor.is_quantized:
        raise TypeError(f"{name} must be a dense tensor, got quantized")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(f"{name} has a forward-mode derivative, but the estimators have none")
    return tensor.clone() if tensor.is_neg() or tensor._is_zerotensor() else tensor


def check_finite(name: str, values: Tensor, given: object, nan_policy: NanPolicy | EllipsisType = ...) -> Tensor | None:
    """Refuse infinity, and NaN unless the policy is to omit it; the error says how many and where the first is.

    Args:
        name: The name of the variable.
        values: (..., N, d).
        given: The variable as it was given: the error says where in it.
        nan_policy: An ellipsis if the caller has no such keyword.

    Returns:
        Which rows have a NaN, (..., N), or None if none have.
    """
    if backend_of(values).all_finite(values):
        return None
    values = values.detach()
    bad = values.isinf() if nan_policy == "omit" else ~values.isfinite()
    count = int(bad.sum())
    if count > 0:
        place = np.unravel_index(int(bad.reshape(-1).to(torch.uint8).argmax()), _shape(given))
        found = f"the first at [{', '.join(str(int(i)) for i in place)}]"
        if nan_policy == "omit":
            raise ValueError(f"{name} must not be infinite, got {count} infinite values, {found}")
        if nan_policy == "raise" and not bool(values.isinf().any()):
            rows = int(bad.any(-1).sum())
            raise ValueError(
                f"{name} must be finite, got {count} NaN in {rows} rows, {found}; "
                "nan_policy='omit' leaves such rows out"
            )
        raise ValueError(f"{name} must be finite, got {count} NaN or infinite values, {found}")
    return values.isnan().any(-1)


def rows_with_nan(variables: Sequence[Tensor]) -> Tensor | None:
    """Return which rows have a NaN in any of the variables, (*batch, N), or None if none have."""
    each = [variable.detach().isnan().any(-1) for variable in variables]
    return merge_missing(*each) if any(bool(rows.any()) for rows in each) else None


def merge_missing(*each: Tensor | None) -> Tensor | None:
    """Return which rows are missing in any of the variables, with their batches broadcast, or None if none are."""
    masks = [mask for mask in each if mask is not None]
    return reduce(torch.logical_or, masks) if masks else None


def _read_variable(name: str, value: object, nan_policy: NanPolicy | EllipsisType) -> Tensor:
    if isinstance(value, Tensor):
        tensor = _read_tensor_of_numbers(name, value)
    else:
        tensor = tensor_of(read_numbers(name, value, masked=math.nan if nan_policy == "omit" else None))
    if tensor.ndim == 0:
        raise ValueError(f"{name} must have shape (..., N, d) or (N,), got a single number")
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(-1)
    *_, count, dim = tensor.shape
    if dim == 0:
        raise ValueError(f"{name} must have at least one column, got shape {tuple(tensor.shape)}")
    if count > MAX_SAMPLES:
        raise ValueError(f"{name} must have at most {MAX_SAMPLES} samples, got {count}")
    return tensor


def _read_tensor_of_numbers(name: str, tensor: Tensor) -> Tensor:
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on the CPU or on a CUDA device, got {tensor.device}")
    tensor = read_tensor(name, tensor)
    if not tensor.is_floating_point() and not tensor.is_complex():
        tensor = double(name, tensor)
    if tensor.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"{name} must be float64 or float32, got {_checks.dtype_name(tensor.dtype)}")
    return tensor


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)


# ---- Output ----------------------------------------------------------------------------------------------------------


def restore_form(values: Tensor, samples: Samples) -> Estimate:
    """Convert values to the form of the input: a tensor of its dtype, an array, or a float for a single number."""
    values = values.to(samples.variables[0].dtype)
    if not samples.are_arrays:
        return values
    array = values.detach().numpy()
    return float(array) if array.ndim == 0 else array
