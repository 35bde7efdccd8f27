"""Stacked CorEx: two stochastic layers above the data, of which the upper one is a categorical variable."""

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
    """A two-layer model: z explains the correlations of x, and a categorical y those of z (Gao et al. 2019).

    q(z|x) is Gaussian and q(y|z) categorical, r(z|y) is Gaussian with independent dimensions and r(y) uniform. The
    loss is ``D + beta * (R_1 + R_2)`` with

        D = -E log p(x|z),   R_1 = E log q(z|x) - sum_y q(y|z) log r(z|y),   R_2 = E KL(q(y|z) | r(y)).

    R_1 and R_2 are the rates of the two layers. The sum over y is exact, which is cheap for a few states and avoids the
    bias of a relaxation. For ``beta=1`` the loss is an upper bound on -log p(x).

    Without a warm-up y would stay unused, because z learns to encode x before y carries information. While
    ``warm_up_weight`` rises from 0 to 1, the weight of R_1 therefore falls from ``initial_lower_weight`` to 1, so that
    in the beginning z can encode little more about x than y does.

    Args:
        data_shape: Shape of one x.
        latent_dim: Number of dimensions of z.
        states: Number of states of y.
        beta: Weight of the rates. A larger value gives less information about x and a larger distortion.
        initial_lower_weight: Weight of R_1 relative to R_2 at the start of the warm-up. A larger value forces more of
            the first information about x through y.
        likelihood: One of :data:`~echo_ext.models.likelihoods.LIKELIHOODS`. None means "bernoulli" for images and
            "gaussian" for vectors.
        hidden: Widths of the hidden layers between x and z.
        upper_hidden: Widths of the hidden layers between z and y.
        activation: One of :data:`~echo_ext.models.networks.ACTIVATIONS`.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A name is unknown, or a value is out of range.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 64,
        *,
        states: int = 10,
        beta: float = 1.0,
        initial_lower_weight: float = 10.0,
        likelihood: str | None = None,
        hidden: Sequence[int] = (512, 512),
        upper_hidden: Sequence[int] = (32, 32, 16, 16),
        activation: str = "relu",
    ) -> None:
        super().__init__(data_shape, latent_dim)
        self.states = _checks.whole("states", states, minimum=1)
        self.beta = _checks.number("beta", beta, minimum=0)
        self.initial_lower_weight = _checks.number("initial_lower_weight", initial_lower_weight, minimum=0)
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
        """The "loss", "distortion", "rate_bound" and its parts "lower_rate" (R_1) and "upper_rate" (R_2).

        All are 0-d and in nats per sample.
        """
        encoded = self.posterior(x)
        distortion = -self._log_likelihood(x, encoded.z).mean()
        log_choice = self.log_choice(encoded.z)
        choice = log_choice.exp()
        lower = (encoded.log_density - (choice * self.log_given(encoded.z)).sum(1)).mean()
        upper = (choice * log_choice).sum(1).mean() + math.log(self.states)
        lower_weight = self.warm_up_weight + (1 - self.warm_up_weight) * self.initial_lower_weight
        return {
            "loss": distortion + self.beta * (lower_weight * lower + upper),
            "rate_bound": lower + upper,
            "distortion": distortion,
            "lower_rate": lower,
            "upper_rate": upper,
        }

    def posterior(self, x: Tensor) -> GaussianOutput:
        """One sample of z for each x of (B, *data_shape), with the Gaussian that it comes from."""
        mean, log_variance = widened(self.encoder(self.checked(x))).chunk(2, dim=1)
        encoded: GaussianOutput = self.channel(mean, log_variance)
        return encoded

    def log_choice(self, z: Tensor) -> Tensor:
        """``log q(y|z)`` for each state y: (B, states)."""
        return torch.log_softmax(widened(self.upper_encoder(z)), dim=1)

    def log_given(self, z: Tensor) -> Tensor:
        """``log r(z|y)`` for each state y: (B, states)."""
        mean, log_variance = self._levels().chunk(2, dim=1)
        return log_normal(z[:, None], mean, log_variance).sum(2)

    def cluster(self, x: Tensor) -> Tensor:
        """The most probable state y for the mean of q(z|x), for each x: (B,), int64."""
        return self.log_choice(self.posterior(x).mean).argmax(1)

    def encode(self, x: Tensor) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""
        return self.posterior(x).z

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: (B, *data_shape)."""
        return self.likelihood.mean(widened(self.decoder(z)))

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x, where y is drawn first and z given y: (n, *data_shape)."""
        levels = self._levels()
        mean, log_variance = levels[torch.randint(self.states, (n,), device=levels.device)].chunk(2, dim=1)
        return self.decode(self.channel(mean, log_variance).z)

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x|z) + log sum_y r(y) r(z|y) - log q(z|x)`` at one sample of z for each x: (B,)."""
        encoded = self.posterior(x)
        log_prior = torch.logsumexp(self.log_given(encoded.z), dim=1) - math.log(self.states)
        return self._log_likelihood(x, encoded.z) + log_prior - encoded.log_density

    def _levels(self) -> Tensor:
        """Means and log variances of r(z|y) for each state y: (states, 2 * latent_dim)."""
        weight = next(self.upper_decoder.parameters())
        return widened(self.upper_decoder(torch.eye(self.states, dtype=weight.dtype, device=weight.device)))

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: (B,)."""
        return self.likelihood.log_prob(x, widened(self.decoder(z)))
