"""Priors p(z). The rate bound ``E log q(z|x) - log p(z)`` is tight if p(z) is the distribution of the codes."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from typing_extensions import Self

from echo_ext import _checks
from echo_ext.models._numerics import widened
from echo_ext.models.channels import gaussian_factors
from echo_ext.models.flows import ShiftFlow

__all__ = [
    "MAF",
    "AggregatePosterior",
    "GaussianMixture",
    "Prior",
    "StandardNormal",
    "VampPrior",
    "as_prior",
    "channel_inputs",
    "random_rows",
]


class Prior(nn.Module, abc.ABC):
    """A distribution p(z). A subclass defines ``log_prob`` and ``sample``; models need nothing else.

    Example:
        >>> class Uniform(echo_ext.models.Prior):
        ...     def log_prob(self, z):  # on [0, 1], or an approximation of it that is finite everywhere
        ...         return -100 * (z - z.clamp(0, 1)).abs().sum(1)
        ...     def sample(self, n):
        ...         return torch.rand(n, 2)
        >>> Uniform().log_prob(torch.rand(5, 2)).shape
        torch.Size([5])
    """

    @abc.abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)`` of each row of (B, d), in nats: (B,)."""

    @abc.abstractmethod
    def sample(self, n: int) -> Tensor:
        """``n`` samples without gradients: (n, d)."""

    def log_ratio(self, q: Distribution, z: Tensor) -> Tensor:
        """``log q(z|x) - log p(z)`` at a sample z (B, d) of q: (B,)."""
        return q.log_prob(z) - self.log_prob(z)

    def rate(self, q: Distribution, z: Tensor) -> Tensor:
        """The rate bound of each latent, (B, d), where it is known in closed form, else :meth:`log_ratio`, (B,)."""
        return self.log_ratio(q, z)

    def prepare(self, x: Tensor) -> None:
        """Initialize what depends on the data from training rows ``(B, *data_shape)``, before the first step."""


class StandardNormal(Prior):
    """The distribution N(0, I) in ``latent_dim`` dimensions; its rate bound of a Gaussian q(z|x) is the KL divergence.

    Example:
        >>> echo_ext.models.StandardNormal(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    mean: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        latent_dim = _checks.whole("latent_dim", latent_dim, minimum=1)
        self.register_buffer("mean", torch.zeros(latent_dim), persistent=False)  # gives samples its dtype and device

    def log_prob(self, z: Tensor) -> Tensor:
        """The Gaussian log density: (B,)."""
        return self._factors().log_prob(z).sum(1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        return self._factors().rsample((n,))  # torch.distributions' sample waits for the device

    def rate(self, q: Distribution, z: Tensor) -> Tensor:
        """The KL divergence of each latent, (B, d), for a Gaussian q with independent dimensions."""
        factors = gaussian_factors(q)
        return self.log_ratio(q, z) if factors is None else kl_divergence(factors, self._factors())

    def _factors(self) -> Normal:
        return Normal(self.mean, torch.ones_like(self.mean), validate_args=False)


class GaussianMixture(Prior):
    """A learned mixture of Gaussians with diagonal covariances.

    Args:
        latent_dim: Number of dimensions of z.
        components: Number of components. They start with equal weights, variances of 1 and means drawn from N(0, I).

    Example:
        >>> prior = echo_ext.models.GaussianMixture(2, components=3)
        >>> prior.log_prob(prior.sample(5)).shape
        torch.Size([5])
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
        return _mixture(_gaussian(self.means, self.log_variances), self.logits).log_prob(z)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        k = self.logits.softmax(0).multinomial(n, replacement=True)  # MixtureSameFamily draws all components
        return _gaussian(self.means[k], self.log_variances[k]).rsample()


