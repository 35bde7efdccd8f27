"""Stacked CorEx: two stochastic layers above the data, of which the upper one is a categorical variable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from echo_ext import _checks
from echo_ext.models._numerics import log_mean_exp, widened
from echo_ext.models.base import LatentModel
from echo_ext.models.channels import GaussianChannel
from echo_ext.models.likelihoods import BernoulliLikelihood
from echo_ext.models.priors import Prior

__all__ = ["CategoricalLayer", "StackedCorEx"]


class CategoricalLayer(Prior):
    """The prior ``p(z) = mean_y r(z|y)`` of a categorical variable y with a Gaussian r(z|y), and an encoder q(y|z).

    Args:
        encoder: Maps z (B, latent_dim) to the logits of q(y|z), (B, states).
        decoder: Maps one-hot rows of y (B, states) to the means and log variances of r(z|y), (B, 2 * latent_dim).
        states: Number of states of y.

    Example:
        >>> layer = echo_ext.models.CategoricalLayer(torch.nn.Linear(3, 10), torch.nn.Linear(10, 6), 10)
        >>> layer.log_prob(layer.sample(5)).shape, layer.log_choice(torch.zeros(5, 3)).shape
        (torch.Size([5]), torch.Size([5, 10]))
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, states: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.states = _checks.whole("states", states, minimum=1)
        self.channel = GaussianChannel()

    def log_choice(self, z: Tensor) -> Tensor:
        """``log q(y|z)`` for each state y: (B, states)."""
        return torch.log_softmax(widened(self.encoder(z)), dim=1)

    def log_given(self, z: Tensor) -> Tensor:
        """``log r(z|y)`` for each state y: (B, states)."""
        return self.channel(*self.levels().chunk(2, dim=1)).log_prob(z[:, None])

    def log_prob(self, z: Tensor) -> Tensor:
        """``log mean_y r(z|y)``: (B,)."""
        return log_mean_exp(self.log_given(z), dim=1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` samples of z, where y is drawn first: (n, latent_dim)."""
        levels = self.levels()
        drawn = levels[torch.randint(self.states, (n,), device=levels.device)]
        return self.channel(*drawn.chunk(2, dim=1)).rsample()

    def levels(self) -> Tensor:
        """Means and log variances of r(z|y) for each state y: (states, 2 * latent_dim)."""
        weight = next(self.decoder.parameters())
        return widened(self.decoder(torch.eye(self.states, dtype=weight.dtype, device=weight.device)))


class StackedCorEx(LatentModel):
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
        encoder, decoder, channel, likelihood, data_shape: As for :class:`~echo_ext.models.MIM`.
        prior: The upper layer, a :class:`CategoricalLayer`.
        beta: Weight of the rates. A larger value gives less information about x and a larger distortion.
        initial_lower_weight: Weight of R_1 relative to R_2 at the start of the warm-up. A larger value forces more of
            the first information about x through y.

    Raises:
        TypeError: A part is no module, or lacks a method; the error names it.
        ValueError: A part has the wrong shape, or a value is out of range.

    Example:
        >>> from echo_ext.models import CategoricalLayer, GaussianChannel, StackedCorEx, mlp
        >>> upper = CategoricalLayer(mlp(3, 16, 4), mlp(4, 16, 6), states=4)
        >>> model = StackedCorEx(mlp(8, 16, 6), mlp(3, 16, 8), GaussianChannel(), prior=upper)
        >>> sorted(model.loss(torch.rand(50, 8)))
        ['distortion', 'loss', 'lower_rate', 'rate_bound', 'upper_rate']
    """

    prior: CategoricalLayer

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        channel: nn.Module,
        *,
        prior: CategoricalLayer,
        likelihood: Callable[[Tensor], Distribution] = BernoulliLikelihood(),  # noqa: B008  # it is immutable
        beta: float = 1.0,
        initial_lower_weight: float = 10.0,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder, decoder, channel, prior=prior, likelihood=likelihood)
        self.beta = _checks.number("beta", beta, minimum=0)
        self.initial_lower_weight = _checks.number("initial_lower_weight", initial_lower_weight, minimum=0)
        self.fit_parts(data_shape)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The "loss", "distortion", "rate_bound" and its parts "lower_rate" (R_1) and "upper_rate" (R_2).

        All are 0-d and in nats per sample.
        """
        q = self.posterior(x)
        z = q.rsample()
        distortion = -self.observation(z).log_prob(x).mean()
        log_choice = self.prior.log_choice(z)
        choice = log_choice.exp()
        lower = (q.log_prob(z) - (choice * self.prior.log_given(z)).sum(1)).mean()
        upper = (choice * log_choice).sum(1).mean() + math.log(self.prior.states)
        lower_weight = self.warm_up_weight + (1 - self.warm_up_weight) * self.initial_lower_weight
        return {
            "loss": distortion + self.beta * (lower_weight * lower + upper),
            "rate_bound": lower + upper,
            "distortion": distortion,
            "lower_rate": lower,
            "upper_rate": upper,
        }

    def cluster(self, x: Tensor) -> Tensor:
        """The most probable state y for the mean of q(z|x), for each x: (B,), int64."""
        return self.prior.log_choice(self.posterior(x).mean).argmax(1)
