"""The affine recurrence ``z_p = f_p + s_p * z_{p+1}`` over rows in an order, its adjoint, and their composition.

Rows are (B, d), in their own dtype; maps, entries and z are in the one that is computed in, at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext import _C, _checks
from echo_ext._cuda import device_and_stream


def compose(order: Tensor, source: Tensor, s: Tensor, *, backward: bool = False) -> Tensor:
    """The rows' ``t -> constants + scales * t``, stacked (2, d): from what follows the last row to the first row's z.

    With ``backward``, where source is the gradient of z: from what comes before the first row to what the last hands
    on. No rows are the identity.
    """
    maps = _wide(s, 2, s.shape[1])
    addresses = (order.data_ptr(), source.data_ptr(), s.data_ptr(), maps[0].data_ptr(), maps[1].data_ptr(), backward)
    if s.is_cpu:
        _C.echo_scan_cpu_compose(_problem(s), *addresses, torch.get_num_threads())
    else:
        _C.echo_scan_cuda_compose(_problem(s), *addresses, *device_and_stream("f", s.device))
    return maps


def scan(order: Tensor, f: Tensor, s: Tensor, entry: Tensor) -> Tensor:
    """z of all rows (B, d), with ``entry`` (d,) behind the last."""
    z = _wide(s, *s.shape)
    addresses = (order.data_ptr(), f.data_ptr(), s.data_ptr(), entry.data_ptr(), z.data_ptr())
    if s.is_cpu:
        _C.echo_scan_cpu_forward(_problem(s), *addresses, torch.get_num_threads())
    else:
        _C.echo_scan_cuda_forward(_problem(s), *addresses, *device_and_stream("f", s.device))
    return z


def scan_backward(
    order: Tensor, s: Tensor, grad: Tensor, z: Tensor, entry: Tensor, entry_back: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of f and s: ``v_p = grad_p + s_{p-1} v_{p-1}`` and ``v_p z_{p+1}``, with ``entry_back`` (d,) before
    the first row.
    """
    grad_f, grad_s = torch.empty_like(s), torch.empty_like(s)
    inputs = (order.data_ptr(), s.data_ptr(), grad.data_ptr(), z.data_ptr(), entry.data_ptr(), entry_back.data_ptr())
    addresses = (*inputs, grad_f.data_ptr(), grad_s.data_ptr())
    if s.is_cpu:
        _C.echo_scan_cpu_backward(_problem(s), *addresses, torch.get_num_threads())
    else:
        _C.echo_scan_cuda_backward(_problem(s), *addresses, *device_and_stream("f", s.device))
    return grad_f, grad_s


def periodic(constants: Tensor, scales: Tensor) -> Tensor:
    """The fixed point of ``t -> c_0 + a_0 (c_1 + a_1 ( ... t))`` over maps (W, d), the later ones inside."""
    every = torch.arange(len(scales), device=scales.device)
    constant, scale = compose(every, constants.contiguous(), scales.contiguous()).unbind()
    return constant / (1 - scale)


def _problem(rows: Tensor) -> _C.EchoScanProblem:
    return _C.EchoScanProblem(rows.shape[0], rows.shape[1], _checks.FLOATING.index(rows.dtype))


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))
