"""What to minimise: the rate-distortion trade-off with a weight for each latent."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["anchor_weights", "rate_distortion", "total_correlation_bound"]


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

    Latents whose information is cheaper come to hold the most of it (Gao et al. 2019, AnchorVAE).
    """
    if not isinstance(anchored, int) or not 0 <= anchored <= latent_dim:
        raise ValueError(f"anchored must be from 0 to latent_dim, which is {latent_dim}, got {anchored}")
    if not 0 <= strength <= 1:
        raise ValueError(f"anchor_strength must be from 0 to 1, got {strength}")
    weights = torch.ones(latent_dim)
    weights[:anchored] = 1 - strength
    return weights


def total_correlation_bound(entropies: Tensor, distortion: Tensor, rate: Tensor) -> Tensor:
    """``sum_i H(x_i) - D - R``, which total correlation is at least: 0-d, in nats (Gao et al. 2019).

    It bounds ``TC(x; z) - TC(z) = sum_i I(x_i; z) - sum_j I(z_j; x)``, and so what z explains of ``TC(x)``, if the
    decoder's law is a product over i and q(z|x) and its marginal are products over j. CorEx maximises it, which a VAE
    does too, since the entropies are constants of the data.

    Args:
        entropies: H(x_i) of each column of the data, any shape.
        distortion: mean of -log p(x|z), 0-d.
        rate: mean of sum_j KL(q(z_j|x) | r(z_j)), 0-d.
    """
    return entropies.sum() - distortion - rate
