"""Information estimates whose samples lie on many ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from echo_ext.distributed._ranks import Ranks
from echo_ext.distributed._rows import gather_rows
from echo_ext.estimators import _gradient
from echo_ext.estimators._samples import UNITS, ArrayLike, Estimate, Neighbours, choose, read_options, read_samples
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
        TypeError, ValueError: as :func:`echo_ext.mutual_information`, where N is the number of all ranks' rows; rows
            that differ in shape or dtype between ranks. Errors of one rank are raised on all.
        RuntimeError: a rank is missing: the process group's own error, after its time-out.
    """
    ranks = Ranks(group)
    try:
        samples = read_samples(x=x, y=y)
        choose("method", method, METHODS)
        choose("unit", unit, UNITS)
    except (TypeError, ValueError):
        ranks.refuse("x", x.device if isinstance(x, Tensor) else torch.device("cpu"))
        raise
    gathered = []
    for name, variable in zip(samples.names, samples.variables, strict=True):
        rows, sizes = gather_rows(name, variable.detach().movedim(-2, 0), ranks)
        gathered.append(rows.movedim(0, -2))
    total, first = sum(sizes), sum(sizes[: ranks.rank])
    options = read_options(
        total, k=k, unit=unit, local=local, exclude_within=exclude_within, part=slice(first, first + samples.count)
    )
    values = ESTIMATES[method](gathered, options)
    if not local:
        values = ranks.all_reduce(values.sum(-1)).div_(total).unsqueeze(-1)
    return options.finish(samples, _gradient.attach_none(values, "the distributed estimate", *samples.variables))
