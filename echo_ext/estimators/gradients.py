"""Gradients of estimates, which autograd cannot derive through sorting and counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# From the gradient with respect to the values to the gradient with respect to each input.
Backward: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]

WITH_GRADIENT = "entropy and mutual_information(method='ksg1')"


def is_recording(*inputs: Tensor) -> bool:
    """Return whether autograd is recording any of the inputs."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def with_gradient(values: Tensor, backward: Backward, *inputs: Tensor) -> Tensor:
    """Return the values, with ``backward`` as their derivative with respect to the inputs."""
    result: Tensor = _WithGradient.apply(values, backward, *inputs)  # type: ignore[no-untyped-call]
    return result


def without_gradient(values: Tensor, name: str, *inputs: Tensor) -> Tensor:
    """Return the values; a backward pass through them raises an error that names the estimators with a gradient."""
    if not is_recording(*inputs):
        return values

    def refuse(_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{name} has no gradient; these have one: {WITH_GRADIENT}")

    return with_gradient(values, refuse, *inputs)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, backward: Backward, *inputs: Tensor) -> Tensor:
        ctx.backward_of_values = backward
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.backward_of_values(grad)


def pull_back_distances(points: Tensor, neighbors: Tensor, weights: Tensor, *, euclidean: bool = False) -> Tensor:
    """Return the gradient at ``points`` of the weighted sum of the distances from each point to some neighbors.

    A Chebyshev distance changes with its largest coordinate alone. A distance of 0 has no derivative and contributes
    nothing.

    Args:
        points: (*batch, N, d).
        neighbors: Their indices, int64 (*batch, N, J).
        weights: (*batch, N, J).
    """
    n, dim = points.shape[-2:]
    flat = points.detach().reshape(-1, n, dim).contiguous()
    index = neighbors.reshape(flat.shape[0], n, neighbors.shape[-1])
    item = torch.arange(flat.shape[0], device=flat.device).view(-1, 1, 1)
    difference = flat[item, index] - flat.unsqueeze(2)
    gradient = torch.zeros_like(flat)
    if euclidean:
        length = difference.norm(dim=-1, keepdim=True)
        slope = torch.where(length > 0, difference / length, 0.0)
        pull = weights.reshape(*index.shape, 1) * slope
        gradient -= pull.sum(2)
        into = (item * n + index).reshape(-1)
        gradient.view(-1, dim).index_add_(0, into, pull.reshape(-1, dim))
    else:
        largest = difference.abs().argmax(-1, keepdim=True)
        pull = weights.reshape(*index.shape, 1) * difference.gather(-1, largest).sign()
        gradient.scatter_add_(2, largest.squeeze(-1), -pull.squeeze(-1))
        into = ((item * n + index).unsqueeze(-1) * dim + largest).reshape(-1)
        gradient.view(-1).index_add_(0, into, pull.reshape(-1))
    return gradient.reshape(points.shape)
