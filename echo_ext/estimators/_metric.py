"""What the estimators need to know of each metric, besides the distances, which ``csrc/knn/distance.h`` computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Metric


class Rules(Protocol):
    """The rules of one metric."""

    def distances(self, found: Tensor) -> Tensor:
        """Return the distances, given those of the kernels, which may be a monotone function of them.

        They may overwrite what is given.
        """

    def log_volume(self, dim: int) -> float:
        """Return the log of the volume of the ball of diameter 1."""

    def pull_back(self, points: Tensor, neighbors: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient at ``points`` of the weighted sum of the distances from each point to some neighbors.

        A distance of 0 has no derivative and contributes nothing.

        Args:
            points: (*batch, N, d).
            neighbors: Their indices, int64 (*batch, N, J).
            weights: (*batch, N, J).
        """


class Chebyshev:
    """See `Rules`. The distance is the largest difference of a coordinate, so it changes with that coordinate alone."""

    def distances(self, found: Tensor) -> Tensor:
        return found

    def log_volume(self, dim: int) -> float:
        return 0.0

    def pull_back(self, points: Tensor, neighbors: Tensor, weights: Tensor) -> Tensor:
        gradient, difference, into = _differences(points, neighbors)
        largest = difference.abs().argmax(-1, keepdim=True)
        pull = weights.reshape(*into.shape, 1) * difference.gather(-1, largest).sign()
        gradient.scatter_add_(2, largest.squeeze(-1), -pull.squeeze(-1))
        entry = into.unsqueeze(-1) * points.shape[-1] + largest
        gradient.view(-1).index_add_(0, entry.reshape(-1), pull.reshape(-1))
        return gradient.reshape(points.shape)


class Euclidean:
    """See `Rules`. The kernels compute squared distances."""

    def distances(self, found: Tensor) -> Tensor:
        return found.sqrt_()

    def log_volume(self, dim: int) -> float:
        return log_unit_ball(dim) - dim * math.log(2.0)

    def pull_back(self, points: Tensor, neighbors: Tensor, weights: Tensor) -> Tensor:
        gradient, difference, into = _differences(points, neighbors)
        length = difference.norm(dim=-1, keepdim=True)
        slope = torch.where(length > 0, difference / length, 0.0)
        pull = weights.reshape(*into.shape, 1) * slope
        gradient -= pull.sum(2)
        dim = points.shape[-1]
        gradient.view(-1, dim).index_add_(0, into.reshape(-1), pull.reshape(-1, dim))
        return gradient.reshape(points.shape)


CHEBYSHEV = Chebyshev()
METRICS: dict[Metric, Rules] = {"chebyshev": CHEBYSHEV, "euclidean": Euclidean()}


def rules_of(metric: Metric) -> Rules:
    """Return the rules of a metric.

    Raises:
        ValueError: There is no such metric.
    """
    _checks.choice("metric", metric, METRICS)
    return METRICS[metric]


def log_unit_ball(dim: int) -> float:
    """Return the log of the volume of the Euclidean ball of radius 1."""
    return 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)


def reaches_of(points: Tensor, queries: Tensor, indices: Tensor, ks: Sequence[int], groups: Sequence[int]) -> Tensor:
    """Return the largest Chebyshev distance to any of the k nearest neighbors, in each group of columns: (K, G, B, M).

    Args:
        points: (B, N, d).
        queries: (B, M, d).
        indices: The queries' neighbors, nearest first: (B, M, k).
        ks: The numbers of neighbors.
        groups: The group of each column.
    """
    item = torch.arange(indices.shape[0], device=indices.device).view(-1, 1, 1)
    differences = (points[item, indices] - queries.unsqueeze(2)).abs()
    columns = [[c for c, of_column in enumerate(groups) if of_column == group] for group in range(max(groups) + 1)]
    farthest = [differences[..., of_group].amax(-1).cummax(-1).values for of_group in columns]
    return torch.stack([torch.stack([each[..., k - 1] for each in farthest]) for k in ks])


def _differences(points: Tensor, neighbors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a gradient of zeros (B, N, d), the differences to the neighbors (B, N, J, d), and their rows in B * N."""
    n, dim = points.shape[-2:]
    flat = points.detach().reshape(-1, n, dim).contiguous()
    index = neighbors.reshape(flat.shape[0], n, neighbors.shape[-1])
    item = torch.arange(flat.shape[0], device=flat.device).view(-1, 1, 1)
    return torch.zeros_like(flat), flat[item, index] - flat.unsqueeze(2), item * n + index
