"""Two autoencoders that differ in nothing but their channel."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from echo_ext.channel import ChannelOutput, EchoChannel

__all__ = ["Autoencoder", "GaussianChannel"]


class GaussianChannel(nn.Module):
    """The VAE's channel, ``z = mu + sigma * eps``, eps ~ N(0, I): its rate is at most KL(q(z|x) | N(0, I))."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, mu: Tensor, log_sigma: Tensor) -> ChannelOutput:
        """Send (B, d) through the channel: z and the KL of each dimension, in nats, both (B, d)."""
        z = mu + log_sigma.exp() * torch.randn_like(mu)
        return ChannelOutput(z, (mu.square() + (2 * log_sigma).exp() - 1) / 2 - log_sigma)

    def sample(self, n: int) -> Tensor:
        """``n`` draws from the prior N(0, I): (n, d)."""
        return torch.randn(n, self.latent_dim)


class Autoencoder(nn.Module):
    """Encoder, channel, decoder: ``-ELBO = rate + distortion``, whatever the channel.

    Args:
        channel: maps two (B, latent_dim) tensors to (z, rate), as :class:`echo_ext.EchoChannel` does.
        image_shape: (channels, height, width).
        latent_dim: dimensions of z.
        hidden: width of the two hidden layers on either side.
    """

    channel: EchoChannel | GaussianChannel

    def __init__(
        self, channel: EchoChannel | GaussianChannel, image_shape: torch.Size, *, latent_dim: int, hidden: int
    ) -> None:
        super().__init__()
        pixels = math.prod(image_shape)
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(pixels, hidden, hidden, 2 * latent_dim))
        self.channel = channel
        self.decoder = nn.Sequential(*_layers(latent_dim, hidden, hidden, pixels), nn.Unflatten(1, image_shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rate and distortion of each image of (B, *image_shape), in nats: (B,) each."""
        z, rate = self.encode(x)
        distortion = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none")
        return rate.sum(dim=1), distortion.flatten(1).sum(dim=1)

    def encode(self, x: Tensor) -> ChannelOutput:
        """A draw of z given x, and its rate: (B, latent_dim) each."""
        first, second = self.encoder(x).chunk(2, dim=1)
        output: ChannelOutput = self.channel(first, second)
        return output

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of each z: (B, *image_shape)."""
        mean: Tensor = torch.sigmoid(self.decoder(z))
        return mean


def _layers(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]
