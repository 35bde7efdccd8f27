"""The rate-distortion autoencoder, whose channel, marginal, likelihood and regularizers are chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.echo._arguments import Sampling
from echo_ext.echo.channel import ChannelOutput, EchoChannel
from echo_ext.models.base import Model
from echo_ext.models.channels import DensityOutput, GaussianChannel, GaussianOutput, IAFChannel
from echo_ext.models.densities import kl_to_standard_normal, widened
from echo_ext.models.likelihoods import likelihood_for
from echo_ext.models.marginals import (
    MAF,
    FactorizedAggregate,
    GaussianMixture,
    Marginal,
    StandardNormal,
    VampPrior,
    random_rows,
)
from echo_ext.models.networks import architecture_for, decoder, encoder
from echo_ext.models.objectives import anchor_weights, rate_distortion
from echo_ext.models.regularizers import TCDiscriminator, mmd_to_standard_normal

__all__ = ["Autoencoder"]

Encoded: TypeAlias = ChannelOutput | GaussianOutput | DensityOutput

_CHANNELS = ("echo", "gaussian", "iaf")
_MARGINALS = ("standard-normal", "vamp", "maf", "mixture")


class Autoencoder(Model):
    """An autoencoder that minimizes ``distortion + beta * sum_j w_j rate_j`` plus optional regularizers.

    The regularizers are the MMD between z and N(0, I), and the total correlation of z.

    Args:
        data_shape: Shape of one x.
        latent_dim: Number of dimensions of z.
        channel: "echo", whose rate is exact, "gaussian" or "iaf".
        marginal: "standard-normal", "vamp", "maf" or "mixture". It must be None for the Echo channel, which has an
            exact marginal of its own. None means "standard-normal" for the other channels.
        likelihood: "bernoulli", "categorical" or "gaussian". None means "bernoulli" for images and "gaussian" for
            vectors.
        beta: Weight of the rate. A larger value gives less information about x and a larger distortion.
        anchored: Number of latents, counted from the first, with the weight w_j = 1 - anchor_strength. All others
            have the weight 1.
        anchor_strength: A number from 0 to 1. A larger value makes the rate of the anchored latents cheaper, so that
            they hold a larger share of the information.
        mmd_weight: Weight of the MMD between a batch of z and N(0, I).
        mmd_bandwidth: Bandwidth of the kernel, as in :func:`~echo_ext.models.regularizers.mmd`.
        tc_weight: Weight of the total correlation of z. If it is above 0, a discriminator that estimates it is trained
            together with the model.
        discriminator_width: Width of each of the six hidden layers of the discriminator.
        sample_from: The distribution that samples start from: "marginal", or "aggregate" for ``prod_j q(z_j)``, which
            :meth:`refresh` estimates from training rows and which is N(0, I) until then.
        architecture: One of :data:`~echo_ext.models.networks.ARCHITECTURES`. None means the convolutions made for this
            image size, or "mlp" if there are none.
        hidden: Widths of the hidden layers of the encoder, if it is an MLP; the decoder has them in reverse order.
        activation: One of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        num_terms: Number of terms of the Echo noise, as in :class:`echo_ext.EchoChannel`. None means 63 for the
            architecture "conv64", which the paper trains on batches of 64, and 99 for all others.
        sampling: Sampling of the Echo noise, as in :class:`echo_ext.EchoChannel`.
        activation_scale: Scale of the Echo activations, as in :class:`echo_ext.EchoChannel`.
        bank_size: Number of rows in the bank of the Echo channel, or in that of the aggregate. None means 1024.
        latent_scale: Factor that z is multiplied by before the decoder; it does not change the information. None means
            64 for Echo and 1 for the other channels: the z of an untrained Echo channel are small (f = tanh(./16)), and
            without a factor the decoder would learn slowly.
        pseudo_inputs: Number of pseudo-inputs of the VampPrior. More make the marginal more flexible and each step
            slower.
        components: Number of components of the mixture.
        flow_steps: Number of steps of the IAF and MAF flows.
        flow_hidden: Widths of the hidden layers of each step.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A name is unknown, a value is out of range, or two parts cannot be combined.
    """

    channel: EchoChannel | GaussianChannel | IAFChannel
    marginal: Marginal | None
    weights: Tensor | None

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        channel: str = "gaussian",
        marginal: str | None = None,
        likelihood: str | None = None,
        beta: float = 1.0,
        anchored: int = 0,
        anchor_strength: float = 0.5,
        mmd_weight: float = 0.0,
        mmd_bandwidth: float | None = None,
        tc_weight: float = 0.0,
        discriminator_width: int = 1000,
        sample_from: str = "marginal",
        architecture: str | None = None,
        hidden: Sequence[int] | None = None,
        activation: str = "relu",
        num_terms: int | None = None,
        sampling: Sampling = "permutation",
        activation_scale: float = 16.0,
        bank_size: int | None = None,
        latent_scale: float | None = None,
        pseudo_inputs: int = 750,
        components: int = 10,
        flow_steps: int = 4,
        flow_hidden: Sequence[int] = (640, 640, 640),
    ) -> None:
        super().__init__(data_shape, latent_dim)
        is_image = len(self.data_shape) == 3
        if architecture is None:
            architecture = architecture_for(self.data_shape)
        if channel != "echo" and marginal is None:
            marginal = "standard-normal"
        _checks.choice("channel", channel, _CHANNELS)
        _checks.choice("sample_from", sample_from, ("marginal", "aggregate"))
        if channel != "echo":
            _checks.choice("marginal", marginal, _MARGINALS)
        elif marginal is not None:
            raise ValueError(f"marginal must be None for channel 'echo', which has its own, got {marginal!r}")
        if sample_from == "aggregate" and channel != "gaussian":
            raise ValueError(f"sample_from must be 'marginal' for channel {channel!r}, got 'aggregate'")
        if anchored and (channel == "iaf" or marginal not in (None, "standard-normal")):
            raise ValueError(
                f"anchored must be 0 where the rate is not a sum over latents, got {anchored} "
                f"with channel {channel!r} and marginal {marginal!r}"
            )
        self.beta = _checks.number("beta", beta, minimum=0)
        self.mmd_weight = _checks.number("mmd_weight", mmd_weight, minimum=0)
        self.mmd_bandwidth = mmd_bandwidth
        self.tc_weight = _checks.number("tc_weight", tc_weight, minimum=0)
        if latent_scale is None:
            latent_scale = 64.0 if channel == "echo" else 1.0
        self.latent_scale = _checks.number("latent_scale", latent_scale, above=0)
        weights = anchor_weights(latent_dim, anchored, anchor_strength)
        self.register_buffer("weights", weights if anchored else None, persistent=False)

        self.likelihood = likelihood_for(likelihood, self.data_shape)
        network: dict[str, Any] = {"hidden": hidden, "activation": activation}
        self.encoder = encoder(architecture, self.data_shape, 2 * latent_dim, **network)
        self.decoder = decoder(architecture, self.data_shape, latent_dim, outputs=self.likelihood.outputs, **network)
        if channel == "echo":
            if num_terms is None:
                num_terms = 63 if architecture == "conv64" else 99
            self.channel = EchoChannel(
                num_terms, sampling=sampling, activation_scale=activation_scale, bank_size=bank_size
            )
        elif channel == "gaussian":
            self.channel = GaussianChannel()
        else:
            self.channel = IAFChannel(latent_dim, flow_steps, flow_hidden)
        if marginal == "standard-normal":
            self.marginal = StandardNormal(latent_dim)
        elif marginal == "vamp":
            limits = (0.0, 1.0) if is_image else None
            self.marginal = VampPrior(self.heads, self.data_shape, pseudo_inputs, limits=limits)
        elif marginal == "maf":
            self.marginal = MAF(latent_dim, flow_steps, flow_hidden)
        elif marginal == "mixture":
            self.marginal = GaussianMixture(latent_dim, components)
        else:
            self.marginal = None
        self.aggregate = FactorizedAggregate(latent_dim, bank_size or 1024) if sample_from == "aggregate" else None
        self.discriminator = TCDiscriminator(latent_dim, discriminator_width) if tc_weight > 0 else None

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The loss of a batch (B, *data_shape) and its terms, each 0-d and in nats per sample.

        The terms are "rate" (Echo) or "rate_bound", "distortion", and "mmd" and "total_correlation" if their weights
        are above 0. With a discriminator, "loss" also has the gradient of "discriminator_loss" but not its value, so
        that one backward pass trains both.
        """
        encoded = self.posterior(x)
        rate = self.rate(encoded)
        distortion = -self._log_likelihood(x, encoded.z)
        loss = rate_distortion(distortion, rate, beta=self.warm_up_weight * self.beta, weights=self.weights)
        terms = {
            "rate" if isinstance(encoded, ChannelOutput) else "rate_bound": rate.sum() / len(x),
            "distortion": distortion.mean(),
        }
        if self.mmd_weight > 0:
            terms["mmd"] = mmd_to_standard_normal(encoded.z, bandwidth=self.mmd_bandwidth)
            loss = loss + self.mmd_weight * terms["mmd"]
        if self.discriminator is not None:
            terms["total_correlation"] = self.discriminator.total_correlation(encoded.z)
            terms["discriminator_loss"] = self.discriminator.loss(encoded.z)
            critic = terms["discriminator_loss"]
            loss = loss + self.tc_weight * terms["total_correlation"] + (critic - critic.detach())
        return {"loss": loss, **terms}

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two inputs of the channel, (B, latent_dim) each, such as the mean and log variance of a Gaussian."""
        first, second = widened(self.encoder(self.checked(x))).chunk(2, dim=1)
        return first, second

    def posterior(self, x: Tensor) -> Encoded:
        """The output of the channel for each x of (B, *data_shape)."""
        encoded: Encoded = self.channel(*self.heads(x))
        return encoded

    def rate(self, encoded: Encoded) -> Tensor:
        """The rate per latent, (B, latent_dim), or per sample, (B,), if it is not a sum over latents.

        It is the exact rate of Echo, the KL divergence from N(0, I) of a Gaussian channel, and
        ``log q(z|x) - log m(z)`` for all other channels and marginals.
        """
        if isinstance(encoded, ChannelOutput):
            return encoded.rate
        if isinstance(encoded, GaussianOutput) and isinstance(self.marginal, StandardNormal):
            return kl_to_standard_normal(encoded.mean, encoded.log_variance)
        return encoded.log_density - self._log_marginal(encoded)

    def encode(self, x: Tensor) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""
        return self.posterior(x).z

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""
        return self.likelihood.mean(self._likelihood_parameters(z))

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are samples of the marginal or the aggregate: (n, *data_shape)."""
        return self.decode(self.sample_latent(n))

    def sample_latent(self, n: int) -> Tensor:
        """``n`` samples of z from the marginal or the aggregate, depending on ``sample_from``: (n, latent_dim)."""
        if isinstance(self.channel, EchoChannel):
            return self.channel.sample(n)
        if self.aggregate is not None:
            return self.aggregate.sample(n)
        assert self.marginal is not None  # only the Echo channel has none
        z = self.marginal.sample(n)
        if isinstance(self.channel, IAFChannel) and isinstance(self.marginal, VampPrior):
            z = self.channel.flow(z)
        return z

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one sample of z for each x: (B,)."""
        encoded = self.posterior(x)
        if isinstance(encoded, ChannelOutput):
            raise TypeError(
                "importance sampling needs the density q(z|x), which an Echo channel does not have in closed form; "
                "its rate is exact without it"
            )
        return self._log_likelihood(x, encoded.z) + self._log_marginal(encoded) - encoded.log_density

    def prepare(self, x: Tensor) -> None:
        """Initialize the pseudo-inputs of a VampPrior from training rows (B, *data_shape)."""
        if isinstance(self.marginal, VampPrior):
            self.marginal.prepare(x)

    @torch.no_grad()
    def refresh(self, x: Tensor) -> None:
        """Fill the bank of Echo, or of the aggregate, with the current codes of training rows (B, *data_shape)."""
        if isinstance(self.channel, EchoChannel):
            training = self.channel.training
            self.channel.train()
            self.posterior(random_rows(x, self.channel.bank_size))
            self.channel.train(training)
        elif self.aggregate is not None:
            self.aggregate.fill(*self.heads(random_rows(x, len(self.aggregate.means))))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameters of the model, and those of the discriminator with the settings of Kim & Mnih (2018)."""
        critic = list(self.discriminator.parameters()) if self.discriminator is not None else []
        identities = set(map(id, critic))
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if id(p) not in identities], "lr": learning_rate}
        ]
        return [*groups, {"params": critic, "lr": 1e-4, "betas": (0.5, 0.9)}] if critic else groups

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""
        return self.likelihood.log_prob(x, self._likelihood_parameters(z))

    def _likelihood_parameters(self, z: Tensor) -> Tensor:
        """The parameters of p(x|z) for each z."""
        return widened(self.decoder(self.latent_scale * z))

    def _log_marginal(self, encoded: GaussianOutput | DensityOutput) -> Tensor:
        """``log m(z)``: (B,)."""
        assert self.marginal is not None  # only the Echo channel has none
        if isinstance(encoded, DensityOutput) and encoded.base is not None and isinstance(self.marginal, VampPrior):
            # All components share the flow, which preserves volume, so the Gaussian density before it is the density.
            return self.marginal.log_prob(encoded.base.z)
        return self.marginal.log_prob(encoded.z)
