"""Transformations of single columns, which every estimator offers as its keyword ``transform``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from echo_ext._types import Transform
from echo_ext.estimators import gradients


def transform_columns(points: Tensor, transform: Transform | None) -> Tensor:
    """Transform each column of points (..., N, d) over its N rows; integers, which are labels, stay as they are."""
    if transform is None or not points.is_floating_point() or points.shape[-2] == 0:
        return points
    return TRANSFORMS[transform](points)


def _standardize(points: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation; a constant column becomes 0."""
    values = points.double()
    constant = values.amax(-2, keepdim=True) == values.amin(-2, keepdim=True)
    # The result does not change with the scale, but sums and squares would overflow at some and vanish at others.
    largest = values.detach().abs().amax(-2, keepdim=True)
    values = values / torch.where(constant, 1.0, largest)
    centered = torch.where(constant, 0.0, values - values.mean(-2, keepdim=True))
    scale = torch.where(constant, 1.0, centered.detach().abs().amax(-2, keepdim=True))
    centered = centered / scale
    variance = torch.where(constant, 1.0, centered.square().mean(-2, keepdim=True))
    return (centered / variance.sqrt()).to(points.dtype)


def _rank(points: Tensor) -> Tensor:
    """Replace the values by their ranks, from 0 on; equal values rank in the order of their rows."""
    return _without_gradient(_ranks(points).to(points.dtype), "rank", points)


def _normal(points: Tensor) -> Tensor:
    """Replace the values by the quantiles of the standard normal distribution that have their ranks."""
    n, ranks = points.shape[-2], _ranks(points)
    # Exactly symmetric, so that differences of scores which are equal by definition are so in any arithmetic.
    scores = torch.special.ndtri((torch.minimum(ranks, n - 1 - ranks).double() + 0.5) / n)
    scores = torch.where(2 * ranks < n, scores, -scores)
    return _without_gradient(scores.to(points.dtype), "normal", points)


TRANSFORMS: dict[Transform, Callable[[Tensor], Tensor]] = {
    "standardize": _standardize,
    "rank": _rank,
    "normal": _normal,
}


def _ranks(points: Tensor) -> Tensor:
    order = torch.sort(points.detach(), dim=-2, stable=True).indices
    rank = torch.arange(points.shape[-2], device=points.device).unsqueeze(-1)
    return torch.empty_like(order).scatter_(-2, order, rank.expand(order.shape))


def _without_gradient(values: Tensor, transform: Transform, points: Tensor) -> Tensor:
    return gradients.without_gradient(
        values, f"transform={transform!r}", points, instead="transform=None and transform='standardize'"
    )
