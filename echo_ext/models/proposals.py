"""Proposals for importance sampling that are wider than q(z|x)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution

from echo_ext.models.channels import gaussian_factors
from echo_ext.models.priors import Prior
from echo_ext.models.two_level import TwoLevelPosterior

__all__ = ["draw_defensively"]

# Standard deviations of the wider distributions relative to those of q(z|x). The largest is the last.
SCALES = (1.25, 1.5, 2.0, 4.0)


def draw_defensively(q: Distribution, prior: Prior, weight: float) -> tuple[Tensor, Tensor]:
    """Draw z from ``m(z|x) = (1 - weight) q(z|x) + weight w(z|x)``, where w is wider than q (Hesterberg 1995).

    The ratio p(z|x) / q(z|x) has no bound where q is narrower than the true posterior, so that a few draws from q miss
    most of p(x). w is a mixture with equal weights of q with its standard deviations multiplied by each of ``SCALES``,
    if q is made of Gaussians, and of the prior, unless q is a flow, whose density is slow where it was not drawn.

    Args:
        q: The posteriors, with the batch (B,).
        prior: The distribution p(z).
        weight: The weight of w, from 0 to 1.

    Returns:
        One z for each x, (B, d), and ``log p(z) - log m(z|x)``, (B,).
    """
    widened = [each for scale in SCALES if (each := scaled(q, scale)) is not None]
    with_prior = not isinstance(q, TransformedDistribution)
    wider = len(widened) + with_prior
    if weight == 0 or wider == 0:
        z = q.rsample()
        return z, -prior.log_ratio(q, z)
    weights = torch.tensor([1 - weight, *[weight / wider] * wider], device="cpu")
    component = weights.multinomial(int(q.batch_shape[0]), replacement=True)
    # The rows of the prior are drawn from q first, and then replaced.
    scales = torch.tensor([1.0, *SCALES, 1.0], device="cpu")[component] if widened else torch.ones(1, device="cpu")
    z = (scaled(q, scales.unsqueeze(-1)) or q).rsample()
    if with_prior and len(rows := (component == len(weights) - 1).nonzero().flatten().to(z.device)):
        z = z.index_copy(0, rows, prior.sample(len(rows)).to(z.dtype))
    densities = torch.stack([each.log_prob(z) for each in (q, *widened)])
    # From the widest one, whose density is not yet rounded coarsely far from its mean.
    log_prior = densities[-1] - prior.log_ratio(widened[-1] if widened else q, z)
    if with_prior:
        densities = torch.cat([densities, log_prior.unsqueeze(0)])
    log_weights = weights.to(densities).log().unsqueeze(1)
    return z, log_prior - (log_weights + densities).logsumexp(0)


def scaled(q: Distribution, scale: float | Tensor) -> Distribution | None:
    """Return q with the standard deviations of its Gaussians multiplied by a scale, one or (B, 1); None for another."""
    if isinstance(q, TwoLevelPosterior):
        upper, lower = scaled(q.upper, scale), q.lower
        return None if upper is None else TwoLevelPosterior(upper, lambda z2: scaled(lower(z2), scale) or lower(z2))
    if isinstance(q, TransformedDistribution):
        base = scaled(q.base_dist, scale)
        return None if base is None else TransformedDistribution(base, q.transforms, validate_args=False)
    if (factors := gaussian_factors(q)) is None:
        return None
    std = torch.as_tensor(scale, device="cpu").to(factors.stddev) * factors.stddev
    return Independent(Normal(factors.mean, std, validate_args=False), 1, validate_args=False)
