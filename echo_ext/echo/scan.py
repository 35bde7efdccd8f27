"""The affine recurrence ``z_p = f_p + s_p * z_{p+1}`` over rows in a given order, its adjoint, and their composition.

It is the part of a ring that one process holds; `echo_ext.distributed` joins the parts. Rows are (B, d), in their own
dtype. Maps, entries and z have the dtype that is computed in, at least float32. The rows are cut into chunks that are
composed in parallel, and then, each from the value that enters it, worked through in parallel. The values that enter
are the same recurrence over the maps of the chunks, in chunks again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext import _C, _checks
from echo_ext._native import dense, device_and_stream, dtype_code
from echo_ext.echo._arguments import matching_pair
from echo_ext.echo._op import register

# A constant, so that results depend on nothing else. A GPU works through a chunk step by step: short ones keep it busy.
CHUNK_ROWS = 128


class Composition:
    """The maps of rows, ``t -> constants + scales * t``, from the value after the last row to the first row's z.

    With ``backward``, where the source is the gradient of z, the maps go from the value before the first row to what
    the last row passes on. No rows are the identity.
    """

    def __init__(self, order: Tensor, source: Tensor, s: Tensor, *, backward: bool = False) -> None:
        # The maps (2, n, d) of chunks of rows, of chunks of these, and so on to the map of all. The recurrence enters
        # the first of each.
        self.levels = [_compose(order, source, s, backward)]
        self.orders: list[Tensor] = []  # of all levels but the last, whose maps are composed again
        while self.levels[-1].shape[1] > 1:
            constants, scales = self.levels[-1]
            # The recurrence begins with the last one in the order.
            self.orders.append(torch.arange(len(constants) - 1, -1, -1, device=constants.device))
            self.levels.append(_compose(self.orders[-1], constants, scales, False))

    @property
    def total(self) -> Tensor:
        """The map of all rows: constants and scales, stacked (2, d)."""
        return self.levels[-1].squeeze(1)

    def entries(self, entry: Tensor) -> Tensor:
        """Return the value that enters each chunk of rows (n, d), where ``entry`` (d,) enters the first."""
        entering = entry.unsqueeze(0)
        for order, (constants, scales) in zip(reversed(self.orders), reversed(self.levels[:-1]), strict=True):
            leaving = _scan(order, constants, scales, entering)
            entering = torch.cat([entry.unsqueeze(0), leaving[:-1]])
        return entering


def scan(order: Tensor, f: Tensor, s: Tensor, entry: Tensor, composition: Composition) -> Tensor:
    """Return z of all rows (B, d), with ``entry`` (d,) after the last."""
    return _scan(order, f, s, composition.entries(entry))


def scan_backward(
    order: Tensor, s: Tensor, grad: Tensor, z: Tensor, entry: Tensor, entry_back: Tensor, composition: Composition
) -> tuple[Tensor, Tensor]:
    """Return the gradients of f and s: ``v_p = grad_p + s_{p-1} v_{p-1}`` and ``v_p z_{p+1}``.

    ``entry_back`` (d,) comes before the first row; the composition is the backward one.
    """
    return _scan_backward(order, s, grad, z, entry, composition.entries(entry_back))


def periodic(constants: Tensor, scales: Tensor) -> Tensor:
    """Return the fixed point of ``t -> c_0 + a_0 (c_1 + a_1 ( ... t))`` over maps (W, d), the later ones inside."""
    every = torch.arange(len(scales), device=scales.device)
    constant, scale = Composition(every, constants.contiguous(), scales.contiguous()).total.unbind()
    return constant / (1 - scale)


# ---- The kernels -----------------------------------------------------------------------------------------------------


def _compose(order: Tensor, source: Tensor, s: Tensor, backward: bool) -> Tensor:
    problem = _problem(s)
    maps = _wide(s, 2, problem.num_chunks, s.shape[1])
    tensors = {
        "order": order.data_ptr(),
        "source": source.data_ptr(),
        "s": s.data_ptr(),
        "constants": maps[0].data_ptr(),
        "scales": maps[1].data_ptr(),
    }
    if s.is_cpu:
        _C.echo_scan_cpu_compose(problem, **tensors, backward=backward, num_threads=torch.get_num_threads())
    else:
        _C.echo_scan_cuda_compose(problem, **tensors, backward=backward, **device_and_stream("f", s.device))
    return maps


def _scan(order: Tensor, f: Tensor, s: Tensor, entries: Tensor) -> Tensor:
    z = _wide(s, *s.shape)
    tensors = {
        "order": order.data_ptr(),
        "f": f.data_ptr(),
        "s": s.data_ptr(),
        "entries": entries.data_ptr(),
        "z": z.data_ptr(),
    }
    if s.is_cpu:
        _C.echo_scan_cpu_forward(_problem(s), **tensors, num_threads=torch.get_num_threads())
    else:
        _C.echo_scan_cuda_forward(_problem(s), **tensors, **device_and_stream("f", s.device))
    return z


def _scan_backward(
    order: Tensor, s: Tensor, grad: Tensor, z: Tensor, entry: Tensor, entries_back: Tensor
) -> tuple[Tensor, Tensor]:
    grad_f, grad_s = torch.empty_like(s), torch.empty_like(s)
    tensors = {
        "order": order.data_ptr(),
        "s": s.data_ptr(),
        "grad": grad.data_ptr(),
        "z": z.data_ptr(),
        "entry": entry.data_ptr(),
        "entries_back": entries_back.data_ptr(),
        "grad_f": grad_f.data_ptr(),
        "grad_s": grad_s.data_ptr(),
    }
    if s.is_cpu:
        _C.echo_scan_cpu_backward(_problem(s), **tensors, num_threads=torch.get_num_threads())
    else:
        _C.echo_scan_cuda_backward(_problem(s), **tensors, **device_and_stream("f", s.device))
    return grad_f, grad_s


def _problem(rows: Tensor) -> _C.EchoScanProblem:
    return _C.EchoScanProblem(rows.shape[0], rows.shape[1], dtype_code(rows.dtype), CHUNK_ROWS)


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))


# ---- Registration ----------------------------------------------------------------------------------------------------
# The ops have no gradients of their own: the recurrence is differentiated as a whole, by its adjoint.


def _check_rows(order: Tensor, first: str, rows: Tensor, s: Tensor) -> None:
    matching_pair(first, rows, "s", s)
    if s.ndim != 2:
        raise ValueError(f"s must have shape (B, d), got {tuple(s.shape)}")
    if order.dtype != torch.int64 or order.shape != s.shape[:1] or order.device != s.device:
        raise ValueError(
            f"order must be int64 of shape ({s.shape[0]},) on {s.device}, "
            f"got {_checks.dtype_name(order.dtype)} of shape {tuple(order.shape)} on {order.device}"
        )


def _check_wide(s: Tensor, shape: tuple[int, ...], **tensors: Tensor) -> None:
    """Refuse values that do not have the dtype that is computed in, or another shape."""
    wide = torch.promote_types(s.dtype, torch.float32)
    for name, tensor in tensors.items():
        if tensor.dtype != wide or tensor.shape != shape or tensor.device != s.device:
            raise ValueError(
                f"{name} must be {_checks.dtype_name(wide)} of shape {tuple(shape)} on {s.device}, "
                f"got {_checks.dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)} on {tensor.device}"
            )


def _check_compose(order: Tensor, source: Tensor, s: Tensor, backward: bool) -> None:
    _check_rows(order, "source", source, s)


def _check_scan(order: Tensor, f: Tensor, s: Tensor, entries: Tensor) -> None:
    _check_rows(order, "f", f, s)
    _check_wide(s, (_num_chunks(s), s.shape[1]), entries=entries)


def _check_scan_backward(
    order: Tensor, s: Tensor, grad: Tensor, z: Tensor, entry: Tensor, entries_back: Tensor
) -> None:
    _check_rows(order, "grad", grad, s)
    _check_wide(s, tuple(s.shape), z=z)
    _check_wide(s, (s.shape[1],), entry=entry)
    _check_wide(s, (_num_chunks(s), s.shape[1]), entries_back=entries_back)


def _num_chunks(s: Tensor) -> int:
    return max(1, -(-s.shape[0] // CHUNK_ROWS))


def _row_numbers(order: Tensor, s: Tensor) -> Tensor:
    """The order, dense; a number that is not one of the rows stops the program, on CUDA without waiting for it."""
    torch._assert_async(((order >= 0) & (order < s.shape[0])).all(), "order must hold numbers of rows")
    return dense(order)


def _compose_kernel(order: Tensor, source: Tensor, s: Tensor, backward: bool) -> Tensor:
    return _compose(_row_numbers(order, s), dense(source), dense(s), backward)


def _scan_kernel(order: Tensor, f: Tensor, s: Tensor, entries: Tensor) -> Tensor:
    return _scan(_row_numbers(order, s), dense(f), dense(s), dense(entries))


def _scan_backward_kernel(order: Tensor, s: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    return _scan_backward(_row_numbers(order, s), dense(s), *map(dense, tensors))


def _compose_shape(order: Tensor, source: Tensor, s: Tensor, backward: bool) -> Tensor:
    return _wide(s, 2, _num_chunks(s), s.shape[1])


def _scan_shape(order: Tensor, f: Tensor, s: Tensor, entries: Tensor) -> Tensor:
    return _wide(s, *s.shape)


def _scan_backward_shape(order: Tensor, s: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    return s.new_empty(s.shape), s.new_empty(s.shape)


register(
    "echo_scan_compose(Tensor order, Tensor source, Tensor s, bool backward) -> Tensor",
    check=_check_compose,
    kernel=_compose_kernel,
    shape=_compose_shape,
)
register(
    "echo_scan(Tensor order, Tensor f, Tensor s, Tensor entries) -> Tensor",
    check=_check_scan,
    kernel=_scan_kernel,
    shape=_scan_shape,
)
register(
    "echo_scan_backward(Tensor order, Tensor s, Tensor grad, Tensor z, Tensor entry, Tensor entries_back) "
    "-> (Tensor grad_f, Tensor grad_s)",
    check=_check_scan_backward,
    kernel=_scan_backward_kernel,
    shape=_scan_backward_shape,
)
