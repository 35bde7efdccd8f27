"""The op ``echo``, f + s * eps with eps made of a bank's rows, and its gradient.

An eager call on ordinary tensors goes straight to the kernel (`_PlainEcho`). Everything else, such as torch.compile,
torch.func and tensor subclasses, goes through the dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from echo_ext import _C, _checks
from echo_ext._native import address, dense, device_and_stream, dtype_code, workspace
from echo_ext.echo import _transforms
from echo_ext.echo._arguments import ECHO_SCHEMA, RING, EchoCall, check_draws, matching_pair, same_rows
from echo_ext.echo._op import below_autograd, is_plain, register, without_double_backward


def make_noise(call: EchoCall) -> Tensor:
    """Run the op on checked arguments: z (rows, *), or eps where f and s are None."""
    f, s, bank_f, bank_s, seed, _, _, _, exclude_self = call
    rows_are_bank = exclude_self and f is bank_f and s is bank_s
    rows = (None, None) if rows_are_bank else (f, s)
    if not is_plain(*rows, bank_f, bank_s, seed):
        if _transforms.are_active():
            return _TransformedEcho.apply(*call)  # type: ignore[no-untyped-call, no-any-return]
        return torch.ops.echo_ext.echo.default(*call)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and (
        bank_f.requires_grad
        or bank_s.requires_grad
        or (f is not None and f.requires_grad)
        or (s is not None and s.requires_grad)
    ):
        others = (rows_are_bank, call.problem(), call.settings)
        return _PlainEcho.apply(*rows, bank_f, bank_s, seed, others)  # type: ignore[no-untyped-call, no-any-return]
    return _run(call.problem(), *_dense_tensors(f, s, bank_f, bank_s, seed))


def draw_indices(seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool) -> Tensor:
    """Run the op ``echo_indices`` on checked arguments: int64 (rows, num_terms)."""
    seed = dense(seed)
    indices = seed.new_empty(rows, num_terms)
    code = dtype_code(torch.float32)  # of no consequence
    problem = _C.EchoProblem(rows, bank_rows, 1, num_terms, exclude_self, sampling, code)
    tensors = {"seed": seed.data_ptr(), "indices": indices.data_ptr()}
    if seed.is_cuda:
        _C.echo_cuda_indices(problem, **tensors, **device_and_stream("seed", seed.device))
    else:
        _C.echo_cpu_indices(problem, **tensors, num_threads=torch.get_num_threads())
    return indices


# ---- The kernels -----------------------------------------------------------------------------------------------------


def _dense_tensors(
    f: Tensor | None, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
    """The tensors of a call, dense; rows that are the bank's own are made dense once."""
    dense_f, dense_s = dense(bank_f), dense(bank_s)
    return (
        f if f is None else dense_f if f is bank_f else dense(f),
        s if s is None else dense_s if s is bank_s else dense(s),
        dense_f,
        dense_s,
        dense(seed),
    )


# The addresses go by position, in the order of _C.pyi: their names would cost a microsecond, a tenth of a small call.


def _run(
    problem: _C.EchoProblem, f: Tensor | None, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor
) -> Tensor:
    """The noise of dense tensors."""
    if problem.rows == problem.bank_rows:
        out = torch.empty_like(bank_f)  # a microsecond faster than new_empty
    else:
        out = bank_f.new_empty(problem.rows, *bank_f.shape[1:])
    addresses = (seed.data_ptr(), bank_f.data_ptr(), bank_s.data_ptr(), address(f), address(s), out.data_ptr())
    if bank_f.is_cpu:
        _C.echo_cpu_forward(problem, *addresses, torch.get_num_threads())
    else:
        where = device_and_stream("f", bank_f.device)
        size = _C.echo_cuda_forward_workspace_bytes(problem, device=where["device"])
        scratch = workspace(size, bank_f.device)
        _C.echo_cuda_forward(problem, *addresses, scratch.data_ptr(), **where)
    return out


