"""Laws p(x|z) of the data given what a decoder puts out: log density, mean and draws."""

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
    """A law of x given what the decoder puts out.

    Attributes:
        outputs: how many numbers the decoder gives for each number of x, side by side in dimension 1.
        discrete: whether draws are from a countable set, so that no gradient flows through them.
    """

    outputs: int
    discrete: bool

    @abc.abstractmethod
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """``log p(x|z)`` summed over dimensions: (B,)."""

    @abc.abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """The mean of x given z, of x's shape."""

    @abc.abstractmethod
    def sample(self, parameters: Tensor) -> Tensor:
        """A draw of x given z, of x's shape."""


class Bernoulli(Likelihood):
    """Independent pixels, the parameters their logits; x may lie between 0 and 1 (cross-entropy, as in the papers)."""

    outputs = 1
    discrete = True

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Minus the binary cross-entropy: (B,)."""
        return -functional.binary_cross_entropy_with_logits(parameters, x, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probability of 1."""
        return torch.sigmoid(parameters)

    def sample(self, parameters: Tensor) -> Tensor:
        """Zeros and ones."""
        return torch.bernoulli(torch.sigmoid(parameters))


class Categorical(Likelihood):
    """One of K states, x its one-hot row (B, K), the parameters the states' logits."""

    outputs = 1
    discrete = True

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The log probability of each row's state: (B,)."""
        return (x * torch.log_softmax(parameters, dim=1)).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probability of each state."""
        return torch.softmax(parameters, dim=1)

    def sample(self, parameters: Tensor) -> Tensor:
        """One-hot rows."""
        state = torch.multinomial(torch.softmax(parameters, dim=1), 1).squeeze(1)
        return functional.one_hot(state, parameters.shape[1]).to(parameters.dtype)


class Gaussian(Likelihood):
    """Independent normal values, the parameters their means and log variances (Kingma & Welling 2014, appendix C.2).

    Args:
        min_log_variance: what lower log variances are raised to.
    """

    outputs = 2
    discrete = False

    def __init__(self, min_log_variance: float = -math.inf) -> None:
        self.min_log_variance = min_log_variance

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The normal log density: (B,)."""
        mean, log_variance = self.moments(parameters)
        return log_normal(x, mean, log_variance).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The first half of the parameters."""
        return parameters.chunk(2, dim=1)[0]

    def sample(self, parameters: Tensor) -> Tensor:
        """The mean plus noise, with gradients to the parameters."""
        return draw_normal(*self.moments(parameters))

    def moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each value, of x's shape."""
        mean, log_variance = parameters.chunk(2, dim=1)
        return mean, log_variance.clamp(min=self.min_log_variance)


LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "categorical": Categorical, "gaussian": Gaussian}


def likelihood_for(name: str | None, data_shape: Sequence[int], *, min_log_variance: float = -math.inf) -> Likelihood:
    """The likelihood of this name; None for Bernoulli pixels and Gaussian columns.

    Args:
        name: of :data:`LIKELIHOODS`.
        data_shape: shape of one x.
        min_log_variance: of a :class:`Gaussian`.

    Raises:
        ValueError: an unknown name, or a categorical one for x that are not rows.
    """
    if name is None:
        name = "bernoulli" if len(data_shape) == 3 else "gaussian"
    _checks.choice("likelihood", name, LIKELIHOODS)
    if name == "categorical" and len(data_shape) != 1:
        raise ValueError(
            f"likelihood 'categorical' takes one-hot rows (states,), but data_shape is {tuple(data_shape)}"
        )
    return Gaussian(min_log_variance) if name == "gaussian" else LIKELIHOODS[name]()
