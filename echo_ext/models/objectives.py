"""What to minimise: the rate-distortion trade-off with a weight for each latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["anchor_weights", "rate_distortion"]


def rate_distortion(
    distortion: Tensor, rate: Tensor, *, beta: float | Tensor = 1.0, weights: Tensor | None = None
) -> Tensor:
    """``D + beta * sum_j w_j R_j``, the mean over a batch: 0-d, in nats (Alemi et al. 2018; Higgins et al. 2017).

    Args:
        distortion: -log p(x|z) of each sample, (B,).
        rate: of each latent, (B, d), or of each sample, (B,).
        beta: the price of a nat of rate; at 1 and with weights of 1 this bounds -log p(x).
        weights: w_j, (d,), for a rate that is given per latent; None for 1.
    """
    if weights is not None:
        rate = rate * weights
    if rate.ndim > 1:
        rate = rate.flatten(1).sum(1)
    return (distortion + beta * rate).mean()


def anchor_weights(latent_dim: int, anchored: int, strength: float) -> Tensor:
    """``w_j = 1 - strength`` for the first ``anchored`` latents and 1 for the others: (latent_dim,).

    A latent whose information is cheaper becomes an anchor for it (Gao et al. 2019, AnchorVAE).
    """
    if not isinstance(anchored, int) or not 0 <= anchored <= latent_dim:
        raise ValueError(f"anchored must be from 0 to latent_dim, which is {latent_dim}, but is {anchored}")
    if not 0 <= strength <= 1:
        raise ValueError(f"anchor_strength must be from 0 to 1, but is {strength}")
    weights = torch.ones(latent_dim)
    weights[:anchored] = 1 - strength
    return weights


def non_negative(name: str, value: float) -> float:
    """A weight of a loss: finite and not negative."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be at least 0 and finite, but is {value}")
    return value
