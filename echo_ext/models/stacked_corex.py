"""Stacked CorEx: any number of stochastic layers above the data, of which the top one may be categorical."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from echo_ext import _checks
from echo_ext.models._numerics import log_mean_exp, widened
from echo_ext.models.base import LatentModel
from echo_ext.models.channels import GaussianChannel
from echo_ext.models.likelihoods import BernoulliLikelihood
from echo_ext.models.priors import Prior, StandardNormal, as_prior, channel_inputs

__all__ = ["CategoricalLayer", "GaussianLayer", "Layer", "StackedCorEx"]

LOG_VARIANCE_LIMIT = 8.0
# Rows of each layerwise step.
LAYERWISE_ROWS = 200
# Maximum number of codes that a mixture is fitted to.
MIXTURE_ROWS = 20_000


class Layer(Prior):
    """A layer above z, with a variable y that explains the dependence of the z_j: q(y|z), r(z|y) and r(y).

    The layers of a model are the prior of z, and then the priors of each other.

    Example:
        >>> model = echo_ext.models.build("stacked-corex", (6,), latent_dim=3, layers=(4,))
        >>> isinstance(model.prior, echo_ext.models.Layer)
        True
    """

    @abc.abstractmethod
    def explain(self, z: Tensor) -> list[Tensor]:
        """``E log r(z|y)`` for y of q(y|z), and then the rate of this layer and of each layer above it: (B,) each."""


class CategoricalLayer(Layer):
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

    def start(self, mean: Tensor, std: Tensor, descend: Callable[..., None]) -> None:
        """Fit q(y|z) and r(z|y) to a Gaussian mixture of the means of q(z|x), (N, latent_dim), the best of three.

        The components have full covariances, because groups of codes are rarely aligned with the axes.
        """
        _checks.installed("sklearn", purpose="layerwise_steps")
        from sklearn.mixture import GaussianMixture

        mean, std = mean[:MIXTURE_ROWS], std[:MIXTURE_ROWS]
        points = mean.cpu().numpy()
        seeds = torch.randint(2**31, (3,)).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a start needs no convergence
            options = {"reg_covar": 1e-3, "max_iter": 50}
            fitted = [GaussianMixture(self.states, random_state=seed, **options).fit(points) for seed in seeds]
        best = max(fitted, key=lambda mixture: mixture.lower_bound_)
        rows = torch.cat([mean, std, torch.as_tensor(best.predict_proba(points)).to(mean)], dim=1)

        def loss(rows: Tensor) -> Tensor:
            means, stds, shares = rows.split([mean.shape[1], mean.shape[1], self.states], dim=1)
            codes = means + stds * torch.randn_like(means)
            return -(shares * (self.log_choice(codes) + self.log_given(codes))).sum(1).mean()

        descend([self], loss, rows)

    def explain(self, z: Tensor) -> list[Tensor]:
        """``sum_y q(y|z) log r(z|y)`` and ``KL(q(y|z) | r(y))``: (B,) each."""
        log_choice = self.log_choice(z)
        choice = log_choice.exp()
        return [(choice * self.log_given(z)).sum(1), (choice * log_choice).sum(1) + math.log(self.states)]

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


class GaussianLayer(Layer):
    """The prior ``p(z) = int r(z|y) p(y) dy`` of a Gaussian variable y with a Gaussian r(z|y) and encoder q(y|z).

    Args:
        encoder: Maps z (B, latent_dim) to the means and log variances of q(y|z), (B, 2 * width).
        decoder: Maps y (B, width) to the means and log variances of r(z|y), (B, 2 * latent_dim).
        prior: The distribution p(y): the next :class:`Layer`, or a prior such as
            :class:`~echo_ext.models.StandardNormal`, which makes this layer the top one.

    Example:
        >>> from echo_ext.models import GaussianLayer, StandardNormal
        >>> layer = GaussianLayer(torch.nn.Linear(3, 4), torch.nn.Linear(2, 6), StandardNormal(2))
        >>> layer.sample(5).shape, [term.shape for term in layer.explain(torch.zeros(5, 3))]
        (torch.Size([5, 3]), [torch.Size([5]), torch.Size([5])])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = as_prior("prior", prior)
        # Log variances multiply from layer to layer, so that without limits untrained layers could overflow.
        self.channel = GaussianChannel(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    def explain(self, z: Tensor) -> list[Tensor]:
        """``log r(z|y)`` at a sample y of q(y|z), and then the rates: (B,) each."""
        q = self.channel(*channel_inputs(self.encoder, z))
        y = q.rsample()
        return [self.given(y).log_prob(z), *rates(self.prior, q, y)]

    def given(self, y: Tensor) -> Distribution:
        """The Gaussian r(z|y) for each y of (B, width)."""
        return self.channel(*channel_inputs(self.decoder, y))

    def log_prob(self, z: Tensor) -> Tensor:
        """``log(r(z|y) p(y) / q(y|z))`` at a sample y of q(y|z), whose exponential has the mean p(z): (B,)."""
        q = self.channel(*channel_inputs(self.encoder, z))
        y = q.rsample()
        return self.given(y).log_prob(z) - self.prior.log_ratio(q, y)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` samples of z, where y is drawn first: (n, latent_dim)."""
        return self.given(self.prior.sample(n)).rsample()


def rates(prior: Prior, q: Distribution, z: Tensor) -> list[Tensor]:
    """The rate of q(z|x) at its sample z (B, d) under the prior, and those of the layers above: (B,) each."""
    if not isinstance(prior, Layer):
        return [prior.rate(q, z).view(len(z), -1).sum(1)]
    given, *above = prior.explain(z)
    return [q.log_prob(z) - given, *above]


class StackedCorEx(LatentModel):
    """Layers z_1, ..., z_L: z_1 explains the correlations of x, and each z_l those of z_(l-1) (Gao et al. 2019).

    The loss is ``D + beta * (R_1 + ... + R_L)`` with ``D = -E log p(x|z_1)`` and the rates of the layers::

        R_l = E log q(z_l|z_(l-1)) - E log r(z_l|z_(l+1)),   R_L = E KL(q(z_L|z_(L-1)) | r(z_L)),

    where z_0 is x. For ``beta=1`` this is eq. 19 of the paper without the entropies of the columns of x, which are
    constants of the data, and an upper bound on -log p(x). The layers above z_1 are nested priors: a
    :class:`GaussianLayer` has the next one as its prior, and a :class:`CategoricalLayer` is a top. The sum over the
    states of the latter is exact, which is cheap for a few states and avoids the bias of a relaxation.
    :func:`echo_ext.metrics.layer_terms` computes what each layer adds to the bound on TC(x).

    If all layers start together, the upper ones stay unused or find poor states, because z_1 learns to encode x before
    they carry information. With ``layerwise_steps``, training therefore starts layer by layer, each on the codes of the
    layer below (eq. 13), and all layers continue together (eq. 14). Without them a warm-up helps, during which the
    weight of all rates but the last falls from ``initial_lower_weight`` to 1 while ``warm_up_weight`` rises from 0.

    Args:
        encoder, decoder, channel, likelihood, data_shape: As for :class:`~echo_ext.models.MIM`.
        prior: The layers above z_1: a :class:`CategoricalLayer`, or a :class:`GaussianLayer` with its own prior. Any
            other prior makes this a model of one layer, a VAE.
        beta: Weight of the rates. A larger value gives less information about x and a larger distortion.
        initial_lower_weight: Weight of the lower rates relative to the last one at the start of the warm-up. A larger
            value forces more of the first information about x through the top layer.
        layerwise_steps: Number of steps of Adam for each layer in :meth:`prepare`; 0 starts all layers together.

    Raises:
        TypeError: A part is no module, or lacks a method; the error names it.
        ValueError: A part has the wrong shape, or a value is out of range.

    Example:
        >>> from echo_ext.models import CategoricalLayer, GaussianChannel, StackedCorEx, mlp
        >>> upper = CategoricalLayer(mlp(3, 16, 4), mlp(4, 16, 6), states=4)
        >>> model = StackedCorEx(mlp(8, 16, 6), mlp(3, 16, 8), GaussianChannel(), prior=upper)
        >>> sorted(model.loss(torch.rand(50, 8)))
        ['distortion', 'loss', 'rate_1', 'rate_2', 'rate_bound']
    """

    prior: Prior

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        channel: nn.Module,
        *,
        prior: nn.Module,
        likelihood: Callable[[Tensor], Distribution] = BernoulliLikelihood(),  # noqa: B008  # it is immutable
        beta: float = 1.0,
        initial_lower_weight: float = 1.0,
        layerwise_steps: int = 0,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder, decoder, channel, prior=prior, likelihood=likelihood)
        self.beta = _checks.number("beta", beta, minimum=0)
        self.initial_lower_weight = _checks.number("initial_lower_weight", initial_lower_weight, minimum=0)
        self.layerwise_steps = _checks.whole("layerwise_steps", layerwise_steps, minimum=0)
        self.fit_parts(data_shape)

    @torch.enable_grad()
    def prepare(self, x: Tensor) -> None:
        """Train the layers one by one on training rows ``(B, *data_shape)``, if there are ``layerwise_steps``."""
        if not self.layerwise_steps:
            return super().prepare(x)
        x = x.to(next(self.parameters()).device)

        def vae_loss(
            rows: Tensor, encoder: nn.Module, channel: nn.Module, given: Callable[[Tensor], Distribution]
        ) -> Any:
            q = channel(*channel_inputs(encoder, rows))
            z = q.rsample()
            rate = StandardNormal(z.shape[1]).to(z).rate(q, z)
            return (rate.sum() - given(z).log_prob(rows).sum()) / len(rows)

        def first(rows: Tensor) -> Tensor:
            return vae_loss(rows, self.encoder, self.channel, self.observation)

        self._descend([self.encoder, self.decoder], first, x)
        with torch.no_grad():
            q = self.posterior(x)
        for layer in self.layers:
            if isinstance(layer, CategoricalLayer):
                layer.start(q.mean, q.stddev, self._descend)
            elif isinstance(layer, GaussianLayer):
                own = layer

                def next_loss(rows: Tensor, own: GaussianLayer = own) -> Tensor:
                    return vae_loss(rows, own.encoder, own.channel, own.given)

                self._descend([own.encoder, own.decoder], next_loss, q.mean)
                with torch.no_grad():
                    q = own.channel(*channel_inputs(own.encoder, q.mean))
        return None

    def _descend(self, parts: Sequence[nn.Module], loss: Callable[[Tensor], Tensor], rows: Tensor) -> None:
        """Minimize the loss of random batches of these rows over the parameters of parts."""
        optimizer = torch.optim.Adam([weight for part in parts for weight in part.parameters()], lr=1e-3)
        for _ in range(self.layerwise_steps):
            optimizer.zero_grad()
            loss(rows[torch.randint(len(rows), (LAYERWISE_ROWS,), device=rows.device)]).backward()
            optimizer.step()

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The "loss", "distortion", "rate_bound" and its parts, the rates "rate_1" to "rate_L" of the layers.

        All are 0-d and in nats per sample.
        """
        q = self.posterior(x)
        z = q.rsample()
        distortion = -self.observation(z).log_prob(x).mean()
        *lower, top = (rate.mean() for rate in rates(self.prior, q, z))
        lower_weight = self.warm_up_weight + (1 - self.warm_up_weight) * self.initial_lower_weight
        weighted = sum((lower_weight * rate for rate in lower), top)
        return {
            "loss": distortion + self.beta * weighted,
            "rate_bound": sum(lower, top),
            "distortion": distortion,
            **{f"rate_{layer}": rate for layer, rate in enumerate((*lower, top), start=1)},
        }

    @property
    def layers(self) -> list[Layer]:
        """The layers above z_1, from the lowest to the top."""
        found: list[Layer] = []
        prior: object = self.prior
        while isinstance(prior, Layer):
            found.append(prior)
            prior = getattr(prior, "prior", None)
        return found

    def cluster(self, x: Tensor) -> Tensor:
        """The most probable state of the categorical top layer for the means of all layers below: (B,), int64.

        Raises:
            TypeError: The top layer is not categorical.
        """
        z = self.posterior(x).mean
        for layer in self.layers:
            if isinstance(layer, CategoricalLayer):
                return layer.log_choice(z).argmax(1)
            z = channel_inputs(layer.encoder, z)[0] if isinstance(layer, GaussianLayer) else z
        raise TypeError("cluster needs a CategoricalLayer as the top layer")
