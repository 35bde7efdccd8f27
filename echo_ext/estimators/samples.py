"""How estimators read samples and options, and how they give estimates back in the form of the input.

`echo_ext.metrics`, `echo_ext.sklearn` and `echo_ext.distributed` read theirs in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import forward_ad

from echo_ext import _checks
from echo_ext._types import CellMethod, Estimate, NumNeighbors, Unit
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators.neighbors import ALL

MAX_EXACT = 2**53  # up to here float64 represents every integer
MAX_SAMPLES = 2**30  # the kernels number rows in 32 bits, and bisection steps beyond the last

# ---- Input -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Variables that were observed together: tensors (*batch, N, d) with batches that broadcast."""

    variables: tuple[Tensor, ...]
    names: tuple[str, ...]
    are_arrays: bool

    @property
    def count(self) -> int:
        """N, the number of samples."""
        return self.variables[0].shape[-2]

    @property
    def batch(self) -> torch.Size:
        """The shape to which the batches broadcast."""
        return broadcast(*(v.shape[:-2] for v in self.variables))


def read_samples(**given: object) -> Samples:
    """Check the named variables and read them as tensors; (N,) is read as one column.

    Raises:
        TypeError: A variable is not float64 or float32, dtypes differ, or some are tensors and others arrays.
        ValueError: Values are not finite; numbers of samples or devices differ; batches do not broadcast.
    """
    names = tuple(given)
    tensors = [_read_variable(name, value) for name, value in given.items()]
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        both = f"{names[0]} and {name}"
        check_same_kind(both, given[names[0]], tensors[0], given[name], tensor)
        if tensor.shape[-2] != tensors[0].shape[-2]:
            raise ValueError(
                f"{both} must have the same number of samples, got {tensors[0].shape[-2]} and {tensor.shape[-2]} "
                f"(shapes {_shape(given[names[0]])} and {_shape(given[name])})"
            )
    broadcast_batches(**{name: tensor.shape[:-2] for name, tensor in zip(names, tensors, strict=True)})
    return Samples(tuple(tensors), names, not isinstance(given[names[0]], Tensor))


def check_same_kind(both: str, given: object, tensor: Tensor, other_given: object, other: Tensor) -> None:
    """Refuse a tensor with an array, and different dtypes or devices; ``both`` names the two arguments."""
    if isinstance(given, Tensor) != isinstance(other_given, Tensor):
        raise TypeError(f"{both} must be both tensors or both arrays")
    if tensor.dtype != other.dtype:
        dtypes = f"{_checks.dtype_name(tensor.dtype)} and {_checks.dtype_name(other.dtype)}"
        raise TypeError(f"{both} must have the same dtype, got {dtypes}")
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


def read_array(name: str, value: object) -> npt.NDArray[Any]:
    """Return a contiguous array in the byte order of the machine.

    Only its values are read, so a mask must not hide any of them.
    """
    if isinstance(value, np.ma.MaskedArray) and (masked := int(np.ma.getmaskarray(value).sum())) > 0:
        raise ValueError(f"{name} must have no masked values, got {masked}; leave those samples out or fill them in")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be one array, but its parts have different shapes") from None
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def read_tensor(name: str, tensor: Tensor) -> Tensor:
    """Return a dense tensor whose memory holds its values: without the negative bit, and not a zero tensor."""
    _checks.dense_layout(name, tensor)
    if tensor.is_quantized:
        raise TypeError(f"{name} must be a dense tensor, got quantized")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(f"{name} has a forward-mode derivative, but the estimators have none")
    return tensor.clone() if tensor.is_neg() or tensor._is_zerotensor() else tensor


