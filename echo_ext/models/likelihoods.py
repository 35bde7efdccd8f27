"""Likelihoods p(x|z), whose parameters are the output of a decoder: log density, mean and samples."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from echo_ext import _checks
from echo_ext.models.densities import draw_normal, log_normal

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "Gaussian", "Likelihood", "likelihood_for"]


class Likelihood(abc.ABC):
    """A distribution of x whose parameters are the output of the decoder.

    Attributes:
        outputs: Number of parameters for each element of x; the decoder concatenates them along dimension 1.
        discrete: Whether x is discrete, so that no gradients flow through its samples.
    """

    outputs: int
    discrete: bool

    @abc.abstractmethod
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """``log p(x|z)`` summed over dimensions: (B,)."""

    @abc.abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """The mean of x given z, in the shape of x."""

    @abc.abstractmethod
    def sample(self, parameters: Tensor) -> Tensor:
        """One sample of x for each z, in the shape of x."""


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels, parameterized by logits; x may have values between 0 and 1, as in the papers."""

    outputs = 1
    discrete = True

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The negative binary cross-entropy: (B,)."""
        return -functional.binary_cross_entropy_with_logits(parameters, x, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probability that each pixel is 1."""
        return torch.sigmoid(parameters)

    def sample(self, parameters: Tensor) -> Tensor:
        """Samples of zeros and ones."""
        return torch.bernoulli(torch.sigmoid(parameters))


class Categorical(Likelihood):
    """A categorical distribution of one-hot rows x (B, K), parameterized by logits."""

    outputs = 1
    discrete = True

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The log probability of the state of each row: (B,)."""
        return (x * torch.log_softmax(parameters, dim=1)).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probability of each state."""
        return torch.softmax(parameters, dim=1)

    def sample(self, parameters: Tensor) -> Tensor:
        """Samples as one-hot rows."""
        state = torch.multinomial(torch.softmax(parameters, dim=1), 1).squeeze(1)
        return functional.one_hot(state, parameters.shape[1]).to(parameters.dtype)


class Gaussian(Likelihood):
    """Independent Gaussians, parameterized by means and log variances (Kingma & Welling 2014, appendix C.2).

    Args:
        min_log_variance: Minimum of the log variances; lower ones are raised to it.
    """

    outputs = 2
    discrete = False

    def __init__(self, min_log_variance: float = -math.inf) -> None:
        self.min_log_variance = min_log_variance

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The Gaussian log density: (B,)."""
        mean, log_variance = self.moments(parameters)
        return log_normal(x, mean, log_variance).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean of each value, which is the first half of the parameters."""
        return parameters.chunk(2, dim=1)[0]

    def sample(self, parameters: Tensor) -> Tensor:
        """Samples with gradients to the parameters."""
        return draw_normal(*self.moments(parameters))

    def moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each value, in the shape of x."""
        mean, log_variance = parameters.chunk(2, dim=1)
        return mean, log_variance.clamp(min=self.min_log_variance)


LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "categorical": Categorical, "gaussian": Gaussian}


def likelihood_for(name: str | None, data_shape: Sequence[int], *, min_log_variance: float = -math.inf) -> Likelihood:
    """Return the likelihood of this name.

    Args:
        name: One of :data:`LIKELIHOODS`. None means "bernoulli" for images and "gaussian" for vectors.
        data_shape: Shape of one x.
        min_log_variance: Minimum of the log variances of a :class:`Gaussian`.

    Raises:
        ValueError: The name is unknown, or it is "categorical" and the data are not vectors.
    """
    if name is None:
        name = "bernoulli" if len(data_shape) == 3 else "gaussian"
    _checks.choice("likelihood", name, LIKELIHOODS)
    if name == "categorical" and len(data_shape) != 1:
        raise ValueError(f"data_shape must be (states,) for likelihood 'categorical', got {tuple(data_shape)}")
    return Gaussian(min_log_variance) if name == "gaussian" else LIKELIHOODS[name]()
