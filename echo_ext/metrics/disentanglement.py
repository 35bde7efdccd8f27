"""Disentanglement: how well single latents represent single factors of variation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from echo_ext import _checks
from echo_ext._types import TensorOrArray
from echo_ext.estimators import mutual_information_discrete
from echo_ext.metrics._inputs import constant_columns, read_codes, read_integers, refuse_constant_columns

__all__ = ["factor_information", "factor_vae_score", "factor_vae_score_from", "mig"]

InformationEstimator: TypeAlias = Literal["bins", "knn"]
ESTIMATORS: tuple[InformationEstimator, ...] = get_args(InformationEstimator)


def mig(
    codes: TensorOrArray,
    factors: TensorOrArray,
    *,
    estimator: InformationEstimator = "bins",
    bins: int = 20,
    k: int = 3,
) -> float:
    """Compute the mutual information gap (Chen et al. 2018, section 4.1).

    The gap of a factor is the difference between its largest and its second largest information with a latent, as a
    share of the factor's entropy. The result is the mean over the factors: 1 if each factor is determined by a latent
    of its own, 0 if two latents always have the same information. The papers use 10,000 codes, and on dSprites the five
    factors other than color.

    Args:
        codes: (N, d) with d at least 2; float64 or float32, tensor or array.
        factors: Integers (N, F), each column with at least two values.
        estimator, bins, k: As in :func:`factor_information`.

    Raises:
        TypeError, ValueError: As in :func:`factor_information`. Also a single latent, or a constant factor.
    """
    points, labels = _read(codes, factors)
    if points.shape[1] < 2:
        raise ValueError("codes must have at least 2 columns, since the gap is between two latents, got 1")
    refuse_constant_columns("factors", labels)
    information = factor_information(points, labels, estimator=estimator, bins=bins, k=k)
    entropies = torch.stack([_entropy(torch.unique(factor, return_counts=True)[1]) for factor in labels.T])
    best, second = information.topk(2, dim=1).values.T
    return float(((best - second) / entropies).mean())


def factor_information(
    codes: TensorOrArray,
    factors: TensorOrArray,
    *,
    estimator: InformationEstimator = "bins",
    bins: int = 20,
    k: int = 3,
) -> Tensor:
    """Compute the information ``I(z_j; factor)`` of every factor and latent, in nats: (F, d), float64.

    The information of a constant latent is 0.

    Args:
        codes: (N, d), float64 or float32, tensor or array.
        factors: Integers (N, F).
        estimator: "bins" computes the information from counts, with each latent cut into bins of equal width between
            its minimum and its maximum. "knn" is :func:`echo_ext.mutual_information_discrete`, for continuous codes;
            near 0 it may be negative.
        bins: The number of bins for "bins". More bins resolve more, and add more bias.
        k: The number of neighbors for "knn". A larger k reduces the variance of the estimates and increases their bias.

    Raises:
        TypeError: Codes are not float64 or float32, or factors are not integers.
        ValueError: Values are not finite; the numbers of rows differ; the estimator is unknown; bins is below 2; k is
            out of range; a latent has more than k equal values and the estimator is "knn".
    """
    _checks.choice("estimator", estimator, ESTIMATORS)
    points, labels = _read(codes, factors)
    varying = ~constant_columns(points)
    information = torch.zeros(labels.shape[1], points.shape[1], dtype=torch.float64, device=points.device)
    _checks.whole("bins", bins, minimum=2)
    if not bool(varying.any()):
        return information
    if estimator == "bins":
        binned = _binned(points[:, varying].double(), bins)
        values = [torch.stack([_information_of_counts(bin_, factor) for bin_ in binned.T]) for factor in labels.T]
    else:
        _refuse_ties(points, varying, _checks.whole("k", k, minimum=1))
        latents = points[:, varying].double().T.unsqueeze(-1)
        values = [mutual_information_discrete(latents, factor, k=k) for factor in labels.T]
    information[:, varying] = torch.stack(values)
    return information


def _read(codes: TensorOrArray, factors: TensorOrArray) -> tuple[Tensor, Tensor]:
    """Return codes (N, d) and factors (N, F) on one device."""
    points = read_codes("codes", codes, minimum=2)
    return points, read_integers("factors", factors, rows=len(points), columns=True).to(points.device)


def _binned(codes: Tensor, bins: int) -> Tensor:
    """Return bin numbers (N, d); the maximum belongs to the last bin."""
    low, high = codes.amin(0), codes.amax(0)
    return ((codes - low) / (high - low) * bins).floor().clamp(max=bins - 1).to(torch.int64)


def _information_of_counts(left: Tensor, right: Tensor) -> Tensor:
    """Return the mutual information of two integer variables (N,) under their empirical distribution."""
    _, a = torch.unique(left, return_inverse=True)
    values, b = torch.unique(right, return_inverse=True)
    pairs = torch.bincount(a * len(values) + b)
    return _entropy(torch.bincount(a)) + _entropy(torch.bincount(b)) - _entropy(pairs)


def _entropy(counts: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(counts.double() / counts.sum()).sum()
    return entropy


def _refuse_ties(codes: Tensor, columns: Tensor, k: int) -> None:
    """Refuse codes with neighbors at distance 0, which would be counted as information."""
    for column in columns.nonzero().flatten().tolist():
        most = int(torch.unique(codes[:, column], return_counts=True)[1].max())
        if most > k:
            raise ValueError(
                f"codes must be continuous for estimator='knn', but column {column} has {most} equal values, more than "
                f"k={k}; for discrete codes there is estimator='bins'"
            )


# ---- The FactorVAE score ---------------------------------------------------------------------------------------------


def factor_vae_score(
    codes: TensorOrArray,
    factors: TensorOrArray,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    batch_size: int = 64,
    min_std: float = 0.05,
    generator: torch.Generator | None = None,
) -> float:
    """Compute the FactorVAE score (Kim and Mnih 2018, section 4) of codes with known factors.

    For each vote, a factor, a value of it, and ``batch_size`` rows with that value are drawn. The vote goes to the
    latent with the smallest variance over these rows, relative to its variance over all rows. The score is the share of
    test votes whose factor is the most frequent factor among the training votes for the same latent: 1 if each factor
    has a latent of its own, about 1/F if the codes carry no information.

    Args:
        codes: (N, d), float64 or float32, tensor or array, preferably of every combination of factors.
        factors: Integers (N, F), each column with at least two values.
        train_votes, test_votes: The numbers of votes that decide which factor each latent represents, and that are
            scored. More votes make the score more precise.
        batch_size: The number of rows of a vote.
        min_std: Latents whose standard deviation over all rows is lower are ignored. If that is all of them, the score
            is 0.
        generator: The generator of the draws. None is PyTorch's own.

    Raises:
        TypeError: Codes are not float64 or float32, or factors are not integers.
        ValueError: Values are not finite; the numbers of rows differ; a factor is constant; a number is out of range.
    """
    points, labels = _read(codes, factors)
    refuse_constant_columns("factors", labels)
    rows_by_value = []
    for factor in labels.T:
        _, sizes = torch.unique(factor, return_counts=True)
        rows_by_value.append(torch.argsort(factor, stable=True).split(sizes.tolist()))

    def draw(factor: int | None, n: int) -> Tensor:
        if factor is None:
            return points
        groups = rows_by_value[factor]
        group = groups[_index(len(groups), generator)]
        return points[group[torch.randint(len(group), (n,), generator=generator, device=_drawn_on(generator))]]

    return factor_vae_score_from(
        draw,
        labels.shape[1],
        train_votes=train_votes,
        test_votes=test_votes,
        batch_size=batch_size,
        min_std=min_std,
        generator=generator,
    )


def factor_vae_score_from(
    draw: Callable[[int | None, int], Tensor],
    num_factors: int,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    batch_size: int = 64,
    min_std: float = 0.05,
    generator: torch.Generator | None = None,
) -> float:
    """Compute the FactorVAE score with a function that draws rows, as from a simulator, and encodes them.

    Args:
        draw: ``draw(factor, n)`` returns the codes (n, d) of n rows that share one random value of a factor, from 0 to
            num_factors - 1, and are random in everything else. ``draw(None, n)`` returns those of n or more random
            rows; it is called once, with n = 10,000, for the standard deviations of the latents.
        num_factors: F, at least 2.
        train_votes, test_votes, batch_size, min_std, generator: As in :func:`factor_vae_score`.

    Raises:
        ValueError: A number is out of range.
    """
    _checks.whole("num_factors", num_factors, minimum=2)
    _checks.whole("train_votes", train_votes, minimum=1)
    _checks.whole("test_votes", test_votes, minimum=1)
    _checks.whole("batch_size", batch_size, minimum=2)
    min_std = _checks.number("min_std", min_std, minimum=0)
    std = draw(None, 10_000).double().std(0)
    active = ((std >= min_std) & (std > 0)).nonzero().flatten()
    if len(active) == 0:
        return 0.0

    def votes(count: int) -> tuple[Tensor, Tensor]:
        """Return the factors drawn and the latents voted for, (count,) each."""
        drawn = torch.randint(num_factors, (count,), generator=generator, device=_drawn_on(generator))
        latents = []
        for factor in drawn.tolist():
            group = draw(factor, batch_size)[:, active].double()
            latents.append(active[(group / std[active]).var(0).argmin()])
        return drawn, torch.stack(latents).cpu()

    factors, latents = votes(train_votes)
    counts = functional.one_hot(latents * num_factors + factors, len(std) * num_factors).sum(0)
    factor_of = counts.view(-1, num_factors).argmax(1)
    factors, latents = votes(test_votes)
    return float((factor_of[latents] == factors).double().mean())


def _index(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator, device=_drawn_on(generator)))


def _drawn_on(generator: torch.Generator | None) -> torch.device:
    """Return the device of a generator's draws, whatever the default device is."""
    return torch.device("cpu") if generator is None else generator.device
