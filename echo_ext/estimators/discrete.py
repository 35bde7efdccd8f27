"""Mutual information between a continuous variable and discrete labels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias, overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext._native import constants
from echo_ext._types import Array, Estimate, Labels, NanPolicy, NumNeighbors, TensorOrArray, Transform, Unit
from echo_ext.estimators import gradients
from echo_ext.estimators._backend import backend_of, digamma
from echo_ext.estimators.cells import join_cells, number_cells
from echo_ext.estimators.evaluation import ADD_NOISE, evaluate, reduce_local_values
from echo_ext.estimators.labels import read_labels
from echo_ext.estimators.neighbors import PointSet, count_neighbors_among
from echo_ext.estimators.options import Options, read_options
from echo_ext.estimators.samples import (
    Samples,
    broadcast,
    broadcast_batches,
    merge_missing,
    read_samples,
)
from echo_ext.estimators.tables import is_table

__all__ = [
    "LabelGroup",
    "RossCounts",
    "count_by_ross",
    "group_labels",
    "mutual_information_discrete",
    "read_classes",
    "read_conditions",
]


@overload
def mutual_information_discrete(
    x: Tensor,
    labels: Labels,
    given: Labels | None = None,
    *,
    k: NumNeighbors = 3,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Tensor: ...
@overload
def mutual_information_discrete(
    x: npt.ArrayLike,
    labels: Labels,
    given: Labels | None = None,
    *,
    k: NumNeighbors = 3,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array | float: ...
def mutual_information_discrete(
    x: TensorOrArray,
    labels: Labels,
    given: Labels | None = None,
    *,
    k: NumNeighbors = 3,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Estimate:
    """Estimate the mutual information between x and discrete labels from nearest neighbors (Ross 2014, equation 1).

    ``psi(N) + <psi(k_i)> - <psi(N_i)> - <psi(m_i + 1)>``, where N_i samples have the label of sample i,
    k_i = min(k, N_i - 1), and m_i other samples, of any label, are strictly nearer than the k_i-th neighbor of the same
    label (Chebyshev). A sample whose label occurs once has no such neighbor; it is left out of the whole estimate. With
    ``exclude_within``, the numbers of neighbors that are left to sample i, plus one, replace N and N_i, so that each
    sample has a k_i of its own.

    With conditions, ``given``, samples whose conditions are equal are a stratum. The estimate is made among the samples
    of each stratum, and the mean over the strata is weighted by the numbers of samples that are not left out: a stratum
    in which no label occurs twice has no weight.

    x is continuous: where many of its values are equal, the estimate is too large. If x has few distinct values, use
    :func:`mutual_information` with ``method="mixed", discrete_y=True``; to rounded numbers and large counts add uniform
    noise as wide as the grid.

    Args:
        x: (..., N, d), or (N,) for one column, of any kind that :func:`mutual_information` reads.
        labels: (..., N): integers, booleans, strings, whole numbers or hashable objects; a tensor, an array, a list or
            a column of a table, such as a pandas Series of strings or categories.
        given: Discrete conditions, for an estimate of I(x; labels | given): labels (..., N), or several columns of
            them, (N, c). For continuous conditions there is :func:`conditional_mutual_information`
            with ``method="mixed", discrete_y=True``.
        k: The number of neighbors of the same label, less than N; a label with fewer samples uses all of them. A
            larger k reduces the variance of the estimate and increases its bias.
        unit, local, exclude_within, transform: As in :func:`mutual_information`. Local values are NaN where a sample is
            left out. Labels are not transformed.
        nan_policy: "raise", or "omit" to leave out the rows in which x is NaN or the label is missing (NaN, None or
            pandas' NA).

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...). It has no gradient.

    Raises:
        TypeError: x does not hold numbers, or the labels are not hashable.
        ValueError: Values are not finite; labels are missing (None or NaN; the error says how many) or not whole
            numbers; the numbers of labels and of samples differ; no label occurs twice; k or exclude_within leave too
            few neighbors.

    Warns:
        DegenerateDataWarning: More than 5 % of the samples equal k others of their label.
        UserWarning: x has more columns than rows and no batch.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information_discrete
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, 1000)
        >>> x = labels + 0.1 * rng.standard_normal(1000)  # x tells the label, which has ln(2) = 0.69 nats
        >>> round(mutual_information_discrete(x, labels), 2)
        0.69
    """
    samples = read_samples(nan_policy=nan_policy, warn_if_wide=True, x=x)
    options = read_options(
        samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within, transform=transform
    )
    (points,) = samples.variables
    n = samples.count
    codes = {"labels": read_classes(labels, nan_policy)}
    if given is not None:
        codes["given"] = read_conditions(given, n, nan_policy)
    for name, (code, _) in codes.items():
        if code.shape[-1] != n:
            raise ValueError(f"x and {name} must have the same number of samples, got {n} and {code.shape[-1]}")
    broadcast_batches(x=points.shape[:-2], **{name: code.shape[:-1] for name, (code, _) in codes.items()})
    missing = [None if each is None else each.to(points.device) for _, each in codes.values()]
    samples = Samples(
        (points, *(code.to(points.device).unsqueeze(-1) for code, _ in codes.values())),
        ("x", *codes),
        samples.are_arrays,
        merge_missing(samples.missing, *missing),
    )
    remedy = (
        "x is not continuous; for few distinct values use mutual_information with method='mixed' and "
        f"discrete_y=True, and {ADD_NOISE}"
    )
    values = evaluate(_local_values_of_batch, samples, options, remedy=remedy)
    if not local:  # the mean over those that are not left out
        values = values.nanmean(-1, keepdim=True)
    values = gradients.without_gradient(values, "mutual_information_discrete", points)
    return reduce_local_values(values, samples, options)


# ---- The estimator ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelGroup:
    """The samples that share a label.

    Attributes:
        rows: Their places among the samples, which ascend.
        numbers: Their row numbers, which the Theiler window refers to.
        others: How many of the other samples are neighbors of each.
        fewest, most: The smallest and the largest of these numbers.
    """

    rows: Tensor
    numbers: Tensor
    others: Tensor
    fewest: int
    most: int


@dataclass(frozen=True)
class RossCounts:
    """The numbers of which Ross's estimate is made, of the M samples whose label is not unique.

    Attributes:
        rows: Their places among the samples, which ascend: (M,).
        numbers: Their row numbers, which the Theiler window refers to: (M,).
        own_others: How many of these samples with its own label are neighbors of each: (M,).
        own_k: The number of neighbors of its own label that determine the radius: (K, M).
        radii: The distance to the last of these: (K, *batch, M).
        nearer: How many samples of any label are strictly nearer than the radius: (K, *batch, M).
    """

    rows: Tensor
    numbers: Tensor
    own_others: Tensor
    own_k: Tensor
    radii: Tensor
    nearer: Tensor


# From points (*batch, M, d) and k to the distances (*batch, M, k) from each point to its k nearest, ascending.
SearchDistances: TypeAlias = Callable[[Tensor, int], Tensor]


def group_labels(labels: Tensor, exclude_within: int = 0, numbers: Tensor | None = None) -> list[LabelGroup]:
    """Return the samples of each label that occurs more than once.

    The host waits for the sizes of the groups, which decide what is launched.

    Args:
        labels: int64 (N,).
        exclude_within: The Theiler window.
        numbers: The row numbers that it refers to, which ascend; None stands for 0, 1, 2, ...
    """
    ordered, order = torch.sort(labels, stable=True)
    sizes = torch.unique_consecutive(ordered, return_counts=True)[1]
    rows_of = [rows for rows in torch.split(order, sizes.tolist()) if len(rows) > 1]
    numbers_of = rows_of if numbers is None else [numbers[rows] for rows in rows_of]
    others = [count_neighbors_among(each, exclude_within) for each in numbers_of]
    if exclude_within == 0:
        fewest = most = [len(rows) - 1 for rows in rows_of]
    elif others:
        fewest, most = torch.stack([torch.stack(each.aminmax()) for each in others]).T.tolist()
    else:
        fewest = most = []
    return [LabelGroup(*each) for each in zip(rows_of, numbers_of, others, fewest, most, strict=True)]


def count_by_ross(
    points: Tensor,
    groups: Sequence[LabelGroup],
    ks: Sequence[int],
    *,
    exclude_within: int = 0,
    numbers: Tensor | None = None,
    search: SearchDistances | None = None,
) -> RossCounts:
    """Count what Ross's estimate is made of.

    Args:
        points: (*batch, N, d).
        groups: The samples of each label, at least one group.
        ks: The numbers of neighbors; a sample with fewer of its own label uses all of them.
        exclude_within: The Theiler window.
        numbers: The row numbers that it refers to, as for `group_labels`.
        search: What searches the neighbors of the same label, in the place of the package's own search.
    """
    radii = []
    for group in groups:
        alike, k = points[..., group.rows, :], min(max(ks), group.most)
        if search is None:
            found = PointSet(alike).search_distances(k, exclude_within=exclude_within, rows=group.numbers)
        else:
            found = search(alike, k)
        radii.append(_radii(found, group, ks))
    rows, order = torch.cat([group.rows for group in groups]).sort()
    own_others = torch.cat([group.others for group in groups])[order]
    own_k = torch.minimum(constants(ks, torch.int64, points.device).unsqueeze(-1), own_others)
    radius_of_rows = torch.cat(radii, -1)[..., order]
    kept = points if len(rows) == points.shape[-2] else points[..., rows, :]
    numbers = rows if numbers is None else numbers[rows]
    nearer = PointSet(kept).count(radius_of_rows, exclude_within=exclude_within, rows=numbers)
    return RossCounts(rows, numbers, own_others, own_k, radius_of_rows, nearer)


def _radii(distances: Tensor, group: LabelGroup, ks: Sequence[int]) -> Tensor:
    """Select each sample's distance to its k-th neighbor, or to its last: (K, *batch, M) from (*batch, M, k)."""
    if group.fewest == group.most:
        return backend_of(distances).select_kth(distances, [min(k, group.most) for k in ks])
    k_of_each = torch.minimum(constants(ks, torch.int64, distances.device).unsqueeze(-1), group.others)
    place = (k_of_each - 1).view(len(ks), *([1] * (distances.ndim - 2)), -1).expand(len(ks), *distances.shape[:-1])
    return distances.movedim(-1, 0).gather(0, place)


