"""Objectives: the rate-distortion trade-off and its weight, the score function, and a bound on total correlation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from echo_ext import _checks

__all__ = ["LearnedWeight", "rate_distortion_loss", "score_function", "total_correlation_bound"]

_LARGEST_LOG = 10.0  # of a learned weight, so that one without bounds remains a number


def rate_distortion_loss(distortion: Tensor, rate: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
    """The mean of ``D + sum_j beta_j R_j`` over a batch, 0-d and in nats (Alemi et al. 2018; Higgins et al. 2017).

    Args:
        distortion: The distortion -log p(x|z) of each sample, (B,).
        rate: The rate of each latent, (B, d), or of each sample, (B,).
        beta: Weight of the rate, one for all latents or one for each, (d,). A larger value gives less information about
            x and a larger distortion. With ``beta=1`` the result is an upper bound on -log p(x).

    Example:
        >>> echo_ext.models.rate_distortion_loss(torch.tensor([3.0, 5.0]), torch.tensor([2.0, 4.0]), beta=0.5)
        tensor(5.5000)
    """
    return (distortion + (beta * rate).view(len(rate), -1).sum(1)).mean()


class LearnedWeight(nn.Module):
    """A weight of the rate that is learned so that the mean rate, or the mean distortion, meets a target.

    It is the Lagrange multiplier beta of a constraint (as in Rezende & Viola 2018). Its logarithm, which begins at 0,
    rises in proportion to ``rate - target_rate``, or to ``target_distortion - distortion``. It has a learning rate of
    its own, and a target that the model cannot reach drives
    the weight towards exp(10) or exp(-10).

    Args:
        target_rate: The rate in nats per sample that training aims at. With a standard normal prior, this is the bound.
        target_distortion: The distortion in nats per sample that training aims at. One of both must be given. For a
            likelihood with a density, it may be negative.
        learning_rate: The learning rate of the logarithm with Adam, about its change in a step.

    Raises:
        TypeError: An argument is no number.
        ValueError: Both targets or none are given, or one is out of range.

    Example:
        >>> weight = echo_ext.models.LearnedWeight(target_rate=8.0)
        >>> loss = weight.penalty(rate=torch.tensor(9.0), distortion=torch.tensor(80.0))
        >>> loss.backward()
        >>> weight(), weight.log_weight.grad  # gradient descent raises the weight of a rate above its target
        (tensor(1.), tensor(-1.))
    """

    def __init__(
        self,
        *,
        target_rate: float | None = None,
        target_distortion: float | None = None,
        learning_rate: float = 1e-2,
    ) -> None:
        super().__init__()
        if (target_rate is None) == (target_distortion is None):
            raise ValueError(
                "target_rate or target_distortion must be given, and not both, "
                f"got {target_rate} and {target_distortion}"
            )
        self.target_rate = None if target_rate is None else _checks.number("target_rate", target_rate, above=0)
        self._target = self.target_rate or _checks.number("target_distortion", target_distortion)
        self.optimizer_settings = {"lr": _checks.number("learning_rate", learning_rate, above=0)}
        self.log_weight = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        """The weight, 0-d and without a gradient: minimizing the loss over it would make it 0."""
        return (_LARGEST_LOG * (self.log_weight.detach() / _LARGEST_LOG).tanh()).exp()

    def penalty(self, rate: Tensor, distortion: Tensor) -> Tensor:
        """A term of the loss, whose value is 0 and whose gradient moves the weight: 0-d.

        Args:
            rate: The mean rate of a batch, 0-d.
            distortion: Its mean distortion, 0-d.
        """
        excess = self._target - distortion if self.target_rate is None else rate - self._target
        return -(self.log_weight - self.log_weight.detach()) * excess.detach()


def score_function(cost: Tensor, log_prob: Tensor) -> Tensor:
    """The score-function estimator (REINFORCE, Williams 1992) for samples that gradients do not flow through: (B,).

    Its values are zero. Its gradient is that of ``E cost`` with respect to the distribution of the samples. The
    baseline of a sample is the mean cost of the others, which lowers the variance and does not change the expectation.

    Args:
        cost: Cost of each of the independent samples, (B,).
        log_prob: Log probability of each sample, (B,).

    Example:
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> y = torch.tensor([0, 1])  # samples of a softmax of the logits
        >>> cost = torch.tensor([1.0, 0.0])
        >>> echo_ext.models.score_function(cost, logits.log_softmax(0)[y]).mean().backward()
        >>> logits.grad  # lowers the logit of the expensive state
        tensor([ 0.5000, -0.5000])
    """
    cost = cost.detach()
    baseline = (cost.sum() - cost) / max(len(cost) - 1, 1)
    return (cost - baseline) * (log_prob - log_prob.detach())


def total_correlation_bound(entropies: Tensor, distortion: Tensor, rate: Tensor) -> Tensor:
    """The lower bound ``sum_i H(x_i) - D - R`` on the total correlation TC(x), 0-d and in nats (Gao et al. 2019).

    More precisely, it is a lower bound on ``TC(x; z) - TC(z) = sum_i I(x_i; z) - sum_j I(z_j; x)``, the part of TC(x)
    that z explains, provided that p(x|z) is a product over i and that q(z|x) and r(z) are products over j. CorEx
    maximizes it. A VAE does the same, since the entropies are constants of the data.

    Args:
        entropies: The entropies H(x_i) of the columns of the data, in any shape.
        distortion: The mean of -log p(x|z), 0-d.
        rate: The mean of sum_j KL(q(z_j|x) | r(z_j)), 0-d.

    Example:
        >>> echo_ext.models.total_correlation_bound(torch.tensor([1.0, 2.0]), torch.tensor(1.5), torch.tensor(1.0))
        tensor(0.5000)
    """
    return entropies.sum() - distortion - rate
