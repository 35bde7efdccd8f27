"""The distribution of an estimate under the null hypothesis of independence, and p-values from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echo_ext._types import NullDistribution
from echo_ext.estimators import local_values
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options
from echo_ext.estimators.samples import broadcast
from echo_ext.estimators.surrogates import Orders

# Numbers held for the surrogates that are estimated together.
BLOCK = 1 << 22

# Nats by which a surrogate may miss the estimate and still reach it. Equal counts can differ by the rounding of their
# sums, which depends on the device.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Resampled:
    """What surrogates tell about an estimate.

    Attributes:
        statistic: The estimate, float64 (*batch).
        null: The estimates with surrogates, float64 (n, *batch).
        reached: How many of them reach the estimate, int64 (*batch).
        used: How many of them count, int64 (*batch): fewer than n where the test has stopped before the others.
    """

    statistic: Tensor
    null: Tensor
    reached: Tensor
    used: Tensor


def resample(
    variables: Sequence[Tensor],
    formula: local_values.LocalValues,
    options: Options,
    orders: Orders,
    n: int,
    *,
    enough: int | None = None,
    native: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Resampled:
    """Estimate with up to n surrogates of y.

    Args:
        variables: x, y and perhaps z: (*batch, N, d), without gradients.
        formula: The local values of the estimate.
        options: Its options, with one k.
        orders: The orders of y's rows.
        n: The number of surrogates.
        enough: Stop once so many surrogates have reached the estimate.
        native: Whether the formula is that of conditional "ksg1", for which a backend may have a kernel.
        progress: A function that is called with the number of surrogates done.
    """
    batch = broadcast(*(v.shape[:-2] for v in variables))
    aligned = [v.reshape((1,) * (len(batch) + 2 - v.ndim) + v.shape) for v in variables]
    statistic = _mean(formula([PointSet(v) for v in aligned], options))[0].expand(batch)
    # Allocated at once, since a small tensor of each block would prevent that the memory of the large ones is reused.
    null = statistic.new_empty((n, *batch))
    reached = torch.zeros(batch, dtype=torch.int64, device=statistic.device)
    used = torch.zeros_like(reached)
    running = torch.ones_like(reached, dtype=torch.bool)
    for first, num in _blocks(aligned, batch, n, enough):
        options = replace(options, tied_shares=[])  # only the ties of the statistic are worth a warning
        each = orders(first, num)
        found = backend_of(statistic).estimate_surrogates(aligned, each, options) if native else None
        if found is None:
            moved = _exchange(aligned[1], each)
            found = _mean(formula([PointSet(v) for v in (aligned[0], moved, *aligned[2:])], options))[0]
            found = found.expand(num, *batch)
        null[first : first + num] = found
        reaches = (found >= statistic - ROUNDING).to(torch.int64)
        if enough is None:
            reached, used = reached + reaches.sum(0), used + num
        else:
            counted = reached + reaches.cumsum(0)
            # Those that count: up to the one that makes them enough.
            counts = running & (counted - reaches < enough)
            used = used + counts.sum(0)
            reached = reached + (reaches * counts).sum(0)
            running = reached < enough
        if progress is not None:
            progress(first + num)
        if enough is not None and not bool(running.any()):
            break
    most = int(used.max()) if used.numel() > 0 else n
    return Resampled(statistic, null[:most], reached, used)


def p_value(found: Resampled, null: NullDistribution, enough: int | None) -> Tensor:
    """Return the p-value by one kind of null distribution; ``enough`` is that of `resample`."""
    if null == "empirical":
        return _empirical(found, enough)
    return _normal(found) if null == "normal" else _gamma(found)


def _empirical(found: Resampled, enough: int | None = None) -> Tensor:
    """Return (1 + reached) / (1 + n), or reached / n where the test has stopped (Besag and Clifford 1991)."""
    p = (1 + found.reached).double() / (1 + found.used)
    return p if enough is None else torch.where(found.reached == enough, found.reached.double() / found.used, p)


def _normal(found: Resampled) -> Tensor:
    """Return the upper tail of the normal distribution with the mean and the standard deviation of the null."""
    return _where_spread(found, torch.special.ndtr(-_standardized(found)))


def _gamma(found: Resampled) -> Tensor:
    """Return the upper tail of the shifted gamma distribution with the first three moments of the null."""
    centered = found.null - found.null.mean(0)
    skewness = centered.pow(3).mean(0) / centered.square().mean(0).pow(1.5)
    # With less skewness than this, the gamma distribution is the normal one to more digits than p has.
    skewed = skewness.clamp(min=1e-3)
    shape = 4 / skewed.square()
    tail = torch.special.gammaincc(shape, (shape + _standardized(found) * shape.sqrt()).clamp(min=0))
    return torch.where(skewness > 1e-3, _where_spread(found, tail), _normal(found))


def _standardized(found: Resampled) -> Tensor:
    return (found.statistic - found.null.mean(0)) / found.null.std(0)


def _where_spread(found: Resampled, p: Tensor) -> Tensor:
    """Return p, or the empirical value where all surrogates have one estimate, to which no distribution fits."""
    return torch.where(found.null.std(0) > ROUNDING, p, _empirical(found))


def _blocks(variables: Sequence[Tensor], batch: torch.Size, n: int, enough: int | None) -> Iterator[tuple[int, int]]:
    """Yield the first surrogate of each block and their number; a test that may stop early begins with few."""
    numbers = variables[0].shape[-2] * sum(v.shape[-1] for v in variables) * max(1, batch.numel())
    step = largest = max(1, backend_of(variables[0]).block_scale * BLOCK // max(numbers, 1))
    if enough is not None:
        step = min(largest, enough)
    first = 0
    while first < n:
        num = min(step, n - first)
        yield first, num
        first += num
        step = min(largest, 2 * step)


def _exchange(y: Tensor, orders: Tensor) -> Tensor:
    """Return y (*batch, N, d) with its rows in each of the orders (num, *batch or nothing, N): (num, *batch, N, d)."""
    index = orders.to(y.device).view(len(orders), *(1,) * (y.ndim - orders.ndim), *orders.shape[1:]).unsqueeze(-1)
    batch = broadcast(y.shape[:-2], index.shape[1:-2])
    index = index.expand(len(orders), *batch, *index.shape[-2:])
    return torch.take_along_dim(y.expand(len(orders), *batch, *y.shape[-2:]), index, -2)


def _mean(values: Tensor) -> Tensor:
    return backend_of(values).mean(values)
