"""Stochastic channels from pre-activations to a latent z, which can replace :class:`echo_ext.EchoChannel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from echo_ext.models.densities import draw_normal, log_normal
from echo_ext.models.flows import ShiftFlow

__all__ = ["DensityOutput", "GaussianChannel", "GaussianOutput", "IAFChannel"]


class GaussianOutput(NamedTuple):
    """A sample ``z`` of N(mean, exp(log_variance)); all are (B, d)."""

    z: Tensor
    mean: Tensor
    log_variance: Tensor

    @property
    def log_density(self) -> Tensor:
        """``log q(z|x)`` summed over dimensions: (B,)."""
        return log_normal(self.z, self.mean, self.log_variance).flatten(1).sum(1)


class DensityOutput(NamedTuple):
    """A sample ``z``, (B, d), with ``log_density = log q(z|x)``, (B,); ``base`` is the input of the flow, if any."""

    z: Tensor
    log_density: Tensor
    base: GaussianOutput | None = None


class GaussianChannel(nn.Module):
    """The reparameterization trick, ``z = mean + exp(log_variance / 2) * noise`` (Kingma & Welling 2014)."""

    def forward(self, mean: Tensor, log_variance: Tensor) -> GaussianOutput:
        """Sample z for each row of mean and log variance, (B, d) each."""
        z = draw_normal(mean, log_variance)
        return GaussianOutput(z, mean, log_variance)


class IAFChannel(nn.Module):
    """A Gaussian sample transformed by an inverse autoregressive flow without scales (Kingma et al. 2016).

    The flow starts from ``z0 ~ N(mean, exp(log_variance))`` and repeats ``z <- z - m(z)``. Since it preserves volume,
    ``log q(z|x) = log N(z0; mean, exp(log_variance))``. The flow does not depend on x.

    Args:
        latent_dim: Number of dimensions of z.
        steps: Number of steps. More make q(z|x) more flexible.
        hidden: Widths of the hidden layers of each step.
    """

    def __init__(self, latent_dim: int, steps: int = 4, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        self.gaussian = GaussianChannel()
        self.flow = ShiftFlow(latent_dim, steps, hidden)

    def forward(self, mean: Tensor, log_variance: Tensor) -> DensityOutput:
        """Sample z for each row of mean and log variance, (B, d) each."""
        base = self.gaussian(mean, log_variance)
        return DensityOutput(self.flow(base.z), base.log_density, base)
