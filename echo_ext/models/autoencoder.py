"""The rate-distortion autoencoder: encoder, channel, marginal, decoder, likelihood and regularisers, each by name."""

from __future__ import annotations

import math
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
    FactorisedAggregate,
    GaussianMixture,
    Marginal,
    StandardNormal,
    VampPrior,
    random_rows,
)
from echo_ext.models.networks import architecture_for, decoder, encoder
from echo_ext.models.objectives import anchor_weights, rate_distortion
from echo_ext.models.regularisers import TCDiscriminator, mmd_to_standard_normal

__all__ = ["Autoencoder"]

Sent: TypeAlias = ChannelOutput | GaussianOutput | DensityOutput

_CHANNELS = ("echo", "gaussian", "iaf")
_MARGINALS = ("standard-normal", "vamp", "maf", "mixture")


class Autoencoder(Model):
    """Minimises ``distortion + beta * sum_j w_j rate_j``, plus an MMD and a total correlation where they have a weight.

    Args:
        data_shape: shape of one x.
        latent_dim: dimensions of z.
        channel: "echo", whose rate is exact, "gaussian" or "iaf".
        marginal: "standard-normal", "vamp", "maf" or "mixture"; None for "standard-normal", and for the marginal of its
            own that Echo has.
        likelihood: "bernoulli", "categorical" or "gaussian"; None for Bernoulli pixels and Gaussian columns.
        beta: the price of a nat of rate.
        anchored: how many latents, the first ones, have w_j = 1 - anchor_strength; the others have 1.
        anchor_strength: from 0 to 1.
        mmd_weight: of the MMD between a batch of z and N(0, I).
        mmd_bandwidth: as in :func:`~echo_ext.models.regularisers.mmd`.
        tc_weight: of the total correlation of z, by a discriminator that is trained beside the model.
        discriminator_width: of each of its six hidden layers.
        sample_from: "marginal", or "aggregate" for ``prod_j q(z_j)`` as :meth:`refresh` found it; until then N(0, I).
        architecture: of :data:`~echo_ext.models.networks.ARCHITECTURES`; None for the one made for this shape.
        hidden: widths of an MLP's hidden layers, in the encoder's order.
        activation: of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        num_terms: Echo's, as in :class:`echo_ext.EchoChannel`; None for 99, and for 63 where the architecture is
            "conv64", which the paper trains on batches of 64.
        sampling: Echo's, likewise.
        activation_scale: Echo's, likewise.
        bank_size: Echo's, likewise, and the aggregate's; None for 1024 rows.
        latent_scale: what z is multiplied by on its way into the decoder, which changes no information; None for 1, and
            for 64 with Echo, whose z are small at first (f = tanh(./16)) and else teach the decoder nothing for long.
        pseudo_inputs: how many VampPrior has.
        components: how many the mixture has.
        flow_steps: of IAF and MAF.
        flow_hidden: widths of each step's hidden layers.

    Raises:
        ValueError: an unknown name, a value out of range, or parts that do not go together.
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
        if not (latent_scale > 0 and math.isfinite(latent_scale)):
            raise ValueError(f"latent_scale must be positive and finite, got {latent_scale}")
        self.latent_scale = latent_scale
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
        self.aggregate = FactorisedAggregate(latent_dim, bank_size or 1024) if sample_from == "aggregate" else None
        self.discriminator = TCDiscriminator(latent_dim, discriminator_width) if tc_weight > 0 else None

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """What to minimise on a batch (B, *data_shape) and what it is made of; 0-d, nats per sample.

        "rate" (Echo) or "rate_bound", "distortion", and where they have a weight "mmd" and "total_correlation". With
        a discriminator "loss" carries its gradient too, but not the value of its "discriminator_loss", so that one
        backward pass trains both.
        """
        sent = self.posterior(x)
        rate = self.rate(sent)
        distortion = -self._log_likelihood(x, sent.z)
        loss = rate_distortion(distortion, rate, beta=self.warmth * self.beta, weights=self.weights)
        terms = {
            "rate" if isinstance(sent, ChannelOutput) else "rate_bound": rate.sum() / len(x),
            "distortion": distortion.mean(),
        }
        if self.mmd_weight > 0:
            terms["mmd"] = mmd_to_standard_normal(sent.z, bandwidth=self.mmd_bandwidth)
            loss = loss + self.mmd_weight * terms["mmd"]
        if self.discriminator is not None:
            terms["total_correlation"] = self.discriminator.total_correlation(sent.z)
            terms["discriminator_loss"] = self.discriminator.loss(sent.z)
            own = terms["discriminator_loss"]
            loss = loss + self.tc_weight * terms["total_correlation"] + (own - own.detach())
        return {"loss": loss, **terms}

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channel's two inputs for each x, (B, latent_dim) each: a Gaussian's mean and log variance, for one."""
        first, second = widened(self.encoder(self.checked(x))).chunk(2, dim=1)
        return first, second

    def posterior(self, x: Tensor) -> Sent:
        """What the channel makes of each x of (B, *data_shape)."""
        sent: Sent = self.channel(*self.heads(x))
        return sent

    def rate(self, sent: Sent) -> Tensor:
        """Echo's exact rate or a Gaussian's KL to N(0, I), (B, latent_dim); else ``log q(z|x) - log m(z)``, (B,)."""
        if isinstance(sent, ChannelOutput):
            return sent.rate
        if isinstance(sent, GaussianOutput) and isinstance(self.marginal, StandardNormal):
            return kl_to_standard_normal(sent.mean, sent.log_variance)
        return sent.log_density - self._log_marginal(sent)

    def encode(self, x: Tensor) -> Tensor:
        """A draw of z given each x: (B, latent_dim)."""
        return self.posterior(x).z

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""
        return self.likelihood.mean(self._likelihood_parameters(z))

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are drawn from the marginal or the aggregate: (n, *data_shape)."""
        return self.decode(self.sample_latent(n))

    def sample_latent(self, n: int) -> Tensor:
        """``n`` draws of z from the marginal or the aggregate, as ``sample_from`` says: (n, latent_dim)."""
        if isinstance(self.channel, EchoChannel):
            return self.channel.sample(n)
        if self.aggregate is not None:
            return self.aggregate.sample(n)
        assert self.marginal is not None  # only Echo goes without
        z = self.marginal.sample(n)
        if isinstance(self.channel, IAFChannel) and isinstance(self.marginal, VampPrior):
            z = self.channel.flow(z)
        return z

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one draw of z given each x: (B,)."""
        sent = self.posterior(x)
        if isinstance(sent, ChannelOutput):
            raise TypeError("an Echo channel's q(z|x) has no closed density to weigh samples by; its rate is exact")
        return self._log_likelihood(x, sent.z) + self._log_marginal(sent) - sent.log_density

    def prepare(self, x: Tensor) -> None:
        """Begin VampPrior's pseudo-inputs from training rows (B, *data_shape)."""
        if isinstance(self.marginal, VampPrior):
            self.marginal.prepare(x)

    @torch.no_grad()
    def refresh(self, x: Tensor) -> None:
        """Fill Echo's bank, or the aggregate's, with training rows (B, *data_shape) as the weights encode them now."""
        if isinstance(self.channel, EchoChannel):
            training = self.channel.training
            self.channel.train()
            self.posterior(random_rows(x, self.channel.bank_size))
            self.channel.train(training)
        elif self.aggregate is not None:
            self.aggregate.fill(*self.heads(random_rows(x, len(self.aggregate.means))))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The model's parameters, and a discriminator's with what Kim & Mnih (2018) train it with."""
        own = list(self.discriminator.parameters()) if self.discriminator is not None else []
        identities = set(map(id, own))
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if id(p) not in identities], "lr": learning_rate}
        ]
        return [*groups, {"params": own, "lr": 1e-4, "betas": (0.5, 0.9)}] if own else groups

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""
        return self.likelihood.log_prob(x, self._likelihood_parameters(z))

    def _likelihood_parameters(self, z: Tensor) -> Tensor:
        """What the likelihood takes, given each z."""
        return widened(self.decoder(self.latent_scale * z))

    def _log_marginal(self, sent: GaussianOutput | DensityOutput) -> Tensor:
        """``log m(z)``: (B,)."""
        assert self.marginal is not None  # only Echo goes without
        if isinstance(sent, DensityOutput) and sent.base is not None and isinstance(self.marginal, VampPrior):
            # All its components share the flow, which keeps volume: before it they are Gaussian.
            return self.marginal.log_prob(sent.base.z)
        return self.marginal.log_prob(sent.z)
