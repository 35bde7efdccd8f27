"""Reading what metrics are given: codes, labels and factors, models and their data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from echo_ext import _checks
from echo_ext._types import TensorOrArray
from echo_ext.estimators.samples import read_samples, read_tensor
from echo_ext.estimators.tables import read_array
from echo_ext.models.base import eval_mode

Data: TypeAlias = Tensor | Dataset[Any] | Iterable[Tensor | Sequence[Tensor]]


def read_codes(name: str, values: TensorOrArray, *, minimum: int = 1) -> Tensor:
    """Return finite numbers (N, d), detached, with at least ``minimum`` rows; (N,) is read as one column."""
    given: dict[str, Any] = {name: values}
    codes = read_samples(**given).variables[0].detach()
    if codes.ndim != 2:
        raise ValueError(f"{name} must have shape (N, d), got {tuple(codes.shape)}")
    if len(codes) < minimum:
        raise ValueError(f"{name} must have at least {minimum} rows, got {len(codes)}")
    return codes


def read_integers(name: str, values: TensorOrArray, *, rows: int, columns: bool = False) -> Tensor:
    """Return integers (N,), or (N, F) with ``columns``, one row for each of ``rows``."""
    if not isinstance(values, Tensor):
        array = read_array(name, values)
        if array.dtype.kind not in "biu":
            raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
        values = torch.from_numpy(array.copy())
    numbers = read_tensor(name, values.detach())
    if numbers.is_floating_point() or numbers.is_complex():
        raise TypeError(f"{name} must be integers, got {_checks.dtype_name(numbers.dtype)}")
    if numbers.ndim != (2 if columns else 1) or numbers.shape[-1] == 0:
        raise ValueError(f"{name} must have shape {'(N, F)' if columns else '(N,)'}, got {tuple(numbers.shape)}")
    if len(numbers) != rows:
        raise ValueError(f"{name} must have one row for each of the {rows} codes, got {len(numbers)}")
    integers = numbers.to(torch.int64)
    if numbers.dtype == torch.uint64 and bool((integers < 0).any()):
        raise ValueError(f"{name} must be below 2**63, but {int((integers < 0).sum())} of them are not")
    return integers


def constant_columns(values: Tensor) -> Tensor:
    """Return which columns of (N, d) hold a single value: (d,)."""
    return values.amax(0) == values.amin(0)


def refuse_constant_columns(name: str, values: Tensor) -> None:
    """Raise a ValueError that names the columns of (N, d) that do not vary."""
    constant = constant_columns(values).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"{name} must vary in every column, got constant in column {', '.join(map(str, constant))}")


def batches(model: nn.Module, data: Data, batch_size: int) -> Iterator[Tensor]:
    """Yield the x of a data set on the device of the model, batch by batch."""
    size = _checks.whole("batch_size", batch_size, minimum=1)
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    parts: Iterable[Any]
    if isinstance(data, Tensor):
        parts = data.split(size)
    elif isinstance(data, Dataset):
        rows = torch.arange(len(data), device="cpu").split(size)  # type: ignore[arg-type]  # a map-style data set has a length
        parts = (data[each] for each in rows)
    else:
        parts = data
    for part in parts:
        x: Tensor = part if isinstance(part, Tensor) else part[0]
        if len(x):
            yield x if first is None else x.to(first.device)


def measure_rows(
    model: nn.Module, x: Data, batch_size: int, measure: Callable[[Tensor], tuple[Tensor, ...]]
) -> list[Tensor]:
    """Return what ``measure`` computes from each batch of x, joined; in eval mode and without gradients."""
    with torch.no_grad(), eval_mode(model):
        parts = [measure(batch) for batch in batches(model, x, batch_size)]
    if not parts:
        raise ValueError("x must have at least one row, got none")
    return [torch.cat(each) for each in zip(*parts, strict=True)]
