"""Transfer of information between time series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import (
    Array,
    Estimate,
    Groups,
    MultivariateMethod,
    NanPolicy,
    NumNeighbors,
    TensorOrArray,
    Transform,
    Unit,
)
from echo_ext.estimators import gradients, local_values
from echo_ext.estimators.embedding import Times
from echo_ext.estimators.evaluation import evaluate, reduce_local_values
from echo_ext.estimators.ksg import MULTIVARIATE_METHODS, USE_MIXED
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options, read_options
from echo_ext.estimators.plain import try_plain_samples
from echo_ext.estimators.samples import Samples, broadcast, read_samples, rows_with_nan

__all__ = ["transfer_entropy"]


def _with_last_rows(series: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return target[t], source[t-1] and target[t-1]."""
    source, target = series
    return target[1:], source[:-1], target[:-1]


@overload
def transfer_entropy(
    source: Tensor,
    target: Tensor,
    *,
    given: Tensor | None = None,
    history: int = 1,
    source_history: int = 1,
    given_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Tensor: ...
@overload
def transfer_entropy(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    given: npt.ArrayLike | None = None,
    history: int = 1,
    source_history: int = 1,
    given_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array | float: ...
@try_plain_samples(local_values.conditional_ksg1, _with_last_rows)
def transfer_entropy(
    source: TensorOrArray,
    target: TensorOrArray,
    *,
    given: TensorOrArray | None = None,
    history: int = 1,
    source_history: int = 1,
    given_history: int = 1,
    lag: int = 1,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Estimate:
    """Estimate transfer entropy: what the past of the source adds to the target's own past (Schreiber 2000).

    ``I(target[t]; source[t-lag], ..., source[t-lag-source_history+1] | target[t-1], ..., target[t-history])`` by the
    estimators of :func:`conditional_mutual_information`, over all times t for which every term exists. With ``given``,
    ``given[t-1], ..., given[t-given_history]`` join the condition: conditional transfer entropy, which leaves out what
    the source tells only because it drives ``given``, or is driven by it (Lizier, Prokopenko and Zomaya 2008).

    Args:
        source, target: Time series (..., N, d), each with its own d, or (N,) for one column; rows are consecutive
            times, of any kind that :func:`mutual_information` reads. Leading dimensions are a batch and broadcast.
        given: Other series to condition on, (..., N, c) or (N,): the columns of all of them together.
        history: The number of rows of the target's past, at least 1. A longer history conditions on more, so that
            less of the target's own memory is attributed to the source; each row adds columns, and with them bias.
        source_history: The number of rows of the source's past, at least 1.
        given_history: The number of rows of the past of ``given``, at least 1. Choose it so that the rows reach back to
            those that act on the target: with a delay of 3 rows, at least 3.
        lag: The number of rows from the source's latest row to the target's value, at least 1.
        method: As in :func:`conditional_mutual_information`: "ksg1" and "ksg2" for continuous series, "mixed" where
            values repeat, as in counts of events, "plug-in" and "miller-madow" for series of few symbols.
        k, unit, local, exclude_within, transform: As in :func:`mutual_information`. N is the number of times, and the
            columns that are transformed are those of the terms at these times. The local values are those of the times
            from ``max(history, lag + source_history - 1, given_history)`` on, in each group.
        groups: The trial or recording of each row, (N,) labels of any kind. A time exists where all its terms lie in
            one group, and the window reaches rows of the same group alone.
        nan_policy: "raise", or "omit" to leave out the times at which a term is NaN.

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...). It has no gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also too few rows for the histories and k.

    Warns:
        DegenerateDataWarning, UserWarning: As in :func:`mutual_information`.

    Example:
        >>> import numpy as np
        >>> from echo_ext import transfer_entropy
        >>> rng = np.random.default_rng(0)
        >>> source = rng.standard_normal(2000)
        >>> target = np.roll(source, 1) + rng.standard_normal(2000)  # 0.35 nats from source to target
        >>> round(transfer_entropy(source, target), 2), round(transfer_entropy(target, source), 2)
        (0.35, 0.0)
        >>> last = np.roll(target, 1) + rng.standard_normal(2000)  # a chain: the source acts through the target
        >>> values = [transfer_entropy(source, last, lag=2, given=each) for each in (None, target)]
        >>> [round(value, 2) for value in values]  # 0.2 nats, and none beyond what target tells
        [0.2, 0.01]
    """
    _checks.choice("method", method, MULTIVARIATE_METHODS)
    named: dict[str, object] = {"source": source, "target": target}
    if given is not None:
        named["given"] = given
    series = read_samples(nan_policy=nan_policy, warn_if_wide=True, **read_categories(method, named, {}, nan_policy))
    lengths = {"history": history, "source_history": source_history, "lag": lag, "given_history": given_history}
    for name, value in lengths.items():
        _checks.whole(name, value, minimum=1)
    first = max(history, lag + source_history - 1, given_history if given is not None else 1)
    times = Times(series.count, first, groups)
    if given is None:
        del lengths["given_history"]
    if times.count < 2:
        raise ValueError(
            f"{_listed(series.names)} must have at least {first + 2} rows {times.where}for "
            f"{_listed([f'{name}={value}' for name, value in lengths.items()])}, got {series.count}"
        )
    options = read_options(
        series.count,
        k=k,
        unit=unit,
        local=local,
        exclude_within=exclude_within,
        groups=groups,
        transform=transform,
        method=method,
    )
    options = times.restrict(options, reason=f" ({times.count} of {series.count} rows have {first} rows before them)")
    drivers, driven, *others = series.variables
    past = [times.embed(driven, 1, history), *(times.embed(other, 1, given_history) for other in others)]
    batch = broadcast(*(each.shape[:-2] for each in past))
    variables = (
        times.embed(driven, 0, 1),
        times.embed(drivers, lag, source_history),
        torch.cat([each.expand(*batch, *each.shape[-2:]) for each in past], -1),
    )
    missing = None if series.missing is None else rows_with_nan(variables)
    samples = Samples(variables, ("target", "source", "the condition"), series.are_arrays, missing)

    def formula(variables: Sequence[Tensor], options: Options) -> Tensor:
        values = local_values.CONDITIONAL[method]([PointSet(v) for v in variables], options)
        return gradients.without_gradient(values, "transfer_entropy", *variables)

    return reduce_local_values(evaluate(formula, samples, options, remedy=USE_MIXED), samples, options)


def _listed(words: Sequence[str]) -> str:
    """Return the words as a list in a sentence."""
    return f"{', '.join(words[:-1])} and {words[-1]}"
