"""Log densities and divergences in nats per dimension, including all constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LOG_2_PI", "draw_normal", "kl_to_standard_normal", "log_mean_exp", "log_normal", "widened"]

LOG_2_PI = math.log(2 * math.pi)


def log_normal(x: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | float = 0.0) -> Tensor:
    """``log N(x; mean, exp(log_variance))`` for each element; the three arguments broadcast."""
    precision = (-log_variance).exp() if isinstance(log_variance, Tensor) else math.exp(-log_variance)
    return -0.5 * ((x - mean).square() * precision + log_variance + LOG_2_PI)


def draw_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A sample of ``N(mean, exp(log_variance))`` for each element, with gradients to both (Kingma & Welling 2014)."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """``KL(N(mean, exp(log_variance)) | N(0, 1))`` for each element."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """``log(mean(exp(x)))`` over one dimension, without overflow."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def widened(x: Tensor) -> Tensor:
    """Return x in at least float32, because a half type would round sums over dimensions to three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
