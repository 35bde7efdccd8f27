"""How the package's ops are registered with PyTorch, and how their kernels are called without the dispatcher.

An op is a schema, a check of its arguments, a kernel for the CPU and CUDA, a function that only makes its empty
results, and an ``autograd.Function``. The gradient of an op is an op too, so that a compiled backward pass can be
traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from echo_ext.echo import _transforms

_LIBRARY: Any = torch.library.Library("echo_ext", "DEF")


def register(
    schema: str,
    *,
    check: Callable[..., None],
    kernel: Callable[..., Any],
    shape: Callable[..., Any],
    gradient: Any = None,
) -> None:
    """Register an op of the library ``echo_ext``.

    The dispatcher calls an op with whatever it is given, for example by an exported program. What it calls therefore
    checks first; the functions of this package call ``kernel`` itself on arguments that they have checked.

    Args:
        schema: The name, arguments and results, in PyTorch's grammar.
        check: Raises the errors of wrong arguments.
        kernel: Computes the results on the CPU or on CUDA.
        shape: Makes empty results.
        gradient: An autograd.Function whose forward pass calls the op below autograd. None for an op without one.
    """
    _LIBRARY.define(schema)
    name = schema.partition("(")[0]

    def checked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            check(*inputs)
            return function(*inputs)

        return call

    torch.library.register_fake(f"echo_ext::{name}", checked(shape), lib=_LIBRARY)
    _LIBRARY.impl(name, checked(kernel), "CPU")
    _LIBRARY.impl(name, checked(kernel), "CUDA")
    if gradient is not None:
        _LIBRARY.impl(name, _transforms.autograd_kernel(gradient), "Autograd")


def below_autograd(name: str, *inputs: Any) -> Any:
    """Call the op of this name in the forward pass of its own autograd.Function."""
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.echo_ext, name).default(*inputs)


def without_double_backward(name: str, what: str, alternative: str, vmap: Callable[..., Any]) -> Any:
    """Make the autograd.Function of a backward op, whose own derivative is an error that names an alternative.

    Args:
        name: The backward op's name.
        what: What has no double backward.
        alternative: A function of echo_ext.reference that has one.
        vmap: The rule for torch.func.vmap, which takes the Function before vmap's own arguments.
    """

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return below_autograd(name, *inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> None:
            raise RuntimeError(
                f"{what} has no double backward: the gradient of its gradient was asked for. {alternative}"
            )

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
            return vmap(Backward, info, in_dims, *inputs)

    return Backward


_PLAIN_TYPES = frozenset((Tensor, Parameter))


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd observes these tensors, so that a kernel can be called without the dispatcher.

    The dispatcher costs 10 microseconds a call, more than a kernel on a small batch.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() != 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:  # a loop: all() over a generator takes twice as long
        if tensor is not None and (type(tensor) not in _PLAIN_TYPES or not (tensor.is_cpu or tensor.is_cuda)):
            return False
    return True
