"""The Echo ops: for each its schema, its shapes, its CPU and CUDA implementation and its gradient, then the functions.

Source: Brekelmans, Moyer, Galstyan and Ver Steeg, "Exact Rate-Distortion in Autoencoders via Echo Noise", NeurIPS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from echo_ext import _C, _checks, _transforms
from echo_ext._cuda import device_and_stream

__all__ = ["echo_indices", "echo_noise", "echo_rate", "echo_sample", "max_scale"]

# ---- Calling the native core -----------------------------------------------------------------------------------------

_DTYPE_CODES = {dtype: code for code, dtype in enumerate(_checks.FLOATING)}


def _problem(bank: Tensor, rows: int, num_terms: int, exclude_self: bool, sampling: int) -> _C.EchoProblem:
    bank_rows = bank.shape[0]
    width = bank.numel() // bank_rows
    return _C.EchoProblem(rows, bank_rows, width, num_terms, exclude_self, sampling, _DTYPE_CODES[bank.dtype])


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _workspace(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def _dense_inputs(
    f: Tensor | None, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
    """The inputs of a kernel, dense; rows that are the bank's own are made dense once."""
    dense_f, dense_s = _checks.dense(bank_f), _checks.dense(bank_s)
    return (
        f if f is None else dense_f if f is bank_f else _checks.dense(f),
        s if s is None else dense_s if s is bank_s else _checks.dense(s),
        dense_f,
        dense_s,
        _checks.dense(seed),
    )


# ---- Registering the ops ---------------------------------------------------------------------------------------------


