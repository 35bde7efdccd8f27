"""Stochastic channels from pre-activations to a latent z, interchangeable with :class:`echo_ext.EchoChannel`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from echo_ext.models.densities import log_normal

__all__ = ["DensityOutput", "GaussianChannel", "GaussianOutput"]


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
    """A draw ``z`` (B, d) and ``log_density = log q(z|x)`` at it, (B,)."""

    z: Tensor
    log_density: Tensor


class GaussianChannel(nn.Module):
    """The reparameterisation trick, ``z = mean + exp(log_variance / 2) * noise`` (Kingma & Welling 2014)."""

    def forward(self, mean: Tensor, log_variance: Tensor) -> GaussianOutput:
        """Send (B, d) through the channel."""
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return GaussianOutput(z, mean, log_variance)
