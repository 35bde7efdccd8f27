"""Mutual information and its relatives by Kraskov, Stögbauer and Grassberger's method."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from echo_ext import _checks

from . import _gradient
from ._neighbours import (
    Cloud,
    add_digamma,
    as_cloud,
    boundary,
    constants,
    count,
    digamma,
    join,
    kth,
    on_cuda,
    points_of,
    search,
    spread,
)
from ._samples import ArrayLike, Estimate, Neighbours, Options, broadcast, read_options, read_samples
from .entropy import log_unit_ball

METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed")
KSG_METHODS = ("ksg1", "ksg2")
# How many neighbours on either side of a marginal ball's boundary the gradient looks at: more of them smooth the local
# direction, fewer are nearer to the boundary. The gradient changes little between 5 and 20.
BOUNDARY_WIDTH = 10

Variable: TypeAlias = Tensor | Cloud


def mutual_information(
    x: ArrayLike,
    y: ArrayLike,
    *,
    k: Neighbours = 3,
    method: str = "ksg1",
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
    boundary_width: int = BOUNDARY_WIDTH,
) -> Estimate:
    """Mutual information I(x; y) by nearest neighbours.

    Distances are Chebyshev ("bi-ksg": Euclidean), evaluated in the inputs' own precision on their values as they are:
    nothing is scaled, jittered or clipped, and an estimate near zero may be negative. N is the number of samples, nx
    the number of others that are near in x, and likewise ny.

    * "ksg1": ``psi(k) + psi(N) - <psi(nx + 1) + psi(ny + 1)>``, nx strictly nearer than the k-th neighbour in (x, y)
      (Kraskov et al. 2004, eq. 8). Where k or more others equal a sample, it counts nx = ny = 0.
    * "ksg2": ``psi(k) - 1/k + psi(N) - <psi(nx) + psi(ny)>``, nx no farther in x than the k neighbours reach (eq. 9).
      Of equally near neighbours, those with the lower index are among the k.
    * "bi-ksg": ``psi(k) + ln N + ln(c_dx c_dy / c_dxy) - <ln nx + ln ny>``, nx no farther than the k-th neighbour, c
      the volumes of unit balls (Gao, Oh and Viswanath 2018).
    * "mixed": ``psi(k) + ln N - <psi(nx + 1) + psi(ny + 1)>``, nx strictly nearer; where the k-th neighbour is at
      distance 0, all equal samples count, the sample itself among them, in place of k, nx + 1 and ny + 1. For variables
      that are partly discrete (Gao, Kannan, Oh and Viswanath 2017).

    Args:
        x, y: (..., N, d) with their own d, or (N,) for one column; float64 or float32, both tensors or both arrays.
            Leading dimensions are a batch of independent estimates; they broadcast.
        k: Number of neighbours, less than N; a sequence gives one more leading dimension, from one search.
        method: One of the above.
        unit: "nats" or "bits".
        local: Give the N values whose mean is the estimate, (..., N).
        exclude_within: Samples at most so many rows away are not neighbours (the Theiler window of time series). A
            sample with M neighbours left then has psi(M + 1), or ln(M + 1), for psi(N) or ln N.
        boundary_width: For the gradient, below.

    Returns:
        A float for one pair of arrays, else an array or a tensor (on the inputs' device) of shape (...). "ksg1" is
        differentiable: the estimate is a step function, and the gradient is that of its expectation, the flux of
        points through the boundary of each marginal ball, measured on the 2 * boundary_width + 1 points whose rank is
        nearest to the boundary. The other methods raise in the backward pass.

    Raises:
        TypeError: Inputs that are not float64 or float32, or not one dtype; k that is not an int or ints.
        ValueError: Values that are not finite (how many, where the first); different N; batches that do not broadcast;
            k or exclude_within that leave too few neighbours; an unknown method or unit.
    """
    samples = read_samples(x=x, y=y)
    options = read_options(samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within)
    _checks.choice("method", method, METHODS)
    boundary_width = _checks.whole("boundary_width", boundary_width, minimum=1)
    variables = list(samples.variables)
    if method == "ksg1" and _gradient.wanted(*variables):
        values = _ksg1_with_gradient(variables, options, boundary_width)
    else:
        values = _gradient.attach_none(ESTIMATES[method](variables, options), f"method {method!r}", *variables)
    return options.finish(samples, values)


def total_correlation(
    x: ArrayLike,
    *,
    k: Neighbours = 3,
    method: str = "ksg1",
    groups: Sequence[Sequence[int]] | None = None,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Total correlation (multi-information) of the columns of x (Kraskov et al. 2004, eqs. 23 and 24).

    * "ksg1": ``psi(k) + (m - 1) psi(N) - <sum psi(n_i + 1)>`` over the m variables.
    * "ksg2": ``psi(k) - (m - 1) / k + (m - 1) psi(N) - <sum psi(n_i)>``.

    Args:
        x: (..., N, m), float64 or float32, tensor or array.
        groups: Sets of columns, each of which is one variable, for example [[0, 1], [2]]; by default each is one.
        k, method, unit, local, exclude_within: As in `mutual_information`.

    Returns:
        A float for one array, else an array or a tensor of shape (...).

    Raises:
        TypeError, ValueError: As in `mutual_information`; groups that are not two or more disjoint sets of columns.
    """
    samples = read_samples(x=x)
    options = read_options(samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within)
    _checks.choice("method", method, KSG_METHODS)
    (points,) = samples.variables
    variables = [points[..., list(group)] for group in _read_groups(groups, points.shape[-1])]
    values = _ksg1(variables, options) if method == "ksg1" else _ksg2(variables, options)
    return options.finish(samples, _gradient.attach_none(values, "total_correlation", points))


def conditional_mutual_information(
    x: ArrayLike,
    y: ArrayLike,
    z: ArrayLike,
    *,
    k: Neighbours = 3,
    method: str = "ksg1",
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Conditional mutual information I(x; y | z) (Frenzel and Pompe 2007).

    * "ksg1": ``psi(k) + <psi(nz + 1) - psi(nxz + 1) - psi(nyz + 1)>``, counts strictly nearer than the k-th neighbour.
    * "ksg2": ``psi(k) - 2/k + <psi(nz) - psi(nxz) + 1/nxz - psi(nyz) + 1/nyz>``, counts no farther in each of x, y
      and z than the k neighbours reach there (Lizier 2014).

    No N appears, so that ``exclude_within`` changes neighbours and counts only.

    Args:
        x, y, z: As x and y in `mutual_information`; their batches broadcast.
        k, unit, local, exclude_within: As in `mutual_information`.
        method: "ksg1" or "ksg2".

    Returns:
        A float for arrays without a batch, else an array or a tensor of shape (...).

    Raises:
        TypeError, ValueError: As in `mutual_information`.
    """
    samples = read_samples(x=x, y=y, z=z)
    options = read_options(samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within)
    _checks.choice("method", method, KSG_METHODS)
    variables = list(samples.variables)
    values = _conditional(variables, options) if method == "ksg1" else _conditional_by_rectangles(variables, options)
    return options.finish(samples, _gradient.attach_none(values, "conditional_mutual_information", *variables))


def _read_groups(groups: Sequence[Sequence[int]] | None, dim: int) -> list[list[int]]:
    try:
        read = [[c] for c in range(dim)] if groups is None else [[operator.index(c) for c in group] for group in groups]
    except TypeError:
        raise TypeError(f"groups must be sequences of column numbers, got {_checks.brief(groups)}") from None
    columns = [c % dim if -dim <= c < dim else dim for group in read for c in group]
    if any(c == dim for c in columns):
        raise ValueError(f"groups must name columns of x, 0 to {dim - 1}, got {_checks.brief(groups)}")
    if len(read) < 2 or not all(read) or len(set(columns)) != len(columns):
        given = f"are {_checks.brief(groups)}" if groups is not None else f"x has {dim} column"
        raise ValueError(f"groups must be two or more disjoint sets of columns, but {given}")
    return read


def _join(variables: Sequence[Variable]) -> Tensor:
    """All columns side by side, (*batch, N, D)."""
    points = [points_of(v).detach() for v in variables]
    batch = broadcast(*(p.shape[:-2] for p in points))
    return join([p.expand(*batch, *p.shape[-2:]) for p in points])


def _psi_k(options: Options, like: Tensor) -> Tensor:
    """psi(k), shaped to broadcast with (K, *batch, N)."""
    return torch.digamma(_k(options, like))


def _k(options: Options, like: Tensor) -> Tensor:
    ks = constants(options.ks, torch.float64, like.device)
    return ks.view(-1, *([1] * (like.ndim - 1)))


def _available(options: Options, like: Tensor) -> Tensor:
    """What stands for N: one more than each sample's possible neighbours, (N,) or (1,) for all alike."""
    others = options.others(options.total, like.device)
    return (others if others.numel() == 1 else others[options.part]) + 1


def _ksg1_from_radii(variables: Sequence[Variable], eps: Tensor, options: Options) -> Tensor:
    constant = _psi_k(options, eps) + (len(variables) - 1) * torch.digamma(_available(options, eps))
    values = spread(constant, eps.shape)
    for variable in variables:
        near = count(variable, eps, exclude_within=options.exclude_within, part=options.part)
        add_digamma(values, near, shift=1, factor=-1.0)
    return values


def _ksg1(variables: Sequence[Variable], options: Options) -> Tensor:
    distances, _ = search(_join(variables), max(options.ks), exclude_within=options.exclude_within, part=options.part)
    return _ksg1_from_radii(variables, kth(distances, options.ks), options)


def _ksg1_with_gradient(variables: list[Tensor], options: Options, width: int) -> Tensor:
    joint = _join(variables)
    batch = joint.shape[:-2]
    distances, indices = search(joint, max(options.ks), exclude_within=options.exclude_within, indices=True)
    assert indices is not None
    eps, nearest = kth(distances, options.ks), kth(indices, options.ks)
    full = [v.detach().expand(*batch, *v.shape[-2:]) for v in variables]

    def flux(margins: list[Cloud], grad: Tensor, radii: Tensor, nearest: Tensor) -> list[Tensor]:
        """The gradient of one k's values: what the boundary of each ball gains or loses as points move."""
        density = torch.where(radii > 0, grad.to(radii.dtype) / radii, 0.0)
        own = -joint.shape[-1] * density.unsqueeze(-1)
        pull = _gradient.pull_back_distances(joint, nearest.unsqueeze(-1), own)
        parts = list(torch.split(pull, [v.shape[-1] for v in full], -1))
        for i, margin in enumerate(margins):
            near = boundary(margin, radii, nearest, width=width, exclude_within=options.exclude_within)
            there = near >= 0
            share = margin.points.shape[-1] * density / there.sum(-1).clamp(min=1)
            weights = share.unsqueeze(-1) * there
            parts[i] = parts[i] + _gradient.pull_back_distances(margin.points, near.clamp(min=0), weights)
        return parts

    def backward(grad: Tensor) -> tuple[Tensor, ...]:
        margins = [Cloud(v) for v in full]
        each = [flux(margins, *one) for one in zip(grad, eps, nearest, strict=True)]
        return tuple(
            torch.stack(parts).sum(0).sum_to_size(variable.shape).to(variable.dtype)
            for variable, parts in zip(variables, zip(*each, strict=True), strict=True)
        )

    return _gradient.attach(_ksg1_from_radii(variables, eps, options), backward, *variables)


def _reaches(variables: Sequence[Variable], options: Options) -> list[Tensor]:
    """How far the k nearest in the joint space reach in each variable: (K, *batch, N) for each."""
    joint = _join(variables)
    batch, n = joint.shape[:-2], joint.shape[-2]
    _, indices = search(joint, max(options.ks), exclude_within=options.exclude_within, indices=True, part=options.part)
    assert indices is not None
    index = indices.flatten(0, -3) if batch else indices.unsqueeze(0)
    item = torch.arange(index.shape[0], device=index.device).view(-1, 1, 1)
    reaches = []
    for points in map(points_of, variables):
        points = points.detach().expand(*batch, *points.shape[-2:]).reshape(index.shape[0], n, points.shape[-1])
        reach = (points[item, index] - points[:, options.part].unsqueeze(2)).abs().amax(-1).cummax(-1).values
        reaches.append(kth(reach.view(indices.shape), options.ks))
    return reaches


def _ksg2(variables: Sequence[Variable], options: Options) -> Tensor:
    reaches = _reaches(variables, options)
    like = reaches[0]
    margins = len(variables) - 1
    constant = _psi_k(options, like) - margins / _k(options, like) + margins * torch.digamma(_available(options, like))
    values = spread(constant, like.shape)
    for variable, reach in zip(variables, reaches, strict=True):
        inside = count(variable, reach, inclusive=True, exclude_within=options.exclude_within, part=options.part)
        add_digamma(values, inside, factor=-1.0)
    return values


def _bi_ksg(variables: Sequence[Variable], options: Options) -> Tensor:
    x, y = variables
    distances, _ = search(
        _join(variables), max(options.ks), euclidean=True, exclude_within=options.exclude_within, part=options.part
    )
    squares = kth(distances, options.ks)
    dims = [points_of(v).shape[-1] for v in variables]
    volumes = sum(map(log_unit_ball, dims)) - log_unit_ball(sum(dims))
    values = _psi_k(options, squares) + _available(options, squares).log() + volumes
    for variable in (x, y):
        inside = count(
            variable, squares, inclusive=True, euclidean=True, exclude_within=options.exclude_within, part=options.part
        )
        values = values - inside.double().log()
    return values


def _mixed(variables: Sequence[Variable], options: Options) -> Tensor:
    joint = Cloud(_join(variables))
    w = options.exclude_within
    distances, _ = search(joint, max(options.ks), exclude_within=w, part=options.part)
    eps = kth(distances, options.ks)
    tied = eps == 0
    psi_k = _psi_k(options, eps).expand(eps.shape)
    some_tied = on_cuda(eps) or bool(tied.any())  # to ask a GPU would be to wait for it
    if some_tied:
        psi_k = torch.where(
            tied, digamma(count(joint, eps, inclusive=True, exclude_within=w, part=options.part) + 1), psi_k
        )
    values = psi_k + _available(options, eps).log()
    for variable in map(as_cloud, variables):
        inside = count(variable, eps, exclude_within=w, part=options.part)
        if some_tied:
            inside = torch.where(
                tied, count(variable, eps, inclusive=True, exclude_within=w, part=options.part), inside
            )
        values = values - digamma(inside + 1)
    return values


def _conditional(variables: Sequence[Tensor], options: Options) -> Tensor:
    x, y, z = variables
    distances, _ = search(_join(variables), max(options.ks), exclude_within=options.exclude_within)
    eps = kth(distances, options.ks)
    values = spread(_psi_k(options, eps), eps.shape)
    for margin, sign in ((z, 1.0), (_join([x, z]), -1.0), (_join([y, z]), -1.0)):
        near = count(margin, eps, exclude_within=options.exclude_within)
        add_digamma(values, near, shift=1, factor=sign)
    return values


def _conditional_by_rectangles(variables: Sequence[Tensor], options: Options) -> Tensor:
    reaches = _reaches(variables, options)
    like = reaches[0]

    def counted(*which: int) -> Tensor:
        columns = [variables[i].shape[-1] for i in which]
        groups = [g for g, columns_of_g in enumerate(columns) for _ in range(columns_of_g)]
        radii = torch.stack([reaches[i] for i in which], -2)
        points = _join([variables[i] for i in which])
        return count(points, radii, groups=groups, inclusive=True, exclude_within=options.exclude_within)

    nxz, nyz, nz = counted(0, 2), counted(1, 2), counted(2)
    values = _psi_k(options, like) - 2 / _k(options, like) + digamma(nz)
    return values - digamma(nxz) + 1 / nxz.double() - digamma(nyz) + 1 / nyz.double()


# Each method's local values, (K, *batch, N), of two variables.
ESTIMATES = {"ksg1": _ksg1, "ksg2": _ksg2, "bi-ksg": _bi_ksg, "mixed": _mixed}
