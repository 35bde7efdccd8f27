"""Small numerical functions that models share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_mean_exp", "widened"]


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """``log(mean(exp(x)))`` over one dimension, without overflow."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def widened(x: Tensor) -> Tensor:
    """Return x in at least float32, because a half type would round sums over dimensions to three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
