"""Differential entropy."""

from __future__ import annotations

import math
from typing import get_args, overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Array, Estimate, Metric, NumNeighbors, TensorOrArray, Unit
from echo_ext.estimators import gradients
from echo_ext.estimators._backend import constants
from echo_ext.estimators.neighbors import PointSet, count_neighbors
from echo_ext.estimators.samples import read_options, read_samples, reduce_local_values

__all__ = ["METRICS", "entropy", "log_unit_ball"]

METRICS: tuple[Metric, ...] = get_args(Metric)


@overload
def entropy(
    x: Tensor,
    *,
    k: NumNeighbors = 3,
    metric: Metric = "chebyshev",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Tensor: ...
@overload
def entropy(
    x: npt.ArrayLike,
    *,
    k: NumNeighbors = 3,
    metric: Metric = "chebyshev",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Array | float: ...
def entropy(
    x: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    metric: Metric = "chebyshev",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Estimate differential entropy from nearest neighbors (Kozachenko and Leonenko 1987; Kraskov et al. 2004, eq. 20).

    ``psi(N) - psi(k) + ln c_d + d <ln 2 eps>``, where eps is the distance to the k-th neighbor and c_d is the volume of
    the d-dimensional ball of diameter 1 (1 for the Chebyshev metric). A sample that k or more others equal has eps = 0
    and makes the estimate minus infinity.

    Args:
        x: (..., N, d), or (N,) for one column; float64 or float32, tensor or array. Leading dimensions are a batch of
            independent estimates.
        k: The number of neighbors, less than N. A larger k reduces the variance of the estimate and increases its
            bias. A sequence gives one estimate for each k, in one more leading dimension, from a single search.
        metric: "chebyshev" or "euclidean", the metric of the neighbors' distances.
        unit: "nats" or "bits".
        local: If True, return the N values whose mean is the estimate: (..., N).
        exclude_within: The Theiler window for time series: samples at most so many rows apart are not neighbors. Choose
            it as long as consecutive samples stay correlated; a larger window leaves fewer neighbors. A sample with M
            possible neighbors then has psi(M + 1) in the place of psi(N).

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...) on their device. It is differentiable away from ties, as the distances to the k-th neighbors are.

    Raises:
        TypeError: x is not float64 or float32; k is not an int or a sequence of ints.
        ValueError: Values are not finite (the error says how many, and where the first is); k or exclude_within leave
            too few neighbors; the metric or unit is unknown.

    Example:
        >>> import numpy as np
        >>> from echo_ext import entropy
        >>> x = np.random.default_rng(0).standard_normal((1000, 2))  # the entropy is ln(2 pi e) = 2.84 nats
        >>> round(entropy(x), 2)
        2.85
    """
    samples = read_samples(x=x)
    options = read_options(samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within)
    _checks.choice("metric", metric, METRICS)
    euclidean = metric == "euclidean"
    (inputs,) = samples.variables
    points = PointSet(inputs)
    window = options.exclude_within
    if gradients.is_recording(inputs):
        distances, neighbors = points.search(options.max_k, euclidean=euclidean, exclude_within=window)
    else:
        neighbors = None
        distances = points.search_distances(options.max_k, euclidean=euclidean, exclude_within=window)
    order = constants(options.ks, torch.int64, inputs.device) - 1
    eps = distances.double().movedim(-1, 0)[order]
    if euclidean:
        eps = eps.sqrt()
    psi_k = torch.digamma((order + 1).double()).view(-1, *([1] * (eps.ndim - 1)))
    psi_n = torch.digamma(count_neighbors(options.total, window, inputs.device) + 1)
    volume = log_unit_ball(points.dim) - points.dim * math.log(2.0) if euclidean else 0.0
    values = psi_n - psi_k + volume + points.dim * torch.log(2 * eps)
    if neighbors is not None:
        nearest = neighbors.movedim(-1, 0)[order]

        def backward(grad: Tensor) -> tuple[Tensor]:
            each_k = zip(nearest, grad * points.dim / eps, strict=True)
            return (torch.stack([_pull_back(inputs, *one_k, euclidean=euclidean) for one_k in each_k]).sum(0),)

        values = gradients.with_gradient(values, backward, inputs)
    return reduce_local_values(values, samples, options)


def log_unit_ball(dim: int) -> float:
    """Return the log of the volume of the Euclidean ball of radius 1."""
    return 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)


def _pull_back(points: Tensor, nearest: Tensor, weights: Tensor, *, euclidean: bool) -> Tensor:
    """Return the gradient of the weighted distances to one neighbor of each point; nearest, weights: (*batch, N)."""
    weights = weights.unsqueeze(-1).to(points.dtype)
    return gradients.pull_back_distances(points, nearest.unsqueeze(-1), weights, euclidean=euclidean)
