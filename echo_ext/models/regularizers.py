"""Penalties on the distribution of z: the maximum mean discrepancy, and the total correlation by a discriminator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from echo_ext import _checks
from echo_ext.models.densities import widened
from echo_ext.models.networks import mlp

__all__ = ["TCDiscriminator", "mmd", "mmd_to_standard_normal", "permute_dimensions"]


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """The squared maximum mean discrepancy of two samples, as a V-statistic: 0-d (Gretton et al. 2012).

    It is ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` over all pairs, where
    ``k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))``.

    Args:
        x: The first sample, (n, d).
        y: The second sample, (m, d).
        bandwidth: Bandwidth of the kernel k. A larger value compares the samples on a coarser scale. None means
            ``d / sqrt(2)``, so that ``k = exp(-|x - y|^2 / d^2)`` as in InfoVAE (Zhao et al. 2019), and as in the Echo
            paper for its 32 dimensions.
    """
    bandwidth = x.shape[1] / math.sqrt(2) if bandwidth is None else _checks.number("bandwidth", bandwidth, above=0)
    scale = 2 * bandwidth**2
    return _mean_kernel(x, x, scale) + _mean_kernel(y, y, scale) - 2 * _mean_kernel(x, y, scale)


def mmd_to_standard_normal(z: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """The :func:`mmd` between z (B, d) and B fresh samples of N(0, I)."""
    return mmd(z, torch.randn_like(z), bandwidth=bandwidth)


def _mean_kernel(x: Tensor, y: Tensor, scale: float) -> Tensor:
    # The matrix product avoids a tensor of n x m x d. Autocast would compute it in a half type.
    with torch.autocast(x.device.type, enabled=False):
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squared / scale).exp().mean()


def permute_dimensions(z: Tensor) -> Tensor:
    """Permute each column of (B, d) independently, which turns samples of q(z) into samples of ``prod_j q(z_j)``."""
    return z.gather(0, torch.rand_like(z).argsort(dim=0))


class TCDiscriminator(nn.Module):
    """A classifier between samples of q(z) and of ``prod_j q(z_j)``, which estimates total correlation.

    It has two logits, l0 for q(z) and l1 for the product. At the minimum of :meth:`loss` their difference is the log
    density ratio, whose mean over q(z) is the total correlation (Kim & Mnih 2018).

    Args:
        latent_dim: Number of dimensions of z.
        width: Width of each hidden layer.
        depth: Number of hidden layers, each followed by a leaky ReLU of slope 0.2.
    """

    def __init__(self, latent_dim: int, width: int = 1000, depth: int = 6) -> None:
        super().__init__()
        self.layers = mlp(latent_dim, *[width] * depth, 2, activation="leaky-relu")

    def forward(self, z: Tensor) -> Tensor:
        """The two logits: (B, 2)."""
        return widened(self.layers(z))

    def total_correlation(self, z: Tensor) -> Tensor:
        """The estimate ``mean(l0 - l1)`` in nats, 0-d, with gradients to z but not to the discriminator."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        logits: Tensor = functional_call(self, frozen, (z,))
        return (logits[:, 0] - logits[:, 1]).mean()

    def loss(self, z: Tensor) -> Tensor:
        """The cross-entropy of the classification, 0-d, with gradients to the discriminator but not to z.

        The first half of the batch represents q(z). The second half, with permuted dimensions, represents the product:
        the two classes must not share samples.
        """
        z = z.detach()
        half = (len(z) + 1) // 2
        logits = self(torch.cat([z[:half], permute_dimensions(z[-half:])]))
        truth = torch.arange(2, device=z.device).repeat_interleave(half)
        return functional.cross_entropy(logits, truth)