class MAF(Prior):
    """A masked autoregressive flow without scales over N(0, I) (Papamakarios et al. 2017).

    The density ``log p(z) = log base(flow(z))`` is computed in parallel, samples one dimension at a time.

    Args:
        latent_dim: Number of dimensions of z.
        steps: Number of steps of the flow. More make the prior more flexible.
        hidden: Widths of the hidden layers of each step.
        base: The distribution that the flow maps to. None means N(0, I). The flow preserves volume, so the prior has
            the entropy of its base; one that is learned, such as a :class:`GaussianMixture`, lets it have another.

    Example:
        >>> echo_ext.models.MAF(2, steps=2, hidden=(8,)).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        steps: int = 4,
        hidden: Sequence[int] = (640, 640, 640),
        *,
        base: Prior | None = None,
    ) -> None:
        super().__init__()
        self.base = StandardNormal(latent_dim) if base is None else base
        self.flow = ShiftFlow(latent_dim, steps, hidden)

    def log_prob(self, z: Tensor) -> Tensor:
        """The log density of the base at ``flow(z)``: (B,)."""
        return self.base.log_prob(self.flow(z))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        return self.flow.inverse(self.base.sample(n))


class VampPrior(Prior):
    """The mixture ``mean_k q(z|u_k)`` over learned pseudo-inputs u_k (Tomczak & Welling 2018).

    Args:
        encoder, channel: The parts of q(z|x). Their parameters are trained through this prior too, but do not belong to
            it.
        data_shape: Shape of one x.
        pseudo_inputs: Number of pseudo-inputs. More make the prior more flexible and each step slower.
        limits: Range that pseudo-inputs are clamped to; None for no range.

    Example:
        >>> encoder, channel = torch.nn.Linear(3, 4), echo_ext.models.GaussianChannel()
        >>> prior = echo_ext.models.VampPrior(encoder, channel, (3,), pseudo_inputs=10)
        >>> prior.prepare(torch.rand(100, 3))  # start from training rows
        >>> prior.sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        channel: nn.Module,
        data_shape: Sequence[int],
        pseudo_inputs: int = 750,
        *,
        limits: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        pseudo_inputs = _checks.whole("pseudo_inputs", pseudo_inputs, minimum=1)
        self._posterior = (encoder, channel)  # a tuple, so that the parts do not become submodules of the prior
        self.limits = limits
        self.pseudo_inputs = nn.Parameter(torch.rand(pseudo_inputs, *data_shape))
        self._encoded: tuple[Any, Distribution] | None = None  # all components in eval mode, with what they depend on

    def train(self, mode: bool = True) -> Self:
        """Set the mode and forget the encoded pseudo-inputs; fused optimizers do not count their changes of weights."""
        self._encoded = None
        return super().train(mode)

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Set the pseudo-inputs to random training rows ``(B, *data_shape)`` plus noise of standard deviation 0.01."""
        self.pseudo_inputs.copy_(random_rows(x, len(self.pseudo_inputs)))
        self.pseudo_inputs.add_(torch.randn_like(self.pseudo_inputs), alpha=0.01)

    def log_prob(self, z: Tensor) -> Tensor:
        """``log mean_k q(z|u_k)``: (B,)."""
        components, weights = self._components(), self.pseudo_inputs.new_zeros(len(self.pseudo_inputs))
        if not isinstance(components, TransformedDistribution):
            return _mixture(components, weights).log_prob(z)
        mixture = _mixture(components.base_dist, weights)  # all components share the flow
        return TransformedDistribution(mixture, components.transforms, validate_args=False).log_prob(z)

    def log_ratio(self, q: Distribution, z: Tensor) -> Tensor:
        """``log q(z|x) - log p(z)`` at a sample z (B, d) of q: (B,)."""
        if not isinstance(q, TransformedDistribution):
            return super().log_ratio(q, z)
        # The flow is that of the components. It cancels, so both densities are taken before it, where z is known.
        for transform in reversed(q.transforms):
            z = transform.inv(z)
        components, weights = self._components(), self.pseudo_inputs.new_zeros(len(self.pseudo_inputs))
        return q.base_dist.log_prob(z) - _mixture(components.base_dist, weights).log_prob(z)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` samples: (n, latent_dim)."""
        k = torch.randint(len(self.pseudo_inputs), (n,), device=self.pseudo_inputs.device)
        return self._components(k).rsample()

    def _components(self, rows: Tensor | slice = slice(None)) -> Any:
        """The distribution q(z|u) of these pseudo-inputs."""
        if self.training or torch.is_grad_enabled():
            self._encoded = None
            return self._encode(rows)
        if isinstance(rows, Tensor):
            return self._encode(rows)
        # An evaluation calls this once for each batch, and nothing changes in between.
        parts = [part for part in self._posterior if isinstance(part, nn.Module)]
        tensors = itertools.chain([self.pseudo_inputs], *((*part.parameters(), *part.buffers()) for part in parts))
        state = [(each.data_ptr(), each._version) for each in tensors]
        if self._encoded is None or self._encoded[0] != state:
            self._encoded = (state, self._encode(rows))
        return self._encoded[1]

    def _encode(self, rows: Tensor | slice) -> Any:
        u = self.pseudo_inputs if self.limits is None else self.pseudo_inputs.clamp(*self.limits)
        encoder, channel = self._posterior
        return channel(*channel_inputs(encoder, u[rows]))


