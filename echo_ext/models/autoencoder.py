"""The rate-distortion autoencoder: encoder, channel, marginal, decoder and likelihood, each by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ext.channel import ChannelOutput, EchoChannel
from echo_ext.models.base import Model
from echo_ext.models.channels import DensityOutput, GaussianChannel, GaussianOutput
from echo_ext.models.densities import kl_to_standard_normal
from echo_ext.models.likelihoods import LIKELIHOODS
from echo_ext.models.marginals import Marginal, StandardNormal
from echo_ext.models.networks import architecture_for, decoder, encoder
from echo_ext.models.objectives import non_negative, rate_distortion

__all__ = ["Autoencoder"]


class Autoencoder(Model):
    """Minimises ``distortion + beta * rate`` with the channel and the marginal of choice.

    Args:
        data_shape: shape of one x.
        latent_dim: dimensions of z.
        channel: "echo", whose rate is exact, or "gaussian".
        marginal: "standard-normal"; Echo has its own, and takes None.
        likelihood: "bernoulli" or "gaussian"; None for Bernoulli pixels and Gaussian columns.
        beta: the price of a nat of rate.
        architecture: of :data:`~echo_ext.models.networks.ARCHITECTURES`; None for the one made for this shape.
        hidden: widths of an MLP's hidden layers, in the encoder's order.
        activation: of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        num_terms: Echo's, as in :class:`echo_ext.EchoChannel`; None for 99, and for 63 where the architecture is
            "conv64", which the paper trains on batches of 64.
        sampling: Echo's, likewise.
        activation_scale: Echo's, likewise.
        bank_size: Echo's, likewise.

    Raises:
        ValueError: an unknown name, a value out of range, or parts that do not go together.
    """

    channel: EchoChannel | GaussianChannel
    marginal: Marginal | None

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        channel: str = "gaussian",
        marginal: str | None = None,
        likelihood: str | None = None,
        beta: float = 1.0,
        architecture: str | None = None,
        hidden: Sequence[int] | None = None,
        activation: str = "relu",
        num_terms: int | None = None,
        sampling: str = "permutation",
        activation_scale: float = 16.0,
        bank_size: int | None = None,
    ) -> None:
        super().__init__(data_shape, latent_dim)
        self.beta = non_negative("beta", beta)
        if architecture is None:
            architecture = architecture_for(self.data_shape)
        if likelihood is None:
            likelihood = "bernoulli" if len(self.data_shape) == 3 else "gaussian"
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(map(repr, LIKELIHOODS))}, but is {likelihood!r}")
        self.likelihood = LIKELIHOODS[likelihood]()
        self.encoder = encoder(architecture, self.data_shape, 2 * latent_dim, hidden=hidden, activation=activation)
        self.decoder = decoder(
            architecture,
            self.data_shape,
            latent_dim,
            outputs=self.likelihood.outputs,
            hidden=hidden,
            activation=activation,
        )
        if channel == "echo":
            if num_terms is None:
                num_terms = 63 if architecture == "conv64" else 99
            self.channel = EchoChannel(
                num_terms, sampling=sampling, activation_scale=activation_scale, bank_size=bank_size
            )
            self.marginal = None
        elif channel == "gaussian":
            self.channel = GaussianChannel()
            self.marginal = StandardNormal(latent_dim)
        else:
            raise ValueError(f"channel must be 'echo' or 'gaussian', but is {channel!r}")

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """ "loss", "rate" (Echo) or "rate_bound", and "distortion" of a batch; 0-d, nats per sample."""
        sent = self.posterior(x)
        rate = self.rate(sent)
        distortion = -self.likelihood.log_prob(x, self.decoder(sent.z))
        loss = rate_distortion(distortion, rate, beta=self.warmth * self.beta)
        name = "rate" if isinstance(sent, ChannelOutput) else "rate_bound"
        return {"loss": loss, name: rate.sum() / len(x), "distortion": distortion.mean()}

    def posterior(self, x: Tensor) -> ChannelOutput | GaussianOutput | DensityOutput:
        """What the channel makes of each x of (B, *data_shape)."""
        first, second = self.encoder(x).chunk(2, dim=1)
        sent: ChannelOutput | GaussianOutput | DensityOutput = self.channel(first, second)
        return sent

    def rate(self, sent: ChannelOutput | GaussianOutput | DensityOutput) -> Tensor:
        """The rate of each latent, (B, latent_dim), or of each sample, (B,): Echo's exactly, else a bound on it."""
        if isinstance(sent, ChannelOutput):
            return sent.rate
        assert self.marginal is not None
        if isinstance(sent, GaussianOutput) and isinstance(self.marginal, StandardNormal):
            return kl_to_standard_normal(sent.mean, sent.log_variance)
        return sent.log_density - self.marginal.log_prob(sent.z)

    def encode(self, x: Tensor) -> Tensor:
        """A draw of z given each x: (B, latent_dim)."""
        return self.posterior(x).z

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""
        return self.likelihood.mean(self.decoder(z))

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are drawn from the marginal: (n, *data_shape)."""
        if isinstance(self.channel, EchoChannel):
            return self.decode(self.channel.sample(n))
        assert self.marginal is not None
        return self.decode(self.marginal.sample(n))

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one draw of z given each x: (B,)."""
        sent = self.posterior(x)
        if isinstance(sent, ChannelOutput):
            return super().log_weight(x)
        assert self.marginal is not None
        log_likelihood = self.likelihood.log_prob(x, self.decoder(sent.z))
        return log_likelihood + self.marginal.log_prob(sent.z) - sent.log_density

    @torch.no_grad()
    def refresh(self, x: Tensor) -> None:
        """Fill the Echo channel's bank with training rows (B, *data_shape) as the weights encode them now."""
        if isinstance(self.channel, EchoChannel):
            before = self.channel.training
            self.channel.train()
            self.posterior(x[_rows(len(x), self.channel.bank_size)])
            self.channel.train(before)


def _rows(available: int, wanted: int) -> Tensor:
    """``wanted`` indices in random order, all different as far as that goes."""
    return torch.randperm(available).repeat(-(-wanted // available))[:wanted]
