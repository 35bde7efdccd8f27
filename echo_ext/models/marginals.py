"""Marginals m(z). The rate bound ``E log q(z|x) - log m(z)`` is tight if m(z) is the distribution of the codes."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from echo_ext import _checks
from echo_ext.models.densities import draw_normal, log_mean_exp, log_normal
from echo_ext.models.flows import ShiftFlow

__all__ = ["MAF", "FactorizedAggregate", "GaussianMixture", "Marginal", "StandardNormal", "VampPrior", "random_rows"]


class Marginal(nn.Module, abc.ABC):
    """A distribution of z with a density and samples."""

    @abc.abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """``log m(z)`` of each row of (B, d), in nats: (B,)."""

    @abc.abstractmethod
    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, d)."""


class StandardNormal(Marginal):
    """The distribution N(0, I) in ``latent_dim`` dimensions."""

    mean: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim), persistent=False)  # gives samples its dtype and device

    def log_prob(self, z: Tensor) -> Tensor:
        """The Gaussian log density: (B,)."""
        return log_normal(z).sum(1)

    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        return torch.randn_like(self.mean.expand(n, -1))


class GaussianMixture(Marginal):
    """A learned mixture of Gaussians with diagonal covariances.

    Args:
        latent_dim: Number of dimensions of z.
        components: Number of components. They start with equal weights, variances of 1 and means drawn from N(0, I).
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__()
        components = _checks.whole("components", components, minimum=1)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, latent_dim))
        self.log_variances = nn.Parameter(torch.zeros(components, latent_dim))

    @classmethod
    def fixed(cls, means: Tensor, std: float) -> GaussianMixture:
        """An untrained mixture of equally likely ``N(means[k], std^2 I)``; means are (components, latent_dim)."""
        mixture = cls(means.shape[1], len(means)).requires_grad_(False)
        mixture.means.copy_(means)
        mixture.log_variances.fill_(2 * math.log(std))
        return mixture

    def log_prob(self, z: Tensor) -> Tensor:
        """``log sum_k w_k N(z; mean_k, variance_k)``: (B,)."""
        per_component = log_normal(z[:, None], self.means, self.log_variances).sum(2)
        return torch.logsumexp(per_component + self.logits.log_softmax(0), dim=1)

    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        k = self.logits.softmax(0).multinomial(n, replacement=True)
        return draw_normal(self.means[k], self.log_variances[k])


class MAF(Marginal):
    """A masked autoregressive flow without scales over N(0, I) (Papamakarios et al. 2017).

    The density ``log m(z) = log N(flow(z); 0, I)`` is computed in parallel, samples one dimension at a time.

    Args:
        latent_dim: Number of dimensions of z.
        steps: Number of steps of the flow. More make the marginal more flexible.
        hidden: Widths of the hidden layers of each step.
    """

    def __init__(self, latent_dim: int, steps: int = 4, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        self.base = StandardNormal(latent_dim)
        self.flow = ShiftFlow(latent_dim, steps, hidden)

    def log_prob(self, z: Tensor) -> Tensor:
        """The Gaussian log density of ``flow(z)``: (B,)."""
        return self.base.log_prob(self.flow(z))

    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        return self.flow.inverse(self.base.sample(n))


class VampPrior(Marginal):
    """The mixture ``mean_k q(z|u_k)`` over learned pseudo-inputs u_k (Tomczak & Welling 2018).

    Args:
        moments: The encoder, a function from x (B, *data_shape) to the mean and log variance of q(z|x), (B, latent_dim)
            each. Its parameters are trained through this marginal, but do not belong to this module.
        data_shape: Shape of one x.
        pseudo_inputs: Number of pseudo-inputs. More make the marginal more flexible and each step slower.
        limits: Range that pseudo-inputs are clamped to; None for no range.
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
        pseudo_inputs = _checks.whole("pseudo_inputs", pseudo_inputs, minimum=1)
        self.moments = moments
        self.limits = limits
        self.pseudo_inputs = nn.Parameter(torch.rand(pseudo_inputs, *data_shape))

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Set the pseudo-inputs to random training rows (B, *data_shape) plus noise of standard deviation 0.01."""
        self.pseudo_inputs.copy_(random_rows(x, len(self.pseudo_inputs)))
        self.pseudo_inputs.add_(torch.randn_like(self.pseudo_inputs), alpha=0.01)

    def log_prob(self, z: Tensor) -> Tensor:
        """``log mean_k q(z|u_k)``: (B,)."""
        means, log_variances = self.moments(self._clamped())
        return log_mean_exp(log_normal(z[:, None], means, log_variances).sum(2), dim=1)

    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        k = torch.randint(len(self.pseudo_inputs), (n,), device=self.pseudo_inputs.device)
        return draw_normal(*self.moments(self._clamped()[k]))

    def _clamped(self) -> Tensor:
        return self.pseudo_inputs if self.limits is None else self.pseudo_inputs.clamp(*self.limits)


class FactorizedAggregate(Marginal):
    """The product ``prod_j q(z_j)`` of the marginals of the codes (Gao et al. 2019).

    ``q(z_j)`` is the mixture of ``N(mean_j, variance_j)`` over a bank of encoded rows. It is N(0, I) until
    :meth:`fill` is called.

    Args:
        latent_dim: Number of dimensions of z.
        rows: Number of rows in the bank. More approximate the marginals of the codes more closely.
    """

    means: Tensor
    log_variances: Tensor

    def __init__(self, latent_dim: int, rows: int = 1024) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(rows, latent_dim))
        self.register_buffer("log_variances", torch.zeros(rows, latent_dim))

    @torch.no_grad()
    def fill(self, mean: Tensor, log_variance: Tensor) -> None:
        """Copy the first rows of mean and log variance, (n, latent_dim) each, into the bank; repeat them if too few."""
        rows = torch.arange(len(self.means), device=mean.device) % len(mean)
        self.means.copy_(mean[rows])
        self.log_variances.copy_(log_variance[rows])

    def log_prob(self, z: Tensor) -> Tensor:
        """``sum_j log mean_rows N(z_j; mean_j, variance_j)``: (B,)."""
        return log_mean_exp(log_normal(z[:, None], self.means, self.log_variances), dim=1).sum(1)

    def sample(self, n: int) -> Tensor:
        """``n`` samples, whose dimensions come from independently chosen rows: (n, latent_dim)."""
        rows = torch.randint(len(self.means), (n, self.means.shape[1]), device=self.means.device)
        return draw_normal(self.means.gather(0, rows), self.log_variances.gather(0, rows))


def random_rows(x: Tensor, n: int) -> Tensor:
    """Draw ``n`` rows of x without replacement; if there are fewer, rows are repeated."""
    return x[torch.randperm(len(x), device=x.device).repeat(-(-n // len(x)))[:n]]
