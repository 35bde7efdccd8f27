"""Mixtures of normal distributions whose samples have gradients, for mixture-density networks (Bishop 1994)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

__all__ = ["NormalMixture", "normal_mixtures"]


class NormalMixture(MixtureSameFamily):
    """Mixtures of normal distributions of one variable each, with reparameterized samples.

    A sample z has the gradient ``dz = -dF(z) / p(z)`` with respect to the parameters, where F is the distribution
    function and p the density: the value of F at the sample is held fixed (implicit reparameterization; Figurnov,
    Mohamed & Mnih 2018, eq. 6).

    Args:
        logits: Unnormalized log weights, (*batch, components).
        means, stds: Means and standard deviations of the components, (*batch, components).
    """

    has_rsample = True

    def __init__(self, logits: Tensor, means: Tensor, stds: Tensor) -> None:
        weights, components = Categorical(logits=logits, validate_args=False), Normal(means, stds, validate_args=False)
        super().__init__(weights, components, validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples with gradients: (*sample_shape, *batch)."""
        base: Any = self  # the methods of torch have no types
        z: Tensor = base.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return z
        fraction = base.cdf(z)
        return z - (fraction - fraction.detach()) / base.log_prob(z).detach().exp()


def normal_mixtures(parameters: Iterable[Tensor], min_log_variance: float) -> Distribution:
    """Independent mixtures for each value of (B, *shape).

    Args:
        parameters: The logits, means and log variances of the components, (B, *shape, components) each.
        min_log_variance: Minimum of the log variances.
    """
    logits, means, log_variances = parameters
    mixtures = NormalMixture(logits, means, (0.5 * log_variances.clamp(min=min_log_variance)).exp())
    return Independent(mixtures, len(mixtures.batch_shape) - 1, validate_args=False)
