"""The interface that all models share."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from echo_ext import _checks
from echo_ext.echo.channel import ChannelOutput
from echo_ext.models.channels import DensityOutput, GaussianOutput

__all__ = ["Model"]


class Model(nn.Module, abc.ABC):
    """A generative model of x with a latent z. All quantities are in nats, summed over dimensions.

    Args:
        data_shape: Shape of one x: (channels, height, width) for an image, (columns,) for a vector.
        latent_dim: Number of dimensions of z.

    Attributes:
        warm_up_weight: A number from 0 to 1, by default 1. Training with a warm-up raises it from 0 to 1, and each
            model says which terms of its loss it multiplies.
    """

    def __init__(self, data_shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.data_shape = _checks.widths("data_shape", tuple(data_shape))
        if not self.data_shape:
            raise ValueError("data_shape must have at least one dimension, such as (1, 28, 28) or (2,), got ()")
        self.latent_dim = _checks.whole("latent_dim", latent_dim, minimum=1)
        self.warm_up_weight = 1.0

    def checked(self, x: Tensor) -> Tensor:
        """The batch x itself; raises ValueError if its shape is not (B, *data_shape)."""
        if x.shape[1:] != self.data_shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}")
        return x

    @abc.abstractmethod
    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The "loss" of a batch (B, *data_shape) and its terms, each 0-d and in nats per sample.

        "rate" is the exact information that z has about x, "rate_bound" an upper bound on it, and "distortion" is
        -E log p(x|z). Rate and distortion have no weights here, so their sum is the negative ELBO.
        """

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""

    @abc.abstractmethod
    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are samples of the model's own distribution: (n, *data_shape)."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoded mean of one sample of z for each x: (B, *data_shape)."""
        return self.decode(self.encode(x))

    def posterior(self, x: Tensor) -> ChannelOutput | GaussianOutput | DensityOutput:
        """One sample of z for each x, with its rate (Echo), the Gaussian it comes from, or its density."""
        raise TypeError(f"{type(self).__name__} has no single posterior q(z|x)")

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one sample of z for each x, for importance sampling: (B,)."""
        raise TypeError(f"importance sampling needs the density q(z|x), which {type(self).__name__} does not have")

    def prepare(self, x: Tensor) -> None:
        """Initialize the parts that depend on the data from training rows (B, *data_shape), before the first step."""

    def refresh(self, x: Tensor) -> None:
        """Update stored statistics of training rows (B, *data_shape) to the final weights, after the last step."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameter groups for an Adam optimizer; a part with other settings has a group of its own."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]
