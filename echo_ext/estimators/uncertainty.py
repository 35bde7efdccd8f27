"""How far to trust an estimate."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import NamedTuple

from echo_ext import _checks
from echo_ext._types import Array, Labels
from echo_ext.estimators.discrete import mutual_information_discrete, read_classes, read_conditions
from echo_ext.estimators.entropy import entropy
from echo_ext.estimators.evaluation import DegenerateDataWarning
from echo_ext.estimators.ksg import conditional_mutual_information, mutual_information, total_correlation
from echo_ext.estimators.labels import has_labels, read_labels
from echo_ext.estimators.options import read_generator
from echo_ext.estimators.samples import merge_missing
from echo_ext.estimators.tables import read_groups, read_numbers, tensor_of
from echo_ext.estimators.transfer import transfer_entropy

__all__ = ["UncertainEstimate", "estimate_parts", "with_standard_error"]

Value = TypeVar("Value")


class UncertainEstimate(NamedTuple, Generic[Value]):
    """An estimate and its standard error.

    Attributes:
        estimate: A float or an array (...) if the samples were arrays, a tensor (...) if they were tensors.
        standard_error: Likewise.

    Example:
        >>> x, noise = np.random.default_rng(0).standard_normal((2, 1000))
        >>> found = echo_ext.with_standard_error(echo_ext.mutual_information, x, x + noise, seed=0)
        >>> f"{found.estimate:.2f} +- {found.standard_error:.2f}"
        '0.37 +- 0.03'
    """

    estimate: Value
    standard_error: Value


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
        options: The estimator's keywords, except ``local``; ``k`` is a single number.

    Returns:
        :class:`~echo_ext.estimators.UncertainEstimate`, the named tuple ``(estimate, standard_error)``, each in the
        form of the estimator's result, without gradients.

    Raises:
        TypeError, ValueError: As the estimator does. Also another estimator, too few rows in a part, several k, or
            local values.

    Warns:
        DegenerateDataWarning, UserWarning: As the estimator does for the whole sample.

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
    generator = read_generator(seed)
    if np.ndim(options.get("k", 1)) > 0:
        raise TypeError(f"k must be a single number, got {_checks.brief(options['k'])}")
    if options.get("local"):
        raise ValueError(f"local must be False for a standard error, got {_checks.brief(options['local'])}")
    arguments = inspect.signature(estimator).bind(*variables, **options).arguments
    is_series = estimator is transfer_entropy or bool(arguments.get("exclude_within", 0))
    with torch.no_grad():
        estimate = estimator(**arguments)
        rows = _read_rows(estimator, arguments)
        if arguments.get("nan_policy") == "omit" and not is_series:
            rows = _drop_missing(rows)
        n = next(iter(rows.values())).shape[-2]
        size = n // parts
        if size == 0:
            raise ValueError(f"parts must be at most the number of samples, {n}, got {_checks.brief(parts)}")
        # The groups of columns of `total_correlation` are something else.
        groups = None if estimator is total_correlation else arguments.pop("groups", None)
        # Rows without an order in time have no use for trials.
        trials = None if groups is None or not is_series else torch.from_numpy(read_groups(groups, n))
        if is_series:
            orders = [torch.arange(n, device="cpu") if trials is None else trials.argsort(stable=True)]
        else:
            orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(repeats)]

        def estimate_rows(part: Tensor, groups: Tensor | None) -> Tensor:
            taken = {name: _take_parts(value, part, name in LABELS[estimator]) for name, value in rows.items()}
            trial = {} if groups is None else {"groups": groups}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DegenerateDataWarning)  # the whole sample has warned
                found: Tensor = estimator(**{**arguments, **taken, **trial})
            return found

        variances = []
        for order in orders:
            partition = order[: size * parts].view(parts, size)
            try:
                of_parts = estimate_parts(estimate_rows, partition, trials)
            except ValueError as refusal:
                raise ValueError(f"parts={parts} leaves {size} samples in a part: {refusal}") from None
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
    transfer_entropy: ("source", "target", "given"),
    entropy: ("x",),
    mutual_information_discrete: ("x",),
}
LABELS: dict[Callable[..., Any], tuple[str, ...]] = {
    **dict.fromkeys(SAMPLES, ()),
    mutual_information_discrete: ("labels", "given"),
}


def estimate_parts(
    estimate: Callable[[Tensor, Tensor | None], Tensor], partition: Tensor, trials: Tensor | None
) -> Tensor:
    """Return the estimates on each part of a partition, int64 (parts, size): (parts, ...).

    Args:
        estimate: From rows (parts, size) and their trials, which all of these parts share, to estimates (parts, ...).
        partition: The rows of each part.
        trials: The trial of each of all rows, int64 (N,), or None. Parts differ in their trials, and are then estimated
            one after another.
    """
    if trials is None:
        return estimate(partition, None)
    return torch.cat([estimate(part.unsqueeze(0), trials[part]) for part in partition])


def _drop_missing(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the rows that every item of the batch misses."""
    missing = merge_missing(*(value.isnan().any(-1) for value in rows.values()))
    if missing is None:
        return rows
    kept = (~missing.reshape(-1, missing.shape[-1]).all(0)).nonzero()[:, 0]
    return {name: value.index_select(-2, kept) for name, value in rows.items()}


def _read_rows(estimator: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Return the arguments that have rows as tensors (*batch, N, d), with as many dimensions each.

    Labels have one column, and are NaN where they are missing. The estimator has checked the arguments.
    """
    rows: dict[str, Tensor] = {}
    for name in SAMPLES[estimator]:
        given = arguments.get(name)
        if given is None:
            continue
        if has_labels(given):
            given = _with_nan(*read_labels(name, given, "", "omit"))
        elif not isinstance(given, Tensor):
            given = tensor_of(read_numbers(name, given, masked=np.nan))
        rows[name] = given.unsqueeze(-1) if given.ndim == 1 else given
    first = rows[SAMPLES[estimator][0]]
    for name in LABELS[estimator]:
        label = arguments.get(name)
        if label is not None:
            is_given = name == "given"
            codes = read_conditions(label, first.shape[-2], "omit") if is_given else read_classes(label, "omit")
            rows[name] = _with_nan(*codes).to(first.device).unsqueeze(-1)
    ndim = max(value.ndim for value in rows.values())
    return {name: value.reshape((1,) * (ndim - value.ndim) + tuple(value.shape)) for name, value in rows.items()}


def _with_nan(codes: Tensor, missing: Tensor | None) -> Tensor:
    return codes if missing is None else torch.where(missing, torch.nan, codes.double())


def _take_parts(rows: Tensor, partition: Tensor, are_labels: bool) -> Tensor:
    """Return rows (*batch, N, d) of each part, (parts, *batch, size, d); of labels, without the last dimension."""
    taken = rows[..., partition.to(rows.device), :].movedim(-3, 0)
    return taken[..., 0] if are_labels else taken
