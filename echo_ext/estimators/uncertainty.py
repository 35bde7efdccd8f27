"""How far to trust an estimate of mutual information."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import NamedTuple

from echo_ext import _checks
from echo_ext._types import Array, Method, TensorOrArray, Unit
from echo_ext.estimators.ksg import mutual_information
from echo_ext.estimators.samples import Samples, read_options, read_samples, restore_form

__all__ = ["PermutationTest", "UncertainEstimate", "mutual_information_error", "permutation_test"]

# Numbers held for the permuted copies that are estimated together.
BLOCK = 1 << 22

Value = TypeVar("Value")
Values = TypeVar("Values")


class UncertainEstimate(NamedTuple, Generic[Value]):
    """An estimate and its standard error.

    Attributes:
        estimate: A float or an array (...) if the samples were arrays, a tensor (...) if they were tensors.
        standard_error: Likewise.
    """

    estimate: Value
    standard_error: Value


class PermutationTest(NamedTuple, Generic[Value, Values]):
    """The result of a permutation test of independence.

    Attributes:
        estimate: The estimate: a float or an array (...) if the samples were arrays, a tensor (...) if they were
            tensors.
        p_value: Its p-value, likewise.
        null: The estimates with permuted rows, an array or a tensor (n, ...).
    """

    estimate: Value
    p_value: Value
    null: Values


@overload
def mutual_information_error(
    x: Tensor,
    y: Tensor,
    *,
    k: int = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    parts: int = 10,
    repeats: int = 4,
    seed: int | None = None,
) -> UncertainEstimate[Tensor]: ...
@overload
def mutual_information_error(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    k: int = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    parts: int = 10,
    repeats: int = 4,
    seed: int | None = None,
) -> UncertainEstimate[Array | float]: ...
def mutual_information_error(
    x: TensorOrArray,
    y: TensorOrArray,
    *,
    k: int = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    parts: int = 10,
    repeats: int = 4,
    seed: int | None = None,
) -> UncertainEstimate[Any]:
    """Estimate mutual information and its standard error, from estimates on disjoint parts of the sample.

    The variance of the estimate falls as 1 / N. The variance between the estimates on ``parts`` disjoint parts, divided
    by ``parts``, is therefore that of the whole (Holmes and Nemenman 2019); it is averaged over ``repeats`` random
    partitions. A bootstrap is not valid here, because it repeats samples, and a repeated sample is its own nearest
    neighbor. With ``exclude_within`` the rows are a time series: there is one partition, into consecutive parts.

    Args:
        x, y, method, unit, exclude_within: As in :func:`mutual_information`.
        k: The number of neighbors, a single int. A larger k reduces the variance of the estimate and increases its
            bias.
        parts: The number of parts, at least 2, each of N // parts rows, more than k. More parts measure the variance
            more precisely; smaller parts are less like the whole sample.
        repeats: The number of random partitions. More make the standard error more precise and take more time.
        seed: The seed of the partitions. None draws one from PyTorch's generator.

    Returns:
        The named tuple ``(estimate, standard_error)``, each as :func:`mutual_information` returns it.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also too few rows in a part.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information_error
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal(1000)
        >>> y = 0.6 * x + 0.8 * rng.standard_normal(1000)
        >>> estimate, standard_error = mutual_information_error(x, y, seed=0)
        >>> round(estimate, 2), round(standard_error, 2)
        (0.22, 0.03)
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
        return mutual_information(a, b, k=k, method=method, unit=unit, exclude_within=exclude_within)

    if exclude_within:
        orders = [torch.arange(n, device="cpu")]
    else:
        orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(repeats)]
    variances = []
    for order in orders:
        rows = order[: size * parts].view(parts, size).to(left.device)
        of_parts = estimate(left[..., rows, :].movedim(-3, 0), right[..., rows, :].movedim(-3, 0))
        variances.append(of_parts.double().var(0) / parts)
    error = torch.stack(variances).mean(0).sqrt()
    return UncertainEstimate(restore_form(estimate(left, right), samples), restore_form(error, samples))