class AggregatePosterior(Prior):
    """The product ``prod_j q(z_j)`` of the marginals of the codes (Gao et al. 2019).

    ``q(z_j)`` is the mixture of ``N(mean_j, variance_j)`` over a bank of encoded rows. It is N(0, I) until
    :meth:`fill` is called.

    Args:
        latent_dim: Number of dimensions of z.
        rows: Number of rows in the bank. More approximate the marginals of the codes more closely.

    Example:
        >>> aggregate = echo_ext.models.AggregatePosterior(2, rows=100)
        >>> aggregate.fill(echo_ext.models.GaussianChannel()(torch.randn(500, 2), torch.zeros(500, 2)))
        >>> aggregate.sample(5).shape
        torch.Size([5, 2])
    """

    means: Tensor
    stds: Tensor

    def __init__(self, latent_dim: int, rows: int = 1024) -> None:
        super().__init__()
        rows = _checks.row_count("rows", rows, minimum=1)
        self.register_buffer("means", torch.zeros(rows, latent_dim))
        self.register_buffer("stds", torch.ones(rows, latent_dim))

    @torch.no_grad()
    def fill(self, q: Distribution) -> None:
        """Copy the first rows of a Gaussian q(z|x) with the batch (n,) into the bank; repeat them if too few.

        Raises:
            TypeError: q is not a Gaussian with independent dimensions.
        """
        factors = gaussian_factors(q)
        if factors is None:
            raise TypeError(f"q must be a Gaussian with independent dimensions, got {_checks.brief(q)}")
        rows = torch.arange(len(self.means), device=factors.mean.device) % len(factors.mean)
        self.means.copy_(factors.mean[rows])
        self.stds.copy_(factors.stddev[rows])

    def log_prob(self, z: Tensor) -> Tensor:
        """``sum_j log mean_rows N(z_j; mean_j, variance_j)``: (B,)."""
        components = Normal(self.means.T, self.stds.T, validate_args=False)
        return _mixture(components, torch.zeros_like(self.means.T)).log_prob(z).sum(1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` samples, whose dimensions come from independently chosen rows: (n, latent_dim)."""
        rows = torch.randint(len(self.means), (n, self.means.shape[1]), device=self.means.device)
        return Normal(self.means.gather(0, rows), self.stds.gather(0, rows), validate_args=False).rsample()


class _PriorOfMethods(Prior):
    """A prior that is a module of another class with the methods ``log_prob`` and ``sample``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def log_prob(self, z: Tensor) -> Tensor:
        return cast(Any, self.module).log_prob(z)

    def sample(self, n: int) -> Tensor:
        return cast(Any, self.module).sample(n)


def as_prior(name: str, module: nn.Module) -> Prior:
    """Return a module with ``log_prob`` and ``sample`` as a :class:`Prior`."""
    if isinstance(module, Prior):
        return module
    for method in ("log_prob", "sample"):
        if not callable(getattr(module, method, None)):
            kind = type(module).__name__
            raise TypeError(f"{name} must have the methods log_prob and sample, got {kind} without {method}")
    return _PriorOfMethods(module)


def channel_inputs(encoder: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, ...]:
    """Encode x, and return the inputs of the channel in at least float32.

    The output of the encoder is a tuple of them, or one tensor (B, 2 * latent_dim) whose halves they are.
    """
    output = encoder(x)
    return tuple(map(widened, output.chunk(2, dim=1) if isinstance(output, Tensor) else output))


def random_rows(x: Tensor, n: int) -> Tensor:
    """Draw ``n`` rows of x without replacement; if there are fewer, rows are repeated."""
    return x[torch.randperm(len(x), device=x.device).repeat(-(-n // len(x)))[:n]]


def _gaussian(mean: Tensor, log_variance: Tensor) -> Distribution:
    return Independent(Normal(mean, (0.5 * log_variance).exp(), validate_args=False), 1, validate_args=False)


def _mixture(components: Distribution, logits: Tensor) -> MixtureSameFamily:
    """The mixture over the last batch dimension of the components."""
    return MixtureSameFamily(Categorical(logits=logits, validate_args=False), components, validate_args=False)
