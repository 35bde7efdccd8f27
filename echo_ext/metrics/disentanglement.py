"""How well single latents stand for single factors of variation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from echo_ext import _checks
from echo_ext.estimators import mutual_information_discrete
from echo_ext.estimators._samples import ArrayLike
from echo_ext.metrics._inputs import constant_columns, read_codes, read_integers, refuse_constant_columns

__all__ = ["factor_information", "factor_vae_score", "factor_vae_score_from", "mig"]

ESTIMATORS = ("bins", "knn")


def mig(codes: ArrayLike, factors: ArrayLike, *, estimator: str = "bins", bins: int = 20, k: int = 3) -> float:
    """The mutual information gap (Chen et al. 2018, section 4.1).

    For each factor, how much more the best latent knows of it than the second best, as a share of the factor's entropy;
    the mean over factors. 1 where each factor has one latent of its own that fixes it, 0 where each is in two alike.
    The papers take 10,000 codes, and on dSprites the five factors other than colour.

    Args:
        codes: (N, d), d at least 2; float64 or float32, tensor or array.
        factors: (N, F) integers, each column with two values at least.
        estimator, bins, k: as in :func:`factor_information`.

    Raises:
        TypeError, ValueError: as :func:`factor_information`; a single latent, a constant factor.
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
    codes: ArrayLike, factors: ArrayLike, *, estimator: str = "bins", bins: int = 20, k: int = 3
) -> Tensor:
    """``I(z_j; factor)`` of every factor and latent, in nats: (F, d), float64.

    Args:
        codes: (N, d), float64 or float32, tensor or array.
        factors: (N, F) integers.
        estimator: "bins": the information of the counts, each latent cut into equally wide bins between its least and
            its greatest value. "knn": :func:`echo_ext.mutual_information_discrete`, for continuous codes; near 0 it
            may be negative.
        bins: how many, for "bins".
        k: neighbours, for "knn".

    A latent that is constant has 0.

    Raises:
        TypeError: codes that are not float64 or float32, factors that are not integers.
        ValueError: values that are not finite, different numbers of rows, an unknown estimator, bins below 2, a k out
            of range; "knn" and a latent with more than k equal values.
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
        values = [_discrete(latents, factor, k) for factor in labels.T]
    information[:, varying] = torch.stack(values)
    return information


def _read(codes: ArrayLike, factors: ArrayLike) -> tuple[Tensor, Tensor]:
    """Codes (N, d) and factors (N, F) on one device."""
    points = read_codes("codes", codes, least=2)
    return points, read_integers("factors", factors, rows=len(points), columns=True).to(points.device)


def _binned(codes: Tensor, bins: int) -> Tensor:
    """Bin numbers (N, d); the greatest value belongs to the last bin."""
    least, greatest = codes.amin(0), codes.amax(0)
    return ((codes - least) / (greatest - least) * bins).floor().clamp(max=bins - 1).to(torch.int64)


def _information_of_counts(left: Tensor, right: Tensor) -> Tensor:
    """The mutual information of two integer variables (N,) under their empirical law."""
    _, a = torch.unique(left, return_inverse=True)
    values, b = torch.unique(right, return_inverse=True)
    pairs = torch.bincount(a * len(values) + b)
    return _entropy(torch.bincount(a)) + _entropy(torch.bincount(b)) - _entropy(pairs)


def _discrete(latents: Tensor, factor: Tensor, k: int) -> Tensor:
    information = mutual_information_discrete(latents, factor, k=k)
    assert isinstance(information, Tensor)
    return information


def _entropy(counts: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(counts.double() / counts.sum()).sum()
    return entropy


def _refuse_ties(codes: Tensor, columns: Tensor, k: int) -> None:
    """Neighbours at distance 0 would be counted as information."""
    for column in columns.nonzero().flatten().tolist():
        most = int(torch.unique(codes[:, column], return_counts=True)[1].max())
        if most > k:
            raise ValueError(
                f"codes must be continuous for estimator='knn', but column {column} has {most} equal values, more than "
                f"k={k}; for discrete codes there is estimator='bins'"
            )


# ---- The FactorVAE score ---------------------------------------------------------------------------------------------


def factor_vae_score(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    batch_size: int = 64,
    least_deviation: float = 0.05,
    generator: torch.Generator | None = None,
) -> float:
    """The FactorVAE score (Kim and Mnih 2018, section 4) of a table of codes with their factors.

    For each vote a factor is drawn, a value of it, and ``batch_size`` rows with that value. The vote goes to the latent
    whose variance over these rows, relative to its variance over all rows, is the smallest. The score is the share of
    test votes whose factor is the one that most training votes for the same latent had: 1 where each factor has a
    latent of its own, about 1/F where the codes know nothing.

    Args:
        codes: (N, d), float64 or float32, tensor or array; best, of every combination of factors.
        factors: (N, F) integers, each column with two values at least.
        train_votes, test_votes: how many votes to learn the latents' factors from, and to score.
        batch_size: rows of a vote.
        least_deviation: latents whose standard deviation over all rows is lower take no part. If that is all of them
            the score is 0.
        generator: of the draws; None for torch's own.

    Raises:
        TypeError: codes that are not float64 or float32, factors that are not integers.
        ValueError: values that are not finite, different numbers of rows, a constant factor, a number out of range.
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
        least_deviation=least_deviation,
        generator=generator,
    )


