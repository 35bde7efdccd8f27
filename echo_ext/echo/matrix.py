"""Echo noise whose scale is a matrix, which the paper leaves to future work.

Source: Brekelmans, Moyer, Galstyan and Ver Steeg, "Exact Rate-Distortion in Autoencoders via Echo Noise", NeurIPS 2019,
end of appendix C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from echo_ext import _C, _checks
from echo_ext._native import dense, device_and_stream, dtype_code, workspace
from echo_ext.echo import _transforms
from echo_ext.echo._arguments import RING, check_draws, matching_pair, seed_tensor, term_count
from echo_ext.echo._noise import draw_indices
from echo_ext.echo._op import below_autograd, register, without_double_backward

__all__ = ["echo_rate_matrix", "echo_sample_matrix"]

MAX_DIM = 64


def echo_sample_matrix(f: Tensor, S: Tensor, *, seed: int | Tensor | None = None) -> Tensor:
    r"""Pass a batch through the Echo channel with a matrix for each row: ``z = f + S eps``.

    The rows lie on a random circle, ``z_p = f_p + S_p z_{p+1}``, so that the noise of a row is
    ``eps_p = f_{p+1} + S_{p+1} (f_{p+2} + S_{p+2} ( ... ))``: the ring of :func:`echo_ext.echo_sample` with matrices,
    in its periodic form. Where the norms of all S stay below 1, eps and z have the same distribution in the limit of
    many rows, and the information that z carries about the input is ``-log|det S|``, see :func:`echo_rate_matrix`.
    Gradients flow through the noise. It takes O(B d^2) time and memory. Every row is in the noise of every other: a NaN
    or an infinity anywhere in f or S may reach all of z.

    Args:
        f: Rows (B, d) with B at least 2 and d at most 64; float64, float32, bfloat16 or float16. Half types are
            computed in float32.
        S: Matrices (B, d, d), of the dtype and device of f, with spectral norms below 1. Norms of at most
            ``max_scale(B - 1, bound=|f|_2)`` make everything beyond B - 1 terms vanish in rounding.
        seed: As in :func:`echo_ext.echo_sample`. With diagonal S the rows are those that sampling="ring" draws with it.

    Returns:
        z, (B, d), of the dtype of f.

    Raises:
        TypeError: A tensor is not floating point, or dtypes differ.
        ValueError: Shapes do not fit, devices differ, there are fewer than 2 rows, or d is above 64.
        RuntimeError: A CUDA tensor is given to a build without CUDA; a double backward is asked for.

    Example:
        >>> f = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> S = 0.5 * torch.eye(2).expand(3, 2, 2)
        >>> echo_ext.echo_sample_matrix(f, S, seed=0).shape
        torch.Size([3, 2])
    """
    f, S = _matching_matrices("f", f, "S", S)
    seed = seed_tensor(seed, f.device)
    wide = torch.promote_types(f.dtype, torch.float32)
    run = _EchoMatrix.apply if _transforms.are_active() else torch.ops.echo_ext.echo_matrix.default
    z: Tensor = run(f.to(wide), S.to(wide), seed)  # type: ignore[no-untyped-call]
    return z.to(f.dtype)


def echo_rate_matrix(S: Tensor) -> Tensor:
    """Return the exact rate of the matrix channel, ``-log|det S|``, in nats per sample.

    Args:
        S: Matrices (..., d, d).

    Returns:
        The rate, (...).

    Example:
        >>> echo_ext.echo_rate_matrix(0.5 * torch.eye(2))
        tensor(1.3863)
    """
    rate: Tensor = -torch.linalg.slogdet(S).logabsdet
    return rate


# ---- The kernels -----------------------------------------------------------------------------------------------------
# z of the recurrence around the circle, in float32 or float64. Both ops take the circle from the seed, so that no order
# can reach a kernel that is not one of the rows.


def _order(seed: Tensor, rows: int) -> Tensor:
    """The row at each position of the circle: (rows,)."""
    return draw_indices(seed, 1, rows, rows, RING, False).squeeze(0)


def _problem(rows: Tensor) -> _C.EchoMatrixProblem:
    return _C.EchoMatrixProblem(rows.shape[0], rows.shape[1], dtype_code(rows.dtype))


def _scan(source: Tensor, matrices: Tensor, order: Tensor, *, backward: bool) -> Tensor:
    problem, values = _problem(source), torch.empty_like(source)
    tensors = {
        "order": order.data_ptr(),
        "source": source.data_ptr(),
        "matrices": matrices.data_ptr(),
        "values": values.data_ptr(),
    }
    if source.is_cpu:
        _C.echo_matrix_cpu_scan(problem, **tensors, backward=backward, num_threads=torch.get_num_threads())
    else:
        where = device_and_stream("f", source.device)
        scratch = workspace(_C.echo_matrix_cuda_workspace_bytes(problem), source.device)
        _C.echo_matrix_cuda_scan(problem, **tensors, backward=backward, workspace=scratch.data_ptr(), **where)
    return values


def _kernel(f: Tensor, s: Tensor, seed: Tensor) -> Tensor:
    return _scan(dense(f), dense(s), _order(seed, f.shape[0]), backward=False)


def _backward_kernel(grad: Tensor, s: Tensor, z: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    grad, s, z, order = dense(grad), dense(s), dense(z), _order(seed, s.shape[0])
    grad_f = _scan(grad, s, order, backward=True)
    grad_s = torch.empty_like(s)
    tensors = {
        "order": order.data_ptr(),
        "values": grad_f.data_ptr(),
        "z": z.data_ptr(),
        "grad_matrices": grad_s.data_ptr(),
    }
    if z.is_cpu:
        _C.echo_matrix_cpu_outer(_problem(z), **tensors, num_threads=torch.get_num_threads())
    else:
        _C.echo_matrix_cuda_outer(_problem(z), **tensors, **device_and_stream("f", z.device))
    return grad_f, grad_s


# ---- The gradient ----------------------------------------------------------------------------------------------------


class _EchoMatrix(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Tensor) -> Tensor:
        return below_autograd("echo_matrix", *inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, s, seed = inputs
        ctx.save_for_backward(s, output, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _checks.dense_layout("the gradient of z", grad)
        run = _EchoMatrixBackward.apply if _transforms.are_active() else torch.ops.echo_ext.echo_matrix_backward.default
        return (*run(grad, *ctx.saved_tensors), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(f"echo_sample_matrix {_transforms.NO_FORWARD_MODE}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
        return _each_item(_EchoMatrix, info, in_dims, *inputs)


def _each_item(function: Any, info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
    return _transforms.one_by_one(function, info, in_dims, inputs)


_EchoMatrixBackward = without_double_backward(
    "echo_matrix_backward",
    "echo_sample_matrix",
    "echo_ext.reference.echo_matrix_circle has one, on the same order",
    _each_item,
)


# ---- Registration ----------------------------------------------------------------------------------------------------


def _matching_matrices(name_f: str, f: object, name_s: str, s: object) -> tuple[Tensor, Tensor]:
    """Rows and their matrices: (B, d) and (B, d, d) of one dtype and device."""
    f, s = _checks.floating_tensor(name_f, f), _checks.floating_tensor(name_s, s)
    if f.ndim != 2 or s.shape != (*f.shape, f.shape[1]):
        raise ValueError(
            f"{name_f} and {name_s} must have shapes (B, d) and (B, d, d), got {tuple(f.shape)} and {tuple(s.shape)}"
        )
    _checks.same_dtype_and_device(name_f, f, name_s, s)
    if f.shape[1] > MAX_DIM:
        raise ValueError(f"{name_f} must have at most {MAX_DIM} columns, got {f.shape[1]}")
    term_count(None, bank_rows=f.shape[0], exclude_self=True)
    return f, s


def _check(f: Tensor, s: Tensor, seed: Tensor) -> None:
    _matching_matrices("f", f, "s", s)
    if f.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"f must be float64 or float32, got {_checks.dtype_name(f.dtype)}")
    check_draws(seed, 1, f.shape[0], f.shape[0], RING, False, f.device)


def _check_backward(grad: Tensor, s: Tensor, z: Tensor, seed: Tensor) -> None:
    _check(z, s, seed)
    matching_pair("grad", grad, "z", z)


def _shape(f: Tensor, s: Tensor, seed: Tensor) -> Tensor:
    return f.new_empty(f.shape)


def _backward_shape(grad: Tensor, s: Tensor, z: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), s.new_empty(s.shape)


register(
    "echo_matrix(Tensor f, Tensor s, Tensor seed) -> Tensor",
    check=_check,
    kernel=_kernel,
    shape=_shape,
    gradient=_EchoMatrix,
)
register(
    "echo_matrix_backward(Tensor grad, Tensor s, Tensor z, Tensor seed) -> (Tensor grad_f, Tensor grad_s)",
    check=_check_backward,
    kernel=_backward_kernel,
    shape=_backward_shape,
    gradient=_EchoMatrixBackward,
)
