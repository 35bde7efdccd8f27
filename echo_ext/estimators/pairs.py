"""Estimates for every pair of columns at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from echo_ext._types import Method
from echo_ext.estimators import local_values
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators.evaluation import TIED_SHARE, warn_if_tied
from echo_ext.estimators.ksg import USE_MIXED
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options
from echo_ext.estimators.transforms import transform_columns

__all__ = ["estimate", "estimate_surrogates", "estimate_without_missing", "transform_each", "warn_if_pairs_are_tied"]

Progress: TypeAlias = Callable[[int], object] | None
"""A function that is called with the number of pairs done."""

# Numbers held on the CPU for the joint spaces of the pairs that are estimated together.
BLOCK = 1 << 22
# Blocks of a triangle: larger ones would spend on pairs below the diagonal more than they save.
BLOCKS_OF_TRIANGLE = 8


def estimate(
    columns_x: Tensor,
    columns_y: Tensor | None,
    given: Tensor | None,
    method: Method,
    options: Options,
    progress: Progress = None,
) -> tuple[Tensor, Tensor]:
    """Estimate all pairs of columns without missing values.

    Args:
        columns_x, columns_y: (*batch, p, N) and (*batch, q, N), or None for x itself.
        given: Conditions (*batch, N, c), or None.
        method: The estimator.
        options: Of all rows.
        progress: Called now and then.

    Returns:
        The estimates and the shares of tied samples, both (K, *batch, p, q) float64.
    """
    columns_x = transform_each(columns_x, options)
    columns_y = None if columns_y is None else transform_each(columns_y, options)
    given = None if given is None else transform_columns(given, options.transform)
    values = None if given is not None else _estimate_by_kernel(columns_x, columns_y, method, options)
    if values is None:
        values, shares = _estimate_by_blocks(columns_x, columns_y, given, method, options, progress=progress)
    elif _may_be_tied(columns_x, columns_y, min(options.ks)):  # the one kernel does not tell
        shares = _estimate_by_blocks(columns_x, columns_y, None, method, options)[1]
    else:
        shares = torch.zeros_like(values)
    if columns_y is None:
        values, shares = (matrix.triu() + matrix.triu(1).mT for matrix in (values, shares))
    return values, shares


def estimate_surrogates(
    columns_x: Tensor, columns_y: Tensor, method: Method, options: Options, *, triangle: bool
) -> Tensor:
    """Return the estimates (K, *batch, p, q) for transformed columns; only above the diagonal if ``triangle``."""
    values = _estimate_by_kernel(columns_x, columns_y, method, options)
    if values is None:
        values = _estimate_by_blocks(columns_x, columns_y, None, method, options, triangle=triangle)[0]
    return values


def transform_each(columns: Tensor, options: Options) -> Tensor:
    """Transform columns (*batch, p, N)."""
    return transform_columns(columns.mT, options.transform).mT


def _estimate_by_kernel(columns_x: Tensor, columns_y: Tensor | None, method: Method, options: Options) -> Tensor | None:
    """Return the estimates in one call of a kernel, or None where there is none for them."""
    if method != "ksg1" or options.exclude_within > 0:
        return None
    return backend_of(columns_x).estimate_pairs(columns_x, columns_y, options.ks)


def _estimate_by_blocks(
    columns_x: Tensor,
    columns_y: Tensor | None,
    given: Tensor | None,
    method: Method,
    options: Options,
    *,
    triangle: bool = False,
    progress: Progress = None,
) -> tuple[Tensor, Tensor]:
    """Do what `estimate` does for transformed columns, some columns of x at a time.

    Nothing is estimated below the diagonal if y is x itself, or if ``triangle``.
    """
    triangle = triangle or columns_y is None
    columns_y = columns_x if columns_y is None else columns_y
    *batch, p, n = columns_x.shape
    q = columns_y.shape[-2]
    backend = backend_of(columns_x)
    values, shares = columns_x.new_zeros((2, len(options.ks), p, q, *batch), dtype=torch.float64)
    numbers_of_a_sample = options.max_k if given is None else max(options.max_k, 2 + given.shape[-1])
    numbers_of_a_column = n * numbers_of_a_sample * q * math.prod(batch)
    step = max(1, backend.block_scale * BLOCK // max(numbers_of_a_column, 1))
    step = max(1, min(step, -(-p // BLOCKS_OF_TRIANGLE))) if triangle else step
    x = PointSet(columns_x.movedim(-2, 0)[:, None, ..., None])
    y = PointSet(columns_y.movedim(-2, 0)[..., None])
    formula, conditions = local_values.MUTUAL_INFORMATION[method], []
    if given is not None:
        formula, conditions = local_values.CONDITIONAL[method], [PointSet(given[None, None])]
    for begin in range(0, p, step):
        end, start = min(begin + step, p), begin if triangle else 0
        of_block = replace(options, tied_shares=[])
        block = formula([x.take(begin, end), y.take(start, q), *conditions], of_block)
        values[:, begin:end, start:] = backend.mean(block)
        for share in of_block.tied_shares:
            shares[:, begin:end, start:] = share
        if progress is not None:
            progress(end * q - end * (end - 1) // 2 if triangle else end * q)
    return values.movedim((1, 2), (-2, -1)), shares.movedim((1, 2), (-2, -1))


def estimate_without_missing(
    columns_x: Tensor, columns_y: Tensor | None, method: Method, options: Options, progress: Progress = None
) -> tuple[Tensor, Tensor]:
    """Do what `estimate` does from the rows that neither column of a pair misses.

    Columns that miss the same rows are estimated together.
    """
    symmetric = columns_y is None
    columns_y = columns_x if columns_y is None else columns_y
    *batch, p, n = columns_x.shape
    q, device = columns_y.shape[-2], columns_x.device
    found = columns_x.new_zeros((2, len(options.ks), math.prod(batch), p, q), dtype=torch.float64)
    items = zip(columns_x.reshape(-1, p, n), columns_y.reshape(-1, q, n), strict=True)
    done = 0
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
                block = torch.stack(estimate(left, None if symmetric and a == b else right, None, method, part))
                found[:, :, item, of_x.to(device).unsqueeze(-1), of_y.to(device)] = block
                if symmetric:
                    found[:, :, item, of_y.to(device).unsqueeze(-1), of_x.to(device)] = block.mT
                done += len(of_x) * (len(of_x) + 1) // 2 if symmetric and a == b else len(of_x) * len(of_y)
                if progress is not None:
                    progress(done // math.prod(batch))
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


def warn_if_pairs_are_tied(shares: Tensor, *, symmetric: bool) -> None:
    """Warn once of all pairs with many tied samples, from their shares (K, *batch, p, q)."""
    p, q = shares.shape[-2:]
    tied = (shares > TIED_SHARE).reshape(-1, p, q).any(0)
    tied, pairs = (tied.triu(), p * (p + 1) // 2) if symmetric else (tied, p * q)
    if (count := int(tied.sum())) > 0:
        remedy = f"so it is for {count} of the {pairs} pairs of columns: {USE_MIXED}"
        warn_if_tied([shares], remedy)
