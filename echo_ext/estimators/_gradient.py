"""Derivatives of estimates, which autograd cannot see through sorting and counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# From the gradient at the values to the gradient at each input.
Backward = Callable[[Tensor], tuple[Tensor, ...]]

WITH_GRADIENT = "entropy and mutual_information(method='ksg1')"


def wanted(*inputs: Tensor) -> bool:
    """Whether autograd is recording any of the inputs."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def attach(values: Tensor, backward: Backward, *inputs: Tensor) -> Tensor:
    """The values, with ``backward`` as their derivative with respect to the inputs."""
    result: Tensor = _Attached.apply(values, backward, *inputs)  # type: ignore[no-untyped-call]
    return result


def attach_none(values: Tensor, what: str, *inputs: Tensor) -> Tensor:
    """The values; a backward pass through them is an error that names the estimators with a gradient."""
    if not wanted(*inputs):
        return values

    def refuse(_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{what} has no gradient; these have one: {WITH_GRADIENT}")

    return attach(values, refuse, *inputs)


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, backward: Backward, *inputs: Tensor) -> Tensor:
        ctx.backward_of_values = backward
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.backward_of_values(grad)


def pull_back_distances(points: Tensor, neighbours: Tensor, weights: Tensor, *, euclidean: bool = False) -> Tensor:
    """The gradient at ``points`` of the weighted sum of the distances from each point to some neighbours.

    points: (*batch, N, d); neighbours: int64 (*batch, N, J); weights: (*batch, N, J). A Chebyshev distance changes with
    its largest coordinate alone. A distance of 0 has no derivative and contributes nothing.
    """
    n, dim = points.shape[-2:]
    flat = points.detach().reshape(-1, n, dim).contiguous()
    index = neighbours.reshape(flat.shape[0], n, neighbours.shape[-1])
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
