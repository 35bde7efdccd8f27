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


def without_gradient(values: Tensor, name: str, *inputs: Tensor, instead: str = WITH_GRADIENT) -> Tensor:
    """Return the values; a backward pass through them raises an error that names what has a gradient."""
    if not is_recording(*inputs):
        return values

    def refuse(_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{name} has no gradient; these have one: {instead}")

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
