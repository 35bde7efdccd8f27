"""Echo noise whose scale is a matrix, the extension that the paper names as future work.

Source: Brekelmans, Moyer, Galstyan and Ver Steeg, "Exact Rate-Distortion in Autoencoders via Echo Noise", NeurIPS 2019,
section 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from echo_ext import _C, _checks, _transforms
from echo_ext._cuda import device_and_stream
from echo_ext.ops import check_draws, draw_indices, register_kernels

__all__ = ["echo_rate_matrix", "echo_sample_matrix"]

MAX_DIM = 64

# ---- echo_ext::echo_matrix -------------------------------------------------------------------------------------------
# z of the recurrence around the circle, in float32 or float64. Both ops take the circle from the seed, so that no order
# can reach a kernel that is not one of the rows.

_library: Any = torch.library.Library("echo_ext", "FRAGMENT")
_library.define("echo_matrix(Tensor f, Tensor s, Tensor seed) -> Tensor")
_library.define("echo_matrix_backward(Tensor grad, Tensor s, Tensor z, Tensor seed) -> (Tensor grad_f, Tensor grad_s)")


def _order(seed: Tensor, rows: int) -> Tensor:
    """The row at each position of the circle: (rows,)."""
    return draw_indices(seed, 1, rows, rows, _checks.sampling_code("ring"), False).squeeze(0)


def _scan(source: Tensor, matrices: Tensor, order: Tensor, *, backward: bool) -> Tensor:
    values = torch.empty_like(source)
    problem = _C.EchoMatrixProblem(source.shape[0], source.shape[1], source.dtype == torch.float32)
    addresses = (order.data_ptr(), source.data_ptr(), matrices.data_ptr(), values.data_ptr())
    if source.device.type == "cpu":
        _C.echo_matrix_cpu_scan(problem, *addresses, backward, torch.get_num_threads())
    else:
        device, stream = device_and_stream("f", source.device)
        size = _C.echo_matrix_cuda_workspace_bytes(problem)
        workspace = torch.empty(size, dtype=torch.uint8, device=source.device)
        _C.echo_matrix_cuda_scan(problem, *addresses, backward, workspace.data_ptr(), device, stream)
    return values


def _echo_matrix(f: Tensor, s: Tensor, seed: Tensor) -> Tensor:
    return _scan(_checks.dense(f), _checks.dense(s), _order(seed, f.shape[0]), backward=False)


def _echo_matrix_backward(grad: Tensor, s: Tensor, z: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    grad, s, z, order = _checks.dense(grad), _checks.dense(s), _checks.dense(z), _order(seed, s.shape[0])
    grad_f = _scan(grad, s, order, backward=True)
    grad_s = torch.empty_like(s)
    problem = _C.EchoMatrixProblem(z.shape[0], z.shape[1], z.dtype == torch.float32)
    addresses = (order.data_ptr(), grad_f.data_ptr(), z.data_ptr(), grad_s.data_ptr())
    if z.device.type == "cpu":
        _C.echo_matrix_cpu_outer(problem, *addresses, torch.get_num_threads())
    else:
        _C.echo_matrix_cuda_outer(problem, *addresses, *device_and_stream("f", z.device))
    return grad_f, grad_s


def _matching_matrices(name_f: str, f: object, name_s: str, s: object) -> tuple[Tensor, Tensor]:
    """Rows and their matrices: (B, d) and (B, d, d) of one dtype and device."""
    f, s = _checks.floating_tensor(name_f, f), _checks.floating_tensor(name_s, s)
    if f.ndim != 2 or s.shape != (*f.shape, f.shape[1]):
        raise ValueError(
            f"{name_f} and {name_s} must have shapes (B, d) and (B, d, d), got {tuple(f.shape)}, {tuple(s.shape)}"
        )
    if f.dtype != s.dtype:
        raise TypeError(f"{name_f} and {name_s} must have one dtype, got {f.dtype} and {s.dtype}")
    if f.device != s.device:
        raise ValueError(f"{name_f} and {name_s} must be on one device, got {f.device} and {s.device}")
    if f.shape[1] > MAX_DIM:
        raise ValueError(f"{name_f} must have at most {MAX_DIM} columns, got {f.shape[1]}")
    _checks.term_count(None, bank_rows=f.shape[0], exclude_self=True)
    return f, s


class _EchoMatrix(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.echo_ext.echo_matrix.default(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, s, seed = inputs
        ctx.save_for_backward(s, output, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _checks.check_layout("the gradient of z", grad)
        run = _EchoMatrixBackward.apply if _transforms.are_active() else torch.ops.echo_ext.echo_matrix_backward.default
        return (*run(grad, *ctx.saved_tensors), None)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(f"echo_sample_matrix {_transforms.NO_FORWARD_MODE}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
        return _transforms.one_by_one(_EchoMatrix, info, in_dims, inputs)


class _EchoMatrixBackward(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.echo_ext.echo_matrix_backward.default(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "echo_sample_matrix has no double backward: the gradient of its gradient was asked for. "
            "echo_ext.reference.echo_matrix_circle has one, on the same order"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
        return _transforms.one_by_one(_EchoMatrixBackward, info, in_dims, inputs)


def _check(f: Tensor, s: Tensor, seed: Tensor) -> None:
    _matching_matrices("f", f, "s", s)
    if f.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"f must be float64 or float32, got {f.dtype}")
    check_draws(seed, 1, f.shape[0], f.shape[0], _checks.sampling_code("ring"), False, f.device)


def _check_backward(grad: Tensor, s: Tensor, z: Tensor, seed: Tensor) -> None:
    _check(z, s, seed)
    _checks.matching_pair("grad", grad, "z", z)


def _shape(f: Tensor, s: Tensor, seed: Tensor) -> Tensor:
    return f.new_empty(f.shape)


def _backward_shape(grad: Tensor, s: Tensor, z: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), s.new_empty(s.shape)


register_kernels(_library, "echo_matrix", _check, _echo_matrix, _shape, _EchoMatrix)
register_kernels(
    _library, "echo_matrix_backward", _check_backward, _echo_matrix_backward, _backward_shape, _EchoMatrixBackward
)


# ---- The functions ---------------------------------------------------------------------------------------------------


def echo_sample_matrix(f: Tensor, S: Tensor, *, seed: int | Tensor | None = None) -> Tensor:
    r"""Send a batch through the Echo channel with a matrix for each row: ``z = f + S eps``.

    The rows lie on a random circle, ``z_p = f_p + S_p z_{p+1}``, so that the noise of a row is
    ``eps_p = f_{p+1} + S_{p+1} (f_{p+2} + S_{p+2} ( ... ))``: the ring of :func:`echo_ext.echo_sample` with matrices,
    in its periodic form. Where the norms of all S stay below 1, eps and z have one law in the limit of many rows, and
    the information that z carries about x is ``-log|det S|``, see :func:`echo_rate_matrix`. Gradients flow through the
    noise. O(B d^2) time and memory. Every row is in the noise of every other: a NaN or an infinity anywhere in f or S
    may reach all of z.

    Args:
        f: (B, d) with B at least 2 and d at most 64; float64, float32, bfloat16 or float16. Half types are computed in
            float32.
        S: (B, d, d), of f's dtype and device, with spectral norms below 1:
            ``max_scale(B - 1, bound=|f|_2)`` makes what B - 1 terms leave out invisible.
        seed: as in :func:`echo_ext.echo_sample`. With diagonal S the rows are those that sampling="ring" draws with it.

    Returns:
        z, (B, d), of f's dtype.

    Raises:
        TypeError: a tensor is not floating point, or dtypes differ.
        ValueError: shapes that do not fit, devices that differ, fewer than 2 rows, d above 64.
        RuntimeError: a CUDA tensor in a build without CUDA; a double backward.
    """
    f, S = _matching_matrices("f", f, "S", S)
    seed = _checks.seed_tensor(seed, f.device)
    wide = torch.promote_types(f.dtype, torch.float32)
    run = _EchoMatrix.apply if _transforms.are_active() else torch.ops.echo_ext.echo_matrix.default
    z: Tensor = run(f.to(wide), S.to(wide), seed)  # type: ignore[no-untyped-call]
    return z.to(f.dtype)


def echo_rate_matrix(S: Tensor) -> Tensor:
    """The exact rate of the matrix channel, ``-log|det S|`` of (..., d, d), in nats per sample: (...)."""
    rate: Tensor = -torch.linalg.slogdet(S).logabsdet
    return rate
