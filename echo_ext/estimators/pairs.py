"""Mutual information of every pair of columns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Array, Estimate, Method, NanPolicy, NumNeighbors, TensorOrArray, Transform, Unit
from echo_ext.estimators import gradients, local_values
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators.evaluation import TIED_SHARE, convert_estimates, warn_if_tied
from echo_ext.estimators.ksg import METHODS, USE_MIXED
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options, read_options
from echo_ext.estimators.samples import read_samples
from echo_ext.estimators.tables import is_table
from echo_ext.estimators.transforms import transform_columns

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
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
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
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array: ...
def mutual_information_matrix(
    x: TensorOrArray,
    y: TensorOrArray | None = None,
    *,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Estimate:
    """Estimate the mutual information of each column of x with each column of y.

    This is much faster than one call of :func:`mutual_information` for each pair: columns are sorted once for many
    pairs.

    Args:
        x: (..., N, p), or (N,) for one column, of any kind that :func:`mutual_information` reads.
        y: (..., N, q) of the same kind. None stands for x itself: the matrix is then symmetric, each pair is estimated
            once, and the diagonal holds I(x; x) as the method counts it (psi(N) - psi(k) for "ksg1", the entropy for
            "plug-in").
        k, method, unit, exclude_within, transform: As in :func:`mutual_information`.
        nan_policy: "raise", or "omit" to leave out of each pair the rows in which one of its two columns is NaN.

    Returns:
        (..., p, q), an array or a tensor as x is, with one more leading dimension if k is a sequence. Of a DataFrame x,
        with no y or a DataFrame, and one k it is a DataFrame with the labels of the columns. It has no gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`.

    Warns:
        DegenerateDataWarning: Once for all pairs in which more than 5 % of the samples equal k others.

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
    given: dict[str, Any] = {"x": x} if y is None else {"x": x, "y": y}
    _checks.choice("method", method, METHODS)
    samples = read_samples(nan_policy=nan_policy, **given)
    options = read_options(
        samples.count, k=k, unit=unit, exclude_within=exclude_within, transform=transform, method=method
    )
    columns = [  # (*batch, p, N) and (*batch, q, N)
        v.detach().expand(*samples.batch, *v.shape[-2:]).transpose(-1, -2) for v in samples.variables
    ]
    estimate = _estimate if samples.missing is None else _estimate_without_missing
    values, shares = estimate(columns[0], None if y is None else columns[1], method, options)
    _warn_if_tied(shares, symmetric=y is None)
    values = gradients.without_gradient(values, "mutual_information_matrix", *samples.variables)
    matrix = convert_estimates(values, samples, options)
    if is_table(x) and (y is None or is_table(y)) and options.single_k:
        table: Any = type(x)
        matrix = table(matrix, index=x.columns, columns=(x if y is None else y).columns)
    return matrix


def _estimate(columns_x: Tensor, columns_y: Tensor | None, method: Method, options: Options) -> tuple[Tensor, Tensor]:
    """Estimate all pairs of columns without missing values.

    Columns (*batch, p, N) and (*batch, q, N), or None for x itself.

    Returns:
        The estimates and the shares of tied samples, both (K, *batch, p, q) float64.
    """
    columns_x = transform_columns(columns_x.mT, options.transform).mT
    columns_y = None if columns_y is None else transform_columns(columns_y.mT, options.transform).mT
    values = None
    if method == "ksg1" and options.exclude_within == 0:
        values = backend_of(columns_x).estimate_pairs(columns_x, columns_y, options.ks)
    if values is None:
        values, shares = _estimate_by_blocks(columns_x, columns_y, method, options)
    elif _may_be_tied(columns_x, columns_y, min(options.ks)):  # the one kernel does not tell
        shares = _estimate_by_blocks(columns_x, columns_y, method, options)[1]
    else:
        shares = torch.zeros_like(values)
    if columns_y is None:
        values, shares = (matrix.triu() + matrix.triu(1).mT for matrix in (values, shares))
    return values, shares


def _estimate_by_blocks(
    columns_x: Tensor, columns_y: Tensor | None, method: Method, options: Options
) -> tuple[Tensor, Tensor]:
    """Do what `_estimate` does, some columns of x at a time; nothing below the diagonal if y is x itself."""
    symmetric = columns_y is None
    columns_y = columns_x if columns_y is None else columns_y
    *batch, p, n = columns_x.shape
    q = columns_y.shape[-2]
    backend = backend_of(columns_x)
    values, shares = columns_x.new_zeros((2, len(options.ks), p, q, *batch), dtype=torch.float64)
    numbers_of_a_column = n * options.max_k * q * math.prod(batch)
    step = max(1, backend.block_scale * BLOCK // max(numbers_of_a_column, 1))
    x = PointSet(columns_x.movedim(-2, 0)[:, None, ..., None])
    y = PointSet(columns_y.movedim(-2, 0)[..., None])
    for begin in range(0, p, step):
        end, start = min(begin + step, p), begin if symmetric else 0
        of_block = replace(options, tied_shares=[])
        block = local_values.MUTUAL_INFORMATION[method]([x.take(begin, end), y.take(start, q)], of_block)
        values[:, begin:end, start:] = backend.mean(block)
        for share in of_block.tied_shares:
            shares[:, begin:end, start:] = share
    return values.movedim((1, 2), (-2, -1)), shares.movedim((1, 2), (-2, -1))


def _estimate_without_missing(
    columns_x: Tensor, columns_y: Tensor | None, method: Method, options: Options
) -> tuple[Tensor, Tensor]:
    """Do what `_estimate` does from the rows that neither column of a pair misses.

    Columns that miss the same rows are estimated together.
    """
    symmetric = columns_y is None
    columns_y = columns_x if columns_y is None else columns_y
    *batch, p, n = columns_x.shape
    q, device = columns_y.shape[-2], columns_x.device
    found = columns_x.new_zeros((2, len(options.ks), math.prod(batch), p, q), dtype=torch.float64)
    items = zip(columns_x.reshape(-1, p, n), columns_y.reshape(-1, q, n), strict=True)
    for item, (x, y) in enumerate(items):
        groups_x = _group_by_missing(x)
        groups_y = groups_x if symmetric else _group_by_missing(y)
        for a, (missing_x, of_x) in enumerate(groups_x):
            for b, (missing_y, of_y) in enumerate(groups_y):
                if symmetric and b < a:
                    continue
                kept = (~(missing_x | missing_y)).nonzero()[:, 0]
                pair = f"columns {int(of_x[0])} of x and {int(of_y[0])} of {'x' if symmetric else 'y'}"
                part = options.keep(kept, reason=f" ({n - len(kept)} of {n} rows were left out for {pair})")
                if part.rows is not None:
                    part = replace(part, rows=part.rows.to(device))
                left, right = (columns[each.to(device)][:, kept.to(device)] for columns, each in ((x, of_x), (y, of_y)))
                block = torch.stack(_estimate(left, None if symmetric and a == b else right, method, part))
                found[:, :, item, of_x.to(device).unsqueeze(-1), of_y.to(device)] = block
                if symmetric:
                    found[:, :, item, of_y.to(device).unsqueeze(-1), of_x.to(device)] = block.mT
    values, shares = found.reshape(2, len(options.ks), *batch, p, q)
    return values, shares


def _group_by_missing(columns: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return, for each set of rows that some columns (p, N) miss, its mask (N,) and those columns; on the CPU."""
    distinct, which = torch.unique(columns.isnan().cpu(), dim=0, return_inverse=True)
    return [(mask, (which == i).nonzero()[:, 0]) for i, mask in enumerate(distinct)]


def _may_be_tied(columns_x: Tensor, columns_y: Tensor | None, k: int) -> bool:
    """Return whether some pair may have so many tied samples that a warning is due: both its columns then have."""
    each = [columns_x] if columns_y is None else [columns_x, columns_y]
    return all(bool((_share_in_runs(columns.sort(-1).values, k + 1) > TIED_SHARE).any()) for columns in each)


def _share_in_runs(ascending: Tensor, length: int) -> Tensor:
    """Return the share of values that equal ``length`` values or more, themselves included: (..., N) to (...)."""
    n = ascending.shape[-1]
    starts = (ascending[..., length - 1 :] == ascending[..., : n - length + 1]).to(torch.int32)
    change = starts.new_zeros((*ascending.shape[:-1], n + 1))
    change[..., : n - length + 1] += starts
    change[..., length:] -= starts
    return (change.cumsum(-1)[..., :n] > 0).double().mean(-1)


def _warn_if_tied(shares: Tensor, *, symmetric: bool) -> None:
    """Warn once of all pairs with many tied samples, from their shares (K, *batch, p, q)."""
    p, q = shares.shape[-2:]
    tied = (shares > TIED_SHARE).reshape(-1, p, q).any(0)
    tied, pairs = (tied.triu(), p * (p + 1) // 2) if symmetric else (tied, p * q)
    if (count := int(tied.sum())) > 0:
        remedy = f"so it is for {count} of the {pairs} pairs of columns: {USE_MIXED}"
        warn_if_tied([shares], remedy)