def factor_vae_score_from(
    draw: Callable[[int | None, int], Tensor],
    num_factors: int,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    batch_size: int = 64,
    least_deviation: float = 0.05,
    generator: torch.Generator | None = None,
) -> float:
    """The FactorVAE score where groups are drawn by a function, as from a simulator, and encoded on the way.

    Args:
        draw: ``draw(factor, n)`` gives the codes (n, d) of n rows that share one value, drawn at random, of a factor
            from 0 to num_factors - 1, and are random in all else; ``draw(None, n)`` those of random rows, asked for
            once with n = 10,000, or more rows if there are, for the latents' deviations.
        num_factors: F, at least 2.
        train_votes, test_votes, batch_size, least_deviation, generator: as in :func:`factor_vae_score`.

    Raises:
        ValueError: a number out of range.
    """
    _checks.whole("num_factors", num_factors, minimum=2)
    _checks.whole("train_votes", train_votes, minimum=1)
    _checks.whole("test_votes", test_votes, minimum=1)
    _checks.whole("batch_size", batch_size, minimum=2)
    if not (least_deviation >= 0 and math.isfinite(least_deviation)):
        raise ValueError(f"least_deviation must be 0 or more, got {least_deviation}")
    deviation = draw(None, 10_000).double().std(0)
    active = ((deviation >= least_deviation) & (deviation > 0)).nonzero().flatten()
    if len(active) == 0:
        return 0.0

    def votes(count: int) -> tuple[Tensor, Tensor]:
        """The factors drawn, and the latents that were voted for: (count,) each."""
        drawn = torch.randint(num_factors, (count,), generator=generator, device=_drawn_on(generator))
        latents = []
        for factor in drawn.tolist():
            group = draw(factor, batch_size)[:, active].double()
            latents.append(active[(group / deviation[active]).var(0).argmin()])
        return drawn, torch.stack(latents).cpu()

    factors, latents = votes(train_votes)
    counts = functional.one_hot(latents * num_factors + factors, len(deviation) * num_factors).sum(0)
    factor_of = counts.view(-1, num_factors).argmax(1)
    factors, latents = votes(test_votes)
    return float((factor_of[latents] == factors).double().mean())


def _index(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator, device=_drawn_on(generator)))


def _drawn_on(generator: torch.Generator | None) -> torch.device:
    """The device of a generator's draws, whatever the default device is."""
    return torch.device("cpu") if generator is None else generator.device