def _local_values_of_batch(variables: Sequence[Tensor], options: Options) -> Tensor:
    """Return the local values (K, *batch, N) of points (*batch, N, d), labels (*batch, N, 1) and perhaps conditions."""
    points, *codes = variables
    batch, n = broadcast(*(v.shape[:-2] for v in variables)), points.shape[-2]
    each_x = points.detach().expand(*batch, *points.shape[-2:]).reshape(-1, *points.shape[-2:])
    each_code = [code.expand(*batch, n, 1).reshape(-1, n) for code in codes]
    grouped = [_read_groups(options, label, *others) for label, *others in zip(*each_code, strict=True)]
    values = [_local_values(one, strata, options) for one, strata in zip(each_x, grouped, strict=True)]
    stacked = torch.stack(values, 1) if values else points.new_empty((len(options.ks), 0, n)).double()
    return stacked.reshape(len(options.ks), *batch, n)


def _local_values(points: Tensor, strata: Sequence[Sequence[LabelGroup]], options: Options) -> Tensor:
    """Return the local values (K, N) of points (N, d), NaN where a label is unique in its stratum."""
    values = torch.full((len(options.ks), len(points)), torch.nan, dtype=torch.float64, device=points.device)
    num_tied = values.new_zeros(len(options.ks))
    for groups in strata:
        counts = count_by_ross(points, groups, options.ks, exclude_within=options.exclude_within, numbers=options.rows)
        others = count_neighbors_among(counts.numbers, options.exclude_within)
        psi_all, psi_own = (torch.digamma(each.double() + 1) for each in (others, counts.own_others))
        psi_k = torch.digamma(counts.own_k.double())
        num_tied += (counts.radii == 0).sum(-1)
        values[:, counts.rows] = psi_all + psi_k - psi_own - digamma(counts.nearer + 1)
    options.tied_shares.append(num_tied / sum(len(group.rows) for groups in strata for group in groups))
    return values


