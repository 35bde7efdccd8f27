"""Mutual information between a continuous variable and discrete labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext._types import Array, Estimate, NumNeighbors, TensorOrArray, Unit
from echo_ext.estimators import gradients
from echo_ext.estimators._backend import backend_of, constants, digamma
from echo_ext.estimators.neighbors import PointSet, count_neighbors_among
from echo_ext.estimators.samples import (
    Options,
    broadcast_batches,
    check_finite,
    read_array,
    read_options,
    read_samples,
    read_tensor,
    reduce_local_values,
)

__all__ = ["LabelGroup", "RossCounts", "count_by_ross", "group_labels", "mutual_information_discrete"]


@overload
def mutual_information_discrete(
    x: Tensor,
    labels: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Tensor: ...
@overload
def mutual_information_discrete(
    x: npt.ArrayLike,
    labels: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Array | float: ...
def mutual_information_discrete(
    x: TensorOrArray,
    labels: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Estimate the mutual information between x and discrete labels from nearest neighbors (Ross 2014, eq. 1).

    ``psi(N) + <psi(k_i)> - <psi(N_i)> - <psi(m_i + 1)>``, where N_i samples have the label of sample i,
    k_i = min(k, N_i - 1), and m_i other samples, of any label, are strictly nearer than the k_i-th neighbor of the same
    label (Chebyshev). A sample whose label occurs once has no such neighbor; it is left out of the whole estimate. With
    ``exclude_within``, the numbers of neighbors that are left to sample i, plus one, replace N and N_i, so that each
    sample has a k_i of its own.

    Args:
        x: (..., N, d), or (N,) for one column; float64 or float32, tensor or array.
        labels: (..., N): integers, booleans, strings or whole numbers; tensor or array.
        k: The number of neighbors of the same label, less than N; a label with fewer samples uses all of them. A
            larger k reduces the variance of the estimate and increases its bias.
        unit, local, exclude_within: As in :func:`mutual_information`. Local values are NaN where a sample is left out.

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...). It has no gradient.

    Raises:
        TypeError: x is not float64 or float32; the labels are objects.
        ValueError: Values are not finite; labels are not whole numbers; the numbers of labels and of samples differ; no
            label occurs twice; k or exclude_within leave too few neighbors.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information_discrete
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, 1000)
        >>> x = labels + 0.1 * rng.standard_normal(1000)  # x tells the label, which has ln(2) = 0.69 nats
        >>> round(mutual_information_discrete(x, labels), 2)
        0.69
    """
    samples = read_samples(x=x)
    options = read_options(samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within)
    (points,) = samples.variables
    codes = _read_labels(labels)
    n = samples.count
    if codes.shape[-1] != n:
        raise ValueError(f"x and labels must have the same number of samples, got {n} and {codes.shape[-1]}")
    batch = broadcast_batches(x=points.shape[:-2], labels=codes.shape[:-1])
    each_x = points.detach().expand(*batch, *points.shape[-2:]).reshape(-1, *points.shape[-2:])
    each_label = codes.expand(*batch, n).reshape(-1, n).to(points.device)
    grouped = [_read_groups(label, exclude_within) for label in each_label]
    local_values = [_local_values(one, groups, options) for one, groups in zip(each_x, grouped, strict=True)]
    values = torch.stack(local_values, 1) if local_values else points.new_empty((len(options.ks), 0, n)).double()
    values = values.reshape(len(options.ks), *batch, n)
    if not local:  # the mean over those that are not left out
        values = values.nanmean(-1, keepdim=True)
    values = gradients.without_gradient(values, "mutual_information_discrete", points)
    return reduce_local_values(values, samples, options)


# ---- The estimator ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelGroup:
    """The samples that share a label.

    Attributes:
        rows: Their row numbers, which ascend.
        others: How many of the other samples are neighbors of each.
        fewest, most: The smallest and the largest of these numbers.
    """

    rows: Tensor
    others: Tensor
    fewest: int
    most: int


@dataclass(frozen=True)
class RossCounts:
    """The numbers of which Ross's estimate is made, of the M samples whose label is not unique.

    Attributes:
        rows: Their row numbers, which ascend: (M,).
        own_others: How many of these samples with its own label are neighbors of each: (M,).
        own_k: The number of neighbors of its own label that determine the radius: (K, M).
        nearer: How many samples of any label are strictly nearer than the last of these: (K, *batch, M).
    """

    rows: Tensor
    own_others: Tensor
    own_k: Tensor
    nearer: Tensor


# From points (*batch, M, d) and k to the distances (*batch, M, k) from each point to its k nearest, ascending.
SearchDistances: TypeAlias = Callable[[Tensor, int], Tensor]


def group_labels(labels: Tensor, exclude_within: int = 0) -> list[LabelGroup]:
    """Return the samples of each label that occurs more than once.

    The host waits for the sizes of the groups, which decide what is launched.

    Args:
        labels: int64 (N,).
        exclude_within: The Theiler window.
    """
    ordered, order = torch.sort(labels, stable=True)
    sizes = torch.unique_consecutive(ordered, return_counts=True)[1]
    rows_of = [rows for rows in torch.split(order, sizes.tolist()) if len(rows) > 1]
    others = [count_neighbors_among(rows, exclude_within) for rows in rows_of]
    if exclude_within == 0:
        fewest = most = [len(rows) - 1 for rows in rows_of]
    elif others:
        fewest, most = torch.stack([torch.stack(each.aminmax()) for each in others]).T.tolist()
    else:
        fewest = most = []
    return [LabelGroup(*each) for each in zip(rows_of, others, fewest, most, strict=True)]


