"""Two stochastic layers over the data, the upper one a single choice among a few states (stacked CorEx)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianChannel, GaussianOutput
from echo_ext.models.densities import log_normal, widened
from echo_ext.models.likelihoods import likelihood_for
from echo_ext.models.networks import decoder, encoder, mlp

__all__ = ["StackedCorEx"]


class StackedCorEx(Model):
    """Explains the correlations of x by z, and those of z by one of ``states`` (Gao et al. 2019).

    q(z|x) is Gaussian and q(y|z) categorical, r(z|y) Gaussian with independent dimensions and r(y) uniform. The loss
    is ``D + beta * (R_1 + R_2)`` with

        D = -E log p(x|z),   R_1 = E log q(z|x) - sum_y q(y|z) log r(z|y),   R_2 = E KL(q(y|z) | r(y)),

    the rate of each layer given the one above. y is summed out exactly, which is cheap for a few states and has none
    of the bias of a relaxation. At beta = 1 the loss bounds -log p(x); more layers can only come closer to it.

    Left to itself y would stay unused, for z learns to do without it before it means anything. While ``warmth`` rises
    from 0 to 1, R_1 therefore begins ``squeeze`` times as dear, so that little but y can be told of x.

    Args:
        data_shape: shape of one x.
        latent_dim: dimensions of z.
        states: of y.
        beta: the price of a nat of rate.
        squeeze: how many times that price a nat of R_1 costs at first.
        likelihood: of :data:`~echo_ext.models.likelihoods.LIKELIHOODS`; None for Bernoulli pixels, Gaussian columns.
        hidden: widths of the layers between x and z.
        upper_hidden: widths of the layers between z and y.
        activation: of :data:`~echo_ext.models.networks.ACTIVATIONS`.

    Raises:
        ValueError: an unknown name, or a value out of range.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 64,
        *,
        states: int = 10,
        beta: float = 1.0,
        squeeze: float = 10.0,
        likelihood: str | None = None,
        hidden: Sequence[int] = (512, 512),
        upper_hidden: Sequence[int] = (32, 32, 16, 16),
        activation: str = "relu",
    ) -> None:
        super().__init__(data_shape, latent_dim)
        if not isinstance(states, int) or states < 1:
            raise ValueError(f"states must be a positive integer, got {states}")
        self.states = states
        self.beta = _checks.number("beta", beta, minimum=0)
        self.squeeze = _checks.number("squeeze", squeeze, minimum=0)
        self.likelihood = likelihood_for(likelihood, self.data_shape)
        self.channel = GaussianChannel()
        self.encoder = encoder("mlp", self.data_shape, 2 * latent_dim, hidden=hidden, activation=activation)
        self.decoder = decoder(
            "mlp",
            self.data_shape,
            latent_dim,
            outputs=self.likelihood.outputs,
            hidden=hidden,
            activation=activation,
        )
        self.upper_encoder = mlp(latent_dim, *upper_hidden, states, activation=activation)
        self.upper_decoder = mlp(states, *reversed(upper_hidden), 2 * latent_dim, activation=activation)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """ "loss", "distortion", "rate_bound" and its parts "lower_rate" and "upper_rate"; 0-d, nats per sample."""
        sent = self.posterior(x)
        distortion = -self._log_likelihood(x, sent.z).mean()
        log_choice = self.log_choice(sent.z)
        choice = log_choice.exp()
        lower = (sent.log_density - (choice * self.log_given(sent.z)).sum(1)).mean()
        upper = (choice * log_choice).sum(1).mean() + math.log(self.states)
        rate = lower + upper
        priced = (self.warmth + (1 - self.warmth) * self.squeeze) * lower + upper
        return {
            "loss": distortion + self.beta * priced,
            "rate_bound": rate,
            "distortion": distortion,
            "lower_rate": lower,
            "upper_rate": upper,
        }

    def posterior(self, x: Tensor) -> GaussianOutput:
        """A draw of z given each x of (B, *data_shape), with the Gaussian it is from."""
        mean, log_variance = widened(self.encoder(self.checked(x))).chunk(2, dim=1)
        sent: GaussianOutput = self.channel(mean, log_variance)
        return sent

    def log_choice(self, z: Tensor) -> Tensor:
        """``log q(y|z)`` of each state: (B, states)."""
        return torch.log_softmax(widened(self.upper_encoder(z)), dim=1)

    def log_given(self, z: Tensor) -> Tensor:
        """``log r(z|y)`` under each state: (B, states)."""
        mean, log_variance = self._levels().chunk(2, dim=1)
        return log_normal(z[:, None], mean, log_variance).sum(2)

    def cluster(self, x: Tensor) -> Tensor:
        """The likeliest state of the mean of z given each x: (B,), int64."""
        return self.log_choice(self.posterior(x).mean).argmax(1)

    def encode(self, x: Tensor) -> Tensor:
        """A draw of z given each x: (B, latent_dim)."""
        return self.posterior(x).z

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""
        return self.likelihood.mean(widened(self.decoder(z)))

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x, from y downwards: (n, *data_shape)."""
        levels = self._levels()
        mean, log_variance = levels[torch.randint(self.states, (n,), device=levels.device)].chunk(2, dim=1)
        return self.decode(self.channel(mean, log_variance).z)

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x|z) + log sum_y r(y) r(z|y) - log q(z|x)`` at one draw of z given each x: (B,)."""
        sent = self.posterior(x)
        log_prior = torch.logsumexp(self.log_given(sent.z), dim=1) - math.log(self.states)
        return self._log_likelihood(x, sent.z) + log_prior - sent.log_density

    def _levels(self) -> Tensor:
        """Means and log variances of z under each state: (states, 2 * latent_dim)."""
        weight = next(self.upper_decoder.parameters())
        return widened(self.upper_decoder(torch.eye(self.states, dtype=weight.dtype, device=weight.device)))

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""
        return self.likelihood.log_prob(x, widened(self.decoder(z)))
