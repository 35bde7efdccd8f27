"""Penalties on the law of z: the maximum mean discrepancy, and total correlation by a discriminator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from echo_ext.models.densities import widened
from echo_ext.models.networks import mlp

__all__ = ["TCDiscriminator", "mmd", "mmd_to_standard_normal", "permute_dimensions"]


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """The squared maximum mean discrepancy of two samples, as a V-statistic: 0-d (Gretton et al. 2012).

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` over all pairs, ``k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))``.

    Args:
        x: (n, d).
        y: (m, d).
        bandwidth: None for ``d / sqrt(2)``, so that ``k = exp(-|x - y|^2 / d^2)`` (Zhao et al. 2019, whose InfoVAE
            adds 999 times this); the Echo paper's 32 / sqrt(2) is the same at its 32 dimensions.
    """
    if bandwidth is None:
        bandwidth = x.shape[1] / math.sqrt(2)
    elif not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    scale = 2 * bandwidth**2
    return _mean_kernel(x, x, scale) + _mean_kernel(y, y, scale) - 2 * _mean_kernel(x, y, scale)


def mmd_to_standard_normal(z: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """:func:`mmd` between z (B, d) and as many fresh draws of N(0, I)."""
    return mmd(z, torch.randn_like(z), bandwidth=bandwidth)


def _mean_kernel(x: Tensor, y: Tensor, scale: float) -> Tensor:
    # By a matrix product, so that there is no tensor of n x m x d; autocast would round it to a half type.
    with torch.autocast(x.device.type, enabled=False):
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squared / scale).exp().mean()


def permute_dimensions(z: Tensor) -> Tensor:
    """Each column of (B, d) in an order of its own: draws of ``prod_j q(z_j)`` from draws of q(z)."""
    return z.gather(0, torch.rand_like(z).argsort(dim=0))


class TCDiscriminator(nn.Module):
    """Tells draws of q(z) from draws of ``prod_j q(z_j)``, and so estimates total correlation (Kim & Mnih 2018).

    Two logits, l0 for q(z) and l1 for the product. At the optimum of :meth:`loss` their difference is the log ratio of
    the two densities, whose mean over q(z) is the total correlation.

    Args:
        latent_dim: dimensions of z.
        width: of each hidden layer.
        depth: how many hidden layers, leaky ReLU of slope 0.2 after each.
    """

    def __init__(self, latent_dim: int, width: int = 1000, depth: int = 6) -> None:
        super().__init__()
        self.layers = mlp(latent_dim, *[width] * depth, 2, activation="leaky-relu")

    def forward(self, z: Tensor) -> Tensor:
        """The two logits: (B, 2)."""
        return widened(self.layers(z))

    def total_correlation(self, z: Tensor) -> Tensor:
        """``mean(l0 - l1)`` in nats, 0-d; its gradient reaches z and not the discriminator's parameters."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        logits: Tensor = functional_call(self, frozen, (z,))
        return (logits[:, 0] - logits[:, 1]).mean()

    def loss(self, z: Tensor) -> Tensor:
        """The cross-entropy of telling the two apart, 0-d; its gradient does not reach z.

        The first half of the batch stands for q(z), the second, its dimensions permuted, for the product: they must
        come from different samples.
        """
        z = z.detach()
        half = (len(z) + 1) // 2
        logits = self(torch.cat([z[:half], permute_dimensions(z[-half:])]))
        truth = torch.arange(2, device=z.device).repeat_interleave(half)
        return functional.cross_entropy(logits, truth)
