"""What the estimators are given and what they give back: arrays or tensors, batches, several k, units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import forward_ad

from echo_ext import _checks

from ._neighbours import ALL, all_finite, mean

Array: TypeAlias = npt.NDArray[np.floating]
ArrayLike: TypeAlias = Tensor | npt.ArrayLike
Estimate: TypeAlias = Tensor | Array | float
Neighbours: TypeAlias = int | Sequence[int]

UNITS = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}
EXACT = 2**53  # up to here float64 represents every integer
MAX_SAMPLES = 2**30  # places are 32-bit integers in the kernels, and bisection steps beyond them


@dataclass(frozen=True)
class Samples:
    """Variables observed together: tensors (*batch, N, d), whose batches broadcast."""

    variables: tuple[Tensor, ...]
    names: tuple[str, ...]
    are_arrays: bool

    @property
    def count(self) -> int:
        """N, the number of samples."""
        return self.variables[0].shape[-2]

    @property
    def batch(self) -> torch.Size:
        """The broadcast batch."""
        return broadcast(*(v.shape[:-2] for v in self.variables))

    def give_back(self, values: Tensor) -> Estimate:
        """Results in the form of the input: a tensor of its dtype, an array, or a float for a single number."""
        values = values.to(self.variables[0].dtype)
        if not self.are_arrays:
            return values
        array = values.detach().numpy()
        return float(array) if array.ndim == 0 else array


def read_samples(**given: object) -> Samples:
    """Check and unify the named variables; (N,) stands for one column."""
    names = tuple(given)
    tensors = [_read(name, value) for name, value in given.items()]
    first = tensors[0]
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        if isinstance(given[name], Tensor) != isinstance(given[names[0]], Tensor):
            raise TypeError(f"{names[0]} and {name} must be both tensors or both arrays")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{names[0]} and {name} must have one dtype, got {_name(first)} and {_name(tensor)}")
        if tensor.device != first.device:
            raise ValueError(f"{names[0]} and {name} must be on one device, got {first.device}, {tensor.device}")
        if tensor.shape[-2] != first.shape[-2]:
            raise ValueError(
                f"{names[0]} and {name} must have one number of samples, got {first.shape[-2]} and "
                f"{tensor.shape[-2]} (shapes {_shape(given[names[0]])} and {_shape(given[name])})"
            )
    broadcast_batches(**{name: tensor.shape[:-2] for name, tensor in zip(names, tensors, strict=True)})
    return Samples(tuple(tensors), names, not isinstance(given[names[0]], Tensor))


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """The shape that all shapes broadcast to."""
    return torch.Size(torch.broadcast_shapes(*shapes))


def broadcast_batches(**batches: Sequence[int]) -> torch.Size:
    """The common batch of the named variables' batches."""
    try:
        return broadcast(*batches.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(batch)}" for name, batch in batches.items())
        raise ValueError(f"the leading dimensions must broadcast, got {shapes}") from None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read(name: str, value: object) -> Tensor:
    tensor = value if isinstance(value, Tensor) else _from_array(name, value)
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on the CPU or on a CUDA device, got {tensor.device}")
    if tensor.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"{name} must be float64 or float32, got {_name(tensor)}")
    tensor = plain(name, tensor)
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


def _from_array(name: str, value: object) -> Tensor:
    array = read_array(name, value)
    if array.dtype.kind in "biu":
        check_exact(name, array)
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be numeric (float64 or float32), got dtype {array.dtype}")
    if array.dtype not in (np.float64, np.float32):
        raise TypeError(f"{name} must be float64 or float32, got {array.dtype}")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def read_array(name: str, value: object) -> npt.NDArray[Any]:
    """A contiguous array in the machine's byte order; a mask may not hide anything, since only the values are read."""
    if isinstance(value, np.ma.MaskedArray) and (masked := int(np.ma.getmaskarray(value).sum())) > 0:
        raise ValueError(f"{name} must have no masked values, got {masked}; leave those samples out or fill them in")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be one array, but its parts have different shapes") from None
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def check_exact(name: str, values: npt.NDArray[Any]) -> None:
    """Refuse integers that float64 would round."""
    beyond = (values > EXACT) | (values < -EXACT) if values.dtype.itemsize > 4 else np.zeros(0, bool)
    if beyond.any():
        raise ValueError(
            f"{name} must hold integers of at most 2**53, which float64 represents exactly, got {values[beyond][0]}"
        )


def plain(name: str, tensor: Tensor) -> Tensor:
    """A dense tensor whose memory holds its values: without the negative bit, and not a zero tensor."""
    _checks.dense_layout(name, tensor)
    if tensor.is_quantized:
        raise TypeError(f"{name} must be a dense tensor, got quantized")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(f"{name} has a forward-mode derivative, but the estimators have none")
    return tensor.clone() if tensor.is_neg() or tensor._is_zerotensor() else tensor


def check_finite(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse NaN and infinity, saying how many there are and where the first is."""
    if not all_finite(values):
        bad = ~torch.isfinite(values.detach())
        count = int(bad.sum())
        place = np.unravel_index(int(bad.reshape(-1).to(torch.uint8).argmax()), shape)
        where = ", ".join(str(int(i)) for i in place)
        raise ValueError(f"{name} must be finite, got {count} NaN or infinite values, the first at [{where}]")


@dataclass(frozen=True)
class Options:
    """The keywords that every estimator has."""

    ks: tuple[int, ...]
    single_k: bool
    unit: str
    local: bool
    exclude_within: int
    total: int  # N
    part: slice = field(default_factory=lambda: ALL)  # the samples to evaluate, with all as neighbours

    def others(self, n: int, device: torch.device | None = None) -> Tensor:
        """How many neighbours each of n samples may have: all but those excluded: (n,), or (1,) for all alike."""
        if self.exclude_within == 0:
            return torch.full((1,), n - 1.0, dtype=torch.float64, device=device)
        row = torch.arange(n, dtype=torch.float64, device=device)
        w = min(self.exclude_within, n - 1)
        return (n - 1) - row.clamp(max=w) - (n - 1 - row).clamp(max=w)

    def finish(self, samples: Samples, local_values: Tensor) -> Estimate:
        """From values in nats, (K, *batch, N), to what the caller asked for."""
        values = local_values if self.local else mean(local_values)
        values = values[0] if self.single_k else values
        return samples.give_back(values * UNITS[self.unit])


def read_options(
    n: int,
    *,
    k: Neighbours,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    part: slice = ALL,
) -> Options:
    """Check the common keywords against the number of samples."""
    several = isinstance(k, Sequence | np.ndarray) and np.ndim(k) == 1 and len(k) > 0
    each_k = k if isinstance(k, Sequence | np.ndarray) and several else [k]
    ks = tuple(_checks.whole("k", each, minimum=1, what="an int or a sequence of ints") for each in each_k)
    _checks.choice("unit", unit, UNITS)
    window = _checks.whole("exclude_within", exclude_within, minimum=0)
    options = Options(ks, not several, unit, bool(local), window, n, part)
    fewest = max(n - 1 - 2 * options.exclude_within, 0)  # of a sample in the middle
    if max(ks) > fewest:
        raise ValueError(
            f"k must be less than the number of samples, got {max(ks)} of {n}"
            if exclude_within == 0
            else f"k is {max(ks)}, but with exclude_within={exclude_within} some of the {n} samples have only "
            f"{fewest} neighbours left"
        )
    return options
