"""Mutual information of every pair of columns."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext import _checks

from . import _gradient, _neighbours_cuda
from ._neighbours import Cloud, mean, on_cuda
from ._samples import UNITS, ArrayLike, Estimate, Neighbours, Options, read_options, read_samples
from .ksg import ESTIMATES, METHODS

# Numbers held for the joint spaces of the pairs that are estimated together; twice as many where each block costs
# launches. Larger blocks of a symmetric matrix would spend on pairs below the diagonal what they save.
BLOCK = 1 << 22


def mutual_information_matrix(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    k: Neighbours = 3,
    method: str = "ksg1",
    unit: str = "nats",
    exclude_within: int = 0,
) -> Estimate:
    """Mutual information of each column of x with each column of y; columns are sorted for many pairs at once.

    Args:
        x: (..., N, p), or (N,) for one column; float64 or float32, tensor or array.
        y: (..., N, q) of the same kind, or None for x itself: then the matrix is symmetric, each pair is estimated
            once, and the diagonal holds I(x; x) as the method counts it (psi(N) - psi(k) for "ksg1").
        k, method, unit, exclude_within: As in `mutual_information`.

    Returns:
        (..., p, q), array or tensor as x is; one more leading dimension if k is a sequence.

    Raises:
        TypeError, ValueError: As in `mutual_information`.
    """
    samples = read_samples(x=x) if y is None else read_samples(x=x, y=y)
    options = read_options(samples.count, k=k, unit=unit, exclude_within=exclude_within)
    _checks.choice("method", method, METHODS)
    left, right = samples.variables[0], samples.variables[-1]
    columns_x, columns_y = (  # (*batch, p, N) and (*batch, q, N)
        v.detach().expand(*samples.batch, *v.shape[-2:]).transpose(-1, -2) for v in (left, right)
    )
    if _fit_together(left, method, options):
        values = _together(columns_x, None if y is None else columns_y, options)
    else:
        values = _by_blocks(columns_x, columns_y, method, options, symmetric=y is None)
    if y is None:
        values = values.triu() + values.triu(1).mT
    values = _gradient.attach_none(values, "mutual_information_matrix", *samples.variables)
    return samples.give_back((values[0] if options.single_k else values) * UNITS[unit])


def _fit_together(points: Tensor, method: str, options: Options) -> bool:
    """Whether one kernel takes all pairs: where they are small, and the method is the usual one without a window."""
    if not on_cuda(points) or method != "ksg1" or options.exclude_within > 0:
        return False
    return _neighbours_cuda.pairs_fit(options.total, max(options.ks), points)


def _together(columns_x: Tensor, columns_y: Tensor | None, options: Options) -> Tensor:
    """(K, *batch, p, q) from (*batch, p, N) and (*batch, q, N), or None for x: then nothing below the diagonal."""
    *batch, p, _ = columns_x.shape
    x = _neighbours_cuda.Columns.of(columns_x)
    y = x if columns_y is None else _neighbours_cuda.Columns.of(columns_y)
    values = torch.stack([_neighbours_cuda.pairs(x, y, k) for k in options.ks])
    return values.view(len(options.ks), *batch, p, values.shape[-1])


def _by_blocks(columns_x: Tensor, columns_y: Tensor, method: str, options: Options, *, symmetric: bool) -> Tensor:
    """As `_together`, some columns of x at a time."""
    *batch, p, n = columns_x.shape
    q = columns_y.shape[-2]
    values = columns_x.new_zeros((len(options.ks), p, q, *batch), dtype=torch.float64)
    per_column = n * max(options.ks) * q * max(values[0, 0, 0].numel(), 1)
    step = max(1, (2 * BLOCK if on_cuda(columns_x) else BLOCK) // max(per_column, 1))
    x = Cloud(columns_x.movedim(-2, 0)[:, None, ..., None])
    y = Cloud(columns_y.movedim(-2, 0)[..., None])
    for begin in range(0, p, step):
        end, start = min(begin + step, p), begin if symmetric else 0
        values[:, begin:end, start:] = mean(ESTIMATES[method]([x.part(begin, end), y.part(start, q)], options))
    return values.movedim((1, 2), (-2, -1))