@overload
def permutation_test(
    x: Tensor,
    y: Tensor,
    n: int = 1000,
    *,
    k: int = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> PermutationTest[Tensor, Tensor]: ...
@overload
def permutation_test(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    n: int = 1000,
    *,
    k: int = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> PermutationTest[Array | float, Array]: ...
def permutation_test(
    x: TensorOrArray,
    y: TensorOrArray,
    n: int = 1000,
    *,
    k: int = 3,
    method: Method = "ksg1",
    unit: Unit = "nats",
    exclude_within: int = 0,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> PermutationTest[Any, Any]:
    """Test independence: how often mutual information with the rows of y permuted reaches the estimate.

    The p-value is (1 + the number of permutations that reach the estimate) / (1 + n). It is exact for exchangeable
    rows. The rows of a time series depend on each other and are not exchangeable, whatever ``exclude_within`` is.

    Args:
        x, y, method, unit, exclude_within: As in :func:`mutual_information`.
        k: The number of neighbors, a single int. A larger k detects weak, smooth dependence better; a smaller k
            detects fine structure.
        n: The number of permutations, at least 1. The smallest possible p-value is 1 / (1 + n); more permutations make
            the p-value more precise and take more time.
        seed: The seed of the permutations. None draws one from PyTorch's generator.
        progress: A function that is called from time to time with the number of permutations done.

    Returns:
        The named tuple ``(estimate, p_value, null)``. The estimate and the p-value are as :func:`mutual_information`
        returns them; null holds the n estimates with permuted rows, (n, ...).

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also n below 1.

    Example:
        >>> import numpy as np
        >>> from echo_ext import permutation_test
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal(200)
        >>> y = x**2 + rng.standard_normal(200)  # uncorrelated with x, but not independent
        >>> permutation_test(x, y, 99, seed=0).p_value
        0.01
    """
    samples = read_samples(x=x, y=y)
    k = _checks.whole("k", k, minimum=1)
    read_options(samples.count, k=k, unit=unit, exclude_within=exclude_within)
    n = _checks.whole("n", n, minimum=1)
    generator = _generator(seed)
    left, right = _aligned(samples)

    def estimate(a: Tensor, b: Tensor) -> Tensor:
        return mutual_information(a, b, k=k, method=method, unit=unit, exclude_within=exclude_within)

    rows = samples.count
    joint = rows * (left.shape[-1] + right.shape[-1]) * max(1, samples.batch.numel())
    step = max(1, BLOCK // max(joint, 1))
    blocks = []
    for begin in range(0, n, step):
        many = min(step, n - begin)
        orders = torch.stack([torch.randperm(rows, generator=generator, device="cpu") for _ in range(many)])
        blocks.append(estimate(left, right[..., orders.to(right.device), :].movedim(-3, 0)))
        if progress is not None:
            progress(begin + many)
    null = torch.cat(blocks)
    observed = estimate(left, right)
    p_value = (1 + (null >= observed).sum(0)).double() / (1 + n)
    values = null.numpy() if samples.are_arrays else null
    return PermutationTest(restore_form(observed, samples), restore_form(p_value, samples), values)


def _aligned(samples: Samples) -> list[Tensor]:
    """Return the variables with the same number of leading dimensions, so that another one may precede them."""
    ndim = len(samples.batch) + 2
    return [v.detach().reshape((1,) * (ndim - v.ndim) + v.shape) for v in samples.variables]


def _generator(seed: int | None) -> torch.Generator:
    if seed is None:
        seed = int(torch.randint(_checks.INT64[1], (), device="cpu"))
    return torch.Generator().manual_seed(
        _checks.whole("seed", seed, minimum=_checks.INT64[0], maximum=_checks.INT64[1])
    )
