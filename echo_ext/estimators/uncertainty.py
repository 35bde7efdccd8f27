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
from echo_ext.estimators.labels import has_labels
from echo_ext.estimators.options import read_seed
from echo_ext.estimators.tables import read_groups, read_numbers
from echo_ext.estimators.transfer import transfer_entropy

__all__ = ["UncertainEstimate", "with_standard_error"]

Value = TypeVar("Value")


class UncertainEstimate(NamedTuple, Generic[Value]):
    """An estimate and its standard error.

    Attributes:
        estimate: A float or an array (...) if the samples were arrays, a tensor (...) if they were tensors.
        standard_error: Likewise.
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
        is_series = _is_series(estimator, arguments)
        if arguments.get("nan_policy") == "omit" and not is_series:
            rows = _drop_missing(rows)
        n = next(iter(rows.values())).shape[-2]
        size = n // parts
        if size == 0:
            raise ValueError(f"parts must be at most the number of samples, {n}, got {_checks.brief(parts)}")
        if is_series:
            trials = _trials(estimator, arguments, n)
            orders = [torch.arange(n, device="cpu") if trials is None else trials.argsort(stable=True)]
        else:
            orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(repeats)]
        variances = []
        for order in orders:
            partition = order[: size * parts].view(parts, size)
            try:
                of_parts = _estimate_parts(estimator, arguments, rows, partition)
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


def _drop_missing(rows: dict[str, Any]) -> dict[str, Any]:
    """Leave out the rows that every item of the batch misses."""
    missing: Any = False
    for value in rows.values():
        absent = (value != value).any(-1)
        absent = absent if isinstance(absent, Tensor) else torch.from_numpy(absent)
        missing = absent.cpu() | missing
    kept = ~missing.reshape(-1, missing.shape[-1]).all(0)
    return {
        name: value[..., kept.to(value.device) if isinstance(value, Tensor) else kept.numpy(), :]
        for name, value in rows.items()
    }


def _is_series(estimator: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    return estimator is transfer_entropy or bool(arguments.get("exclude_within", 0))


def _trials(estimator: Callable[..., Any], arguments: dict[str, Any], n: int) -> Tensor | None:
    """Return the trial of each row of a time series, int64 (N,), if there are any."""
    if not _is_series(estimator, arguments) or estimator is total_correlation:
        return None
    groups = arguments.get("groups")
    return None if groups is None else torch.from_numpy(read_groups(groups, n))


def _estimate_parts(
    estimator: Callable[..., Any], arguments: dict[str, Any], rows: dict[str, Any], partition: Tensor
) -> Tensor:
    """Return the estimates on each part of a partition, int64 (parts, size): (parts, ...)."""

    # Rows without an order have no use for trials; the groups of columns of `total_correlation` are something else.
    without_groups = {} if estimator is total_correlation or "groups" not in arguments else {"groups": None}

    def estimate(part: Tensor, **others: Any) -> Tensor:
        taken = {name: _take_parts(value, part, name in LABELS[estimator]) for name, value in rows.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)  # the whole sample has warned
            found = estimator(**{**arguments, **without_groups, **taken, **others})
        return found if isinstance(found, Tensor) else torch.from_numpy(found)

    trials = _trials(estimator, arguments, next(iter(rows.values())).shape[-2])
    if trials is None:
        return estimate(partition)
    return torch.cat([estimate(part.unsqueeze(0), groups=trials[part]) for part in partition])


def _read_rows(estimator: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that have rows as tensors or arrays (*batch, N, d), with as many dimensions each.

    Labels have one column. The estimator has checked the arguments.
    """
    rows = {}
    for name in SAMPLES[estimator]:
        given = arguments.get(name)
        if given is None:
            continue
        if not isinstance(given, Tensor):
            given = np.asarray(given) if has_labels(given) else read_numbers(name, given, masked=np.nan)
        rows[name] = given[:, None] if given.ndim == 1 else given
    n = rows[SAMPLES[estimator][0]].shape[-2]
    for name in LABELS[estimator]:
        if arguments.get(name) is not None:
            label = arguments[name]
            codes, missing = read_conditions(label, n, "omit") if name == "given" else read_classes(label, "omit")
            if missing is not None:
                codes = torch.where(missing, torch.nan, codes.double())
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


def _generator(seed: int | None) -> torch.Generator:
    return torch.Generator().manual_seed(read_seed(seed))
