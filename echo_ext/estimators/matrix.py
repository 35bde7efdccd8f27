"""Mutual information of every pair of columns."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _gradient
from ._neighbours import mean, on_cuda
from ._samples import UNITS, ArrayLike, Estimate, Neighbours, Options, choose, read_options, read_samples
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
    """Mutual information of each column of x with each column of y; each column is sorted once per block of pairs.

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
    choose("method", method, METHODS)
    left, right = samples.variables[0], samples.variables[-1]
    values = left.new_zeros((len(options.ks), *samples.batch, left.shape[-1], right.shape[-1]), dtype=torch.float64)
    batch = list(samples.batch)
    columns_x = left.detach().expand(*batch, *left.shape[-2:]).transpose(-1, -2).unsqueeze(-1)  # (*batch, p, N, 1)
    columns_y = right.detach().expand(*batch, *right.shape[-2:]).transpose(-1, -2).unsqueeze(-1)
    per_row = samples.count * max(options.ks) * right.shape[-1] * max(values[0, ..., 0, 0].numel(), 1)
    block = 2 * BLOCK if on_cuda(left) else BLOCK
    step = max(1, block // max(per_row, 1))
    for begin in range(0, left.shape[-1], step):
        end = min(begin + step, left.shape[-1])
        start = begin if y is None else 0
        values[..., begin:end, start:] = _pairs(
            columns_x[..., begin:end, :, :], columns_y[..., start:, :, :], method, options
        )
    if y is None:
        values = values.triu() + values.triu(1).mT
    values = _gradient.attach_none(values, "mutual_information_matrix", *samples.variables)
    return samples.give_back((values[0] if options.single_k else values) * UNITS[unit])


def _pairs(columns_x: Tensor, columns_y: Tensor, method: str, options: Options) -> Tensor:
    """(K, *batch, p, q) from (*batch, p, N, 1) and (*batch, q, N, 1)."""
    return mean(ESTIMATES[method]([columns_x.unsqueeze(-3), columns_y.unsqueeze(-4)], options))
