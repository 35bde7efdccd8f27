"""Information estimates whose samples lie on many ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributed as dist

from echo_ext import _checks
from echo_ext.distributed._collectives import CALL, Ranks
from echo_ext.distributed._rows import gather_rows
from echo_ext.estimators import _gradient
from echo_ext.estimators._samples import (
    MAX_SAMPLES,
    ArrayLike,
    Estimate,
    Neighbours,
    read_options,
    read_samples,
)
from echo_ext.estimators.ksg import ESTIMATES, METHODS


def mutual_information(
    x: ArrayLike,
    y: ArrayLike,
    *,
    group: dist.ProcessGroup | None = None,
    k: Neighbours = 3,
    method: str = "ksg1",
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Mutual information of all ranks' samples: the value of :func:`echo_ext.mutual_information` on the joined rows.

    Each rank holds rows of x and y. The points are gathered, O(N d) memory on every rank; each rank searches the
    neighbours of its own rows, and one sum over the ranks gives all of them the estimate.

    Args:
        x, y: this rank's (..., n, d); n may differ between ranks.
        group: the ranks; None for all of them, or for this process alone where torch.distributed is not initialised.
        k, method, unit: as in :func:`echo_ext.mutual_information`.
        local: give the values of this rank's n rows instead, (..., n); all ranks' have the estimate as their mean.
        exclude_within: as there; rows are counted in the order of the ranks.

    Returns:
        As :func:`echo_ext.mutual_information`, the same on every rank. It has no gradient.

    Raises:
        TypeError, ValueError: as :func:`echo_ext.mutual_information`, where N is the number of all ranks' rows; ranks
            that differ in k, method, exclude_within, local, unit, or in the columns, leading dimensions, dtype or
            device type of x and y. The errors are raised on all ranks. Some ranks may give arrays and others tensors.
        RuntimeError: a rank is missing: the process group's own error, after its time-out.
    """
    ranks = Ranks(group)
    with ranks.guard(x, y):
        samples = read_samples(x=x, y=y)
        _checks.choice("method", method, METHODS)
        # What this rank can check alone; the number of all ranks' samples is known after the exchange.
        given = read_options(MAX_SAMPLES, k=k, unit=unit, local=local, exclude_within=exclude_within)
        agreed: dict[str, object] = {
            CALL: "mutual_information",
            "k": given.ks[0] if given.single_k else given.ks,
            "method": repr(method),
            "exclude_within": given.exclude_within,
            "local": given.local,
            "unit": repr(unit),
            "the dtype of x and y": samples.variables[0].dtype,
            "the device type of x and y": samples.variables[0].device.type,
        }
        for name, variable in zip(samples.names, samples.variables, strict=True):
            agreed[f"the number of columns of {name}"] = variable.shape[-1]
            agreed[f"the leading dimensions of {name}"] = tuple(variable.shape[:-2])
        flat = [v.detach().movedim(-2, 0).reshape(samples.count, _width(v)) for v in samples.variables]
        parts, sizes = gather_rows(torch.cat(flat, 1), ranks, agreed)
    total, first = sum(sizes), sum(sizes[: ranks.rank])
    if total > MAX_SAMPLES:
        raise ValueError(f"x must have at most {MAX_SAMPLES} samples on all ranks together, got {total}")
    options = read_options(
        total, k=k, unit=unit, local=local, exclude_within=exclude_within, part=slice(first, first + samples.count)
    )
    columns = torch.cat(parts).split([_width(v) for v in samples.variables], 1)
    gathered = [
        rows.reshape(total, *v.shape[:-2], v.shape[-1]).movedim(0, -2)
        for rows, v in zip(columns, samples.variables, strict=True)
    ]
    values = ESTIMATES[method](gathered, options)
    if not local:
        values = ranks.all_reduce(values.sum(-1)).div_(total).unsqueeze(-1)
    return options.finish(samples, _gradient.attach_none(values, "the distributed estimate", *samples.variables))


def _width(variable: Tensor) -> int:
    """How many numbers a sample has, in all items of the batch together."""
    return math.prod(variable.shape[:-2]) * variable.shape[-1]
