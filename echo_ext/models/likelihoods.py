"""Likelihoods, which turn the output of a decoder into the distribution p(x|z).

A likelihood is any callable, or module, that maps the output of the decoder to a
:class:`torch.distributions.Distribution` with the batch (B,) and the event ``data_shape``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, OneHotCategorical

from echo_ext import _checks
from echo_ext.models.mixture_density import normal_mixtures

__all__ = [
    "LIKELIHOODS",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "FixedGaussianLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "MixtureLikelihood",
    "find_likelihood",
]


class Likelihood(Protocol):
    """A likelihood that says how wide the decoder must be."""

    @property
    def parameters_per_value(self) -> int:
        """The number of parameters of each value of x; the decoder concatenates them along dimension 1."""

    def __call__(self, parameters: Tensor) -> Distribution:
        """The distribution p(x|z) for the output of the decoder."""


@dataclasses.dataclass(frozen=True)
class BernoulliLikelihood:
    """Independent Bernoulli values, parameterized by logits; x may have values between 0 and 1, as in the papers.

    Example:
        >>> p = echo_ext.models.BernoulliLikelihood()(torch.zeros(5, 1, 8, 8))
        >>> p.log_prob(torch.rand(5, 1, 8, 8)).shape, p.mean.shape
        (torch.Size([5]), torch.Size([5, 1, 8, 8]))
    """

    parameters_per_value: ClassVar[int] = 1

    def __call__(self, parameters: Tensor) -> Distribution:
        """The distribution with these logits ``(B, *data_shape)``."""
        values = Bernoulli(logits=parameters, validate_args=False)
        return Independent(values, parameters.ndim - 1, validate_args=False)


@dataclasses.dataclass(frozen=True)
class CategoricalLikelihood:
    """A categorical distribution of one-hot rows, parameterized by logits.

    Example:
        >>> echo_ext.models.CategoricalLikelihood()(torch.zeros(5, 4)).mean[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    parameters_per_value: ClassVar[int] = 1

    def __call__(self, parameters: Tensor) -> Distribution:
        """The distribution with these logits (B, states)."""
        return _OneHot(parameters)


class _OneHot(OneHotCategorical):
    """A OneHotCategorical that never checks its logits: that of torch always does, which waits for the device."""

    def __init__(self, logits: Tensor) -> None:
        self._categorical = Categorical(logits=logits, validate_args=False)
        shapes = self._categorical.batch_shape, self._categorical.param_shape[-1:]
        Distribution.__init__(self, *shapes, validate_args=False)


@dataclasses.dataclass(frozen=True)
class GaussianLikelihood:
    """Independent Gaussians, parameterized by means and log variances (Kingma & Welling 2014, appendix C.2).

    Args:
        min_log_variance: Minimum of the log variances; lower ones are raised to it.

    Example:
        >>> p = echo_ext.models.GaussianLikelihood()(torch.zeros(5, 2 * 3))
        >>> p.mean.shape, p.stddev[0]
        (torch.Size([5, 3]), tensor([1., 1., 1.]))
    """

    parameters_per_value: ClassVar[int] = 2
    min_log_variance: float = -math.inf

    def __call__(self, parameters: Tensor) -> Distribution:
        """The distribution whose means and log variances are the halves of the parameters along dimension 1."""
        mean, log_variance = parameters.chunk(2, dim=1)
        std = (0.5 * log_variance.clamp(min=self.min_log_variance)).exp()
        return Independent(Normal(mean, std, validate_args=False), mean.ndim - 1, validate_args=False)


@dataclasses.dataclass(frozen=True)
class FixedGaussianLikelihood:
    """Independent Gaussians of one fixed standard deviation, parameterized by means: the mean squared error.

    ``-log p(x|z)`` is ``|x - mean|^2 / (2 std^2)`` plus a constant, in nats.

    Args:
        std: The standard deviation of each value. A smaller one gives the squared error more weight relative to the
            rate: with ``std=sqrt(1/2)`` the distortion is the squared error itself, up to a constant.

    Example:
        >>> p = echo_ext.models.FixedGaussianLikelihood(std=0.5)(torch.zeros(5, 3))
        >>> p.mean.shape, p.stddev[0]
        (torch.Size([5, 3]), tensor([0.5000, 0.5000, 0.5000]))
    """

    parameters_per_value: ClassVar[int] = 1
    std: float = 1.0

    def __post_init__(self) -> None:
        _checks.number("std", self.std, above=0)

    def __call__(self, parameters: Tensor) -> Distribution:
        """The distribution with these means ``(B, *data_shape)``."""
        values = Normal(parameters, torch.full_like(parameters, self.std), validate_args=False)
        return Independent(values, parameters.ndim - 1, validate_args=False)


@dataclasses.dataclass(frozen=True)
class MixtureLikelihood:
    """Independent mixtures of Gaussians, parameterized by logits, means and log variances (Bishop 1994).

    Args:
        components: Number of Gaussians for each value.
        min_log_variance: Minimum of the log variances; lower ones are raised to it.

    Example:
        >>> p = echo_ext.models.MixtureLikelihood(components=4)(torch.zeros(5, 3 * 4 * 2))
        >>> p.mean.shape, p.log_prob(p.rsample()).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    components: int = 10
    min_log_variance: float = -math.inf

    def __post_init__(self) -> None:
        _checks.whole("components", self.components, minimum=1)

    @property
    def parameters_per_value(self) -> int:
        """Three for each Gaussian."""
        return 3 * self.components

    def __call__(self, parameters: Tensor) -> Distribution:
        """The distribution whose logits, means and log variances are the thirds of (B, 3 * components * n, ...)."""
        thirds = (each.unflatten(1, (self.components, -1)).movedim(1, -1) for each in parameters.chunk(3, dim=1))
        return normal_mixtures(thirds, self.min_log_variance)


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "categorical": CategoricalLikelihood,
    "gaussian": GaussianLikelihood,
    "mixture": MixtureLikelihood,
    "mse": FixedGaussianLikelihood,
}


def find_likelihood(
    name: str | None,
    data_shape: Sequence[int],
    *,
    min_log_variance: float = -math.inf,
    std: float = 1.0,
    components: int = 10,
) -> Likelihood:
    """Return the likelihood of this name, as recipes choose it.

    Args:
        name: One of :data:`LIKELIHOODS`. None means "bernoulli" for images and "gaussian" for vectors.
        data_shape: Shape of one x.
        min_log_variance: Minimum of the log variances of a :class:`GaussianLikelihood` or :class:`MixtureLikelihood`.
        std: Standard deviation of a :class:`FixedGaussianLikelihood`.
        components: Number of Gaussians for each value of a :class:`MixtureLikelihood`.

    Raises:
        ValueError: The name is unknown, or it is "categorical" and the data are not vectors.
    """
    if name is None:
        name = "bernoulli" if len(data_shape) == 3 else "gaussian"
    _checks.choice("likelihood", name, LIKELIHOODS)
    if name == "categorical" and len(data_shape) != 1:
        raise ValueError(f"data_shape must be (states,) for likelihood 'categorical', got {tuple(data_shape)}")
    if name == "mse":
        return FixedGaussianLikelihood(_checks.number("likelihood_std", std, above=0))
    if name == "mixture":
        return MixtureLikelihood(_checks.whole("likelihood_components", components, minimum=1), min_log_variance)
    return GaussianLikelihood(min_log_variance) if name == "gaussian" else LIKELIHOODS[name]()
