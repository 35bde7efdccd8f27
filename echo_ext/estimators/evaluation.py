"""How an estimator's formula is applied: to which rows, in which order, transformed how, and reduced to what.

The formula gets variables (*batch, N, d) without missing values, transformed, and sorted by the row numbers of its
options; it returns local values (K, *batch, N).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Estimate
from echo_ext.estimators._backend import backend_of
from echo_ext.estimators.labels import prepare_columns
from echo_ext.estimators.options import UNITS, Options
from echo_ext.estimators.samples import Samples, restore_form

Formula: TypeAlias = Callable[[Sequence[Tensor], Options], Tensor]

# The share of tied samples from which on an estimate for continuous variables is doubtful.
TIED_SHARE = 0.05

# What to do about ties that rounding or counting made.
ADD_NOISE = "for rounded numbers and large counts add uniform noise as wide as the grid"


class DegenerateDataWarning(UserWarning):
    """More than 5 % of the samples equal so many others that their k-th neighbor is at distance 0.

    Estimates for continuous variables, which assume that this does not happen, are then wrong: far too large, negative
    ("ksg2") or minus infinity (entropy). What to do depends on the variables:

    * with few distinct values, so that each combination of them occurs often, such as answers from 1 to 5 or small
      counts: ``method="mixed"`` or ``"miller-madow"``;
    * continuous but for some values that repeat, such as zeros or a detection limit: ``method="mixed"``;
    * labels: :func:`mutual_information_discrete`;
    * with many values on a grid, such as rounded numbers and large counts: add independent uniform noise as wide as the
      grid, which does not change the information. "mixed" and "miller-madow" are far too large there: 0.6 and 0.35
      nats for 2000 pairs of independent Poisson counts of mean 100.

    Example:
        >>> import warnings
        >>> import numpy as np
        >>> from echo_ext import DegenerateDataWarning, mutual_information
        >>> answers = np.random.default_rng(0).integers(1, 6, (2, 1000))  # independent, so the information is 0
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     estimate = mutual_information(*answers)
        >>> round(estimate, 1), caught[0].category is DegenerateDataWarning
        (9.0, True)
        >>> round(mutual_information(*answers, method="mixed"), 2)
        0.0
    """


# ---- Local values ----------------------------------------------------------------------------------------------------


def evaluate(formula: Formula, samples: Samples, options: Options, *, remedy: str | None = None) -> Tensor:
    """Return the formula's local values (K, *batch, N), NaN where a row is left out.

    Args:
        formula: From variables and options to local values.
        samples: The variables.
        options: Of all N samples.
        remedy: What to do about tied samples, of which the formula notes the share in its options. None leaves the
            warning to the caller.
    """
    if samples.missing is None:
        values = evaluate_in_order(formula, samples.names, samples.variables, options)
    else:
        shape = (len(options.ks), samples.batch.numel(), samples.count)
        values = samples.variables[0].new_full(shape, torch.nan, dtype=torch.float64)
        for part in split_by_missing(samples, options):
            found = evaluate_in_order(formula, samples.names, part.variables, part.options)
            values[:, part.items.unsqueeze(-1), part.kept] = found
        values = values.view(len(options.ks), *samples.batch, samples.count)
    if remedy is not None:
        warn_if_tied(options.tied_shares, remedy)
    return values


def evaluate_in_order(formula: Formula, names: Sequence[str], variables: Sequence[Tensor], options: Options) -> Tensor:
    """Return the formula's local values for variables without missing values, in the order of their rows."""
    warn_of_ranked_ties(names, variables, options)
    if options.transform is not None or options.discrete:
        variables = prepare_columns(names, variables, options)
    if options.rows is None:
        return formula(variables, options)
    rows, order = options.rows.sort()
    device = variables[0].device
    options = replace(options, rows=rows.to(device))
    if bool((order[1:] > order[:-1]).all()):
        return formula(variables, options)
    back = order.argsort().to(device)
    order = order.to(device)
    return formula([variable.index_select(-2, order) for variable in variables], options).index_select(-1, back)