def _run_backward(
    problem: _C.EchoProblem, grad: Tensor, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of s, where the rows have one of their own, and of the bank; all tensors are dense."""
    grad_s = None if s is None or problem.exclude_self else torch.empty_like(grad)
    grad_bank_f, grad_bank_s = torch.empty_like(bank_f), torch.empty_like(bank_f)
    inputs = (seed.data_ptr(), bank_f.data_ptr(), bank_s.data_ptr(), address(s), grad.data_ptr())
    outputs = (address(grad_s), grad_bank_f.data_ptr(), grad_bank_s.data_ptr())
    if bank_f.is_cpu:
        _C.echo_cpu_backward(problem, *inputs, *outputs, torch.get_num_threads())
    else:
        where = device_and_stream("f", bank_f.device)
        deterministic = torch.are_deterministic_algorithms_enabled()
        size = _C.echo_cuda_backward_workspace_bytes(problem, deterministic=deterministic, device=where["device"])
        scratch = workspace(size, bank_f.device)
        _C.echo_cuda_backward(problem, *inputs, *outputs, scratch.data_ptr(), deterministic, **where)
    return grad_s, grad_bank_f, grad_bank_s


# ---- The gradient ----------------------------------------------------------------------------------------------------


class _PlainEcho(torch.autograd.Function):
    """The op with its gradient, without the dispatcher.

    PyTorch spends a microsecond on each argument: a batch that is its own bank is given once, and what is no tensor
    comes as one tuple.
    """

    @staticmethod
    def forward(
        ctx: Any, f: Tensor | None, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor, others: Any
    ) -> Tensor:
        rows_are_bank, ctx.problem, ctx.settings = others
        if rows_are_bank:
            f, s = bank_f, bank_s
        f, s, bank_f, bank_s, seed = _dense_tensors(f, s, bank_f, bank_s, seed)
        ctx.s_is_bank = s is bank_s
        ctx.save_for_backward(bank_f, bank_s, seed, None if ctx.s_is_bank else s)
        return _run(ctx.problem, f, s, bank_f, bank_s, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bank_f, bank_s, seed, s = ctx.saved_tensors
        # A hook on saved tensors may return them with other strides.
        bank_f, bank_s = bank_f.contiguous(), bank_s.contiguous()
        if ctx.s_is_bank:
            s = bank_s
        elif s is not None:
            s = s.contiguous()
        if torch.is_grad_enabled() or not is_plain(grad, s, bank_f, bank_s, seed):
            return (*_dispatch_backward(grad, s, bank_f, bank_s, seed, ctx.settings), None, None)
        _checks.dense_layout("the gradient of z", grad)
        gradients = _run_backward(ctx.problem, dense(grad), s, bank_f, bank_s, seed)
        return (*_gradients_of_inputs(grad, s, ctx.problem.exclude_self, gradients), None, None)


class _DispatchedEcho(torch.autograd.Function):
    """The gradient of the registered op, whose kernel has yet to check its arguments.

    It is written out because what torch.library.register_autograd generates costs three times as much per call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _, s, bank_f, bank_s, seed, *ctx.settings = inputs
        ctx.save_for_backward(s, bank_f, bank_s, seed)
        return below_autograd("echo", *inputs)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        s, bank_f, bank_s, seed = ctx.saved_tensors
        return (*_dispatch_backward(grad, s, bank_f, bank_s, seed, ctx.settings), *[None] * (1 + len(ctx.settings)))


class _TransformedEcho(_DispatchedEcho):
    """The same inside the transforms of torch.func, which need the context to be set up separately."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return below_autograd("echo", *inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, s, bank_f, bank_s, seed, *ctx.settings = inputs
        ctx.save_for_backward(s, bank_f, bank_s, seed)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(f"Echo noise {_transforms.NO_FORWARD_MODE}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return _batch_as_columns(_TransformedEcho, info, in_dims, *inputs)


def _dispatch_backward(
    grad: Tensor, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor, settings: Sequence[Any]
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    _checks.dense_layout("the gradient of z", grad)
    run = _EchoBackward.apply if _transforms.are_active() else torch.ops.echo_ext.echo_backward.default
    gradients = run(grad, s, bank_f, bank_s, seed, *settings)
    return _gradients_of_inputs(grad, s, settings[-1], gradients)


def _gradients_of_inputs(
    grad: Tensor, s: Tensor | None, exclude_self: bool, gradients: tuple[Tensor | None, Tensor, Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """The gradients of f, s, bank_f and bank_s."""
    grad_s, grad_bank_f, grad_bank_s = gradients
    if s is None or exclude_self:
        return None, None, grad_bank_f, grad_bank_s
    return grad, grad_s, grad_bank_f, grad_bank_s


def _batch_as_columns(function: Any, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
    """The vmap rule of both ops: a batch with one seed is more columns; each of several seeds has draws of its own."""
    if in_dims[4] is not None:
        return _transforms.one_by_one(function, info, in_dims, inputs)
    columns = [_transforms.batch_last(*pair, info.batch_size) for pair in zip(inputs[:4], in_dims, strict=False)]
    out = function.apply(*columns, *inputs[4:])
    if isinstance(out, Tensor):
        return out, out.ndim - 1
    # Where the rows have no s of their own, grad_s is empty and has no columns.
    return out, tuple(grad.ndim - 1 if grad.ndim > 1 else None for grad in out)


_EchoBackward = without_double_backward(
    "echo_backward",
    "Echo noise",
    "echo_ext.reference.echo_sample(f, s, echo_ext.echo_indices(...)) has one, on the same draws",
    _batch_as_columns,
)


# ---- Registration ----------------------------------------------------------------------------------------------------


def _check(*inputs: Any) -> None:
    call = EchoCall(*inputs)
    _check_bank(call)
    if (call.f is None) != (call.s is None):
        raise ValueError("f and s must both be tensors or both be None, got one of each")
    for name, tensor, bank in (("f", call.f, call.bank_f), ("s", call.s, call.bank_s)):
        _check_own_rows(name, tensor, bank, call)


def _check_backward(grad: Tensor, *inputs: Any) -> None:
    call = EchoCall(None, *inputs)
    _check_bank(call)
    _check_rows("grad", grad, call, all_rows=True)
    _check_own_rows("s", call.s, call.bank_s, call)


def _check_bank(call: EchoCall) -> None:
    bank_f, _ = matching_pair("bank_f", call.bank_f, "bank_s", call.bank_s)
    bank_rows = bank_f.shape[0]
    check_draws(call.seed, call.rows, bank_rows, *call.settings[1:], bank_f.device)
    if call.exclude_self and call.sampling == RING and call.rows != bank_rows:
        raise ValueError(f"rows must be {bank_rows} for the ring, all rows of the batch, got {call.rows}")


def _check_own_rows(name: str, tensor: Tensor | None, bank: Tensor, call: EchoCall) -> None:
    if tensor is not None and (tensor is not bank or not call.exclude_self):
        _check_rows(name, tensor, call, all_rows=not call.exclude_self)


def _check_rows(name: str, tensor: Tensor, call: EchoCall, *, all_rows: bool) -> None:
    """Refuse rows unlike those of the bank, or fewer than the op needs; where all are needed, more as well."""
    _checks.floating_tensor(name, tensor)
    same_rows(name, tensor, "bank_f", call.bank_f)
    if tensor.shape[0] < call.rows or (all_rows and tensor.shape[0] != call.rows):
        raise ValueError(f"{name} must have {call.rows} rows, got {tensor.shape[0]}")


def _kernel(*inputs: Any) -> Tensor:
    call = EchoCall(*inputs)
    return _run(call.problem(), *_dense_tensors(*call[:5]))


def _backward_kernel(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = EchoCall(None, *inputs)
    _, s, bank_f, bank_s, seed = _dense_tensors(*call[:5])
    grad_s, grad_bank_f, grad_bank_s = _run_backward(call.problem(), dense(grad), s, bank_f, bank_s, seed)
    return bank_f.new_empty(0) if grad_s is None else grad_s, grad_bank_f, grad_bank_s


def _shape(*inputs: Any) -> Tensor:
    call = EchoCall(*inputs)
    return call.bank_f.new_empty(call.rows, *call.bank_f.shape[1:])


def _backward_shape(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = EchoCall(None, *inputs)
    contiguous = torch.contiguous_format
    has_own_s = call.s is not None and not call.exclude_self
    return (
        torch.empty_like(grad, memory_format=contiguous) if has_own_s else call.bank_f.new_empty(0),
        torch.empty_like(call.bank_f, memory_format=contiguous),
        torch.empty_like(call.bank_f, memory_format=contiguous),
    )


def _check_indices(seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool) -> None:
    check_draws(seed, rows, bank_rows, num_terms, sampling, exclude_self, seed.device)


def _indices_shape(
    seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool
) -> Tensor:
    return seed.new_empty(rows, num_terms)


register(
    f"echo({ECHO_SCHEMA}) -> Tensor",
    check=_check,
    kernel=_kernel,
    shape=_shape,
    gradient=_DispatchedEcho,
)
register(
    f"echo_backward(Tensor grad, {ECHO_SCHEMA.removeprefix('Tensor? f, ')}) "
    "-> (Tensor grad_s, Tensor grad_bank_f, Tensor grad_bank_s)",
    check=_check_backward,
    kernel=_backward_kernel,
    shape=_backward_shape,
    gradient=_EchoBackward,
)
register(
    "echo_indices(Tensor seed, SymInt rows, SymInt bank_rows, SymInt num_terms, int sampling, bool exclude_self) "
    "-> Tensor",
    check=_check_indices,
    kernel=draw_indices,
    shape=_indices_shape,
)
