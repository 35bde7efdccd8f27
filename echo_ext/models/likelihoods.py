"""Laws p(x|z) of the data given what a decoder puts out: log density, mean and draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from echo_ext.models.densities import log_normal

__all__ = ["LIKELIHOODS", "Bernoulli", "Gaussian", "Likelihood"]


class Likelihood:
    """``outputs``: how many numbers the decoder gives for each number of x, side by side in dimension 1."""

    outputs: int

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """``log p(x|z)`` summed over dimensions: (B,)."""
        raise NotImplementedError

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean of x given z, of x's shape."""
        raise NotImplementedError

    def sample(self, parameters: Tensor) -> Tensor:
        """A draw of x given z, of x's shape."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Independent pixels, the parameters their logits; x may lie between 0 and 1 (cross-entropy, as in the papers)."""

    outputs = 1

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Minus the binary cross-entropy: (B,)."""
        return -functional.binary_cross_entropy_with_logits(parameters, x, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probability of 1."""
        return torch.sigmoid(parameters)

    def sample(self, parameters: Tensor) -> Tensor:
        """Zeros and ones."""
        return torch.bernoulli(torch.sigmoid(parameters))


class Gaussian(Likelihood):
    """Independent normal values, the parameters their means and log variances (Kingma & Welling 2014, appendix C.2)."""

    outputs = 2

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The normal log density: (B,)."""
        mean, log_variance = parameters.chunk(2, dim=1)
        return log_normal(x, mean, log_variance).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The first half of the parameters."""
        return parameters.chunk(2, dim=1)[0]

    def sample(self, parameters: Tensor) -> Tensor:
        """The mean plus noise."""
        mean, log_variance = parameters.chunk(2, dim=1)
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}
