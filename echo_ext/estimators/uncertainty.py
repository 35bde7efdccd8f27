"""How far to trust an estimate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import NamedTuple

from echo_ext import _checks
from echo_ext._types import Array, Labels, Method, TensorOrArray, Unit
from echo_ext.estimators.discrete import mutual_information_discrete, read_classes, read_conditions
from echo_ext.estimators.entropy import entropy
from echo_ext.estimators.ksg import conditional_mutual_information, mutual_information, total_correlation
from echo_ext.estimators.samples import Samples, read_options, read_samples, restore_form
from echo_ext.estimators.transfer import transfer_entropy

__all__ = ["PermutationTest", "UncertainEstimate", "permutation_test", "with_standard_error"]

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
def with_standard_error(
    estimator: Callable[..., Any],
    variable: Tensor,
    /,
    *others: Labels | None,
    parts: int = 10,
    repeats: int = 4,
    seed: int | None = None,
    **options: Any,
) -> UncertainEstimate[Tensor]: ...
@overload
def with_standard_error(
    estimator: Callable[..., Any],
    variable: npt.ArrayLike,
    /,
    *others: Labels | None,
    parts: int = 10,
    repeats: int = 4,
    seed: int | None = None,
    **options: Any,
) -> UncertainEstimate[Array | float]: ...
def with_standard_error(
    estimator: Callable[..., Any],
    /,
    *variables: Any,
    parts: int = 10,
    repeats: int = 4,
    seed: int | None = None,
    **options: Any,
) -> UncertainEstimate[Any]:
    """Estimate information and the standard error of the estimate, from estimates on disjoint parts of the sample.

    The variance of an estimate falls as 1 / N. The variance between the estimates on ``parts`` disjoint parts, divided
    by ``parts``, is therefore that of the whole (Holmes and Nemenman 2019); it is averaged over ``repeats`` random
    partitions. A bootstrap is not valid here, because it repeats samples, and a repeated sample is its own nearest
    neighbor. Time series are cut into consecutive parts, in one partition: those of :func:`transfer_entropy`, and rows
    with a Theiler window (``exclude_within``). The standard error does not include the bias of the estimate.

    Args:
        estimator: :func:`mutual_information`, :func:`conditional_mutual_information`, :func:`total_correlation`,
            :func:`transfer_entropy`, :func:`entropy` or :func:`mutual_information_discrete`.
        variables: Its variables, in its order.
        parts: The number of parts, at least 2, each of N // parts rows, more than k. More parts measure the variance
            more precisely; smaller parts are less like the whole sample.
        repeats: The number of random partitions. More make the standard error more precise and take more time.
        seed: The seed of the partitions. None draws one from PyTorch's generator.
        options: The estimator's keywords, but for ``local``; ``k`` is a single number.

    Returns:
        The named tuple ``(estimate, standard_error)``, each in the form of the estimator's result, without gradients.

    Raises:
        TypeError, ValueError: As the estimator does. Also another estimator, too few rows in a part, several k, or
            local values.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information, with_standard_error
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal(1000)
        >>> y = 0.6 * x + 0.8 * rng.standard_normal(1000)
        >>> estimate, standard_error = with_standard_error(mutual_information, x, y, seed=0)
        >>> round(estimate, 2), round(standard_error, 2)
        (0.22, 0.03)
    """
    if not isinstance(estimator, Hashable) or estimator not in SAMPLES:
        known = ", ".join(each.__name__ for each in SAMPLES)
        raise ValueError(f"estimator must be one of {known}, got {_checks.brief(estimator)}")
    parts, repeats = _checks.whole("parts", parts, minimum=2), _checks.whole("repeats", repeats, minimum=1)
    generator = _generator(seed)
    if np.ndim(options.get("k", 1)) > 0:
        raise TypeError(f"k must be a single number, got {_checks.brief(options['k'])}")
    if options.get("local"):
        raise ValueError(f"local must be False for a standard error, got {_checks.brief(options['local'])}")
    arguments = inspect.signature(estimator).bind(*variables, **options).arguments
    with torch.no_grad():
        estimate = estimator(**arguments)
        rows = _read_rows(estimator, arguments)
        n = next(iter(rows.values())).shape[-2]
        size = n // parts
        if estimator is transfer_entropy or arguments.get("exclude_within", 0) > 0:
            orders = [torch.arange(n, device="cpu")]
        else:
            orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(repeats)]
        variances = []
        for order in orders:
            partition = order[: size * parts].view(parts, size)
            taken = {name: _take_parts(value, partition, name in LABELS[estimator]) for name, value in rows.items()}
            try:
                of_parts = estimator(**{**arguments, **taken})
            except ValueError as refusal:
                raise ValueError(f"parts={parts} leaves {size} samples in a part: {refusal}") from None
            of_parts = of_parts if isinstance(of_parts, Tensor) else torch.from_numpy(of_parts)
            variances.append(of_parts.double().var(0) / parts)
    error = torch.stack(variances).mean(0).sqrt()
    if isinstance(estimate, Tensor):
        return UncertainEstimate(estimate, error.to(estimate))
    return UncertainEstimate(estimate, error.item() if error.ndim == 0 else error.numpy().astype(estimate.dtype))


# The arguments of each estimator that have a row for each sample: (..., N, d), and labels (..., N).
SAMPLES: dict[Callable[..., Any], tuple[str, ...]] = {
    mutual_information: ("x", "y"),
    conditional_mutual_information: ("x", "y", "z"),
    total_correlation: ("x",),
    transfer_entropy: ("source", "target"),
    entropy: ("x",),
    mutual_information_discrete: ("x",),
}
LABELS: dict[Callable[..., Any], tuple[str, ...]] = {
    **dict.fromkeys(SAMPLES, ()),
    mutual_information_discrete: ("labels", "given"),
}


def _read_rows(estimator: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that have rows as tensors or arrays (*batch, N, d), with as many dimensions each.

    Labels have one column. The estimator has checked the arguments.
    """
    rows = {}
    for name in SAMPLES[estimator]:
        value = arguments[name] if isinstance(arguments[name], Tensor) else np.asarray(arguments[name])
        rows[name] = value[:, None] if value.ndim == 1 else value
    n = rows[SAMPLES[estimator][0]].shape[-2]
    for name in LABELS[estimator]:
        if arguments.get(name) is not None:
            label = arguments[name]
            codes = read_conditions(label, n) if name == "given" else read_classes(label)
            rows[name] = codes.unsqueeze(-1)
    ndim = max(value.ndim for value in rows.values())
    return {name: value.reshape((1,) * (ndim - value.ndim) + tuple(value.shape)) for name, value in rows.items()}


def _take_parts(rows: Any, partition: Tensor, are_labels: bool) -> Any:
    """Return rows (*batch, N, d) of each part, (parts, *batch, size, d); of labels, without the last dimension."""
    if isinstance(rows, Tensor):
        taken = rows[..., partition.to(rows.device), :].movedim(-3, 0)
    else:
        taken = np.moveaxis(rows[..., partition.numpy(), :], -3, 0)
    return taken[..., 0] if are_labels else taken


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
