"""The transforms of torch.func (grad, vmap, ...) on the package's ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NO_FORWARD_MODE = "has no forward-mode derivative (jvp): use the reverse mode, as grad, vjp and jacrev do"


def are_active() -> bool:
    """Whether a transform is active, outside of torch.compile."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def autograd_kernel(function: Any) -> Any:
    """Return an autograd.Function as an op's kernel for autograd, which transforms reach only inside torch.compile."""

    def kernel(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "torch.func cannot differentiate Echo noise inside torch.compile: apply the transform outside of the "
                "compiled function, or compile the loss and let autograd differentiate it"
            )
        return function.apply(*inputs)

    return kernel


def one_by_one(function: Any, info: Any, in_dims: Sequence[int | None], inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Apply an autograd.Function to every item of a batch on its own, the vmap rule where there is no better one."""
    outputs = [
        function.apply(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs), 0
    return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])


def batch_last(tensor: Tensor | None, dim: int | None, batch_size: int) -> Tensor | None:
    """Move the batch to the last dimension, where an elementwise op sees more columns."""
    if tensor is None:
        return None
    return tensor.unsqueeze(-1).expand(*tensor.shape, batch_size) if dim is None else tensor.movedim(dim, -1)
