"""Rate, distortion and likelihood of data under a model."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.metrics._inputs import Data, batches, measure_rows
from echo_ext.models.base import LatentModel, Model, eval_mode

__all__ = [
    "DEFENSIVE_WEIGHT",
    "RATE_WORDS",
    "ImportanceEstimate",
    "RateDistortion",
    "RateName",
    "importance_batch",
    "importance_estimate",
    "importance_nll",
    "rate_distortion",
    "rate_name_in",
]


# The name of a rate in losses and results: that of the information I(x; z) itself, or of an upper bound on it.
RateName: TypeAlias = Literal["rate", "rate_bound"]
RATE_WORDS: dict[str, str] = {"rate": "exact rate", "rate_bound": "rate bound"}  # for tables and figures
# A row with fewer effective draws is unreliable, and a larger share of such rows gives a warning.
MIN_EFFECTIVE_DRAWS, UNRELIABLE_SHARE = 10, 0.01
# The default share of draws from distributions that are wider than q(z|x).
DEFENSIVE_WEIGHT = 0.1


def rate_name_in(names: Container[str]) -> RateName:
    """Return which of the two rates is among these names of losses or results."""
    return "rate" if "rate" in names else "rate_bound"


@dataclass(frozen=True)
class RateDistortion:
    """Rate and distortion of a data set: means over its rows, in nats per sample.

    Attributes:
        rate: The rate, or an upper bound on it.
        distortion: The mean of -log p(x|z).
        rate_name: "rate" where the rate is the information I(x; z) itself, "rate_bound" where it is a bound.
        rate_error: The standard error of the rate due to sampling z; NaN where it is not known.
        distortion_error: Likewise of the distortion.
        neg_elbo_error: Likewise of :attr:`neg_elbo`.

    Example:
        >>> found = echo_ext.metrics.RateDistortion(rate=8.0, distortion=80.0, rate_name="rate_bound")  # a VAE
        >>> found.neg_elbo
        88.0
    """

    rate: float
    distortion: float
    rate_name: RateName
    rate_error: float = math.nan
    distortion_error: float = math.nan
    neg_elbo_error: float = math.nan

    @property
    def neg_elbo(self) -> float:
        """The bound on -log p(x), which is the sum of the rate and the distortion."""
        return self.rate + self.distortion


def rate_distortion(model: Model, data: Data, *, draws: int = 4, batch_size: int = 100) -> RateDistortion:
    """Compute the mean rate (or rate bound), distortion and negative ELBO over a data set, in eval mode.

    The standard errors are those due to sampling z, for the given rows: they are computed from the means over the data
    set of the single draws. One draw gives none.

    Args:
        model: A model whose ``loss`` reports "distortion", and "rate" or "rate_bound".
        data: Rows ``(N, *data_shape)``; a data set whose ``dataset[rows]`` is a batch (x, ...); or batches, as from a
            DataLoader.
        draws: How many samples of z are drawn for each row. More make the means more precise and take more time.
        batch_size: The number of rows that are encoded at once.

    Raises:
        TypeError: The model does not report them.
        ValueError: There are no rows, or draws or batch_size is below 1.

    Example:
        >>> model = echo_ext.models.build("echo", (1, 8, 8), latent_dim=4, num_terms=31)
        >>> x = torch.rand(100, 1, 8, 8)
        >>> found = echo_ext.metrics.rate_distortion(model, x)
        >>> found.rate_name, found.neg_elbo == found.rate + found.distortion
        ('rate', True)
    """
    _checks.whole("draws", draws, minimum=1)
    totals = torch.zeros(2, draws, dtype=torch.float64, device="cpu")
    rows, rate_name = 0, rate_name_in(())
    with torch.no_grad(), eval_mode(model):
        for x in batches(model, data, batch_size):
            terms = [model.loss(x) for _ in range(draws)]
            rate_name = rate_name_in(terms[0])
            for name, total in zip((rate_name, "distortion"), totals, strict=True):
                if name not in terms[0]:
                    raise TypeError(f"{type(model).__name__}.loss reports no {name!r}, but only {', '.join(terms[0])}")
                total += len(x) * torch.stack([term[name] for term in terms]).double().cpu()
            rows += len(x)
    if rows == 0:
        raise ValueError("data must have at least one row, got none")
    rates, distortions = totals / rows
    known = (each.std() / math.sqrt(draws) for each in (rates, distortions, rates + distortions))
    errors = map(float, known) if draws > 1 else ()
    return RateDistortion(float(rates.mean()), float(distortions.mean()), rate_name, *errors)


class ImportanceEstimate(NamedTuple):
    """Estimates of log p(x) by importance sampling, and how far they can be trusted.

    Attributes:
        log_likelihood: The estimate of ``log p(x)`` of each row in nats: (N,), float64.
        effective_draws: The effective sample size of each row, ``(sum_k w_k)^2 / sum_k w_k^2`` for the weights w_k of
            its draws: (N,), float64. It is K if all weights are equal, and 1 if one of them outweighs all others.
        draws: The number of draws K of each row.

    Example:
        >>> log_likelihood, effective_draws = torch.tensor([-3.0, -4.0, -5.0]), torch.tensor([900.0, 800.0, 2.0])
        >>> found = echo_ext.metrics.ImportanceEstimate(log_likelihood, effective_draws, draws=1000)
        >>> found.nll, round(found.nll_error, 2), round(found.unreliable_share, 2)
        (4.0, 0.24, 0.33)
    """

    log_likelihood: Tensor
    effective_draws: Tensor
    draws: int

    @property
    def nll(self) -> float:
        """The mean of ``-log p(x)`` over the rows, in nats per sample."""
        return -float(self.log_likelihood.mean())

    @property
    def nll_error(self) -> float:
        """The standard error of :attr:`nll` due to the draws, for the given rows; too small if draws are unreliable."""
        variances = (1 / self.effective_draws - 1 / self.draws).clamp(min=0)
        return float(variances.sum().sqrt()) / len(variances)

    @property
    def unreliable_share(self) -> float:
        """The share of rows with fewer than 10 effective draws, or fewer than a tenth of the draws if these are few."""
        return float((self.effective_draws < min(MIN_EFFECTIVE_DRAWS, self.draws / 10)).double().mean())

    @property
    def warning(self) -> str | None:
        """What is wrong if more than 1 % of the rows are unreliable, else None."""
        if (share := self.unreliable_share) <= UNRELIABLE_SHARE:
            return None
        return (
            f"{share:.0%} of the rows have too few effective draws ({float(self.effective_draws.min()):.1f} at the "
            f"minimum, of {self.draws}), so that -log p(x) is overestimated; more draws make it more reliable"
        )


def importance_estimate(
    model: Model, x: Data, *, draws: int = 5000, defensive_weight: float = DEFENSIVE_WEIGHT, max_batch_size: int = 200
) -> ImportanceEstimate:
    """Estimate ``log p(x)`` of each row by importance sampling (Burda et al. 2016, equation 8).

    The estimate is ``log 1/K sum_k p(x, z_k) / m(z_k|x)`` with K draws of z from a proposal m. The mean inside the
    logarithm is unbiased, so the estimate is in expectation a lower bound, which rises to log p(x) as K grows. Memory
    does not grow with K.

    The proposal is the mixture ``(1 - defensive_weight) q(z|x) + defensive_weight w(z|x)``, with its exact density. w
    is a mixture of q(z|x) with larger standard deviations and of the prior, since a q(z|x) that is narrower than the
    true posterior misses a part of p(x) without any sign of it. A model that is no
    :class:`~echo_ext.models.LatentModel` always draws from q(z|x), by its own ``log_weight``.

    Args:
        model: A model with a ``log_weight``.
        x: As ``data`` in :func:`rate_distortion`.
        draws: K. A larger K makes the bound tighter and takes more time.
        defensive_weight: The share of draws from w, from 0, for q(z|x) alone, to 1. A larger one finds more of what
            q(z|x) misses, and leaves fewer effective draws where q(z|x) is right.
        max_batch_size: The maximum number of draws of z at once, over all rows.

    Warns:
        RuntimeWarning: More than 1 % of the rows have too few effective draws, as
            :attr:`ImportanceEstimate.unreliable_share` counts them, so that their -log p(x) is overestimated.

    Raises:
        TypeError: The model has no density q(z|x), as with Echo.
        ValueError: There are no rows, or a number is out of range.

    Example:
        >>> from echo_ext.models import Autoencoder, FixedGaussianLikelihood, GaussianChannel, StandardNormal
        >>> parts = torch.nn.Linear(1, 2), torch.nn.Identity(), GaussianChannel()
        >>> model = Autoencoder(*parts, prior=StandardNormal(1), likelihood=FixedGaussianLikelihood())
        >>> found = echo_ext.metrics.importance_estimate(model, torch.tensor([[0.4]]))  # p(x) is N(0, 2)
        >>> found.log_likelihood.round(decimals=1)  # the exact log density is -1.31 nats
        tensor([-1.3000], dtype=torch.float64)
    """
    _checks.whole("draws", draws, minimum=1)
    defensive_weight = _checks.number("defensive_weight", defensive_weight, minimum=0, maximum=1)
    _checks.whole("max_batch_size", max_batch_size, minimum=1)
    options: dict[str, Any] = {"draws": draws, "defensive_weight": defensive_weight, "max_batch_size": max_batch_size}
    measure = functools.partial(importance_batch, model, **options)
    log_likelihood, effective_draws = measure_rows(model, x, max_batch_size, measure)
    found = ImportanceEstimate(log_likelihood, effective_draws, draws)
    if found.warning is not None:
        warnings.warn(found.warning, RuntimeWarning, stacklevel=2)
    return found


def importance_batch(
    model: Model, x: Tensor, *, draws: int, defensive_weight: float, max_batch_size: int
) -> tuple[Tensor, Tensor]:
    """The log likelihood and the effective draws of each row of a batch; see :func:`importance_estimate`."""
    options: dict[str, Any] = {"defensive_weight": defensive_weight} if isinstance(model, LatentModel) else {}
    together = max(1, max_batch_size // len(x))
    total = torch.full((2, len(x)), -math.inf, dtype=torch.float64, device=x.device)
    for start in range(0, draws, together):
        copies = min(together, draws - start)
        log_weights = model.log_weight(x.repeat(copies, *([1] * (x.ndim - 1))), **options).double()
        powers = torch.stack([log_weights, 2 * log_weights]).view(2, copies, -1)
        total = torch.logaddexp(total, powers.logsumexp(1))
    return total[0] - math.log(draws), (2 * total[0] - total[1]).exp().clamp(1, draws)


def importance_nll(
    model: Model, x: Data, *, draws: int = 5000, defensive_weight: float = DEFENSIVE_WEIGHT, max_batch_size: int = 200
) -> float:
    """Estimate the mean of ``-log p(x)`` over the rows by importance sampling, in nats per sample.

    Arguments, warnings and errors are those of :func:`importance_estimate`, which also returns the effective number of
    draws of each row. In expectation the result is an upper bound.

    Example:
        >>> from echo_ext.models import Autoencoder, FixedGaussianLikelihood, GaussianChannel, StandardNormal
        >>> parts = torch.nn.Linear(1, 2), torch.nn.Identity(), GaussianChannel()
        >>> model = Autoencoder(*parts, prior=StandardNormal(1), likelihood=FixedGaussianLikelihood())
        >>> round(echo_ext.metrics.importance_nll(model, torch.tensor([[0.4]])), 1)  # p(x) is N(0, 2): 1.31 nats
        1.3
    """
    options: dict[str, Any] = {"draws": draws, "defensive_weight": defensive_weight, "max_batch_size": max_batch_size}
    return importance_estimate(model, x, **options).nll
