"""What the ops' gradients need inside torch.func's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NO_FORWARD_MODE = "has no forward-mode derivative (jvp): use the reverse mode, as grad, vjp and jacrev do"


def are_active() -> bool:
    """Whether torch.func.grad, vmap and the like are at work, eagerly."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def autograd_kernel(function: Any) -> Any:
    """An autograd.Function as the op's kernel for autograd, which a transform reaches only inside torch.compile."""

    def kernel(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "the gradients of torch.func do not go through Echo noise inside torch.compile: transform outside of "
                "what is compiled, or compile the loss and let autograd differentiate it"
            )
        return function.apply(*inputs)

    return kernel


def one_by_one(function: Any, info: Any, in_dims: Sequence[int | None], inputs: Sequence[Any]) -> tuple[Any, Any]:
    """The vmap rule of an autograd.Function without a better one: every item of the batch for itself."""
    outputs = [
        function.apply(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs), 0
    return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])


def batch_last(tensor: Tensor | None, dim: int | None, batch_size: int) -> Tensor | None:
    """The batch as the last dimension, where an elementwise op takes it for more columns."""
    if tensor is None:
        return None
    return tensor.unsqueeze(-1).expand(*tensor.shape, batch_size) if dim is None else tensor.movedim(dim, -1)
