"""Mutual information between a continuous variable and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import _gradient
from ._neighbours import constants, count, digamma, search
from ._samples import (
    ArrayLike,
    Estimate,
    Neighbours,
    Options,
    broadcast_batches,
    check_finite,
    plain,
    read_array,
    read_options,
    read_samples,
)


def mutual_information_discrete(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    k: Neighbours = 3,
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Mutual information between x and discrete labels (Ross 2014, eq. 1).

    ``psi(N) + <psi(k_i)> - <psi(N_i)> - <psi(m_i + 1)>``: N_i samples share sample i's label, k_i = min(k, N_i - 1),
    and m_i others, of any label, are strictly nearer than the k_i-th neighbour of the same label (Chebyshev). A sample
    whose label nobody shares has no such neighbour; it is left out altogether. With ``exclude_within``, one more than
    the number of neighbors that are left to sample i stands for N and N_i, so that each sample has a k_i of its own.

    Args:
        x: (..., N, d), or (N,) for one column; float64 or float32, tensor or array.
        labels: (..., N): integers, booleans, strings or whole numbers; tensor or array.
        k, unit, local, exclude_within: As in `mutual_information`; local values are NaN where a sample is left out.

    Returns:
        A float for one array, else an array or a tensor of shape (...).

    Raises:
        TypeError: x is not float64 or float32; labels are objects.
        ValueError: Values that are not finite, labels that are not whole numbers, another number of labels than of
            samples, no label that occurs twice, k or exclude_within that leave too few neighbours.
    """
    samples = read_samples(x=x)
    options = read_options(samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within)
    (points,) = samples.variables
    codes = _read_labels(labels)
    n = samples.count
    if codes.shape[-1] != n:
        raise ValueError(f"x and labels must have one number of samples, got {n} and {codes.shape[-1]}")
    batch = broadcast_batches(x=points.shape[:-2], labels=codes.shape[:-1])
    each_x = points.detach().expand(*batch, *points.shape[-2:]).reshape(-1, *points.shape[-2:])
    each_label = codes.expand(*batch, n).reshape(-1, n).to(points.device)
    grouped = [_read_groups(label, exclude_within) for label in each_label]
    local_values = [_ross(one, groups, options) for one, groups in zip(each_x, grouped, strict=True)]
    values = torch.stack(local_values, 1) if local_values else points.new_empty((len(options.ks), 0, n)).double()
    values = values.reshape(len(options.ks), *batch, n)
    if not local:  # the mean over those that are not left out
        values = values.nanmean(-1, keepdim=True)
    return options.finish(samples, _gradient.attach_none(values, "mutual_information_discrete", points))


def _read_labels(labels: object) -> Tensor:
    """Labels as int64 codes, (..., N)."""
    if isinstance(labels, Tensor):
        tensor = plain("labels", labels.detach())
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


@dataclass(frozen=True)
class _Group:
    """Samples that share a label."""

    rows: Tensor  # ascending
    left: Tensor  # how many of the others are neighbours of each
    most: int  # the largest of these


def _read_groups(labels: Tensor, exclude_within: int) -> list[_Group]:
    """The samples of each label that occurs more than once; their numbers have to be known before anything is launched.

    labels: int64 (N,).
    """
    ordered, order = torch.sort(labels, stable=True)
    sizes = torch.unique_consecutive(ordered, return_counts=True)[1]
    rows_of = [rows for rows in torch.split(order, sizes.tolist()) if len(rows) > 1]
    if not rows_of:
        raise ValueError("labels must repeat, but every one of them occurs once; are they continuous?")
    left = [_others(rows, exclude_within) for rows in rows_of]
    fewest, most = torch.stack([torch.stack(each.aminmax()) for each in left]).T.tolist()
    if min(fewest) < 1:
        raise ValueError(f"exclude_within={exclude_within} leaves a sample without a neighbour of its own label")
    return [_Group(*each) for each in zip(rows_of, left, most, strict=True)]


def _ross(points: Tensor, groups: list[_Group], options: Options) -> Tensor:
    """Local values (K, N) of one sample (N, d)."""
    w = options.exclude_within
    radii = points.new_empty((len(options.ks), len(points)))
    psi_k = torch.empty(radii.shape, dtype=torch.float64, device=points.device)
    psi_own = torch.empty(len(points), dtype=torch.float64, device=points.device)
    for group in groups:
        distances, _ = search(points[group.rows], min(max(options.ks), group.most), exclude_within=w, rows=group.rows)
        own_ks = torch.minimum(constants(options.ks, torch.int64, points.device).unsqueeze(-1), group.left)
        radii[:, group.rows] = distances.T.gather(0, own_ks - 1)
        psi_k[:, group.rows] = torch.digamma(own_ks.double())
        psi_own[group.rows] = torch.digamma(group.left.double() + 1)
    kept = torch.cat([group.rows for group in groups]).sort().values
    near = count(points[kept], radii[:, kept], exclude_within=w, rows=kept)
    psi_all = torch.digamma(_others(kept, w).double() + 1)
    values = torch.full(radii.shape, torch.nan, dtype=torch.float64, device=points.device)
    values[:, kept] = psi_all + psi_k[:, kept] - psi_own[kept] - digamma(near + 1)
    return values


def _others(rows: Tensor, exclude_within: int) -> Tensor:
    """How many of some ascending rows are neighbours of each: not itself, nor within the window."""
    if exclude_within == 0:
        return torch.full_like(rows, len(rows) - 1)
    first = torch.searchsorted(rows, rows - exclude_within)
    last = torch.searchsorted(rows, rows + exclude_within, right=True)
    return len(rows) - (last - first)
