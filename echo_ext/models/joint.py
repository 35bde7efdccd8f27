"""Models with a density for both joint laws, q(z|x) of the encoding and p(x|z) p(z) of the decoding."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from echo_ext.models.base import Model
from echo_ext.models.channels import DensityOutput, GaussianOutput
from echo_ext.models.densities import draw_normal, log_normal, widened
from echo_ext.models.likelihoods import likelihood_for
from echo_ext.models.marginals import Marginal
from echo_ext.models.networks import decoder, encoder

__all__ = ["DiagonalGaussian", "GaussianJointModel", "JointModel", "Posterior", "score_function"]


class Posterior(Protocol):
    """q(z|x) of a batch of x: a law that can be drawn from, with gradients, and has a density."""

    def draw(self) -> Tensor:
        """One z of each x: (B, latent_dim)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """``log q(z|x)`` of one z for each x: (B,)."""


class DiagonalGaussian(NamedTuple):
    """N(mean, exp(log_variance)) of independent dimensions; both (B, d)."""

    mean: Tensor
    log_variance: Tensor

    def draw(self) -> Tensor:
        """One z of each row, with gradients to both arguments: (B, d)."""
        return draw_normal(self.mean, self.log_variance)

    def log_prob(self, z: Tensor) -> Tensor:
        """The log density summed over dimensions: (B,)."""
        return log_normal(z, self.mean, self.log_variance).sum(1)


class JointModel(Model):
    """What the MIM objectives and the Mutual Autoencoder ask of a model: both joint laws, drawn from and evaluated."""

    @abc.abstractmethod
    def infer(self, x: Tensor) -> Posterior:
        """q(z|x) of each x of (B, *data_shape)."""

    @abc.abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """``log p(z)``: (B,)."""

    @abc.abstractmethod
    def draw_prior(self, n: int) -> Tensor:
        """``n`` draws of p(z): (n, latent_dim)."""

    @abc.abstractmethod
    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""

    @abc.abstractmethod
    def draw_data(self, z: Tensor) -> tuple[Tensor, bool]:
        """A draw of x given each z, (B, *data_shape), and whether gradients flow through it."""

    def draw_anchor(self, n: int) -> Tensor:
        """``n`` draws of the fixed law of z that decoding starts from, here p(z) as it stands: (n, latent_dim)."""
        with torch.no_grad():
            return self.draw_prior(n)

    def decoding(self) -> contextlib.AbstractContextManager[None]:
        """Entered for decoder samples, which must be drawn from the very law that they are evaluated under."""
        return contextlib.nullcontext()

    def posterior(self, x: Tensor) -> GaussianOutput | DensityOutput:
        """A draw of z given each x, and its log density."""
        law = self.infer(x)
        z = law.draw()
        return DensityOutput(z, law.log_prob(z))

    def encode(self, x: Tensor) -> Tensor:
        """A draw of z given each x: (B, latent_dim)."""
        return self.infer(x).draw()

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are drawn from the prior: (n, *data_shape)."""
        return self.decode(self.draw_prior(n))

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one draw of z given each x: (B,)."""
        sent = self.posterior(x)
        return self.log_likelihood(x, sent.z) + self.log_prior(sent.z) - sent.log_density


class GaussianJointModel(JointModel):
    """A Gaussian encoder, a decoder with a likelihood, and a prior.

    Args:
        data_shape: shape of one x.
        latent_dim: dimensions of z.
        prior: the law p(z).
        likelihood: of :data:`~echo_ext.models.likelihoods.LIKELIHOODS`; None for Bernoulli pixels, Gaussian columns.
        architecture: of :data:`~echo_ext.models.networks.ARCHITECTURES`.
        hidden: widths of an MLP's hidden layers, in the encoder's order.
        activation: of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        min_log_variance: the least log variance of either Gaussian. Without one a loss that rewards information has
            no minimum where x and z can determine each other.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        *,
        prior: Marginal,
        likelihood: str | None,
        architecture: str,
        hidden: Sequence[int] | None,
        activation: str,
        min_log_variance: float,
    ) -> None:
        super().__init__(data_shape, latent_dim)
        self.likelihood = likelihood_for(likelihood, self.data_shape, min_log_variance=min_log_variance)
        self.min_log_variance = min_log_variance
        self.prior = prior
        self.encoder = encoder(architecture, self.data_shape, 2 * latent_dim, hidden=hidden, activation=activation)
        self.decoder = decoder(
            architecture,
            self.data_shape,
            latent_dim,
            outputs=self.likelihood.outputs,
            hidden=hidden,
            activation=activation,
        )

    def infer(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x) of each x of (B, *data_shape)."""
        return self.gaussian(self.encoder(self.checked(x)))

    def gaussian(self, raw: Tensor) -> DiagonalGaussian:
        """What an encoder's last layer (B, 2 * latent_dim) stands for."""
        mean, log_variance = widened(raw).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_variance.clamp(min=self.min_log_variance))

    def posterior(self, x: Tensor) -> GaussianOutput:
        """A draw of z given each x, with the Gaussian it is from."""
        law = self.infer(x)
        return GaussianOutput(law.draw(), law.mean, law.log_variance)

    def log_prior(self, z: Tensor) -> Tensor:
        """``log p(z)``: (B,)."""
        return self.prior.log_prob(z)

    def draw_prior(self, n: int) -> Tensor:
        """``n`` draws of p(z): (n, latent_dim)."""
        return self.prior.sample(n)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""
        return self.likelihood.log_prob(x, widened(self.decoder(z)))

    def draw_data(self, z: Tensor) -> tuple[Tensor, bool]:
        """A draw of x given each z, and whether gradients flow through it."""
        return self.likelihood.sample(widened(self.decoder(z))), not self.likelihood.discrete

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""
        return self.likelihood.mean(widened(self.decoder(z)))


def score_function(cost: Tensor, log_prob: Tensor) -> Tensor:
    """Terms of value zero with the gradient of ``E cost`` through the law that the draws came from: (B,).

    REINFORCE (Williams 1992), for draws that gradients do not flow through. The baseline of a row is the mean cost of
    the others, which lowers the variance and leaves the expectation as it is.

    Args:
        cost: of each independent draw, (B,).
        log_prob: the log probability of each draw, (B,).
    """
    cost = cost.detach()
    baseline = (cost.sum() - cost) / max(len(cost) - 1, 1)
    return (cost - baseline) * (log_prob - log_prob.detach())
