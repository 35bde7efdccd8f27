"""Channels, which draw the latent z from the output of an encoder.

A channel is a module that takes the output of the encoder. There are two kinds:

* It returns the distribution q(z|x), a :class:`torch.distributions.Distribution` with ``rsample`` and ``log_prob``,
  whose batch is (B,) and whose event is (latent_dim,). A model combines it with a prior.
* It returns a pair ``(z, rate)`` of a sample and its own rate in nats, such as :class:`echo_ext.ChannelOutput`, and has
  a method ``sample(n)`` for its marginal q(z). It needs no prior. For ``Model.encode_mean`` it has a method ``mean`` of
  the first output of the encoder, which returns the code without noise. :class:`echo_ext.EchoChannel` is of this kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution

from echo_ext import _checks
from echo_ext.models.flows import FlowTransform, ShiftFlow
from echo_ext.models.mixture_density import normal_mixtures

__all__ = ["GaussianChannel", "IAFChannel", "MixtureChannel", "gaussian_factors", "noiseless"]


class GaussianChannel(nn.Module):
    """The reparameterization trick: a Gaussian q(z|x) with independent dimensions (Kingma & Welling 2014).

    Args:
        min_log_variance: Minimum of the log variances; lower ones are raised to it. A loss that rewards information is
            unbounded below without a minimum, because x and z can come to determine each other.
        max_log_variance: Maximum of the log variances.

    Example:
        >>> q = echo_ext.models.GaussianChannel()(torch.zeros(5, 2), torch.zeros(5, 2))
        >>> q.rsample().shape, q.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, min_log_variance: float = -math.inf, max_log_variance: float = math.inf) -> None:
        super().__init__()
        self.limits = (min_log_variance, max_log_variance)

    def forward(self, mean: Tensor, log_variance: Tensor) -> Distribution:
        """Return N(mean, exp(log_variance)), whose arguments are (B, d) each."""
        if self.limits != (-math.inf, math.inf):
            log_variance = log_variance.clamp(*self.limits)
        std = (0.5 * log_variance).exp()
        return Independent(Normal(mean, std, validate_args=False), mean.ndim - 1, validate_args=False)


class IAFChannel(nn.Module):
    """A Gaussian followed by an inverse autoregressive flow that does not depend on x (Kingma et al. 2016).

    Args:
        latent_dim: Number of dimensions of z.
        steps: Number of steps ``z <- z - m(z)`` of the flow. More make q(z|x) more flexible.
        hidden: Widths of the hidden layers of each step.

    Example:
        >>> channel = echo_ext.models.IAFChannel(2, steps=2, hidden=(8,))
        >>> channel(torch.zeros(5, 2), torch.zeros(5, 2)).rsample().shape
        torch.Size([5, 2])
    """

    def __init__(self, latent_dim: int, steps: int = 4, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        self.gaussian = GaussianChannel()
        self.flow = ShiftFlow(latent_dim, steps, hidden)

    def forward(self, mean: Tensor, log_variance: Tensor) -> Distribution:
        """Return the distribution of flow(z) for z ~ N(mean, exp(log_variance)); the arguments are (B, d) each."""
        transform = FlowTransform(self.flow)
        return TransformedDistribution(self.gaussian(mean, log_variance), [transform], validate_args=False)


class MixtureChannel(nn.Module):
    """A q(z|x) with independent dimensions, each a mixture of Gaussians (a mixture-density network; Bishop 1994).

    Args:
        components: Number of Gaussians for each dimension. The encoder has three outputs for each of them.
        min_log_variance: Minimum of their log variances; lower ones are raised to it.

    Example:
        >>> q = echo_ext.models.MixtureChannel(components=3)(*torch.zeros(3, 5, 2 * 3))
        >>> q.rsample().shape, q.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, components: int = 10, min_log_variance: float = -math.inf) -> None:
        super().__init__()
        self.components = _checks.whole("components", components, minimum=1)
        self.min_log_variance = min_log_variance

    def forward(self, logits: Tensor, means: Tensor, log_variances: Tensor) -> Distribution:
        """Return the distribution for parameters (B, d * components) each, those of one dimension side by side."""
        parameters = (each.unflatten(1, (-1, self.components)) for each in (logits, means, log_variances))
        return normal_mixtures(parameters, self.min_log_variance)


def noiseless(q: Distribution) -> Tensor:
    """The code without noise, (B, d): the mean of q(z|x), or, after a flow, what becomes of the mean before it."""
    if not isinstance(q, TransformedDistribution):
        return q.mean
    z = noiseless(q.base_dist)
    for transform in q.transforms:
        z = transform(z)
    return z


def gaussian_factors(q: object) -> Normal | None:
    """Return the Gaussians q(z_j|x) whose product is q(z|x), with the batch (B, d), or None if it is something else."""
    return q.base_dist if isinstance(q, Independent) and isinstance(q.base_dist, Normal) else None
