"""Rate, distortion and likelihood of data under a model."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.metrics._inputs import Data, batches, measure_rows
from echo_ext.models.base import Model, eval_mode

__all__ = [
    "RATE_WORDS",
    "RateDistortion",
    "RateName",
    "importance_log_likelihood",
    "importance_nll",
    "rate_distortion",
    "rate_name_in",
]


# The name of a rate in losses and results: that of the information I(x; z) itself, or of an upper bound on it.
RateName: TypeAlias = Literal["rate", "rate_bound"]
RATE_WORDS: dict[str, str] = {"rate": "exact rate", "rate_bound": "rate bound"}  # for tables and figures


def rate_name_in(names: Container[str]) -> RateName:
    """Return which of the two rates is among these names of losses or results."""
    return "rate" if "rate" in names else "rate_bound"


@dataclass(frozen=True)
class RateDistortion:
    """Means over a data set, in nats per sample, each with its standard error (NaN where it is not known)."""

    rate: float
    distortion: float
    rate_name: RateName
    rate_error: float = math.nan
    distortion_error: float = math.nan
    neg_elbo_error: float = math.nan

    @property
    def neg_elbo(self) -> float:
        """The bound on -log p(x): rate + distortion."""
        return self.rate + self.distortion


def rate_distortion(model: Model, data: Data, *, draws: int = 4, batch_size: int = 100) -> RateDistortion:
    """Compute the mean rate (or rate bound), distortion and negative ELBO over a data set, in eval mode.

    The standard errors are those due to sampling z, for the given rows: they are computed from the means over the data
    set of the single draws. One draw gives none.

    Args:
        model: A model whose ``loss`` reports "distortion", and "rate" or "rate_bound".
        data: Rows (N, *data_shape); a data set whose ``dataset[rows]`` is a batch (x, ...); or batches, as from a
            DataLoader.
        draws: How many samples of z are drawn for each row. More make the means more precise and take more time.
        batch_size: The number of rows that are encoded at once.

    Raises:
        TypeError: The model does not report them.
        ValueError: There are no rows, or draws or batch_size is below 1.
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


def importance_log_likelihood(model: Model, x: Tensor, *, draws: int = 5000, max_batch_size: int = 200) -> Tensor:
    """Estimate ``log p(x)`` of each row by importance sampling (Burda et al. 2016, eq. 8): (N,) float64, in nats.

    ``log 1/K sum_k p(x, z_k) / q(z_k|x)`` with K draws of z given x: in expectation a lower bound, which rises to
    log p(x) as K grows. Memory does not grow with K.

    Args:
        model: A model with a ``log_weight``.
        x: Rows (N, *data_shape).
        draws: K. A larger K makes the bound tighter and takes more time.
        max_batch_size: The maximum number of draws of z at once, over all rows.

    Raises:
        TypeError: The model has no density q(z|x), as with Echo.
        ValueError: There are no rows, or draws or max_batch_size is below 1.
    """
    _checks.whole("draws", draws, minimum=1)
    _checks.whole("max_batch_size", max_batch_size, minimum=1)

    def measure(rows: Tensor) -> tuple[Tensor]:
        together = max(1, max_batch_size // len(rows))
        total = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=rows.device)
        for start in range(0, draws, together):
            copies = min(together, draws - start)
            log_weights = model.log_weight(rows.repeat(copies, *([1] * (rows.ndim - 1)))).double()
            total = torch.logaddexp(total, log_weights.view(copies, -1).logsumexp(0))
        return (total - math.log(draws),)

    return measure_rows(model, x, max_batch_size, measure)[0]


def importance_nll(model: Model, x: Tensor, *, draws: int = 5000, max_batch_size: int = 200) -> float:
    """Estimate the mean of ``-log p(x)`` over the rows by importance sampling, in nats per sample.

    Arguments and errors are those of :func:`importance_log_likelihood`. In expectation the result is an upper bound.
    """
    return -float(importance_log_likelihood(model, x, draws=draws, max_batch_size=max_batch_size).mean())
