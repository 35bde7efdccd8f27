"""The affine recurrence ``z_p = f_p + s_p * z_{p+1}`` over rows in an order, its adjoint, and their composition.

Rows are (B, d), in their own dtype; maps, entries and z are in the one that is computed in, at least float32. Chunks of
rows are composed side by side and then, each from what enters it, worked on side by side; what enters them is the same
recurrence over their maps, in chunks again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext import _C, _checks
from echo_ext._cuda import device_and_stream

# Depends on nothing, so that results do not either. A GPU works on a chunk step by step: short ones keep it busy.
CHUNK_ROWS = 128


class Composition:
    """Rows as maps ``t -> constants + scales * t``: from what follows the last row to the first row's z.

    With ``backward``, where source is the gradient of z: from what comes before the first row to what the last hands
    on. No rows are the identity.
    """

    def __init__(self, order: Tensor, source: Tensor, s: Tensor, *, backward: bool = False) -> None:
        # The maps (2, n, d) of chunks of rows, of chunks of these, and so on to the map of all. The recurrence enters
        # the first of each.
        self.levels = [_compose_chunks(order, source, s, backward)]
        self.orders: list[Tensor] = []  # of all levels but the last, whose maps are composed again
        while self.levels[-1].shape[1] > 1:
            constants, scales = self.levels[-1]
            # The recurrence begins with the last one in the order.
            self.orders.append(torch.arange(len(constants) - 1, -1, -1, device=constants.device))
            self.levels.append(_compose_chunks(self.orders[-1], constants, scales, False))

    @property
    def total(self) -> Tensor:
        """The map of all rows: constants and scales, stacked (2, d)."""
        return self.levels[-1].squeeze(1)

    def entries(self, entry: Tensor) -> Tensor:
        """What enters each chunk of rows (n, d), where ``entry`` (d,) enters the first."""
        entering = entry.unsqueeze(0)
        for order, (constants, scales) in zip(reversed(self.orders), reversed(self.levels[:-1]), strict=True):
            leaving = _scan_chunks(order, constants, scales, entering)
            entering = torch.cat([entry.unsqueeze(0), leaving[:-1]])
        return entering


def scan(order: Tensor, f: Tensor, s: Tensor, entry: Tensor, composition: Composition) -> Tensor:
    """z of all rows (B, d), with ``entry`` (d,) behind the last."""
    return _scan_chunks(order, f, s, composition.entries(entry))


def scan_backward(
    order: Tensor, s: Tensor, grad: Tensor, z: Tensor, entry: Tensor, entry_back: Tensor, composition: Composition
) -> tuple[Tensor, Tensor]:
    """The gradients of f and s: ``v_p = grad_p + s_{p-1} v_{p-1}`` and ``v_p z_{p+1}``, with ``entry_back`` (d,) before
    the first row; the composition is the backward one.
    """
    grad_f, grad_s, entries = torch.empty_like(s), torch.empty_like(s), composition.entries(entry_back)
    inputs = (order.data_ptr(), s.data_ptr(), grad.data_ptr(), z.data_ptr(), entry.data_ptr(), entries.data_ptr())
    addresses = (*inputs, grad_f.data_ptr(), grad_s.data_ptr())
    if s.is_cpu:
        _C.echo_scan_cpu_backward(_problem(s), *addresses, torch.get_num_threads())
    else:
        _C.echo_scan_cuda_backward(_problem(s), *addresses, *device_and_stream("f", s.device))
    return grad_f, grad_s


def periodic(constants: Tensor, scales: Tensor) -> Tensor:
    """The fixed point of ``t -> c_0 + a_0 (c_1 + a_1 ( ... t))`` over maps (W, d), the later ones inside."""
    every = torch.arange(len(scales), device=scales.device)
    constant, scale = Composition(every, constants.contiguous(), scales.contiguous()).total.unbind()
    return constant / (1 - scale)


def _compose_chunks(order: Tensor, source: Tensor, s: Tensor, backward: bool) -> Tensor:
    problem = _problem(s)
    maps = _wide(s, 2, problem.num_chunks, s.shape[1])
    addresses = (order.data_ptr(), source.data_ptr(), s.data_ptr(), maps[0].data_ptr(), maps[1].data_ptr(), backward)
    if s.is_cpu:
        _C.echo_scan_cpu_compose(problem, *addresses, torch.get_num_threads())
    else:
        _C.echo_scan_cuda_compose(problem, *addresses, *device_and_stream("f", s.device))
    return maps


def _scan_chunks(order: Tensor, f: Tensor, s: Tensor, entries: Tensor) -> Tensor:
    z = _wide(s, *s.shape)
    addresses = (order.data_ptr(), f.data_ptr(), s.data_ptr(), entries.data_ptr(), z.data_ptr())
    if s.is_cpu:
        _C.echo_scan_cpu_forward(_problem(s), *addresses, torch.get_num_threads())
    else:
        _C.echo_scan_cuda_forward(_problem(s), *addresses, *device_and_stream("f", s.device))
    return z


def _problem(rows: Tensor) -> _C.EchoScanProblem:
    return _C.EchoScanProblem(rows.shape[0], rows.shape[1], _checks.FLOATING.index(rows.dtype), CHUNK_ROWS)


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.promote_types(like.dtype, torch.float32))
