"""Information estimates from samples that are spread over many ranks."""

from __future__ import annotations

import math
from typing import overload

import numpy.typing as npt
import torch
from torch import Tensor
from torch import distributed as dist

from echo_ext import _checks
from echo_ext._types import Array, Estimate, Method, NumNeighbors, TensorOrArray, Unit
from echo_ext.distributed._collectives import CALL, Ranks
from echo_ext.distributed._rows import gather_rows
from echo_ext.estimators import gradients, local_values
from echo_ext.estimators.evaluation import reduce_local_values, warn_if_tied
from echo_ext.estimators.ksg import METHODS, USE_MIXED
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options, read_options
from echo_ext.estimators.samples import MAX_SAMPLES, Samples, read_samples

__all__ = ["mutual_information"]


@overload
def mutual_information(
    x: Tensor,
    y: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Tensor: ...
@overload
def mutual_information(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    group: dist.ProcessGroup | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Array | float: ...
def mutual_information(
    x: TensorOrArray,
    y: TensorOrArray,
    *,
    group: dist.ProcessGroup | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Estimate mutual information from the samples of all ranks, as :func:`echo_ext.mutual_information` on all rows.

    Each rank holds some rows of x and y. The rows are gathered, which takes O(N d) memory on every rank; each rank
    searches the neighbors of its own rows, and one sum over the ranks gives all of them the estimate.

    Args:
        x, y: The rows of this rank, (..., n, d); n may differ between ranks.
        group: The ranks. None takes all of them, or this process alone where torch.distributed is not initialized.
        k, method, unit: As in :func:`echo_ext.mutual_information`.
        local: If True, return the values of this rank's n rows: (..., n). The mean over all ranks' rows is the
            estimate.
        exclude_within: As in :func:`echo_ext.mutual_information`; rows are counted in the order of the ranks.

    Returns:
        As :func:`echo_ext.mutual_information`, and the same on every rank. It has no gradient.

    Raises:
        TypeError, ValueError: As :func:`echo_ext.mutual_information`, where N is the number of rows of all ranks. Also
            ranks that differ in k, method, exclude_within, local or unit, or in the columns, leading dimensions, dtype
            or device type of x and y. The errors are raised on all ranks. Some ranks may give arrays and others
            tensors.
        RuntimeError: A rank is missing: the process group's own error, after its time-out.

    Example:
        >>> import numpy as np
        >>> from echo_ext import distributed
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal(1000)  # the rows of this rank, here the only one
        >>> y = 0.6 * x + 0.8 * rng.standard_normal(1000)
        >>> round(distributed.mutual_information(x, y), 3)
        0.225
    """
    ranks = Ranks(group)
    with ranks.guard(x, y):
        samples = read_samples(x=x, y=y)
        _checks.choice("method", method, METHODS)
        # What this rank can check alone; the number of all ranks' samples is known after the exchange.
        own = read_options(MAX_SAMPLES, k=k, unit=unit, local=local, exclude_within=exclude_within, method=method)
        flat = [v.detach().movedim(-2, 0).reshape(samples.count, _width(v)) for v in samples.variables]
        parts, sizes = gather_rows(torch.cat(flat, 1), ranks, _agreed(samples, own, method))
    total, first = sum(sizes), sum(sizes[: ranks.rank])
    if total > MAX_SAMPLES:
        raise ValueError(f"x must have at most {MAX_SAMPLES} samples on all ranks together, got {total}")
    part = slice(first, first + samples.count)
    options = read_options(total, k=k, unit=unit, local=local, exclude_within=exclude_within, part=part, method=method)
    columns = torch.cat(parts).split([_width(v) for v in samples.variables], 1)
    gathered = [
        PointSet(rows.reshape(total, *v.shape[:-2], v.shape[-1]).movedim(0, -2))
        for rows, v in zip(columns, samples.variables, strict=True)
    ]
    values = local_values.MUTUAL_INFORMATION[method](gathered, options)
    warn_if_tied(options.tied_shares, USE_MIXED)
    if not local:
        values = ranks.all_reduce(values.sum(-1)).div_(total).unsqueeze(-1)
    values = gradients.without_gradient(values, "the distributed estimate", *samples.variables)
    return reduce_local_values(values, samples, options)


def _agreed(samples: Samples, options: Options, method: Method) -> dict[str, object]:
    """Return what the ranks must agree on."""
    agreed: dict[str, object] = {
        CALL: "mutual_information",
        "k": options.given_k[0] if options.single_k else options.given_k,
        "method": repr(method),
        "exclude_within": options.exclude_within,
        "local": options.local,
        "unit": repr(options.unit),
        "the dtype of x and y": samples.variables[0].dtype,
        "the device type of x and y": samples.variables[0].device.type,
    }
    for name, variable in zip(samples.names, samples.variables, strict=True):
        agreed[f"the number of columns of {name}"] = variable.shape[-1]
        agreed[f"the leading dimensions of {name}"] = tuple(variable.shape[:-2])
    return agreed


def _width(variable: Tensor) -> int:
    """Return how many numbers a sample has, in all items of the batch together."""
    return math.prod(variable.shape[:-2]) * variable.shape[-1]
