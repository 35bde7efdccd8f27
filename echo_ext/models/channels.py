"""Stochastic channels from pre-activations to a latent z, interchangeable with :class:`echo_ext.EchoChannel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from echo_ext.models.densities import draw_normal, log_normal
from echo_ext.models.flows import ShiftFlow

__all__ = ["DensityOutput", "GaussianChannel", "GaussianOutput", "IAFChannel"]


class GaussianOutput(NamedTuple):
    """A draw ``z`` of N(mean, exp(log_variance)); all (B, d)."""

    z: Tensor
    mean: Tensor
    log_variance: Tensor

    @property
    def log_density(self) -> Tensor:
        """``log q(z|x)`` summed over dimensions: (B,)."""
        return log_normal(self.z, self.mean, self.log_variance).flatten(1).sum(1)


class DensityOutput(NamedTuple):
    """A draw ``z`` (B, d) and ``log_density = log q(z|x)`` at it, (B,); of a flow also what went into it."""

    z: Tensor
    log_density: Tensor
    base: GaussianOutput | None = None


class GaussianChannel(nn.Module):
    """The reparameterisation trick, ``z = mean + exp(log_variance / 2) * noise`` (Kingma & Welling 2014)."""

    def forward(self, mean: Tensor, log_variance: Tensor) -> GaussianOutput:
        """Send (B, d) through the channel."""
        z = draw_normal(mean, log_variance)
        return GaussianOutput(z, mean, log_variance)


class IAFChannel(nn.Module):
    """A Gaussian draw sent through an inverse autoregressive flow that shifts only (Kingma et al. 2016).

    ``z0 ~ N(mean, exp(log_variance))``, then ``z <- z - m(z)`` step by step: volume is preserved, and so
    ``log q(z|x) = log N(z0; mean, exp(log_variance))``. The flow is the same for every x.

    Args:
        latent_dim: dimensions of z.
        steps: of the flow, as in :class:`~echo_ext.models.flows.ShiftFlow`.
        hidden: widths of each step's hidden layers.
    """

    def __init__(self, latent_dim: int, steps: int = 4, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        self.gaussian = GaussianChannel()
        self.flow = ShiftFlow(latent_dim, steps, hidden)

    def forward(self, mean: Tensor, log_variance: Tensor) -> DensityOutput:
        """Send (B, d) through the channel."""
        base = self.gaussian(mean, log_variance)
        return DensityOutput(self.flow(base.z), base.log_density, base)
