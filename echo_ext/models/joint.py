"""Models with tractable densities of the encoder q(z|x) and of the decoder's joint distribution p(x|z) p(z)."""

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
    """The distribution q(z|x) for a batch of x, with reparameterized samples and a density."""

    def draw(self) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """``log q(z|x)`` of one z for each x: (B,)."""


class DiagonalGaussian(NamedTuple):
    """The Gaussian N(mean, exp(log_variance)) with independent dimensions; both arguments are (B, d)."""

    mean: Tensor
    log_variance: Tensor

    def draw(self) -> Tensor:
        """One sample of each row, with gradients to both arguments: (B, d)."""
        return draw_normal(self.mean, self.log_variance)

    def log_prob(self, z: Tensor) -> Tensor:
        """The log density summed over dimensions: (B,)."""
        return log_normal(z, self.mean, self.log_variance).sum(1)


class JointModel(Model):
    """The interface that the MIM objectives and the Mutual Autoencoder need: samples and densities of both joints."""

    @abc.abstractmethod
    def infer(self, x: Tensor) -> Posterior:
        """The distribution q(z|x) for each x of (B, *data_shape)."""

    @abc.abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """``log p(z)``: (B,)."""

    @abc.abstractmethod
    def draw_prior(self, n: int) -> Tensor:
        """``n`` samples of p(z): (n, latent_dim)."""

    @abc.abstractmethod
    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""

    @abc.abstractmethod
    def draw_data(self, z: Tensor) -> tuple[Tensor, bool]:
        """One sample of x for each z, (B, *data_shape), and whether gradients flow through it."""

    def draw_anchor(self, n: int) -> Tensor:
        """``n`` samples of the anchor P(z), which decoder samples start from: (n, latent_dim).

        By default the anchor is the prior p(z), without gradients to its parameters.
        """
        with torch.no_grad():
            return self.draw_prior(n)

    def decoding(self) -> contextlib.AbstractContextManager[None]:
        """A context for decoder samples, in which they are evaluated under the distribution they are drawn from."""
        return contextlib.nullcontext()

    def posterior(self, x: Tensor) -> GaussianOutput | DensityOutput:
        """One sample of z for each x, and its log density."""
        posterior = self.infer(x)
        z = posterior.draw()
        return DensityOutput(z, posterior.log_prob(z))

    def encode(self, x: Tensor) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""
        return self.infer(x).draw()

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are samples of the prior: (n, *data_shape)."""
        return self.decode(self.draw_prior(n))

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one sample of z for each x: (B,)."""
        encoded = self.posterior(x)
        return self.log_likelihood(x, encoded.z) + self.log_prior(encoded.z) - encoded.log_density


class GaussianJointModel(JointModel):
    """A Gaussian encoder, a decoder with a likelihood, and a prior.

    Args:
        data_shape: Shape of one x.
        latent_dim: Number of dimensions of z.
        prior: The distribution p(z).
        likelihood: One of :data:`~echo_ext.models.likelihoods.LIKELIHOODS`. None means "bernoulli" for images and
            "gaussian" for vectors.
        architecture: One of :data:`~echo_ext.models.networks.ARCHITECTURES`.
        hidden: Widths of the hidden layers of the encoder, if it is an MLP; the decoder has them in reverse order.
        activation: One of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        min_log_variance: Minimum of the log variances of the encoder and of a Gaussian decoder. A loss that rewards
            information is unbounded below without a minimum, because x and z can come to determine each other.
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
        """The Gaussian q(z|x) for each x of (B, *data_shape)."""
        return self.gaussian(self.encoder(self.checked(x)))

    def gaussian(self, raw: Tensor) -> DiagonalGaussian:
        """The Gaussian whose mean and log variance are the output of an encoder, (B, 2 * latent_dim)."""
        mean, log_variance = widened(raw).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_variance.clamp(min=self.min_log_variance))

    def posterior(self, x: Tensor) -> GaussianOutput:
        """One sample of z for each x, with the Gaussian that it comes from."""
        posterior = self.infer(x)
        return GaussianOutput(posterior.draw(), posterior.mean, posterior.log_variance)

    def log_prior(self, z: Tensor) -> Tensor:
        """``log p(z)``: (B,)."""
        return self.prior.log_prob(z)

    def draw_prior(self, n: int) -> Tensor:
        """``n`` samples of p(z): (n, latent_dim)."""
        return self.prior.sample(n)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""
        return self.likelihood.log_prob(x, widened(self.decoder(z)))

    def draw_data(self, z: Tensor) -> tuple[Tensor, bool]:
        """One sample of x for each z, and whether gradients flow through it."""
        return self.likelihood.sample(widened(self.decoder(z))), not self.likelihood.discrete

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""
        return self.likelihood.mean(widened(self.decoder(z)))


def score_function(cost: Tensor, log_prob: Tensor) -> Tensor:
    """The score-function estimator (REINFORCE, Williams 1992) for samples that gradients do not flow through: (B,).

    Its values are zero. Its gradient is that of ``E cost`` with respect to the distribution of the samples. The
    baseline of a sample is the mean cost of the others, which lowers the variance and does not change the expectation.

    Args:
        cost: Cost of each of the independent samples, (B,).
        log_prob: Log probability of each sample, (B,).
    """
    cost = cost.detach()
    baseline = (cost.sum() - cost) / max(len(cost) - 1, 1)
    return (cost - baseline) * (log_prob - log_prob.detach())
