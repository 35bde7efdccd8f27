"""Penalties on the distribution of z: the maximum mean discrepancy, and the total correlation by a discriminator.

A regularizer is a module that maps z (B, d) to a dict of 0-d terms. Its "penalty" is added to the loss of the model,
and the others are reported with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from echo_ext import _checks
from echo_ext.models._numerics import widened
from echo_ext.models.networks import mlp

__all__ = [
    "MMDRegularizer",
    "TCDiscriminator",
    "TotalCorrelationRegularizer",
    "mmd",
    "mmd_to_standard_normal",
    "permute_dimensions",
]


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

    Example:
        >>> x = torch.randn(100, 2)
        >>> echo_ext.models.mmd(x, x)
        tensor(0.)
    """
    bandwidth = x.shape[1] / math.sqrt(2) if bandwidth is None else _checks.number("bandwidth", bandwidth, above=0)
    scale = 2 * bandwidth**2
    return _mean_kernel(x, x, scale) + _mean_kernel(y, y, scale) - 2 * _mean_kernel(x, y, scale)


def mmd_to_standard_normal(z: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """The :func:`mmd` between z (B, d) and B fresh samples of N(0, I)."""
    return mmd(z, torch.randn_like(z), bandwidth=bandwidth)


def _mean_kernel(x: Tensor, y: Tensor, scale: float) -> Tensor:
    # The matrix product avoids a tensor of n x m x d. Autocast, which the meta device lacks, would use a half type.
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (-squared / scale).exp().mean()


def permute_dimensions(z: Tensor) -> Tensor:
    """Permute each column of (B, d) independently, which turns samples of q(z) into samples of ``prod_j q(z_j)``.

    Example:
        >>> z = torch.arange(6.0).view(3, 2)
        >>> echo_ext.models.permute_dimensions(z).sort(0).values.equal(z)
        True
    """
    return z.gather(0, torch.rand_like(z).argsort(dim=0))


class TCDiscriminator(nn.Module):
    """A classifier between samples of q(z) and of ``prod_j q(z_j)``, which estimates total correlation.

    It has two logits, l0 for q(z) and l1 for the product. At the minimum of :meth:`loss` their difference is the log
    density ratio, whose mean over q(z) is the total correlation (Kim & Mnih 2018).

    Args:
        latent_dim: Number of dimensions of z.
        width: Width of each hidden layer.
        depth: Number of hidden layers, each followed by a leaky ReLU of slope 0.2.

    Attributes:
        optimizer_settings: The settings of Adam in the paper, with which models train it.

    Example:
        >>> discriminator = echo_ext.models.TCDiscriminator(3, width=16, depth=2)
        >>> discriminator.total_correlation(torch.randn(50, 3)).shape
        torch.Size([])
    """

    optimizer_settings = MappingProxyType({"lr": 1e-4, "betas": (0.5, 0.9)})

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

        The rows of z represent q(z), and the same rows with permuted dimensions the product (Locatello et al. 2019,
        whose setup the Echo paper has; Kim & Mnih permute a second batch).
        """
        z = z.detach()
        logits = self(torch.cat([z, permute_dimensions(z)]))
        truth = torch.arange(2, device=z.device).repeat_interleave(len(z))
        return functional.cross_entropy(logits, truth)


class MMDRegularizer(nn.Module):
    """The penalty ``weight * MMD(z, N(0, I))`` (InfoVAE, Zhao et al. 2019); it reports "mmd".

    Args:
        weight: Weight of the MMD. A larger value keeps the distribution of z closer to N(0, I).
        bandwidth: Bandwidth of the kernel, as in :func:`mmd`.

    Example:
        >>> sorted(echo_ext.models.MMDRegularizer(999.0)(torch.randn(50, 3)))
        ['mmd', 'penalty']
    """

    def __init__(self, weight: float, bandwidth: float | None = None) -> None:
        super().__init__()
        self.weight = _checks.number("weight", weight, minimum=0)
        self.bandwidth = bandwidth

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """The terms of z (B, d)."""
        found = mmd_to_standard_normal(z, bandwidth=self.bandwidth)
        return {"penalty": self.weight * found, "mmd": found}


class TotalCorrelationRegularizer(nn.Module):
    """The penalty ``weight * TC(z)`` by a discriminator that is trained together with the model (Kim & Mnih 2018).

    It reports "total_correlation" and "discriminator_loss". The penalty has the gradient of "discriminator_loss" too,
    but not its value, so that one backward pass trains both.

    Args:
        latent_dim: Number of dimensions of z.
        weight: Weight of the total correlation. A larger value makes the latents more independent.
        width: Width of each of the six hidden layers of the discriminator.
        units: A function that is first applied to z, such as :meth:`echo_ext.EchoChannel.without_gain`; None for none.
            Total correlation does not depend on the units of z, but a discriminator learns only in moderate ones.

    Example:
        >>> sorted(echo_ext.models.TotalCorrelationRegularizer(3, 20.0, width=16)(torch.randn(50, 3)))
        ['discriminator_loss', 'penalty', 'total_correlation']
    """

    def __init__(
        self, latent_dim: int, weight: float, width: int = 1000, units: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.weight = _checks.number("weight", weight, minimum=0)
        self.discriminator = TCDiscriminator(latent_dim, width)
        self.units = units

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """The terms of z (B, d)."""
        if self.units is not None:
            z = self.units(z)
        found, loss = self.discriminator.total_correlation(z), self.discriminator.loss(z)
        penalty = self.weight * found + (loss - loss.detach())
        return {"penalty": penalty, "total_correlation": found, "discriminator_loss": loss}
