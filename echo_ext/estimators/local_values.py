"""The formulas of the nearest-neighbor estimators: the value of each sample, whose mean is the estimate.

Every function takes the variables as point sets and returns local values in nats, float64 (K, *batch, N) for K numbers
of neighbors. The docstrings of the public functions state the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._native import constants
from echo_ext._types import Metric
from echo_ext.estimators import cells
from echo_ext.estimators._backend import Margin, backend_of, digamma
from echo_ext.estimators._metric import log_unit_ball
from echo_ext.estimators.evaluation import note_tied
from echo_ext.estimators.neighbors import ALL, PointSet, count_neighbors, count_neighbors_among
from echo_ext.estimators.options import Options
from echo_ext.estimators.samples import broadcast

LocalValues: TypeAlias = Callable[[Sequence[PointSet], Options], Tensor]

# From more columns in a variable, "bi-ksg" reads information where there is none.
BI_KSG_COLUMNS = 4


def ksg1(variables: Sequence[PointSet], options: Options) -> Tensor:
    """Return the values of Kraskov et al. 2004, eqs. 8 and 23."""
    return _sum_over_margins(variables, _each_alone(variables), len(variables) - 1, options)


def ksg1_from_radii(variables: Sequence[PointSet], radii: Tensor, options: Options) -> Tensor:
    """Return the values of `ksg1`, given the distances to the k-th neighbors in the joint space."""
    return _sum_within(radii, variables, _each_alone(variables), len(variables) - 1, options)


def ksg2(variables: Sequence[PointSet], options: Options) -> Tensor:
    """Return the values of Kraskov et al. 2004, eqs. 9 and 24."""
    reaches = _reaches(variables, options)
    like = reaches[0]
    margins = len(variables) - 1
    values = constant_term([psi(k) - margins / k for k in options.ks], margins, like.shape, variables[0], options)
    for variable, reach in zip(variables, reaches, strict=True):
        variable.backend.add_digamma(values, _count(variable, reach, options, inclusive=True), factor=-1.0)
    return values


def bi_ksg(variables: Sequence[PointSet], options: Options) -> Tensor:
    """Return the values of Gao, Oh and Viswanath 2018."""
    dims = [variable.dim for variable in variables]
    if max(dims) > BI_KSG_COLUMNS:
        _checks.warn(
            f"method 'bi-ksg' is for at most {BI_KSG_COLUMNS} columns in each variable, got {dims[0]} and {dims[1]}: "
            "it reads 1.7 nats from two independent normal variables of 10 columns; use method='ksg1' or 'ksg2'"
        )
    squares = _kth_distances(join(variables), options, metric="euclidean")
    note_tied(squares, options)
    volumes = sum(map(log_unit_ball, dims)) - log_unit_ball(sum(dims))
    values = _psi_k(options, squares) + num_samples(options, squares.device).log() + volumes
    for variable in variables:
        values = values - _count(variable, squares, options, inclusive=True, metric="euclidean").double().log()
    return values


def mixed(variables: Sequence[PointSet], options: Options) -> Tensor:
    """Return the values of Gao, Kannan, Oh and Viswanath 2017, for any number of variables."""
    joint = join(variables)
    radii = _kth_distances(joint, options)
    tied = radii == 0
    some_tied = backend_of(radii).maybe_any(tied)
    psi_k = _psi_k(options, radii).expand(radii.shape)
    if some_tied:
        psi_k = torch.where(tied, digamma(_count(joint, radii, options, inclusive=True) + 1), psi_k)
    values = psi_k + (len(variables) - 1) * num_samples(options, radii.device).log()
    for variable in variables:
        inside = _count(variable, radii, options)
        if some_tied:
            inside = torch.where(tied, _count(variable, radii, options, inclusive=True), inside)
        values = values - digamma(inside + 1)
    return values


def conditional_ksg1(variables: Sequence[PointSet], options: Options) -> Tensor:
    """Return the values of I(x; y | z) of Frenzel and Pompe 2007."""
    return _sum_over_margins(variables, [((2,), 1.0), ((0, 2), -1.0), ((1, 2), -1.0)], 0, options)


def conditional_ksg2(variables: Sequence[PointSet], options: Options) -> Tensor:
    """Return the values of I(x; y | z) of Lizier 2014, which counts within rectangles."""
    reaches = _reaches(variables, options)
    like = reaches[0]

    def count(*which: int) -> Tensor:
        groups = [group for group, i in enumerate(which) for _ in range(variables[i].dim)]
        radii = torch.stack([reaches[i] for i in which], -2)
        return _count(join([variables[i] for i in which]), radii, options, groups=groups, inclusive=True)

    nxz, nyz, nz = count(0, 2), count(1, 2), count(2)
    values = constant_term([psi(k) - 2 / k for k in options.ks], 0, like.shape, variables[0], options) + digamma(nz)
    return values - digamma(nxz) + 1 / nxz.double() - digamma(nyz) + 1 / nyz.double()


def conditional_mixed(variables: Sequence[PointSet], options: Options) -> Tensor:
    """Return the values of I(x; y | z) of Mesner and Shalizi 2021."""
    x, y, z = variables
    joint = join(variables)
    radii = _kth_distances(joint, options)
    values = digamma(_count(joint, radii, options, inclusive=True))
    for margin, sign in ((z, 1.0), (join([x, z]), -1.0), (join([y, z]), -1.0)):
        joint.backend.add_digamma(values, _count(margin, radii, options, inclusive=True), factor=sign)
    return values


TOTAL_CORRELATION: dict[str, LocalValues] = {
    "ksg1": ksg1,
    "ksg2": ksg2,
    "mixed": mixed,
    **cells.TOTAL_CORRELATION,
}
MUTUAL_INFORMATION: dict[str, LocalValues] = {**TOTAL_CORRELATION, "bi-ksg": bi_ksg}
CONDITIONAL: dict[str, LocalValues] = {
    "ksg1": conditional_ksg1,
    "ksg2": conditional_ksg2,
    "mixed": conditional_mixed,
    **cells.CONDITIONAL,
}


def join(variables: Sequence[PointSet]) -> PointSet:
    """Return the points of the joint space: all columns side by side, (*batch, N, D)."""
    batch = broadcast(*(variable.batch for variable in variables))
    return PointSet(variables[0].backend.concatenate([variable.expand(batch) for variable in variables]))


def _each_alone(variables: Sequence[PointSet]) -> list[Margin]:
    """Return the margins of the variables, whose digammas are subtracted."""
    return [((i,), -1.0) for i in range(len(variables))]


def _sum_over_margins(
    variables: Sequence[PointSet], margins: Sequence[Margin], num_psi_n: int, options: Options
) -> Tensor:
    """Return psi(k) + num_psi_n psi(N) + the sum over the margins of factor psi(n + 1).

    n counts the samples that are strictly nearer in the margin than the k-th neighbor in all variables.
    """
    first, *others = variables
    batch = first.batch
    if options.part == ALL and all(variable.batch == batch for variable in others):
        shape = (len(options.ks), *batch, first.num_points)
        values = constant_term([psi(k) for k in options.ks], num_psi_n, shape, first, options)
        tied = first.backend.add_margins(values, [variable.points for variable in variables], margins, options)
        if tied is not None:
            options.tied_shares.append(tied)
            return values
    radii = _kth_distances(join(variables), options)
    return _sum_within(radii, variables, margins, num_psi_n, options)


def _sum_within(
    radii: Tensor, variables: Sequence[PointSet], margins: Sequence[Margin], num_psi_n: int, options: Options
) -> Tensor:
    """Return the values of `_sum_over_margins`, given the distances to the k-th neighbors."""
    note_tied(radii, options)
    values = constant_term([psi(k) for k in options.ks], num_psi_n, radii.shape, variables[0], options)
    for which, factor in margins:
        margin = join([variables[i] for i in which]) if len(which) > 1 else variables[which[0]]
        margin.backend.add_digamma(values, _count(margin, radii, options), shift=1, factor=factor)
    return values


def _kth_distances(points: PointSet, options: Options, *, metric: Metric = "chebyshev") -> Tensor:
    """Return the distances to the k-th neighbors, (K, *batch, N); squared if Euclidean."""
    return points.search_kth(
        options.ks, metric=metric, exclude_within=options.exclude_within, rows=options.rows, part=options.part
    )


def _reaches(variables: Sequence[PointSet], options: Options) -> tuple[Tensor, ...]:
    """Return how far the k nearest neighbors in the joint space reach in each variable: (K, *batch, N) for each."""
    groups = [i for i, variable in enumerate(variables) for _ in range(variable.dim)]
    radii, reaches = join(variables).search_reaches(
        options.ks, groups, exclude_within=options.exclude_within, rows=options.rows, part=options.part
    )
    note_tied(radii, options)
    return reaches.unbind(1)


def _count(
    points: PointSet,
    radii: Tensor,
    options: Options,
    *,
    groups: Sequence[int] | None = None,
    inclusive: bool = False,
    metric: Metric = "chebyshev",
) -> Tensor:
    return points.count(
        radii,
        groups=groups,
        inclusive=inclusive,
        metric=metric,
        exclude_within=options.exclude_within,
        rows=options.rows,
        part=options.part,
    )


def _psi_k(options: Options, like: Tensor) -> Tensor:
    """Return psi(k), float64, shaped to broadcast with (K, *batch, N)."""
    each_k = constants([psi(k) for k in options.ks], torch.float64, like.device)
    return each_k.view(-1, *([1] * (like.ndim - 1)))


def constant_term(
    each_k: Sequence[float], num_psi_n: int, shape: Sequence[int], points: PointSet, options: Options
) -> Tensor:
    """Return one number for each k, plus num_psi_n psi(N), for all samples: float64 (K, *batch, N)."""
    device = points.points.device
    if num_psi_n == 0 or options.exclude_within == 0:
        return points.backend.fill([value + num_psi_n * psi(options.total) for value in each_k], shape, device)
    values = points.backend.fill(each_k, shape, device)
    return values.add_(torch.digamma(num_samples(options, device)), alpha=num_psi_n)


@lru_cache(1024)
def psi(n: int) -> float:
    """Return the digamma function of a number of samples or of neighbors."""
    return float(torch.digamma(torch.tensor(n, dtype=torch.float64, device="cpu")))


def num_samples(options: Options, device: torch.device) -> Tensor:
    """Return the effective number of samples: one more than each sample's possible neighbors, (N,) or (1,)."""
    if options.rows is not None:
        return count_neighbors_among(options.rows, options.exclude_within).double() + 1
    others = count_neighbors(options.total, options.exclude_within, device)
    return (others if others.numel() == 1 else others[options.part]) + 1
