"""How far an estimate of mutual information is to be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from echo_ext import _checks

from ._samples import Array, ArrayLike, Estimate, Samples, read_options, read_samples
from .ksg import mutual_information

# Numbers held for the permuted copies that are estimated together.
BLOCK = 1 << 22


class UncertainEstimate(NamedTuple):
    """An estimate and its standard error, both of shape (...)."""

    estimate: Estimate
    standard_error: Estimate


class PermutationTest(NamedTuple):
    """An estimate (...), its p-value (...) and the estimates without dependence (n, ...)."""

    estimate: Estimate
    p_value: Estimate
    null: Tensor | Array


def mutual_information_error(
    x: ArrayLike,
    y: ArrayLike,
    *,
    k: int = 3,
    method: str = "ksg1",
    unit: str = "nats",
    exclude_within: int = 0,
    parts: int = 10,
    repeats: int = 4,
    seed: int | None = None,
) -> UncertainEstimate:
    """Mutual information and its standard error, by estimates on disjoint parts of the sample.

    The variance falls as 1 / N, so that the variance between estimates on `parts` disjoint parts, divided by `parts`,
    is that of the whole (Holmes and Nemenman 2019); it is averaged over `repeats` random partitions. Drawing with
    replacement, as a bootstrap does, would repeat samples, and a repeated sample is its own nearest neighbour. With
    ``exclude_within`` the rows are a time series: the parts are consecutive, the partition is one.

    Args:
        x, y, k, method, unit, exclude_within: As in `mutual_information`, but k is a single int.
        parts: Number of parts, at least 2; each has N // parts rows, more than k.
        repeats: Number of random partitions.
        seed: Of the partitions; None draws one from torch's generator.

    Returns:
        (estimate, standard_error), each as `mutual_information` returns.

    Raises:
        TypeError, ValueError: As in `mutual_information`; too few rows in a part.
    """
    samples = read_samples(x=x, y=y)
    n = samples.count
    parts, repeats = _checks.whole("parts", parts, minimum=2), _checks.whole("repeats", repeats, minimum=1)
    size = n // parts
    k = _checks.whole("k", k, minimum=1)
    generator = _generator(seed)
    try:
        read_options(size, k=k, unit=unit, exclude_within=exclude_within)
    except ValueError as refusal:
        raise ValueError(f"parts={parts} leaves {size} samples in a part: {refusal}") from None
    left, right = _aligned(samples)

    def estimate(a: Tensor, b: Tensor) -> Tensor:
        result = mutual_information(a, b, k=k, method=method, unit=unit, exclude_within=exclude_within)
        assert isinstance(result, Tensor)
        return result

    if exclude_within:
        orders = [torch.arange(n, device="cpu")]
    else:
        orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(repeats)]
    variances = []
    for order in orders:
        rows = order[: size * parts].view(parts, size).to(left.device)
        each = estimate(left[..., rows, :].movedim(-3, 0), right[..., rows, :].movedim(-3, 0))
        variances.append(each.double().var(0) / parts)
    error = torch.stack(variances).mean(0).sqrt()
    return UncertainEstimate(samples.give_back(estimate(left, right)), samples.give_back(error))


def permutation_test(
    x: ArrayLike,
    y: ArrayLike,
    n: int = 1000,
    *,
    k: int = 3,
    method: str = "ksg1",
    unit: str = "nats",
    exclude_within: int = 0,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PermutationTest:
    """Test of independence: how often mutual information with y's rows permuted reaches the estimate.

    The p-value is (1 + the number of permutations that reach it) / (1 + n), which is exact for exchangeable rows; rows
    of time series that depend on each other are not exchangeable, whatever ``exclude_within`` says.

    Args:
        x, y, k, method, unit, exclude_within: As in `mutual_information`, but k is a single int.
        n: Number of permutations, at least 1; the smallest possible p-value is 1 / (1 + n).
        seed: Of the permutations; None draws one from torch's generator.
        progress: Called now and then with the number of permutations done.

    Returns:
        (estimate, p_value, null): null holds the n estimates with permuted rows, (n, ...).

    Raises:
        TypeError, ValueError: As in `mutual_information`; n is less than 1.
    """
    samples = read_samples(x=x, y=y)
    k = _checks.whole("k", k, minimum=1)
    read_options(samples.count, k=k, unit=unit, exclude_within=exclude_within)
    n = _checks.whole("n", n, minimum=1)
    generator = _generator(seed)
    left, right = _aligned(samples)

    def estimate(a: Tensor, b: Tensor) -> Tensor:
        result = mutual_information(a, b, k=k, method=method, unit=unit, exclude_within=exclude_within)
        assert isinstance(result, Tensor)
        return result

    rows = samples.count
    joint = rows * (left.shape[-1] + right.shape[-1]) * max(1, samples.batch.numel())
    step = max(1, BLOCK // max(joint, 1))
    null = []
    for begin in range(0, n, step):
        many = min(step, n - begin)
        orders = torch.stack([torch.randperm(rows, generator=generator, device="cpu") for _ in range(many)])
        null.append(estimate(left, right[..., orders.to(right.device), :].movedim(-3, 0)))
        if progress is not None:
            progress(begin + many)
    nulls = torch.cat(null)
    observed = estimate(left, right)
    p_value = (1 + (nulls >= observed).sum(0)).double() / (1 + n)
    values = nulls.numpy() if samples.are_arrays else nulls
    return PermutationTest(samples.give_back(observed), samples.give_back(p_value), values)


def _aligned(samples: Samples) -> list[Tensor]:
    """The variables with as many leading dimensions each, so that another may stand before them."""
    ndim = len(samples.batch) + 2
    return [v.detach().reshape((1,) * (ndim - v.ndim) + v.shape) for v in samples.variables]


def _generator(seed: int | None) -> torch.Generator:
    if seed is None:
        seed = int(torch.randint(_checks.INT64[1], (), device="cpu"))
    return torch.Generator().manual_seed(
        _checks.whole("seed", seed, minimum=_checks.INT64[0], maximum=_checks.INT64[1])
    )
