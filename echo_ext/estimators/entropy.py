"""Differential entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from echo_ext import _checks

from . import _gradient
from ._neighbours import constants, search
from ._samples import ArrayLike, Estimate, Neighbours, read_options, read_samples

METRICS = ("chebyshev", "euclidean")


def entropy(
    x: ArrayLike,
    *,
    k: Neighbours = 3,
    metric: str = "chebyshev",
    unit: str = "nats",
    local: bool = False,
    exclude_within: int = 0,
) -> Estimate:
    """Differential entropy by nearest neighbours (Kozachenko and Leonenko 1987; Kraskov et al. 2004, eq. 20).

    ``psi(N) - psi(k) + ln c_d + d <ln 2 eps>`` with the distance eps to the k-th neighbour and the volume c_d of the
    ball of diameter 1 (1 for the Chebyshev metric). With ``exclude_within``, psi of one more than a sample's remaining
    neighbours stands for psi(N). Samples that k or more others equal have eps = 0 and make the estimate minus infinity.

    Args:
        x: (..., N, d), or (N,) for one column; float64 or float32, tensor or array. Leading dimensions are a batch.
        k: Number of neighbours, less than N; a sequence gives one more leading dimension, from one search.
        metric: "chebyshev" or "euclidean".
        unit: "nats" or "bits".
        local: Give the N values whose mean is the estimate, (..., N).
        exclude_within: Samples at most so many rows away are not neighbours (the Theiler window of time series).

    Returns:
        A float for one array, else an array or a tensor (on x's device) of shape (...). Differentiable away from ties:
        the gradient is that of the distances to the k-th neighbours.

    Raises:
        TypeError: x is not float64 or float32; k is not an int or ints.
        ValueError: x is not finite (how many values, where the first); k or exclude_within leave no neighbours.
    """
    samples = read_samples(x=x)
    options = read_options(samples.count, k=k, unit=unit, local=local, exclude_within=exclude_within)
    _checks.choice("metric", metric, METRICS)
    euclidean = metric == "euclidean"
    (points,) = samples.variables
    n, dim = points.shape[-2:]
    differentiable = _gradient.wanted(points)
    distances, neighbours = search(
        points, max(options.ks), euclidean=euclidean, exclude_within=exclude_within, indices=differentiable
    )
    order = constants(options.ks, torch.int64, points.device) - 1
    eps = distances.double().movedim(-1, 0)[order]
    if euclidean:
        eps = eps.sqrt()
    psi_k = torch.digamma((order + 1).double()).view(-1, *([1] * (eps.ndim - 1)))
    psi_n = torch.digamma(options.others(n, points.device) + 1)
    volume = log_unit_ball(dim) - dim * math.log(2.0) if euclidean else 0.0
    values = psi_n - psi_k + volume + dim * torch.log(2 * eps)
    if differentiable:
        assert neighbours is not None
        kth = neighbours.movedim(-1, 0)[order]

        def backward(grad: Tensor) -> tuple[Tensor]:
            weights = grad * dim / eps
            each = [
                pull(points, nearest.unsqueeze(-1), weight.unsqueeze(-1))
                for nearest, weight in zip(kth, weights, strict=True)
            ]
            return (torch.stack(each).sum(0),)

        def pull(points: Tensor, nearest: Tensor, weight: Tensor) -> Tensor:
            return _gradient.pull_back_distances(points, nearest, weight.to(points.dtype), euclidean=euclidean)

        values = _gradient.attach(values, backward, points)
    return options.finish(samples, values)


def log_unit_ball(dim: int) -> float:
    """The log of the volume of the Euclidean ball of radius 1."""
    return 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)
