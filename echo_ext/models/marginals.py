"""Marginals m(z) that a rate is bounded against: ``E log q(z|x) - log m(z)`` is least where m is the encodings' law."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from echo_ext.models.densities import draw_normal, log_mean_exp, log_normal
from echo_ext.models.flows import ShiftFlow

__all__ = ["MAF", "FactorisedAggregate", "GaussianMixture", "Marginal", "StandardNormal", "VampPrior", "random_rows"]


class Marginal(nn.Module, abc.ABC):
    """A law of z that has a density and can be sampled."""

    @abc.abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """``log m(z)`` of each row of (B, d), in nats: (B,)."""

    @abc.abstractmethod
    def sample(self, n: int) -> Tensor:
        """``n`` draws: (n, d)."""


class StandardNormal(Marginal):
    """N(0, I) in ``latent_dim`` dimensions."""

    mean: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim), persistent=False)  # knows dtype and device

    def log_prob(self, z: Tensor) -> Tensor:
        """The normal log density: (B,)."""
        return log_normal(z).sum(1)

    def sample(self, n: int) -> Tensor:
        """``n`` draws: (n, latent_dim)."""
        return torch.randn_like(self.mean.expand(n, -1))


class GaussianMixture(Marginal):
    """A learned mixture of Gaussians with diagonal covariances.

    Args:
        latent_dim: dimensions of z.
        components: how many; they begin with equal weights, variances of 1 and means drawn from N(0, I).
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, latent_dim))
        self.log_variances = nn.Parameter(torch.zeros(components, latent_dim))

    @classmethod
    def fixed(cls, means: Tensor, deviation: float) -> GaussianMixture:
        """Equal components ``N(means[k], deviation^2 I)`` that are not trained; means (components, latent_dim)."""
        mixture = cls(means.shape[1], len(means)).requires_grad_(False)
        mixture.means.copy_(means)
        mixture.log_variances.fill_(2 * math.log(deviation))
        return mixture

    def log_prob(self, z: Tensor) -> Tensor:
        """``log sum_k w_k N(z; mean_k, variance_k)``: (B,)."""
        of_each = log_normal(z[:, None], self.means, self.log_variances).sum(2)
        return torch.logsumexp(of_each + self.logits.log_softmax(0), dim=1)

    def sample(self, n: int) -> Tensor:
        """``n`` draws: (n, latent_dim)."""
        k = self.logits.softmax(0).multinomial(n, replacement=True)
        return draw_normal(self.means[k], self.log_variances[k])


class MAF(Marginal):
    """N(0, I) seen through a masked autoregressive flow that shifts only (Papamakarios et al. 2017).

    ``log m(z) = log N(flow(z); 0, I)`` is parallel; draws are sequential over the dimensions.

    Args:
        latent_dim: dimensions of z.
        steps: of the flow, as in :class:`~echo_ext.models.flows.ShiftFlow`.
        hidden: widths of each step's hidden layers.
    """

    def __init__(self, latent_dim: int, steps: int = 4, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        self.base = StandardNormal(latent_dim)
        self.flow = ShiftFlow(latent_dim, steps, hidden)

    def log_prob(self, z: Tensor) -> Tensor:
        """The normal log density of ``flow(z)``: (B,)."""
        return self.base.log_prob(self.flow(z))

    def sample(self, n: int) -> Tensor:
        """``n`` draws: (n, latent_dim)."""
        return self.flow.inverse(self.base.sample(n))


class VampPrior(Marginal):
    """The mixture ``mean_k q(z|u_k)`` of the encodings of learned pseudo-inputs u_k (Tomczak & Welling 2018).

    Args:
        moments: the encoder, from x (B, *data_shape) to the mean and log variance of q(z|x), (B, latent_dim) each.
            Its parameters are used, and trained, but are not this module's.
        data_shape: shape of one x.
        pseudo_inputs: how many.
        limits: what pseudo-inputs are clamped to; None for no limits.
    """

    def __init__(
        self,
        moments: Callable[[Tensor], tuple[Tensor, Tensor]],
        data_shape: Sequence[int],
        pseudo_inputs: int = 750,
        *,
        limits: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if pseudo_inputs < 1:
            raise ValueError(f"pseudo_inputs must be at least 1, got {pseudo_inputs}")
        self.moments = moments
        self.limits = limits
        self.pseudo_inputs = nn.Parameter(torch.rand(pseudo_inputs, *data_shape))

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Begin from training rows (B, *data_shape) in random order, repeated if need be, plus noise of 0.01."""
        self.pseudo_inputs.copy_(random_rows(x, len(self.pseudo_inputs)))
        self.pseudo_inputs.add_(torch.randn_like(self.pseudo_inputs), alpha=0.01)

    def log_prob(self, z: Tensor) -> Tensor:
        """``log mean_k q(z|u_k)``: (B,)."""
        means, log_variances = self.moments(self._clamped())
        return log_mean_exp(log_normal(z[:, None], means, log_variances).sum(2), dim=1)

    def sample(self, n: int) -> Tensor:
        """``n`` draws: (n, latent_dim)."""
        k = torch.randint(len(self.pseudo_inputs), (n,), device=self.pseudo_inputs.device)
        return draw_normal(*self.moments(self._clamped()[k]))

    def _clamped(self) -> Tensor:
        return self.pseudo_inputs if self.limits is None else self.pseudo_inputs.clamp(*self.limits)


class FactorisedAggregate(Marginal):
    """``prod_j q(z_j)``, the product of the encodings' own marginals (Gao et al. 2019).

    ``q(z_j)`` is the mixture of ``N(mean_j, variance_j)`` over a bank of encoded rows. It is N(0, I) until
    :meth:`fill`.

    Args:
        latent_dim: dimensions of z.
        rows: of the bank.
    """

    means: Tensor
    log_variances: Tensor

    def __init__(self, latent_dim: int, rows: int = 1024) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(rows, latent_dim))
        self.register_buffer("log_variances", torch.zeros(rows, latent_dim))

    @torch.no_grad()
    def fill(self, mean: Tensor, log_variance: Tensor) -> None:
        """Take the bank's rows from encodings (n, latent_dim), the first ones, repeated if they are fewer."""
        rows = torch.arange(len(self.means), device=mean.device) % len(mean)
        self.means.copy_(mean[rows])
        self.log_variances.copy_(log_variance[rows])

    def log_prob(self, z: Tensor) -> Tensor:
        """``sum_j log mean_rows N(z_j; mean_j, variance_j)``: (B,)."""
        return log_mean_exp(log_normal(z[:, None], self.means, self.log_variances), dim=1).sum(1)

    def sample(self, n: int) -> Tensor:
        """``n`` draws, each dimension from a row of its own: (n, latent_dim)."""
        rows = torch.randint(len(self.means), (n, self.means.shape[1]), device=self.means.device)
        return draw_normal(self.means.gather(0, rows), self.log_variances.gather(0, rows))


def random_rows(x: Tensor, n: int) -> Tensor:
    """``n`` rows of x in random order, all different as far as there are so many."""
    return x[torch.randperm(len(x), device=x.device).repeat(-(-n // len(x)))[:n]]