def check_finite(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse NaN and infinity; the error says how many there are and where the first is, in the given shape."""
    if not backend_of(values).all_finite(values):
        bad = ~torch.isfinite(values.detach())
        count = int(bad.sum())
        place = np.unravel_index(int(bad.reshape(-1).to(torch.uint8).argmax()), shape)
        where = ", ".join(str(int(i)) for i in place)
        raise ValueError(f"{name} must be finite, got {count} NaN or infinite values, the first at [{where}]")


def _read_variable(name: str, value: object) -> Tensor:
    tensor = value if isinstance(value, Tensor) else _tensor_of_array(name, value)
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on the CPU or on a CUDA device, got {tensor.device}")
    if tensor.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"{name} must be float64 or float32, got {_checks.dtype_name(tensor.dtype)}")
    tensor = read_tensor(name, tensor)
    if tensor.ndim == 0:
        raise ValueError(f"{name} must have shape (..., N, d) or (N,), got a single number")
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(-1)
    if tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one column, got shape {tuple(tensor.shape)}")
    if tensor.shape[-2] > MAX_SAMPLES:
        raise ValueError(f"{name} must have at most {MAX_SAMPLES} samples, got {tensor.shape[-2]}")
    check_finite(name, tensor, _shape(value))
    return tensor


def _tensor_of_array(name: str, value: object) -> Tensor:
    array = read_array(name, value)
    if array.dtype.kind in "biu":
        _check_exact(name, array)
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be numeric (float64 or float32), got dtype {array.dtype}")
    if array.dtype not in (np.float64, np.float32):
        raise TypeError(f"{name} must be float64 or float32, got {array.dtype}")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_exact(name: str, values: npt.NDArray[Any]) -> None:
    """Refuse integers that float64 would round."""
    beyond = (values > MAX_EXACT) | (values < -MAX_EXACT) if values.dtype.itemsize > 4 else np.zeros(0, bool)
    if beyond.any():
        raise ValueError(
            f"{name} must hold integers of at most 2**53, which float64 represents exactly, got {values[beyond][0]}"
        )


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)


# ---- Options ---------------------------------------------------------------------------------------------------------

UNITS: dict[Unit, float] = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}


@dataclass(frozen=True)
class Options:
    """The keywords that all estimators have, checked.

    Attributes:
        ks: The numbers of neighbors to estimate with.
        single_k: Whether ``k`` was one int, so that the result has no dimension for it.
        unit: "nats" or "bits".
        local: Whether the values of the samples are asked for, instead of their mean.
        exclude_within: The Theiler window.
        total: N, the number of samples that are one another's possible neighbors.
        part: The samples to evaluate; all of them, except on one rank of several.
    """

    ks: tuple[int, ...]
    single_k: bool
    unit: Unit
    local: bool
    exclude_within: int
    total: int
    part: slice

    @property
    def max_k(self) -> int:
        """The number of neighbors to search."""
        return max(self.ks)


def read_options(
    n: int,
    *,
    k: NumNeighbors,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    part: slice = ALL,
    method: str = "knn",
) -> Options:
    """Check the keywords that all estimators have, for n samples.

    The methods that count cells have no neighbors, so that k and exclude_within have no bounds.

    Raises:
        TypeError: k is not an int or a sequence of ints, or exclude_within is not an int.
        ValueError: The unit is unknown, or k and exclude_within leave a sample too few neighbors.
    """
    several = isinstance(k, (Sequence, np.ndarray)) and np.ndim(k) == 1 and len(k) > 0
    each_k = k if isinstance(k, (Sequence, np.ndarray)) and several else [k]
    ks = tuple(_checks.whole("k", each, minimum=1, what="an int or a sequence of ints") for each in each_k)
    _checks.choice("unit", unit, UNITS)
    window = _checks.whole("exclude_within", exclude_within, minimum=0)
    fewest = max(n - 1 - 2 * window, 0)  # of a sample in the middle
    if method in get_args(CellMethod):
        if n < 1:
            raise ValueError(f"method {method!r} needs at least 1 sample, got {n}")
    elif max(ks) > fewest:
        raise ValueError(
            f"k must be less than the number of samples, got {max(ks)} of {n}"
            if window == 0
            else f"k must be at most {fewest}, the number of neighbors that exclude_within={window} leaves to some of "
            f"the {n} samples, got {max(ks)}"
        )
    return Options(ks, not several, unit, bool(local), window, n, part)


# ---- Output ----------------------------------------------------------------------------------------------------------


def reduce_local_values(local_values: Tensor, samples: Samples, options: Options) -> Estimate:
    """Reduce local values in nats, (K, *batch, N), to what the caller asked for."""
    values = local_values if options.local else backend_of(local_values).mean(local_values)
    return convert_estimates(values, samples, options)


def convert_estimates(estimates: Tensor, samples: Samples, options: Options) -> Estimate:
    """Convert estimates in nats, (K, ...), to the caller's unit and form; a single k has no dimension of its own."""
    estimates = estimates[0] if options.single_k else estimates
    return restore_form(estimates * UNITS[options.unit], samples)


def restore_form(values: Tensor, samples: Samples) -> Estimate:
    """Convert values to the form of the input: a tensor of its dtype, an array, or a float for a single number."""
    values = values.to(samples.variables[0].dtype)
    if not samples.are_arrays:
        return values
    array = values.detach().numpy()
    return float(array) if array.ndim == 0 else array
