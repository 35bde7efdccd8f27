"""Discrete variables: equal rows lie in the same cell, and estimates are made of the numbers of samples in the cells.

Cells are numbered by sorting, so that nothing here waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options

__all__ = ["CONDITIONAL", "ENTROPY", "TOTAL_CORRELATION", "join_cells", "number_cells"]


def number_cells(values: Tensor) -> Tensor:
    """Number the distinct values along the last dimension: int64 from 0, ascending as the values do."""
    ordered, order = values.sort(-1)
    steps = torch.zeros_like(order)
    steps[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return torch.empty_like(order).scatter_(-1, order, steps.cumsum(-1))


def join_cells(cells: Sequence[Tensor]) -> Tensor:
    """Number the cells of several variables together, each int64 (*batch, N) below N; batches broadcast."""
    joint = cells[0]
    for each in cells[1:]:
        joint = number_cells(joint * each.shape[-1] + each)
    return joint


def _cells_of(variable: PointSet) -> Tensor:
    """Return the number of each row's cell: int64 (*batch, N)."""
    return join_cells([number_cells(column) for column in variable.points.unbind(-1)])


def _surprise(cells: Tensor, corrected: bool) -> Tensor:
    """Return the local values of the entropy of cells, float64; the correction is that of Miller and Madow."""
    n = cells.shape[-1]
    ordered, sought = cells.sort(-1).values, cells.contiguous()
    first, behind = (torch.searchsorted(ordered, sought, right=right) for right in (False, True))
    sizes = (behind - first).double()
    values = -(sizes / n).log()
    return values + (1 / sizes - 1 / n) / 2 if corrected else values


def _entropy(variables: Sequence[PointSet], corrected: bool) -> Tensor:
    (variable,) = variables
    return _surprise(_cells_of(variable), corrected)


def _total_correlation(variables: Sequence[PointSet], corrected: bool) -> Tensor:
    margins = [_cells_of(variable) for variable in variables]
    values = -_surprise(join_cells(margins), corrected)
    for margin in margins:
        values = values + _surprise(margin, corrected)
    return values


def _conditional(variables: Sequence[PointSet], corrected: bool) -> Tensor:
    x, y, z = map(_cells_of, variables)
    xz = join_cells([x, z])
    values = _surprise(xz, corrected) + _surprise(join_cells([y, z]), corrected)
    return values - _surprise(z, corrected) - _surprise(join_cells([xz, y]), corrected)


def _by_method(
    values: Callable[[Sequence[PointSet], bool], Tensor],
) -> dict[str, Callable[[Sequence[PointSet], Options], Tensor]]:
    """Return the local values (K, *batch, N) by both methods; all k have the same."""

    def of_all_k(variables: Sequence[PointSet], options: Options, *, corrected: bool) -> Tensor:
        one = values(variables, corrected)[..., options.part]
        return one.expand(len(options.ks), *one.shape)

    return {"plug-in": partial(of_all_k, corrected=False), "miller-madow": partial(of_all_k, corrected=True)}


ENTROPY = _by_method(_entropy)
TOTAL_CORRELATION = _by_method(_total_correlation)
CONDITIONAL = _by_method(_conditional)
