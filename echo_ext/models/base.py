"""What every model of the comparison can do, whatever it is composed of."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from echo_ext.echo.channel import ChannelOutput
from echo_ext.models.channels import DensityOutput, GaussianOutput

__all__ = ["Model"]


class Model(nn.Module, abc.ABC):
    """A generative model of x with a latent z. All quantities are in nats, summed over dimensions.

    Args:
        data_shape: shape of one x: (channels, height, width) of an image, (columns,) of a vector.
        latent_dim: dimensions of z.

    Attributes:
        warmth: from 0 to 1, the weight of what a model warms up slowly; a trainer raises it, and it stays 1 otherwise.
    """

    def __init__(self, data_shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        shape = tuple(data_shape)
        if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
            raise ValueError(f"data_shape must be positive integers, as (1, 28, 28) or (2,), got {shape}")
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise ValueError(f"latent_dim must be a positive integer, got {latent_dim}")
        self.data_shape = shape
        self.latent_dim = latent_dim
        self.warmth = 1.0

    def checked(self, x: Tensor) -> Tensor:
        """A batch x, or a ValueError where it is not (B, *data_shape)."""
        if x.shape[1:] != self.data_shape:
            raise ValueError(f"x must be (B, {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}")
        return x

    @abc.abstractmethod
    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """What to minimise on a batch (B, *data_shape), under "loss", and what it is made of; 0-d, nats per sample.

        "rate" is an exact information, "rate_bound" an upper bound on it; "distortion" is -E log p(x|z). Their sum is
        the -ELBO wherever both are there, whatever weights "loss" gives them.
        """

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """A draw of z given each x: (B, latent_dim)."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""

    @abc.abstractmethod
    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x from the model's own law: (n, *data_shape)."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of x given a draw of z given x: (B, *data_shape)."""
        return self.decode(self.encode(x))

    def posterior(self, x: Tensor) -> ChannelOutput | GaussianOutput | DensityOutput:
        """What the channel makes of each x: z with its rate, its Gaussian, or its density."""
        raise TypeError(f"{type(self).__name__} has no single posterior q(z|x)")

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one draw of z given each x, for importance sampling: (B,)."""
        raise TypeError(f"{type(self).__name__} has no density q(z|x) to weigh samples by")

    def prepare(self, x: Tensor) -> None:
        """Take what is initialised from training rows (B, *data_shape), before the first step."""

    def refresh(self, x: Tensor) -> None:
        """Bring statistics kept of training rows up to the final weights, after the last step."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The groups for an Adam optimiser; a part that is trained otherwise has its own."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]