# ---- Labels ----------------------------------------------------------------------------------------------------------


def _read_groups(options: Options, labels: Tensor, given: Tensor | None = None) -> list[list[LabelGroup]]:
    """Group labels, int64 (N,), within each stratum of ``given``, and refuse those that leave nothing to estimate from.

    Returns:
        The groups of each stratum that has any.
    """
    window = options.exclude_within
    if given is None:
        strata = [group_labels(labels, window, options.rows)]
    else:
        stratum, label = number_cells(given), number_cells(labels)
        groups = group_labels(stratum * len(labels) + label, window, options.rows)
        firsts = stratum[torch.stack([group.rows[0] for group in groups])].tolist() if groups else []
        strata = [
            [group for _, group in pairs]
            for _, pairs in groupby(zip(firsts, groups, strict=True), key=operator.itemgetter(0))
        ]
    if not any(strata):
        where = "" if given is None else " where given is equal"
        raise ValueError(f"labels must repeat{where}, but every one of them occurs once; are they continuous?")
    if min(group.fewest for groups in strata for group in groups) < 1:
        raise ValueError(f"exclude_within={window} leaves a sample without a neighbor of its own label")
    return strata


def read_classes(labels: object, nan_policy: NanPolicy) -> tuple[Tensor, Tensor | None]:
    """Return the labels of the samples, int64 (..., N), and which are missing."""
    return read_labels("labels", labels, "mutual_information", nan_policy)


def read_conditions(given: object, n: int, nan_policy: NanPolicy) -> tuple[Tensor, Tensor | None]:
    """Return the conditions as one label of each sample, int64 (..., N), and which are missing."""
    continuous = "conditional_mutual_information(method='mixed', discrete_y=True)"
    if is_table(given):
        columns = [read_labels("given", given.iloc[:, i], continuous, nan_policy) for i in range(given.shape[1])]
    else:
        codes, missing = read_labels("given", given, continuous, nan_policy)
        if codes.ndim != 2 or codes.shape[0] != n or codes.shape[1] == n:
            return codes, missing
        absent = [None] * codes.shape[1] if missing is None else missing.unbind(-1)
        columns = list(zip(codes.unbind(-1), absent, strict=True))
    if not columns:
        raise ValueError("given must have at least one column, got none")
    joined = join_cells([number_cells(column) for column, _ in columns])
    return joined, merge_missing(*(missing for _, missing in columns))
