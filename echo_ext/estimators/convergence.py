"""How estimates of mutual information change with the number of samples and of neighbors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import NamedTuple

from echo_ext import _checks
from echo_ext._types import Array, Discrete, Groups, Method, NanPolicy, NumNeighbors, TensorOrArray, Transform, Unit
from echo_ext.estimators.ksg import METHODS, mutual_information
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.options import Options, read_generator, read_options
from echo_ext.estimators.samples import read_samples, restore_form
from echo_ext.estimators.tables import read_groups
from echo_ext.estimators.uncertainty import estimate_parts

__all__ = ["Convergence", "mutual_information_convergence"]

Values = TypeVar("Values")


class Convergence(NamedTuple, Generic[Values]):
    """Estimates from samples of several sizes with several numbers of neighbors.

    Attributes:
        sizes: The numbers of samples, S of them.
        k: The numbers of neighbors, or fractions of the samples, K of them.
        estimates: (S, K, ...), an array if the samples were arrays, a tensor if they were tensors.
        standard_errors: Likewise.

    Example:
        >>> x, noise = np.random.default_rng(0).standard_normal((2, 1000))
        >>> found = echo_ext.mutual_information_convergence(x, x + noise, k=[3, 10], seed=0)
        >>> found.sizes, found.estimates.shape
        ((125, 250, 500, 1000), (4, 2))
    """

    sizes: tuple[int, ...]
    k: tuple[int | float, ...]
    estimates: Values
    standard_errors: Values


@overload
def mutual_information_convergence(
    x: Tensor,
    y: Tensor,
    *,
    sizes: Sequence[int] | None = None,
    k: NumNeighbors = (3, 5, 10, 20),
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    repeats: int = 4,
    seed: int | None = None,
) -> Convergence[Tensor]: ...
@overload
def mutual_information_convergence(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    sizes: Sequence[int] | None = None,
    k: NumNeighbors = (3, 5, 10, 20),
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    repeats: int = 4,
    seed: int | None = None,
) -> Convergence[Array]: ...
def mutual_information_convergence(
    x: TensorOrArray,
    y: TensorOrArray,
    *,
    sizes: Sequence[int] | None = None,
    k: NumNeighbors = (3, 5, 10, 20),
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    repeats: int = 4,
    seed: int | None = None,
) -> Convergence[Any]:
    """Estimate mutual information from parts of the sample of several sizes, to see whether it has converged.

    An estimate that is flat in the number of samples and in k, within its standard errors, has converged. One that
    still rises with the number of samples, or falls as k grows, is biased toward zero, as are all estimates from many
    columns and where the dependence is strong: the information is larger than any of them. A flat estimate is no proof:
    where a dependence is finer than the distances between neighbors at every size, all sizes miss it.

    The estimate of a size is the mean of the estimates on disjoint random parts of that many rows; with a Theiler
    window (``exclude_within``) the rows are a time series, and the parts are consecutive. The variance of an estimate
    falls as 1 / N, so the standard errors come from the variance between the parts of a size, times the size, pooled
    over all sizes with at least two parts.

    Args:
        x, y, method, discrete_x, discrete_y, unit, exclude_within, groups, nan_policy: As in
            :func:`mutual_information`. Rows with missing values do not count in the sizes, except in time series.
        transform: As in :func:`mutual_information`, over the rows of each part.
        sizes: The numbers of rows of a part, each at most N and more than k. None takes N/8, N/4, N/2 and N, or those
            of them that are large enough.
        k: The number of neighbors, or several; a fraction is one of the rows of a part.
        repeats: The number of random partitions, over which the estimates and the variances are averaged. More take
            more time and depend less on the random partitions; the standard errors remain those of one partition.
        seed: The seed of the partitions. None draws one from PyTorch's generator.

    Returns:
        :class:`~echo_ext.estimators.Convergence`, the named tuple ``(sizes, k, estimates, standard_errors)``.
        ``estimates[i, j]`` is the estimate from parts of ``sizes[i]`` rows with ``k[j]`` neighbors: (S, K, ...), where
        ... is the batch. Arrays for arrays, tensors for tensors, without gradients. The standard errors are NaN if no
        size has two parts. :func:`echo_ext.plots.convergence` plots it.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also sizes above N, or too small for k.

    Warns:
        DegenerateDataWarning, UserWarning: As in :func:`mutual_information`, for the largest size.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information_convergence
        >>> x, noise = np.random.default_rng(0).standard_normal((2, 2000, 10))
        >>> found = mutual_information_convergence(x, x + noise, k=[3, 10], seed=0)  # the information is 3.47 nats
        >>> found.sizes
        (250, 500, 1000, 2000)
        >>> found.estimates.round(2)  # rises with the size and falls with k: biased toward zero
        array([[0.8 , 0.49],
               [0.94, 0.65],
               [1.13, 0.81],
               [1.3 , 0.97]])
    """
    _checks.choice("method", method, METHODS)
    discrete = {"x": discrete_x, "y": discrete_y}
    given = read_categories(method, {"x": x, "y": y}, discrete, nan_policy)
    samples = read_samples(nan_policy=nan_policy, warn_if_wide=True, **given)
    n = samples.count
    options = read_options(
        n, k=k, unit=unit, exclude_within=exclude_within, groups=groups, transform=transform, method=method
    )
    repeats = _checks.whole("repeats", repeats, minimum=1)
    generator = read_generator(seed)
    is_series = options.exclude_within > 0
    trials = torch.from_numpy(read_groups(groups, n)) if is_series and groups is not None else None
    rows = torch.arange(n, device="cpu") if trials is None else trials.argsort(stable=True)
    if samples.missing is not None and not is_series:  # those of a series keep their times
        rows = (~samples.missing.reshape(-1, n).all(0)).nonzero()[:, 0].cpu()
        options = options.resize(len(rows), reason=f" ({n - len(rows)} of {n} rows were left out)")
        n = len(rows)
    ndim = len(samples.batch) + 2
    variables = [v.detach().reshape((1,) * (ndim - v.ndim) + v.shape) for v in samples.variables]

    def estimate(part: Tensor, groups: Tensor | None) -> Tensor:
        """Return the estimates (parts, K, *batch) from rows (parts, size)."""
        part = part.to(variables[0].device)
        found = mutual_information(
            *(variable[..., part, :].movedim(-3, 0) for variable in variables),
            k=options.given_k,
            method=method,
            discrete_x=discrete_x,
            discrete_y=discrete_y,
            unit=unit,
            exclude_within=exclude_within,
            groups=groups,
            nan_policy=nan_policy,
            transform=transform,
        )
        return found.double().movedim(1, 0)

    read_sizes = _default_sizes(n, options) if sizes is None else _read_sizes(sizes, n)
    estimates, squares, freedom = [], [], 0
    for size in read_sizes:
        parts = n // size
        of_orders = []
        for _ in range(1 if is_series or size == n else repeats):
            order = rows if is_series or size == n else rows[torch.randperm(n, generator=generator, device="cpu")]
            partition = order[: parts * size].view(parts, size)
            with warnings.catch_warnings():
                if size < max(read_sizes):
                    warnings.simplefilter("ignore", UserWarning)  # the largest size warns
                try:
                    of_orders.append(estimate_parts(estimate, partition, trials))
                except ValueError as refusal:
                    raise ValueError(f"sizes must be large enough for k, got {size}: {refusal}") from None
        found = torch.stack(of_orders)  # (orders, parts, K, *batch)
        estimates.append(found.mean((0, 1)))
        if parts > 1:
            squares.append((found - found.mean(1, keepdim=True)).square().sum(1).mean(0) * size)
            freedom += parts - 1
    means = torch.stack(estimates)
    variance = torch.stack(squares).sum(0) / freedom if squares else torch.full_like(means[0], torch.nan)
    errors = torch.stack([(variance / (n // size * size)).sqrt() for size in read_sizes])
    in_form = (restore_form(values, samples) for values in (means, errors))
    return Convergence(read_sizes, options.given_k, *in_form)


def _default_sizes(n: int, options: Options) -> tuple[int, ...]:
    """Return N/8, N/4, N/2 and N, or those that leave enough neighbors for k."""

    def is_enough(size: int) -> bool:
        try:
            options.resize(size)
        except ValueError:
            return False
        return True

    return *filter(is_enough, (n // 8, n // 4, n // 2)), n


def _read_sizes(sizes: Sequence[int], n: int) -> tuple[int, ...]:
    if not isinstance(sizes, (Sequence, np.ndarray)) or len(sizes) == 0:
        raise TypeError(f"sizes must be a sequence of ints, got {_checks.brief(sizes)}")
    return tuple(_checks.whole("sizes", size, minimum=1, maximum=n, what="a sequence of ints") for size in sizes)
