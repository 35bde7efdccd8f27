"""Losses: the rate-distortion trade-off, with a weight for each latent."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext import _checks

__all__ = ["anchor_weights", "rate_distortion", "total_correlation_bound"]


def rate_distortion(
    distortion: Tensor, rate: Tensor, *, beta: float | Tensor = 1.0, weights: Tensor | None = None
) -> Tensor:
    """The mean of ``D + beta * sum_j w_j R_j`` over a batch, 0-d and in nats (Alemi et al. 2018; Higgins et al. 2017).

    Args:
        distortion: The distortion -log p(x|z) of each sample, (B,).
        rate: The rate of each latent, (B, d), or of each sample, (B,).
        beta: Weight of the rate. A larger value gives less information about x and a larger distortion. With
            ``beta=1`` and weights of 1 the result is an upper bound on -log p(x).
        weights: The weights w_j, (d,), for a rate per latent. None means 1 for all latents.
    """
    if weights is not None:
        rate = rate * weights
    if rate.ndim > 1:
        rate = rate.flatten(1).sum(1)
    return (distortion + beta * rate).mean()


def anchor_weights(latent_dim: int, anchored: int, strength: float) -> Tensor:
    """The weights ``w_j = 1 - strength`` of the first ``anchored`` latents and 1 of the others: (latent_dim,).

    Latents with a smaller weight come to hold most of the information (AnchorVAE, Gao et al. 2019).
    """
    anchored = _checks.whole("anchored", anchored, minimum=0, maximum=latent_dim)
    strength = _checks.number("anchor_strength", strength, minimum=0, maximum=1)
    weights = torch.ones(latent_dim)
    weights[:anchored] = 1 - strength
    return weights


def total_correlation_bound(entropies: Tensor, distortion: Tensor, rate: Tensor) -> Tensor:
    """The lower bound ``sum_i H(x_i) - D - R`` on the total correlation TC(x), 0-d and in nats (Gao et al. 2019).

    More precisely, it is a lower bound on ``TC(x; z) - TC(z) = sum_i I(x_i; z) - sum_j I(z_j; x)``, the part of TC(x)
    that z explains, provided that p(x|z) is a product over i and that q(z|x) and r(z) are products over j. CorEx
    maximizes it. A VAE does the same, since the entropies are constants of the data.

    Args:
        entropies: The entropies H(x_i) of the columns of the data, in any shape.
        distortion: The mean of -log p(x|z), 0-d.
        rate: The mean of sum_j KL(q(z_j|x) | r(z_j)), 0-d.
    """
    return entropies.sum() - distortion - rate
