"""Marginals m(z) that a rate is bounded against: ``E log q(z|x) - log m(z)`` is least where m is the encodings' law."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from echo_ext.models.densities import log_normal

__all__ = ["Marginal", "StandardNormal"]


class Marginal(nn.Module, abc.ABC):
    """A law of z that has a density and can be sampled."""

    @abc.abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """``log m(z)`` of each row of (B, d), in nats: (B,)."""

    @abc.abstractmethod
    def sample(self, n: int) -> Tensor:
        """``n`` draws: (n, d)."""


class StandardNormal(Marginal):
    """N(0, I) in ``latent_dim`` dimensions."""

    mean: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim), persistent=False)  # knows dtype and device

    def log_prob(self, z: Tensor) -> Tensor:
        """The normal log density: (B,)."""
        return log_normal(z).sum(1)

    def sample(self, n: int) -> Tensor:
        """``n`` draws: (n, latent_dim)."""
        return torch.randn_like(self.mean.expand(n, -1))