def count_by_ross(
    points: Tensor,
    groups: Sequence[LabelGroup],
    ks: Sequence[int],
    *,
    exclude_within: int = 0,
    search: SearchDistances | None = None,
) -> RossCounts:
    """Count what Ross's estimate is made of.

    Args:
        points: (*batch, N, d).
        groups: The samples of each label, at least one group.
        ks: The numbers of neighbors; a sample with fewer of its own label uses all of them.
        exclude_within: The Theiler window.
        search: What searches the neighbors of the same label, in the place of the package's own search.
    """
    radii = []
    for group in groups:
        alike, k = points[..., group.rows, :], min(max(ks), group.most)
        if search is None:
            found = PointSet(alike).search_distances(k, exclude_within=exclude_within, rows=group.rows)
        else:
            found = search(alike, k)
        radii.append(_radii(found, group, ks))
    rows, order = torch.cat([group.rows for group in groups]).sort()
    own_others = torch.cat([group.others for group in groups])[order]
    own_k = torch.minimum(constants(ks, torch.int64, points.device).unsqueeze(-1), own_others)
    radius_of_rows = torch.cat(radii, -1)[..., order]
    kept = points if len(rows) == points.shape[-2] else points[..., rows, :]
    nearer = PointSet(kept).count(radius_of_rows, exclude_within=exclude_within, rows=rows)
    return RossCounts(rows, own_others, own_k, nearer)


def _radii(distances: Tensor, group: LabelGroup, ks: Sequence[int]) -> Tensor:
    """Select each sample's distance to its k-th neighbor, or to its last: (K, *batch, M) from (*batch, M, k)."""
    if group.fewest == group.most:
        return backend_of(distances).select_kth(distances, [min(k, group.most) for k in ks])
    k_of_each = torch.minimum(constants(ks, torch.int64, distances.device).unsqueeze(-1), group.others)
    place = (k_of_each - 1).view(len(ks), *([1] * (distances.ndim - 2)), -1).expand(len(ks), *distances.shape[:-1])
    return distances.movedim(-1, 0).gather(0, place)


def _local_values(points: Tensor, groups: Sequence[LabelGroup], options: Options) -> Tensor:
    """Return the local values (K, N) of points (N, d), NaN where a label is unique."""
    counts = count_by_ross(points, groups, options.ks, exclude_within=options.exclude_within)
    others = count_neighbors_among(counts.rows, options.exclude_within)
    psi_all, psi_own = (torch.digamma(each.double() + 1) for each in (others, counts.own_others))
    psi_k = torch.digamma(counts.own_k.double())
    values = torch.full((len(options.ks), len(points)), torch.nan, dtype=torch.float64, device=points.device)
    values[:, counts.rows] = psi_all + psi_k - psi_own - digamma(counts.nearer + 1)
    return values


# ---- Labels ----------------------------------------------------------------------------------------------------------


def _read_labels(labels: object) -> Tensor:
    """Return labels as int64 codes, (..., N)."""
    if isinstance(labels, Tensor):
        tensor = read_tensor("labels", labels.detach())
    else:
        array = read_array("labels", labels)
        if array.dtype.kind not in "biufUS" or array.dtype == np.longdouble:
            raise TypeError(f"labels must be integers, booleans or strings, got dtype {array.dtype}")
        if array.dtype.kind in "US":
            array = np.unique(array, return_inverse=True)[1].reshape(array.shape)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if tensor.ndim == 0:
        raise ValueError("labels must have shape (..., N), got a single one")
    if tensor.is_floating_point():
        tensor = tensor.double()
        check_finite("labels", tensor, tuple(tensor.shape))
        split = tensor != tensor.round()
        if bool(split.any()):
            raise ValueError(
                f"labels must be discrete, but {int(split.sum())} are not whole numbers, "
                f"the first {float(tensor[split][0]):g}; for continuous variables there is mutual_information"
            )
        tensor = torch.unique(tensor, return_inverse=True)[1]  # codes, since int64 does not hold every float
    elif tensor.is_complex():
        raise TypeError(f"labels must be integers, booleans or strings, got {tensor.dtype}")
    return tensor.to(torch.int64)  # unsigned labels beyond int64 wrap around, and stay different


def _read_groups(labels: Tensor, exclude_within: int) -> list[LabelGroup]:
    """Group labels, int64 (N,), and refuse those that leave nothing to estimate from."""
    groups = group_labels(labels, exclude_within)
    if not groups:
        raise ValueError("labels must repeat, but every one of them occurs once; are they continuous?")
    if min(group.fewest for group in groups) < 1:
        raise ValueError(f"exclude_within={exclude_within} leaves a sample without a neighbor of its own label")
    return groups
