"""Differential entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args, overload

import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import (
    Array,
    EntropyMethod,
    Estimate,
    Groups,
    Metric,
    NanPolicy,
    NumNeighbors,
    TensorOrArray,
    Transform,
    Unit,
)
from echo_ext.estimators import cells, gradients, local_values
from echo_ext.estimators._metric import CHEBYSHEV, Rules, rules_of
from echo_ext.estimators.evaluation import evaluate, note_tied, reduce_local_values
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options, read_options
from echo_ext.estimators.plain import try_plain_samples
from echo_ext.estimators.samples import read_samples

__all__ = ["entropy"]

METHODS: tuple[EntropyMethod, ...] = get_args(EntropyMethod)


@overload
def entropy(
    x: Tensor,
    *,
    k: NumNeighbors = 3,
    method: EntropyMethod = "knn",
    metric: Metric = "chebyshev",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Tensor: ...
@overload
def entropy(
    x: npt.ArrayLike,
    *,
    k: NumNeighbors = 3,
    method: EntropyMethod = "knn",
    metric: Metric = "chebyshev",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array | float: ...
@try_plain_samples(lambda variables, options: _local_values(variables[0].points, "chebyshev", CHEBYSHEV, options))
def entropy(
    x: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    method: EntropyMethod = "knn",
    metric: Metric = "chebyshev",
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Estimate:
    """Estimate differential entropy from nearest neighbors, or the entropy of a discrete variable from frequencies.

    * "knn": ``psi(N) - psi(k) + ln c_d + d <ln 2 eps>``, where eps is the distance to the k-th neighbor and c_d is the
      volume of the d-dimensional ball of diameter 1 (1 for the Chebyshev metric). A sample that k or more others equal
      has eps = 0 and makes the estimate minus infinity (Kozachenko and Leonenko 1987; Kraskov et al. 2004, eq. 20).
    * "plug-in": ``-<ln(n_i / N)>``, where n_i of the N samples, itself included, equal sample i in all columns: the
      entropy of the frequencies of the distinct rows. It is biased downwards by about (number of rows that the variable
      may take - 1) / (2N).
    * "miller-madow": the plug-in estimate plus (number of distinct rows in the sample - 1) / (2N), which corrects most
      of this bias (Miller 1955); the local values are ``-ln(n_i / N) + (1 / n_i - 1 / N) / 2``.

    Args:
        x: (..., N, d), or (N,) for one column, of any kind that :func:`mutual_information` reads. Leading dimensions
            are a batch of independent estimates.
        k: The number of neighbors, less than N, or a fraction of N in (0, 1), of which it is the whole part but at
            least 1. A larger k reduces the variance of the estimate and increases its bias. A sequence gives one
            estimate for each k, in one more leading dimension, from a single search.
        method: "knn" for continuous variables; "plug-in" or "miller-madow" for discrete ones, whose rows may then be
            labels too, such as strings. These two have no neighbors: k, metric and exclude_within do not change them.
        metric: "chebyshev" or "euclidean", the metric of the neighbors' distances.
        unit: "nats" or "bits".
        local: If True, return the N values whose mean is the estimate: (..., N).
        exclude_within: The Theiler window for time series: samples at most so many rows apart are not neighbors. Choose
            it as long as consecutive samples stay correlated; a larger window leaves fewer neighbors. A sample with M
            possible neighbors then has psi(M + 1) in the place of psi(N).
        groups, nan_policy, transform: As in :func:`mutual_information`. The entropy is that of the transformed values.

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...) on their device. "knn" is differentiable away from ties, as the distances to the k-th neighbors are.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`.

    Warns:
        DegenerateDataWarning, UserWarning: As in :func:`mutual_information`.

    Example:
        >>> import numpy as np
        >>> from echo_ext import entropy
        >>> x = np.random.default_rng(0).standard_normal((1000, 2))  # the entropy is ln(2 pi e) = 2.84 nats
        >>> round(entropy(x), 2)
        2.85
    """
    _checks.choice("method", method, METHODS)
    samples = read_samples(
        nan_policy=nan_policy, warn_if_wide=True, **read_categories(method, {"x": x}, {}, nan_policy)
    )
    options = read_options(
        samples.count,
        k=k,
        unit=unit,
        local=local,
        exclude_within=exclude_within,
        groups=groups,
        transform=transform,
        method=method,
    )
    rules = rules_of(metric)

    def formula(variables: Sequence[Tensor], options: Options) -> Tensor:
        (points,) = variables
        if method == "knn":
            return _local_values(points, metric, rules, options)
        values = cells.ENTROPY[method]([PointSet(points)], options)
        return gradients.without_gradient(values, f"method {method!r}", points)

    remedy = "the differential entropy of tied values is minus infinity; use method='plug-in' or 'miller-madow'"
    return reduce_local_values(evaluate(formula, samples, options, remedy=remedy), samples, options)


def _local_values(inputs: Tensor, metric: Metric, rules: Rules, options: Options) -> Tensor:
    points = PointSet(inputs)
    window, rows = options.exclude_within, options.rows
    if gradients.is_recording(inputs):
        lists, neighbors = points.search(options.max_k, metric=metric, exclude_within=window, rows=rows)
        distances = points.backend.select_kth(lists, options.ks)
    else:
        neighbors = None
        distances = points.search_kth(options.ks, metric=metric, exclude_within=window, rows=rows)
    eps = rules.distances(distances.double())
    note_tied(eps, options)
    each_k = [rules.log_volume(points.dim) - local_values.psi(k) for k in options.ks]
    values = local_values.constant_term(each_k, 1, eps.shape, points, options) + points.dim * torch.log(2 * eps)
    if neighbors is None:
        return values
    nearest = points.backend.select_kth(neighbors, options.ks)

    def backward(grad: Tensor) -> tuple[Tensor]:
        slopes = (grad * points.dim / eps).unsqueeze(-1).to(inputs.dtype)
        pairs = zip(nearest.unsqueeze(-1), slopes, strict=True)
        return (torch.stack([rules.pull_back(inputs, *pair) for pair in pairs]).sum(0),)

    return gradients.with_gradient(values, backward, inputs)