def register_kernels(
    library: Any,
    name: str,
    check: Callable[..., None],
    run: Callable[..., Any],
    shape: Callable[..., Any],
    gradient: Any = None,
) -> None:
    """An op's kernels: on the CPU and on CUDA, its shape alone, and its gradient, an autograd.Function.

    The dispatcher calls them with whatever the op was given, as by an exported program; the functions of this package
    call ``run`` itself on what they have checked. The gradient's forward pass must call the dispatcher again.
    """

    def checked(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            check(*inputs)
            return kernel(*inputs)

        return call

    torch.library.register_fake(f"echo_ext::{name}", checked(shape), lib=library)
    library.impl(name, checked(run), "CPU")
    library.impl(name, checked(run), "CUDA")
    if gradient is not None:
        library.impl(name, _transforms.autograd_kernel(gradient), "Autograd")


# ---- echo_ext::echo --------------------------------------------------------------------------------------------------
# f + s * eps with eps made of bank rows, or eps itself where f and s are None. Without a bank of the caller's the batch
# is passed as the bank and exclude_self is set; then the bank's gradients are the whole gradients of f and s.

_library: Any = torch.library.Library("echo_ext", "DEF")
_library.define(
    "echo(Tensor? f, Tensor? s, Tensor bank_f, Tensor bank_s, Tensor seed, SymInt rows, SymInt num_terms, "
    "int sampling, bool exclude_self) -> Tensor"
)
_library.define(
    "echo_backward(Tensor grad, Tensor? s, Tensor bank_f, Tensor bank_s, Tensor seed, SymInt rows, SymInt num_terms, "
    "int sampling, bool exclude_self) -> (Tensor grad_s, Tensor grad_bank_f, Tensor grad_bank_s)"
)
_library.define(
    "echo_indices(Tensor seed, SymInt rows, SymInt bank_rows, SymInt num_terms, int sampling, bool exclude_self) "
    "-> Tensor"
)


def check_draws(
    seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool, device: torch.device
) -> None:
    """Refuse draws that an op cannot make."""
    _checks.row_count("rows", rows, least=0)
    _checks.term_count(num_terms, bank_rows=bank_rows, exclude_self=exclude_self)
    if exclude_self and rows > bank_rows:
        raise ValueError(f"rows must be at most the {bank_rows} rows of the bank, got {rows}")
    if not 0 <= sampling < len(_checks.SAMPLINGS):
        raise ValueError(f"sampling must be between 0 and {len(_checks.SAMPLINGS) - 1}, got {sampling}")
    _checks.seed_tensor(seed, device)


def _check_echo(
    f: Tensor | None,
    s: Tensor | None,
    bank_f: Tensor,
    bank_s: Tensor,
    seed: Tensor,
    rows: int,
    num_terms: int,
    sampling: int,
    exclude_self: bool,
) -> None:
    _check_bank(bank_f, bank_s, seed, rows, num_terms, sampling, exclude_self)
    if (f is None) != (s is None):
        raise ValueError("f and s must both be tensors or both be None, but one of them is None")
    for name, tensor, bank in (("f", f, bank_f), ("s", s, bank_s)):
        if tensor is not None and (tensor is not bank or not exclude_self):
            _check_rows(name, tensor, bank_f, rows, all_rows=not exclude_self)


def _check_bank(
    bank_f: Tensor, bank_s: Tensor, seed: Tensor, rows: int, num_terms: int, sampling: int, exclude_self: bool
) -> None:
    _checks.matching_pair("bank_f", bank_f, "bank_s", bank_s)
    check_draws(seed, rows, bank_f.shape[0], num_terms, sampling, exclude_self, bank_f.device)
    if exclude_self and sampling == _checks.sampling_code("ring") and rows != bank_f.shape[0]:
        raise ValueError(f"rows must be all {bank_f.shape[0]} rows of the batch for the ring, got {rows}")


def _check_rows(name: str, tensor: Tensor, bank: Tensor, rows: int, *, all_rows: bool) -> None:
    """Rows like those of the bank: just so many, or those of the whole batch, of which the first are used."""
    _checks.floating_tensor(name, tensor)
    _checks.same_rows(name, tensor, "bank_f", bank)
    if tensor.shape[0] < rows or (all_rows and tensor.shape[0] != rows):
        raise ValueError(f"{name} must have {rows} rows, got {tensor.shape[0]}")


def _check_echo_backward(
    grad: Tensor,
    s: Tensor | None,
    bank_f: Tensor,
    bank_s: Tensor,
    seed: Tensor,
    rows: int,
    num_terms: int,
    sampling: int,
    exclude_self: bool,
) -> None:
    _check_bank(bank_f, bank_s, seed, rows, num_terms, sampling, exclude_self)
    _check_rows("grad", grad, bank_f, rows, all_rows=True)
    if s is not None and (s is not bank_s or not exclude_self):
        _check_rows("s", s, bank_f, rows, all_rows=not exclude_self)


def _echo_shape(
    f: Tensor | None,
    s: Tensor | None,
    bank_f: Tensor,
    bank_s: Tensor,
    seed: Tensor,
    rows: int,
    num_terms: int,
    sampling: int,
    exclude_self: bool,
) -> Tensor:
    return bank_f.new_empty(rows, *bank_f.shape[1:])


def _echo(
    f: Tensor | None,
    s: Tensor | None,
    bank_f: Tensor,
    bank_s: Tensor,
    seed: Tensor,
    rows: int,
    num_terms: int,
    sampling: int,
    exclude_self: bool,
) -> Tensor:
    problem = _problem(bank_f, rows, num_terms, exclude_self, sampling)
    return _run(problem, *_dense_inputs(f, s, bank_f, bank_s, seed))


def _run(
    problem: _C.EchoProblem, f: Tensor | None, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor
) -> Tensor:
    """The kernel on dense tensors."""
    if problem.rows == problem.bank_rows:
        out = torch.empty_like(bank_f)  # which takes a microsecond less
    else:
        out = bank_f.new_empty(problem.rows, *bank_f.shape[1:])
    addresses = (seed.data_ptr(), bank_f.data_ptr(), bank_s.data_ptr(), _address(f), _address(s), out.data_ptr())
    if bank_f.is_cpu:
        _C.echo_cpu_forward(problem, *addresses, torch.get_num_threads())
    else:
        device, stream = device_and_stream("f", bank_f.device)
        workspace = _workspace(_C.echo_cuda_forward_workspace_bytes(problem, device), bank_f.device)
        _C.echo_cuda_forward(problem, *addresses, workspace.data_ptr(), device, stream)
    return out


def _echo_backward_shape(
    grad: Tensor,
    s: Tensor | None,
    bank_f: Tensor,
    bank_s: Tensor,
    seed: Tensor,
    rows: int,
    num_terms: int,
    sampling: int,
    exclude_self: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    own_s = s is not None and not exclude_self
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(grad, memory_format=contiguous) if own_s else bank_f.new_empty(0),
        torch.empty_like(bank_f, memory_format=contiguous),
        torch.empty_like(bank_f, memory_format=contiguous),
    )


def _echo_backward(
    grad: Tensor,
    s: Tensor | None,
    bank_f: Tensor,
    bank_s: Tensor,
    seed: Tensor,
    rows: int,
    num_terms: int,
    sampling: int,
    exclude_self: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _problem(bank_f, rows, num_terms, exclude_self, sampling)
    _, s, bank_f, bank_s, seed = _dense_inputs(None, s, bank_f, bank_s, seed)
    grad_s, grad_bank_f, grad_bank_s = _run_backward(problem, _checks.dense(grad), s, bank_f, bank_s, seed)
    return bank_f.new_empty(0) if grad_s is None else grad_s, grad_bank_f, grad_bank_s


def _run_backward(
    problem: _C.EchoProblem, grad: Tensor, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of the rows' own s, where it is another tensor than the bank's, and of the bank; dense tensors."""
    grad_s = None if s is None or problem.exclude_self else torch.empty_like(grad)
    grad_bank_f, grad_bank_s = torch.empty_like(bank_f), torch.empty_like(bank_f)
    inputs = (seed.data_ptr(), bank_f.data_ptr(), bank_s.data_ptr(), _address(s), grad.data_ptr())
    outputs = (_address(grad_s), grad_bank_f.data_ptr(), grad_bank_s.data_ptr())
    if bank_f.is_cpu:
        _C.echo_cpu_backward(problem, *inputs, *outputs, torch.get_num_threads())
    else:
        device, stream = device_and_stream("f", bank_f.device)
        deterministic = torch.are_deterministic_algorithms_enabled()
        size = _C.echo_cuda_backward_workspace_bytes(problem, deterministic, device)
        workspace = _workspace(size, bank_f.device)
        _C.echo_cuda_backward(problem, *inputs, *outputs, workspace.data_ptr(), deterministic, device, stream)
    return grad_s, grad_bank_f, grad_bank_s


_PLAIN_TYPES = frozenset((Tensor, Parameter))


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd watches these tensors: then the dispatcher adds 10 microseconds and nothing else."""
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


def _of_inputs(
    grad: Tensor, s: Tensor | None, exclude_self: bool, gradients: tuple[Tensor | None, Tensor, Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """The gradients of f, s, bank_f and bank_s."""
    grad_s, grad_bank_f, grad_bank_s = gradients
    if s is None or exclude_self:
        return None, None, grad_bank_f, grad_bank_s
    return grad, grad_s, grad_bank_f, grad_bank_s


def _dispatched_gradients(
    grad: Tensor, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor, settings: Sequence[Any]
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    _checks.check_layout("the gradient of z", grad)
    run = _EchoBackward.apply if _transforms.are_active() else torch.ops.echo_ext.echo_backward.default
    gradients = run(grad, s, bank_f, bank_s, seed, *settings)  # type: ignore[no-untyped-call]
    return _of_inputs(grad, s, settings[-1], gradients)


class _PlainEcho(torch.autograd.Function):
    """The op with its gradient where nothing but autograd watches. Each argument that torch has to look at costs a
    microsecond: a batch that is its own bank is given once, and what is no tensor comes as one tuple.
    """

    @staticmethod
    def forward(
        ctx: Any, f: Tensor | None, s: Tensor | None, bank_f: Tensor, bank_s: Tensor, seed: Tensor, settings: Any
    ) -> Tensor:
        rows_are_bank, *ctx.settings = settings
        rows, num_terms, sampling, exclude_self = ctx.settings
        ctx.problem = problem = _problem(bank_f, rows, num_terms, exclude_self, sampling)
        if rows_are_bank:
            f, s = bank_f, bank_s
        f, s, bank_f, bank_s, seed = _dense_inputs(f, s, bank_f, bank_s, seed)
        ctx.s_is_bank = s is bank_s
        ctx.save_for_backward(bank_f, bank_s, seed, None if ctx.s_is_bank else s)
        return _run(problem, f, s, bank_f, bank_s, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bank_f, bank_s, seed, s = ctx.saved_tensors
        # A hook on saved tensors may return them with other strides.
        bank_f, bank_s = bank_f.contiguous(), bank_s.contiguous()
        if ctx.s_is_bank:
            s = bank_s
        elif s is not None:
            s = s.contiguous()
        if torch.is_grad_enabled() or not _is_plain(grad, s, bank_f, bank_s, seed):
            return (*_dispatched_gradients(grad, s, bank_f, bank_s, seed, ctx.settings), None, None)
        _checks.check_layout("the gradient of z", grad)
        gradients = _run_backward(ctx.problem, _checks.dense(grad), s, bank_f, bank_s, seed)
        return (*_of_inputs(grad, s, ctx.problem.exclude_self, gradients), None, None)


class _DispatchedEcho(torch.autograd.Function):
    """The gradient of the registered op, whose arguments its kernel has yet to check. Written out: what
    torch.library.register_autograd generates costs three times as much a call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _, s, bank_f, bank_s, seed, *ctx.settings = inputs
        ctx.save_for_backward(s, bank_f, bank_s, seed)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.echo_ext.echo.default(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        s, bank_f, bank_s, seed = ctx.saved_tensors
        return (*_dispatched_gradients(grad, s, bank_f, bank_s, seed, ctx.settings), *[None] * 5)


class _TransformedEcho(_DispatchedEcho):
    """The same inside torch.func's transforms, which want the context set up apart."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.echo_ext.echo.default(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, s, bank_f, bank_s, seed, *ctx.settings = inputs
        ctx.save_for_backward(s, bank_f, bank_s, seed)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(f"Echo noise {_transforms.NO_FORWARD_MODE}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """A batch with one seed is more columns; each seed of a batch of seeds has draws of its own."""
        if in_dims[4] is not None:
            return _transforms.one_by_one(_TransformedEcho, info, in_dims, inputs)
        columns = [_transforms.batch_last(*pair, info.batch_size) for pair in zip(inputs[:4], in_dims, strict=False)]
        out: Tensor = _TransformedEcho.apply(*columns, *inputs[4:])  # type: ignore[no-untyped-call]
        return out, out.ndim - 1


class _EchoBackward(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.echo_ext.echo_backward.default(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        if in_dims[4] is not None:
            return _transforms.one_by_one(_EchoBackward, info, in_dims, inputs)
        columns = [_transforms.batch_last(*pair, info.batch_size) for pair in zip(inputs[:4], in_dims, strict=False)]
        grads = _EchoBackward.apply(*columns, *inputs[4:])  # type: ignore[no-untyped-call]
        # Without rows of its own there is no grad_s, which then is empty.
        return grads, tuple(grad.ndim - 1 if grad.ndim > 1 else None for grad in grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "Echo noise has no double backward: the gradient of its gradient was asked for. "
            "echo_ext.reference.echo_sample(f, s, echo_ext.echo_indices(...)) has one, on the same draws"
        )


def call_echo(
    f: Tensor | None,
    s: Tensor | None,
    bank_f: Tensor,
    bank_s: Tensor,
    seed: Tensor,
    rows: int,
    num_terms: int,
    sampling: int,
    exclude_self: bool,
) -> Tensor:
    """The op on checked arguments: the noises of the first ``rows`` rows, or of as many draws from the bank."""
    inputs = (f, s, bank_f, bank_s, seed, rows, num_terms, sampling, exclude_self)
    rows_are_bank = exclude_self and f is bank_f and s is bank_s
    rows_of = (None, None) if rows_are_bank else (f, s)
    if not _is_plain(*rows_of, bank_f, bank_s, seed):
        if _transforms.are_active():
            return _TransformedEcho.apply(*inputs)  # type: ignore[no-untyped-call, no-any-return]
        return torch.ops.echo_ext.echo.default(*inputs)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and (
        bank_f.requires_grad
        or bank_s.requires_grad
        or (f is not None and f.requires_grad)
        or (s is not None and s.requires_grad)
    ):
        settings = (rows_are_bank, rows, num_terms, sampling, exclude_self)
        return _PlainEcho.apply(*rows_of, bank_f, bank_s, seed, settings)  # type: ignore[no-untyped-call, no-any-return]
    return _echo(*inputs)


register_kernels(_library, "echo", _check_echo, _echo, _echo_shape, _DispatchedEcho)
register_kernels(_library, "echo_backward", _check_echo_backward, _echo_backward, _echo_backward_shape, _EchoBackward)


# ---- echo_ext::echo_indices ------------------------------------------------------------------------------------------


def _indices_shape(
    seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool
) -> Tensor:
    return seed.new_empty(rows, num_terms)


def _check_indices(seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool) -> None:
    check_draws(seed, rows, bank_rows, num_terms, sampling, exclude_self, seed.device)


def draw_indices(seed: Tensor, rows: int, bank_rows: int, num_terms: int, sampling: int, exclude_self: bool) -> Tensor:
    """The op ``echo_indices`` on checked arguments."""
    seed = _checks.dense(seed)
    out = seed.new_empty(rows, num_terms)
    problem = _C.EchoProblem(rows, bank_rows, 1, num_terms, exclude_self, sampling, _DTYPE_CODES[torch.float32])
    if seed.device.type == "cpu":
        _C.echo_cpu_indices(problem, seed.data_ptr(), out.data_ptr(), torch.get_num_threads())
    else:
        _C.echo_cuda_indices(problem, seed.data_ptr(), out.data_ptr(), *device_and_stream("seed", seed.device))
    return out


register_kernels(_library, "echo_indices", _check_indices, draw_indices, _indices_shape)


# ---- The functions ---------------------------------------------------------------------------------------------------


FEW_ROWS = 64  # draws of fewer rows than one in so many are gathered, where the bank would be copied for them


def _names_few_rows(bank: tuple[Tensor, Tensor], rows: int, num_terms: int) -> bool:
    """Whether copying a bank that is not contiguous would cost far more than gathering the rows that are drawn."""
    if rows * num_terms * FEW_ROWS >= bank[0].shape[0]:
        return False
    return not (bank[0].is_contiguous() and bank[1].is_contiguous())


def _gathered_noise(bank: tuple[Tensor, Tensor], seed: Tensor, rows: int, num_terms: int, sampling: int) -> Tensor:
    """The noise of rows that are gathered from the bank, in at least float32."""
    indices = torch.ops.echo_ext.echo_indices.default(seed, rows, bank[0].shape[0], num_terms, sampling, False)
    wide = torch.promote_types(bank[0].dtype, torch.float32)
    f, s = (each[indices].to(wide) for each in bank)  # (rows, num_terms, *)
    weights = torch.cat([torch.ones_like(s[:, :1]), s[:, :-1]], 1).cumprod(1)
    return (weights * f).sum(1)


def echo_sample(
    f: Tensor,
    s: Tensor,
    *,
    num_terms: int | None = None,
    sampling: str = "permutation",
    bank: tuple[Tensor, Tensor] | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    r"""Send a batch through the Echo channel: ``z = f + s * eps``, elementwise.

    The noise of row i is made of other rows, ``eps_i = sum_l (s[j_0] ... s[j_{l-1}]) * f[j_l]``, so that eps and z have
    the same law and the information that z carries about x is exactly ``-log|s|``, see :func:`echo_rate`
    (Brekelmans et al. 2019, eqs. 5 and 7). Gradients flow through the noise.

    Args:
        f, s: (B, *) tensors of one shape, dtype (float64, float32, bfloat16, float16) and device; dimension 0 is the
            sample. ``|f|`` bounded and ``|s| <= max_scale(num_terms)`` make the truncated sum exact to rounding.
            Half types accumulate in float32.
        num_terms: terms of each noise; None for all that there are (B - 1, or the bank's rows).
        sampling: ``"permutation"``: each row its own uniform ordering of the others. ``"replacement"``: uniform over
            the others, independent. ``"ring"``: all rows on one random circle, each row followed by its window: the
            same law for each row as "permutation" at a cost independent of num_terms, but the rows of a batch are
            dependent, which statistics across the batch (MMD, a discriminator) see. NaN, infinity and products that
            overflow reach what the formula says with "permutation" and "replacement". With "ring" they may reach any
            row of their column, or none where a weight is 0 or rounds to 0; other columns are never affected.
        bank: (f_bank, s_bank), each (K, *): draw from these rows instead, none excluded; f may then have one row.
        seed: an int, or an int64 tensor of one element on f's device. None draws one from torch's generator of that
            device, so that ``torch.manual_seed`` makes runs repeat; the host is never synchronised.

    Returns:
        z, (B, *), of f's dtype. With the same seed it is made of exactly the rows that :func:`echo_indices` names.

    Raises:
        TypeError: a tensor is not floating point, or dtypes differ.
        ValueError: shapes or devices differ; fewer rows than num_terms needs; fewer than 2 rows without a bank; an
            unknown sampling; a seed that does not fit 64 bits.
        RuntimeError: a CUDA tensor in a build without CUDA; a double backward.
    """
    f, s = _common_autocast_dtype(f, s)
    f, s = _checks.matching_pair("f", f, "s", s)
    bank_f, bank_s = (f, s) if bank is None else _checks.bank_pair(bank, f)
    own_bank = bank is None
    count = _checks.term_count(num_terms, bank_rows=bank_f.shape[0], exclude_self=own_bank)
    code = _checks.sampling_code(sampling)
    seed = _checks.seed_tensor(seed, f.device)
    if bank is not None and _names_few_rows(bank, f.shape[0], count):
        noise = _gathered_noise(bank, seed, f.shape[0], count, code)
        return (f + s * noise).to(f.dtype)
    return call_echo(f, s, bank_f, bank_s, seed, f.shape[0], count, code, own_bank)


def echo_noise(
    f: Tensor | None,
    s: Tensor | None,
    *,
    size: int | None = None,
    num_terms: int | None = None,
    sampling: str = "permutation",
    bank: tuple[Tensor, Tensor] | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """The noise alone, ``eps`` of :func:`echo_sample`: same arguments, errors and draws.

    With a bank and ``size=n``: n draws from the bank's marginal q(z), which is eps's own law, (n, *); f and s may then
    be None.

    Raises:
        ValueError: as :func:`echo_sample`; also a size without a bank, or a size below 1.
    """
    if f is None and s is None and bank is not None and size is not None:
        bank_f, bank_s = _checks.bank_pair(bank, None)
    else:
        f, s = _common_autocast_dtype(f, s)
        f, s = _checks.matching_pair("f", f, "s", s)
        bank_f, bank_s = (f, s) if bank is None else _checks.bank_pair(bank, f)
    if size is None:
        rows = f.shape[0]  # type: ignore[union-attr]
    elif bank is None:
        raise ValueError(f"size is {size}, but there is no bank: give bank=(f_bank, s_bank) to draw from")
    else:
        rows = _checks.row_count("size", size, least=1)
    own_bank = bank is None
    count = _checks.term_count(num_terms, bank_rows=bank_f.shape[0], exclude_self=own_bank)
    code = _checks.sampling_code(sampling)
    seed = _checks.seed_tensor(seed, bank_f.device)
    if bank is not None and _names_few_rows(bank, rows, count):
        return _gathered_noise(bank, seed, rows, count, code).to(bank_f.dtype)
    return call_echo(None, None, bank_f, bank_s, seed, rows, count, code, own_bank)


def echo_indices(
    batch_size: int,
    *,
    num_terms: int | None = None,
    sampling: str = "permutation",
    seed: int | Tensor,
    bank_size: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The rows that :func:`echo_sample` draws with this seed: int64 (batch_size, num_terms), the same on every device.

    Args:
        batch_size: rows of f.
        num_terms: None for all that there are.
        sampling: as :func:`echo_sample`.
        seed: an int, or an int64 tensor of one element on the device.
        bank_size: rows of the bank; None where the batch is its own bank.
        device: of the result.

    Raises:
        ValueError, TypeError: as :func:`echo_sample`.
    """
    rows = _checks.row_count("batch_size", batch_size, least=1)
    own_bank = bank_size is None
    bank_rows = rows if own_bank else _checks.row_count("bank_size", bank_size, least=1)
    count = _checks.term_count(num_terms, bank_rows=bank_rows, exclude_self=own_bank)
    code = _checks.sampling_code(sampling)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else torch.get_default_device()
    seed = _checks.seed_tensor(seed, torch.device(device))
    run = draw_indices if _is_plain(seed) else torch.ops.echo_ext.echo_indices.default
    return run(seed, rows, bank_rows, count, code, own_bank)


def echo_rate(s: Tensor) -> Tensor:
    """The exact rate of the Echo channel, ``-log|s|``, in nats per dimension (Brekelmans et al. 2019, eq. 7).

    Summed over the dimensions of a sample it is the pointwise information; its mean over samples is I(x; z).
    """
    return -s.abs().log()


def max_scale(num_terms: int, *, bound: float = 1.0, tol: float = 2**-23) -> float:
    """The largest scale whose truncated tail cannot be seen: the root r of ``bound * r**num_terms / (1 - r) = tol``.

    With ``|f| <= bound`` and ``|s| <= r``, dropping all terms after the first ``num_terms`` changes a noise by at most
    ``tol``. Its logarithm is the least rate that the channel can have, ``-log r`` nats per dimension.

    Raises:
        TypeError: bound or tol is not a number.
        ValueError: num_terms is below 1, bound or tol is not positive, or the root is too small for a float.
    """
    count = _checks.row_count("num_terms", num_terms, least=1)
    bound, tol = _checks.number("bound", bound, above=0), _checks.number("tol", tol, above=0)
    log_ratio = math.log(tol) - math.log(bound)  # the ratio itself may be too small for a float
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            if low == 0.0:
                raise ValueError(f"tol must be larger for num_terms={count} and bound={bound}, got {tol}")
            return low
        if count * math.log(middle) - math.log1p(-middle) > log_ratio:
            high = middle
        else:
            low = middle


def _common_autocast_dtype(f: Any, s: Any) -> tuple[Any, Any]:
    """Under autocast f and s may come out of their layers with different dtypes: take the wider."""
    if not isinstance(f, Tensor) or not isinstance(s, Tensor) or f.dtype == s.dtype:
        return f, s
    if not (f.is_floating_point() and s.is_floating_point() and torch.is_autocast_enabled(f.device.type)):
        return f, s
    wider = torch.promote_types(f.dtype, s.dtype)
    return f.to(wider), s.to(wider)
