"""Disentanglement: how well single latents represent single factors of variation."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from echo_ext import _checks
from echo_ext._types import TensorOrArray
from echo_ext.estimators import mutual_information_discrete
from echo_ext.metrics._inputs import constant_columns, read_codes, read_integers, refuse_constant_columns

__all__ = ["factor_information", "factor_vae_score", "mig"]

FactorMethod: TypeAlias = Literal["bins", "knn"]


def mig(
    codes: TensorOrArray, factors: TensorOrArray, *, method: FactorMethod = "bins", bins: int = 20, k: int = 3
) -> float:
    """Compute the mutual information gap (Chen et al. 2018, section 4.1).

    The gap of a factor is the difference between its largest and its second largest information with a latent, as a
    share of the factor's entropy. The result is the mean over the factors: 1 if each factor is determined by a latent
    of its own, 0 if two latents always have the same information. The papers use 10,000 codes, and on dSprites the five
    factors other than color.

    Args:
        codes: (N, d) with d at least 2; float64 or float32, tensor or array.
        factors: Integers (N, F), each column with at least two values.
        method, bins, k: As in :func:`factor_information`.

    Raises:
        TypeError, ValueError: As in :func:`factor_information`. Also a single latent, or a constant factor.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(2), torch.arange(4)).repeat(100, 1)
        >>> codes = factors + 0.01 * torch.randn(800, 2)  # a latent for each factor
        >>> rotated = codes @ torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> round(echo_ext.metrics.mig(codes, factors), 1), round(echo_ext.metrics.mig(rotated, factors), 1)
        (1.0, 0.0)
    """
    points, labels = _read(codes, factors)
    if points.shape[1] < 2:
        raise ValueError("codes must have at least 2 columns, since the gap is between two latents, got 1")
    refuse_constant_columns("factors", labels)
    information = factor_information(points, labels, method=method, bins=bins, k=k)
    entropies = torch.stack([_entropy(torch.unique(factor, return_counts=True)[1]) for factor in labels.T])
    best, second = information.topk(2, dim=1).values.T
    return float(((best - second) / entropies).mean())


def factor_information(
    codes: TensorOrArray, factors: TensorOrArray, *, method: FactorMethod = "bins", bins: int = 20, k: int = 3
) -> Tensor:
    """Compute the information ``I(z_j; factor)`` of every factor and latent, in nats: (F, d), float64.

    The information of a constant latent is 0.

    Args:
        codes: (N, d), float64 or float32, tensor or array.
        factors: Integers (N, F).
        method: "bins" computes the information from counts, with each latent cut into bins of equal width between
            its minimum and its maximum. "knn" is :func:`echo_ext.mutual_information_discrete`, for continuous codes;
            near 0 it may be negative.
        bins: The number of bins for "bins". More bins resolve more, and add more bias.
        k: The number of neighbors for "knn". A larger k reduces the variance of the estimates and increases their bias.

    Raises:
        TypeError: Codes are not float64 or float32, or factors are not integers.
        ValueError: Values are not finite; the numbers of rows differ; the method is unknown; bins is below 2; k is out
            of range; a latent has more than k equal values and the method is "knn".

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(2), torch.arange(4)).repeat(100, 1)
        >>> codes = factors + 0.01 * torch.randn(800, 2)  # a latent for each factor
        >>> echo_ext.metrics.factor_information(codes, factors).abs().round(decimals=1)  # ln(2) = 0.69, ln(4) = 1.39
        tensor([[0.7000, 0.0000],
                [0.0000, 1.4000]], dtype=torch.float64)
    """
    _checks.choice("method", method, get_args(FactorMethod))
    points, labels = _read(codes, factors)
    varying = ~constant_columns(points)
    information = torch.zeros(labels.shape[1], points.shape[1], dtype=torch.float64, device=points.device)
    _checks.whole("bins", bins, minimum=2)
    latents = points[:, varying].double().T
    if len(latents) == 0:
        return information
    if method == "bins":
        low, high = latents.aminmax(dim=1, keepdim=True)
        # The maximum belongs to the last bin.
        binned = ((latents - low) / (high - low) * bins).floor().clamp(max=bins - 1).to(torch.int64)
        values = [torch.stack([_information_of_counts(bin_, factor) for bin_ in binned]) for factor in labels.T]
    else:
        # Neighbors at distance 0 would be counted as information.
        ties = (points == points.mode(0).values).sum(0) * varying
        if int(ties.max()) > _checks.whole("k", k, minimum=1):
            raise ValueError(
                f"codes must be continuous for method='knn', but column {int(ties.argmax())} has {int(ties.max())} "
                f"equal values, more than k={k}; for discrete codes there is method='bins'"
            )
        values = [mutual_information_discrete(latents.unsqueeze(-1), factor, k=k) for factor in labels.T]
    information[:, varying] = torch.stack(values)
    return information


def _read(codes: TensorOrArray, factors: TensorOrArray) -> tuple[Tensor, Tensor]:
    """Return codes (N, d) and factors (N, F) on one device."""
    points = read_codes("codes", codes, minimum=2)
    return points, read_integers("factors", factors, rows=len(points), columns=True).to(points.device)


def _information_of_counts(left: Tensor, right: Tensor) -> Tensor:
    """Return the mutual information of two integer variables (N,) under their empirical distribution."""
    _, a = torch.unique(left, return_inverse=True)
    values, b = torch.unique(right, return_inverse=True)
    pairs = torch.bincount(a * len(values) + b)
    return _entropy(torch.bincount(a)) + _entropy(torch.bincount(b)) - _entropy(pairs)


def _entropy(counts: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(counts.double() / counts.sum()).sum()
    return entropy


# ---- The FactorVAE score ---------------------------------------------------------------------------------------------


def factor_vae_score(
    codes: TensorOrArray,
    factors: TensorOrArray,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    rows_per_vote: int = 64,
    noisy_codes: TensorOrArray | None = None,
    min_ratio: float = 0.05,
    seed: int | None = None,
) -> float:
    """Compute the FactorVAE score (Kim and Mnih 2018, section 4) of codes with known factors.

    For each vote, a factor, a value of it, and ``rows_per_vote`` rows with that value are drawn. The vote goes to the
    latent with the smallest variance over these rows, relative to its variance over all rows. The score is the share of
    test votes whose factor is the most frequent factor among the training votes for the same latent: 1 if each factor
    has a latent of its own, about 1/F if the codes carry no information.

    The score does not change if codes are multiplied by positive numbers, one for each latent.

    Args:
        codes: (N, d), float64 or float32, tensor or array, preferably of every combination of factors. The paper uses
            means, as of ``Model.encode_mean``.
        factors: Integers (N, F) with F at least 2, each column with at least two values.
        train_votes, test_votes: The numbers of votes that decide which factor each latent represents, and that are
            scored. More votes make the score more precise.
        rows_per_vote: The number of rows of a vote. More rows make the votes more certain.
        noisy_codes: Samples of z in the units of the codes, (M, d), by which inactive latents are recognized: those
            whose noise hides the code. For the z of a VAE, whose standard deviation is 1, the minimum ratio is the
            published minimum of the standard deviation. None ignores no latents but those that are constant up to
            rounding.
        min_ratio: Latents are ignored if the standard deviation of their codes over all rows is a smaller share of that
            of the noisy codes. If all of them are, the score is 0.
        seed: The seed of the draws. None draws from PyTorch's own generator.

    Raises:
        TypeError: Codes are not float64 or float32, or factors are not integers.
        ValueError: Values are not finite; the numbers of rows differ; a factor is constant; a number is out of range.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(2), torch.arange(4)).repeat(100, 1)
        >>> codes = factors + 0.01 * torch.randn(800, 2)  # a latent for each factor
        >>> echo_ext.metrics.factor_vae_score(codes, factors, train_votes=200, test_votes=100, seed=0)
        1.0
    """
    points, labels = _read(codes, factors)
    num_factors = labels.shape[1]
    if num_factors < 2:
        raise ValueError(f"factors must have at least 2 columns, got {num_factors}")
    refuse_constant_columns("factors", labels)
    _checks.whole("train_votes", train_votes, minimum=1)
    _checks.whole("test_votes", test_votes, minimum=1)
    _checks.whole("rows_per_vote", rows_per_vote, minimum=2)
    min_ratio = _checks.number("min_ratio", min_ratio, minimum=0)
    generator = None
    if seed is not None:
        low, high = _checks.INT64
        generator = torch.Generator().manual_seed(_checks.whole("seed", seed, minimum=low, maximum=high))
    # For each factor, the rows that share a value.
    groups = [each.argsort(stable=True).split(each.unique(return_counts=True)[1].tolist()) for each in labels.T]
    std = points.double().std(0)
    is_active = std > 4 * torch.finfo(points.dtype).eps * points.abs().amax(0)
    if noisy_codes is not None:
        noisy = read_codes("noisy_codes", noisy_codes, minimum=2).to(points.device)
        if noisy.shape[1] != points.shape[1]:
            raise ValueError(f"noisy_codes must have the {points.shape[1]} columns of codes, got {noisy.shape[1]}")
        is_active &= std >= min_ratio * noisy.double().std(0)
    active = is_active.nonzero().flatten()
    if len(active) == 0:
        return 0.0

    def draw(count: int, *shape: int) -> Tensor:
        return torch.randint(count, shape, generator=generator, device="cpu")  # whatever the default device is

    def votes(count: int) -> tuple[Tensor, Tensor]:
        """Return the factors drawn and the latents voted for, (count,) each."""
        drawn = draw(num_factors, count)
        latents = []
        for factor in drawn.tolist():
            rows = groups[factor][int(draw(len(groups[factor])))]
            group = points[rows[draw(len(rows), rows_per_vote)]][:, active].double()
            latents.append(active[(group / std[active]).var(0).argmin()])
        return drawn, torch.stack(latents).cpu()

    drawn, latents = votes(train_votes)
    counts = functional.one_hot(latents * num_factors + drawn, len(std) * num_factors).sum(0)
    factor_of = counts.view(-1, num_factors).argmax(1)
    drawn, latents = votes(test_votes)
    return float((factor_of[latents] == drawn).double().mean())
