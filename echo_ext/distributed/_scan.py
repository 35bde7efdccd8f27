"""Affine recurrences ``z_p = f_p + s_p * z_{p+1}`` over rows, and their composition.

By doubling: log2(B) steps over all rows at once, without division, so that scales of 0 are nothing special.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compose(f: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' composition ``t -> constant + scale * t``; (B, d) to twice (d,). No rows are the identity."""
    if len(f) == 0:
        return f.new_zeros(f.shape[1:]), f.new_ones(f.shape[1:])
    constants, scales = _suffixes(f, s)
    return constants[0], scales[0]


def scan(f: Tensor, s: Tensor, entry: Tensor) -> Tensor:
    """All z of ``z_p = f_p + s_p * z_{p+1}`` with ``entry`` (d,) behind the last row: (B, d)."""
    constants, scales = _suffixes(f, s)
    return constants + scales * entry


def _suffixes(f: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The composition of each row with all that follow it."""
    constants, scales, span = f, s, 1
    while span < len(f):
        constants = torch.cat([constants[:-span] + scales[:-span] * constants[span:], constants[-span:]])
        scales = torch.cat([scales[:-span] * scales[span:], scales[-span:]])
        span *= 2
    return constants, scales
