"""Transfer of information between time series."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext import _checks

from . import _gradient
from ._samples import ArrayLike, Estimate, Neighbours, read_options, read_samples
from .ksg import _conditional


def transfer_entropy(
    source: ArrayLike,
    target: ArrayLike,
    *,
    history: int = 1,
    source_history: int = 1,
    lag: int = 1,
    k: Neighbours = 3,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Transfer entropy (Schreiber 2000): what the source's past tells of the target's next value beyond its own past.

    ``I(target[t]; source[t-lag], ..., source[t-lag-source_history+1] | target[t-1], ..., target[t-history])`` by
    Frenzel and Pompe's estimator, over all t for which every term exists.

    Args:
        source, target: (..., N, d) with their own d, or (N,) for one column: rows are consecutive times. float64 or
            float32, both tensors or both arrays; leading dimensions are a batch and broadcast.
        history: Rows of the target's past, at least 1.
        source_history: Rows of the source's past, at least 1.
        lag: Rows from the source's latest row to the target's value, at least 1.
        k, unit, local, exclude_within: As in `mutual_information`. Local values belong to the times from
            max(history, lag + source_history - 1) on.

    Returns:
        A float for two arrays, else an array or a tensor of shape (...).

    Raises:
        TypeError, ValueError: As in `mutual_information`; too few rows for the histories and k.
    """
    samples = read_samples(source=source, target=target)
    for name, value in (("history", history), ("source_history", source_history), ("lag", lag)):
        _checks.whole(name, value, minimum=1)
    first = max(history, lag + source_history - 1)
    if samples.count - first < 2:
        raise ValueError(
            f"history={history}, source_history={source_history} and lag={lag} need {first} rows and two more, "
            f"but there are {samples.count} rows"
        )
    options = read_options(samples.count - first, k=k, unit=unit, local=local, exclude_within=exclude_within)
    drivers, series = samples.variables

    def past(rows: Tensor, delay: int, length: int) -> Tensor:
        n = rows.shape[-2]
        return torch.cat([rows[..., first - delay - i : n - delay - i, :] for i in range(length)], -1)

    values = _conditional([past(series, 0, 1), past(drivers, lag, source_history), past(series, 1, history)], options)
    return options.finish(samples, _gradient.attach_none(values, "transfer_entropy", drivers, series))
