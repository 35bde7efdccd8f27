"""Mutual information of every pair of columns."""

from __future__ import annotations

import math
from typing import overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Array, Estimate, Method, NumNeighbors, TensorOrArray, Unit
from echo_ext.estimators import gradients, local_values
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators.ksg import METHODS
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.samples import Options, convert_estimates, read_options, read_samples

__all__ = ["mutual_information_matrix"]

# Numbers held on the CPU for the joint spaces of the pairs that are estimated together. Larger blocks of a symmetric
# matrix would spend on pairs below the diagonal what they save.
BLOCK = 1 << 22


@overload
def mutual_information_matrix(
    x: Tensor,
    y: Tensor | None = None,
    *,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
) -> Tensor: ...
@overload
def mutual_information_matrix(
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
) -> Array: ...
def mutual_information_matrix(
    x: TensorOrArray,
    y: TensorOrArray | None = None,
    *,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
) -> Estimate:
    """Estimate the mutual information of each column of x with each column of y.

    This is much faster than one call of :func:`mutual_information` for each pair: columns are sorted once for many
    pairs.

    Args:
        x: (..., N, p), or (N,) for one column; float64 or float32, tensor or array.
        y: (..., N, q) of the same kind. None stands for x itself: the matrix is then symmetric, each pair is estimated
            once, and the diagonal holds I(x; x) as the method counts it (psi(N) - psi(k) for "ksg1", the entropy for
            "plug-in").
        k, method, unit, exclude_within: As in :func:`mutual_information`.

    Returns:
        (..., p, q), an array or a tensor as x is, with one more leading dimension if k is a sequence. It has no
        gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information_matrix
        >>> x = np.random.default_rng(0).standard_normal((1000, 3))
        >>> x[:, 1] += x[:, 0]  # their information is ln(2) / 2 = 0.35 nats
        >>> mutual_information_matrix(x).round(1)
        array([[6. , 0.4, 0. ],
               [0.4, 6. , 0. ],
               [0. , 0. , 6. ]])
    """
    _checks.choice("method", method, METHODS)
    samples = read_samples(x=x) if y is None else read_samples(x=x, y=y)
    options = read_options(samples.count, k=k, unit=unit, exclude_within=exclude_within, method=method)
    columns = [  # (*batch, p, N) and (*batch, q, N)
        v.detach().expand(*samples.batch, *v.shape[-2:]).transpose(-1, -2) for v in samples.variables
    ]
    columns_x, columns_y = columns[0], None if y is None else columns[1]
    values = None
    if method == "ksg1" and options.exclude_within == 0:
        values = backend_of(columns_x).estimate_pairs(columns_x, columns_y, options.ks)
    if values is None:
        values = _estimate_by_blocks(columns_x, columns_y, method, options)
    if y is None:
        values = values.triu() + values.triu(1).mT
    values = gradients.without_gradient(values, "mutual_information_matrix", *samples.variables)
    return convert_estimates(values, samples, options)


def _estimate_by_blocks(columns_x: Tensor, columns_y: Tensor | None, method: Method, options: Options) -> Tensor:
    """Estimate all pairs, some columns of x at a time: (K, *batch, p, q) float64.

    Columns (*batch, p, N) and (*batch, q, N), or None for x itself: then nothing below the diagonal is estimated.
    """
    symmetric = columns_y is None
    columns_y = columns_x if columns_y is None else columns_y
    *batch, p, n = columns_x.shape
    q = columns_y.shape[-2]
    backend = backend_of(columns_x)
    values = columns_x.new_zeros((len(options.ks), p, q, *batch), dtype=torch.float64)
    numbers_of_a_column = n * options.max_k * q * math.prod(batch)
    step = max(1, backend.block_scale * BLOCK // max(numbers_of_a_column, 1))
    x = PointSet(columns_x.movedim(-2, 0)[:, None, ..., None])
    y = PointSet(columns_y.movedim(-2, 0)[..., None])
    for begin in range(0, p, step):
        end, start = min(begin + step, p), begin if symmetric else 0
        block = local_values.MUTUAL_INFORMATION[method]([x.take(begin, end), y.take(start, q)], options)
        values[:, begin:end, start:] = backend.mean(block)
    return values.movedim((1, 2), (-2, -1))
