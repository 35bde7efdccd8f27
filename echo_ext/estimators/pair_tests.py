"""Tests of independence for every pair of columns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import Groups
from echo_ext.estimators import pairs, surrogates
from echo_ext.estimators.evaluation import warn_of_ranked_ties
from echo_ext.estimators.independence import independence_test
from echo_ext.estimators.ksg import conditional_mutual_information, mutual_information
from echo_ext.estimators.labels import read_flags
from echo_ext.estimators.null_distribution import ROUNDING
from echo_ext.estimators.options import Options
from echo_ext.estimators.samples import Samples

__all__ = ["Settings", "adjust", "estimate_and_test"]

# Which columns of a variable are discrete.
Flags: TypeAlias = Sequence[bool] | npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """The keywords of `mutual_information_matrix` about tests, checked.

    Attributes:
        method: The estimator.
        n: The number of surrogates, 0 for no tests.
        fdr: Whether p-values are adjusted.
        seed: The seed of the surrogates.
        groups: As given.
        progress: As given.
    """

    method: Any
    n: int
    fdr: bool
    seed: int
    groups: Groups | None
    progress: Callable[[int], object] | None


def estimate_and_test(samples: Samples, options: Options, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Return the estimates (K, *batch, p, q) and the p-values (*batch, p, q), which mean nothing below the diagonal."""
    variables = dict(zip(samples.names, samples.variables, strict=True))
    each = {name: v.detach().expand(*samples.batch, *v.shape[-2:]) for name, v in variables.items()}
    flags = {name: read_flags(name, options.discrete.get(name, False), v.shape[-1]) for name, v in each.items()}
    has_missing = samples.missing is not None
    beyond_estimates = settings.n > 0 or "given" in each
    is_special = any(map(any, flags.values())) or settings.groups is not None
    # Tests need ranks that order equal values at random, which `independence_test` has.
    needs_test = settings.n > 0 and ("given" in each or options.transform in ("rank", "normal"))
    if is_special or needs_test or (has_missing and beyond_estimates):
        return _estimate_one_by_one(each, flags, options, settings)
    warn_of_ranked_ties(samples.names, samples.variables, options)
    x, y = each["x"].mT, each["y"].mT if "y" in each else None
    of_pairs = settings.progress if settings.n == 0 else None
    if has_missing:
        values, shares = pairs.estimate_without_missing(x, y, settings.method, options, of_pairs)
    else:
        values, shares = pairs.estimate(x, y, each.get("given"), settings.method, options, of_pairs)
    pairs.warn_if_pairs_are_tied(shares, symmetric=y is None)
    return values, _permute(x, y, values[0], options, settings) if settings.n > 0 else None


def _permute(x: Tensor, y: Tensor | None, statistic: Tensor, options: Options, settings: Settings) -> Tensor:
    """Return p-values from permutations of the rows of y, all its columns alike: (*batch, p, q)."""
    triangle = y is None
    x = pairs.transform_each(x, options)
    y = x if y is None else pairs.transform_each(y, options)
    orders = surrogates.shuffled(x.shape[-1], settings.seed)
    reached = torch.zeros_like(statistic, dtype=torch.int64)
    for i in range(settings.n):
        moved = y[..., orders(i, 1)[0].to(y.device)]
        found = pairs.estimate_surrogates(x, moved, settings.method, options, triangle=triangle)[0]
        reached += found >= statistic - ROUNDING
        if settings.progress is not None:
            settings.progress(i + 1)
    return (1 + reached).double() / (1 + settings.n)


def adjust(p: Tensor, *, triangle: bool) -> Tensor:
    """Adjust p-values (*batch, p, q) of all pairs, or of those above the diagonal (Benjamini and Hochberg 1995)."""
    mask = torch.ones(p.shape[-2:], dtype=torch.bool, device=p.device)
    mask = mask.triu(1) if triangle else mask
    ascending, order = p[..., mask].sort(-1)
    num = ascending.shape[-1]
    scaled = ascending * num / torch.arange(1, num + 1, device=p.device)
    lowest = scaled.flip(-1).cummin(-1).values.flip(-1).clamp(max=1) if num > 0 else scaled
    adjusted = torch.zeros_like(p)
    adjusted[..., mask] = torch.empty_like(lowest).scatter_(-1, order, lowest)
    return adjusted


# ---- One by one ------------------------------------------------------------------------------------------------------


def _estimate_one_by_one(
    each: dict[str, Tensor], flags: dict[str, Flags], options: Options, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Do what `estimate_and_test` does, one pair after another."""
    symmetric, own = "y" not in each, "x" if "y" not in each else "y"
    x, y = each["x"], each[own]
    shape = (*x.shape[:-2], x.shape[-1], y.shape[-1])
    values = x.new_zeros((len(options.ks), *shape), dtype=torch.float64)
    p = x.new_zeros(shape, dtype=torch.float64)
    places = [(a, b) for a in range(x.shape[-1]) for b in range(a if symmetric else 0, y.shape[-1])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for done, (a, b) in enumerate(places):
            pair = {"x": x[..., [a]], "y": y[..., [b]]}
            which: dict[str, Any] = {"discrete_x": bool(flags["x"][a]), "discrete_y": bool(flags[own][b])}
            if "given" in each:
                pair["z"] = each["given"]
                which["discrete_z"] = flags["given"]
            try:
                tested = settings.n > 0 and not (symmetric and a == b)
                values[..., a, b], p[..., a, b] = _estimate_pair(pair, which, options, settings, tested)
            except ValueError as error:
                raise ValueError(f"{error}, for columns {a} of x and {b} of {own}") from None
            if settings.progress is not None:
                settings.progress(settings.n * (done + 1) // len(places) if settings.n > 0 else done + 1)
    _warn_once(caught, len(places))
    if symmetric:
        values = values.triu() + values.triu(1).mT
    return values, p if settings.n > 0 else None


def _estimate_pair(
    pair: dict[str, Any], which: dict[str, Any], options: Options, settings: Settings, tested: bool
) -> tuple[Tensor, Tensor | float]:
    """Return the estimates (K, *batch) for two columns and, if they are tested, their p-value (*batch)."""
    if not any(map(any, ([each] if isinstance(each, bool) else each for each in which.values()))):
        which = {}  # a method for continuous columns has no such keywords
    keywords = {
        "k": list(options.given_k),
        "method": settings.method,
        "exclude_within": options.exclude_within,
        "groups": settings.groups,
        "nan_policy": "omit",  # missing values that are not to be omitted have been refused
        "transform": options.transform,
        **which,
    }
    if not tested:
        estimate: Callable[..., Tensor] = conditional_mutual_information if "z" in pair else mutual_information
        return estimate(**pair, **keywords), torch.nan
    keywords["k"] = options.given_k[0]
    found = independence_test(**pair, **keywords, n_resamples=settings.n, seed=settings.seed)
    return found.statistic, found.pvalue


def _warn_once(caught: Sequence[warnings.WarningMessage], num_pairs: int) -> None:
    """Give a warning of several pairs once, with their number."""
    texts: dict[type[Warning], list[str]] = {}
    for each in caught:
        texts.setdefault(each.category, []).append(str(each.message))
    for category, found in texts.items():
        _checks.warn(f"{found[0]} (so it is for {len(found)} of the {num_pairs} pairs of columns)", category)