@dataclass(frozen=True)
class Part:
    """The items of the batch that leave the same rows out.

    Attributes:
        items: Their places in the flattened batch, int64 (B,).
        kept: The rows that are left, int64 (M,).
        variables: What they hold there, (B, M, d).
        options: Those of the M samples.
    """

    items: Tensor
    kept: Tensor
    variables: list[Tensor]
    options: Options


def split_by_missing(samples: Samples, options: Options) -> Iterator[Part]:
    """Yield the parts of the batch for each set of missing rows.

    Raises:
        ValueError: A part has too few rows for k.
    """
    if samples.missing is None:
        masks = torch.zeros((samples.batch.numel(), samples.count), dtype=torch.bool, device="cpu")
    else:
        masks = samples.missing.expand(*samples.batch, samples.count).reshape(-1, samples.count).cpu()
    if len(masks) == 0:
        return
    device = samples.variables[0].device
    distinct, which = torch.unique(masks, dim=0, return_inverse=True)
    flat = [v.expand(*samples.batch, *v.shape[-2:]).reshape(len(masks), *v.shape[-2:]) for v in samples.variables]
    for i, mask in enumerate(distinct):
        items, kept = (which == i).nonzero()[:, 0], (~mask).nonzero()[:, 0]
        left_out = samples.count - len(kept)
        reason = f" ({left_out} of {samples.count} rows were left out)"
        each = options.keep(kept, reason=reason) if left_out else options
        items, kept = items.to(device), kept.to(device)
        yield Part(items, kept, [variable[items.unsqueeze(-1), kept] for variable in flat], each)


# ---- Tied samples ----------------------------------------------------------------------------------------------------


def note_tied(radii: Tensor, options: Options) -> None:
    """Note the share of samples with their k-th neighbor at distance 0, from those distances, (K, *batch, N)."""
    options.tied_shares.append(backend_of(radii).share_of_zeros(radii))


def warn_if_tied(shares: Sequence[Tensor], remedy: str) -> None:
    """Warn if in some estimate too many samples have their k-th neighbor at distance 0."""
    most = max((share.max().item() for share in shares if share.numel() > 0), default=0.0)
    if most > TIED_SHARE:
        up_to = "up to " if sum(share.numel() for share in shares) > 1 else ""
        _checks.warn(
            f"{up_to}{100 * most:.3g} % of the samples have their k-th neighbor at distance 0; {remedy}",
            DegenerateDataWarning,
        )


def warn_of_ranked_ties(names: Sequence[str], variables: Sequence[Tensor], options: Options) -> None:
    """Warn if ranks would order many equal values of a column by their rows."""
    if options.transform not in ("rank", "normal"):
        return
    for name, points in zip(names, variables, strict=True):
        if not points.is_floating_point() or options.discrete.get(name, False) is not False or points.numel() == 0:
            continue
        ordered = points.detach().sort(-2).values
        share = float((ordered.diff(dim=-2) == 0).double().mean(-2).max()) if points.shape[-2] > 1 else 0.0
        if share > TIED_SHARE:
            _checks.warn(
                f"{name}: {100 * share:.3g} % of the values of a column repeat others, and "
                f"transform={options.transform!r} orders equal ones by their rows; for few distinct values use "
                f"transform=None, method='mixed', and {ADD_NOISE}",
                DegenerateDataWarning,
            )


# ---- Output ----------------------------------------------------------------------------------------------------------


def reduce_local_values(local_values: Tensor, samples: Samples, options: Options) -> Estimate:
    """Reduce local values in nats, (K, *batch, N), to what the caller asked for; rows left out are NaN among them."""
    values = local_values if options.local else mean_of_samples(local_values, samples)
    return convert_estimates(values, samples, options)


def mean_of_samples(local_values: Tensor, samples: Samples) -> Tensor:
    """Return the mean of local values (K, *batch, N) over the rows that are not left out, (K, *batch)."""
    return backend_of(local_values).mean(local_values) if samples.missing is None else local_values.nanmean(-1)


def convert_estimates(estimates: Tensor, samples: Samples, options: Options) -> Estimate:
    """Convert estimates in nats, (K, ...), to the caller's unit and form; a single k has no dimension of its own."""
    estimates = estimates[0] if options.single_k else estimates
    return restore_form(estimates if options.unit == "nats" else estimates * UNITS[options.unit], samples)
