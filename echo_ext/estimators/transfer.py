"""Transfer of information between time series."""

from __future__ import annotations

from typing import overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Array, Estimate, MultivariateMethod, NumNeighbors, TensorOrArray, Unit
from echo_ext.estimators import gradients, local_values
from echo_ext.estimators.ksg import MULTIVARIATE_METHODS
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.samples import read_options, read_samples, reduce_local_values

__all__ = ["transfer_entropy"]


@overload
def transfer_entropy(
    source: Tensor,
    target: Tensor,
    *,
    history: int = 1,
    source_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Tensor: ...
@overload
def transfer_entropy(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    history: int = 1,
    source_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Array | float: ...
def transfer_entropy(
    source: TensorOrArray,
    target: TensorOrArray,
    *,
    history: int = 1,
    source_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Estimate transfer entropy: what the past of the source adds to the target's own past (Schreiber 2000).

    ``I(target[t]; source[t-lag], ..., source[t-lag-source_history+1] | target[t-1], ..., target[t-history])`` by the
    estimators of :func:`conditional_mutual_information`, over all times t for which every term exists.

    Args:
        source, target: Time series (..., N, d), each with its own d, or (N,) for one column; rows are consecutive
            times. float64 or float32, both tensors or both arrays; leading dimensions are a batch and broadcast.
        history: The number of rows of the target's past, at least 1. A longer history conditions on more, so that
            less of the target's own memory is attributed to the source; each row adds columns, and with them bias.
        source_history: The number of rows of the source's past, at least 1.
        lag: The number of rows from the source's latest row to the target's value, at least 1.
        method: As in :func:`conditional_mutual_information`: "ksg1" and "ksg2" for continuous series, "mixed" where
            values repeat, as in counts of events, "plug-in" and "miller-madow" for series of few symbols.
        k, unit, local, exclude_within: As in :func:`mutual_information`. The local values are those of the times from
            ``max(history, lag + source_history - 1)`` on.

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...). It has no gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also too few rows for the histories and k.

    Example:
        >>> import numpy as np
        >>> from echo_ext import transfer_entropy
        >>> rng = np.random.default_rng(0)
        >>> source = rng.standard_normal(2000)
        >>> target = np.roll(source, 1) + rng.standard_normal(2000)  # 0.35 nats from source to target
        >>> round(transfer_entropy(source, target), 2), round(transfer_entropy(target, source), 2)
        (0.35, 0.0)
    """
    _checks.choice("method", method, MULTIVARIATE_METHODS)
    samples = read_samples(**read_categories(method, {"source": source, "target": target}, {}))
    for name, value in (("history", history), ("source_history", source_history), ("lag", lag)):
        _checks.whole(name, value, minimum=1)
    first = max(history, lag + source_history - 1)
    if samples.count - first < 2:
        raise ValueError(
            f"source and target must have at least {first + 2} rows for history={history}, "
            f"source_history={source_history} and lag={lag}, got {samples.count}"
        )
    options = read_options(
        samples.count - first, k=k, unit=unit, local=local, exclude_within=exclude_within, method=method
    )
    drivers, series = samples.variables

    def past(rows: Tensor, delay: int, length: int) -> PointSet:
        n = rows.shape[-2]
        return PointSet(torch.cat([rows[..., first - delay - i : n - delay - i, :] for i in range(length)], -1))

    variables = [past(series, 0, 1), past(drivers, lag, source_history), past(series, 1, history)]
    values = local_values.CONDITIONAL[method](variables, options)
    values = gradients.without_gradient(values, "transfer_entropy", drivers, series)
    return reduce_local_values(values, samples, options)
