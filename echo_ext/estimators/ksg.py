"""Mutual information, conditional mutual information and total correlation by the method of Kraskov et al. 2004."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import get_args, overload

import numpy.typing as npt
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import (
    Array,
    Discrete,
    Estimate,
    Groups,
    Method,
    MultivariateMethod,
    NanPolicy,
    NumNeighbors,
    TensorOrArray,
    Transform,
    Unit,
)
from echo_ext.estimators import gradients, local_values
from echo_ext.estimators.evaluation import ADD_NOISE, Formula, evaluate, reduce_local_values
from echo_ext.estimators.ksg1_gradient import ksg1_with_gradient
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options, read_options
from echo_ext.estimators.plain import try_plain_samples
from echo_ext.estimators.samples import read_samples

__all__ = [
    "METHODS",
    "MULTIVARIATE_METHODS",
    "conditional_mutual_information",
    "formula_of_pairs",
    "mutual_information",
    "total_correlation",
]

METHODS: tuple[Method, ...] = get_args(Method)
MULTIVARIATE_METHODS: tuple[MultivariateMethod, ...] = get_args(MultivariateMethod)

# What to do about tied samples.
USE_MIXED = (
    "use method='mixed' or 'miller-madow' for few distinct values ('mixed' too where only some values repeat), "
    f"mutual_information_discrete for labels, and {ADD_NOISE}"
)


@overload
def mutual_information(
    x: Tensor,
    y: Tensor,
    *,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    boundary_width: int = 10,
) -> Tensor: ...
@overload
def mutual_information(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    boundary_width: int = 10,
) -> Array | float: ...
@try_plain_samples(local_values.ksg1)
def mutual_information(
    x: TensorOrArray,
    y: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    boundary_width: int = 10,
) -> Estimate:
    """Estimate the mutual information I(x; y) from nearest neighbors.

    Distances are Chebyshev (Euclidean for "bi-ksg"), in the precision of the inputs. Values are scaled only if
    ``transform`` asks for it, never jittered or clipped: an estimate near zero may be negative. In the formulas, N is
    the number of samples, nx is the number of other samples that are near a sample in x, ny likewise in y, and ``<>``
    is the mean over the samples.

    * "ksg1": ``psi(k) + psi(N) - <psi(nx + 1) + psi(ny + 1)>``. nx counts the samples that are strictly nearer in x
      than the k-th neighbor in (x, y) (Kraskov et al. 2004, eq. 8). A sample that k or more others equal has
      nx = ny = 0.
    * "ksg2": ``psi(k) - 1/k + psi(N) - <psi(nx) + psi(ny)>``. nx counts the samples that are no farther in x than the
      farthest of the k neighbors is in x (eq. 9). Of equally near neighbors, those with the lower index are taken.
    * "bi-ksg": ``psi(k) + ln N + ln(c_dx c_dy / c_dxy) - <ln nx + ln ny>``. nx counts the samples that are no farther
      in x than the k-th neighbor is in (x, y); c_d is the volume of the d-dimensional unit ball (Gao, Oh and
      Viswanath 2018). It is for at most 4 columns in each variable; with more, it is far too large: 1.7 nats for
      independent normal variables of 10 columns (3000 samples, k = 3).
    * "mixed": ``psi(k) + ln N - <psi(nx + 1) + psi(ny + 1)>``, for variables that are partly discrete. nx counts the
      samples that are strictly nearer. Where the k-th neighbor is at distance 0, the numbers of samples with equal
      values, the sample itself included, replace k, nx + 1 and ny + 1 (Gao, Kannan, Oh and Viswanath 2017). For many
      values on a grid it is far too large: see :class:`DegenerateDataWarning`.
    * "plug-in": ``H(x) + H(y) - H(x, y)`` for discrete variables, with the entropies of the sample's frequencies as in
      :func:`entropy`: each distinct row of a variable is a symbol.
    * "miller-madow": the same, with each entropy corrected by (number of symbols - 1) / (2N). Both need pairs of
      symbols that occur often, and are too large otherwise.

    "plug-in" and "miller-madow" have no neighbors: ``k``, ``exclude_within`` and ``boundary_width`` do not change them,
    a sequence of k repeats the estimate, and ``transform`` must be None. Their variables may also be labels, as for
    ``discrete_x=True``.

    Args:
        x, y: The variables: (..., N, d), each with its own d, or (N,) for one column. Both are tensors, or both arrays,
            lists, Series or DataFrames; integers and booleans are read as float64, and float32 with float64 as float64.
            Leading dimensions are a batch of independent estimates and broadcast.
        k: The number of neighbors, less than N, or a fraction of N in (0, 1), of which it is the whole part but at
            least 1. A larger k reduces the variance of the estimate and increases its bias. A sequence gives one
            estimate for each k, in one more leading dimension, from a single search.
        method: The estimator: "ksg1", "ksg2", "bi-ksg", "mixed", "plug-in" or "miller-madow", as above.
        discrete_x, discrete_y: Which columns hold categories, with method "mixed" alone: a bool for all columns, or a
            sequence with one bool for each. Different categories are at distance 1 from each other, whatever their
            codes, so scale the continuous columns to a spread of about 1. A variable that is discrete as a whole may
            hold any labels that :func:`mutual_information_discrete` takes, such as strings.
        unit: "nats" or "bits".
        local: If True, return the N values whose mean is the estimate: (..., N).
        exclude_within: The Theiler window for time series: samples at most so many rows apart are not neighbors. Choose
            it as long as consecutive samples stay correlated; a larger window leaves fewer neighbors. A sample with M
            possible neighbors then has psi(M + 1), or ln(M + 1), in the place of psi(N) or ln N.
        groups: The trial or recording of each row, (N,) labels of any kind. The window then reaches rows of the same
            group alone, whose order is their order in time; the rows of a group need not be adjacent.
        nan_policy: "raise", or "omit" to leave out the rows in which a variable is NaN, in each item of a batch on its
            own. The other rows keep their places in time. Local values are NaN where a row is left out. Infinity
            always raises an error.
        transform: What is done to each column, over the rows of the estimate: None; "standardize" to subtract its mean
            and divide by its standard deviation (a constant column becomes 0), for columns of different units; "rank"
            to replace its values by their ranks from 0 on, or "normal" by the quantiles of a standard normal
            distribution that have these ranks, for heavy tails (equal values rank in the order of their rows).
        boundary_width: The gradient is measured on ``2 * boundary_width + 1`` samples around the boundary of each
            marginal ball. A larger number averages more noise away, a smaller one stays nearer to the boundary;
            between 5 and 20 the gradient changes little.

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...) on their device. "ksg1" is differentiable. The estimate is a step function of the samples, so its
        gradient is that of its expectation: the flux of samples through the boundary of each marginal ball.
        The other methods, and ranks and normal scores, raise an error in the backward pass.

    Raises:
        TypeError: The inputs are not numbers (the error names the column of a table), or some are tensors and others
            arrays; k is neither a number nor a sequence of numbers.
        ValueError: Values are not finite (the error says how many, and where the first is); the numbers of samples or
            of groups' labels differ; batches do not broadcast; k or exclude_within leave too few neighbors; the method,
            unit, policy or transform is unknown; discrete columns with another method than "mixed"; a transform with
            "plug-in" or "miller-madow".

    Warns:
        DegenerateDataWarning: More than 5 % of the samples equal k others, and the method is not for such data; or more
            than 5 % of the values of a column repeat others, and the transform is "rank" or "normal".
        UserWarning: A variable has more columns than rows and no batch; or method "bi-ksg" with more than 4 columns.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal(1000)
        >>> y = 0.6 * x + 0.8 * rng.standard_normal(1000)  # the information is 0.223 nats
        >>> round(mutual_information(x, y), 3)
        0.225
        >>> mutual_information(x, y, k=[3, 5, 10]).round(3)
        array([0.225, 0.231, 0.235])
    """
    _checks.choice("method", method, METHODS)
    discrete = {"x": discrete_x, "y": discrete_y}
    given = read_categories(method, {"x": x, "y": y}, discrete, nan_policy)
    samples = read_samples(nan_policy=nan_policy, warn_if_wide=True, **given)
    options = read_options(
        samples.count,
        k=k,
        unit=unit,
        local=local,
        exclude_within=exclude_within,
        groups=groups,
        transform=transform,
        method=method,
        discrete=discrete,
    )
    formula = formula_of_pairs(method, _checks.whole("boundary_width", boundary_width, minimum=1))
    return reduce_local_values(evaluate(formula, samples, options, remedy=USE_MIXED), samples, options)


@overload
def conditional_mutual_information(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    *,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_z: Discrete = False,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Tensor: ...
@overload
def conditional_mutual_information(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    z: npt.ArrayLike,
    *,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_z: Discrete = False,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array | float: ...
@try_plain_samples(local_values.conditional_ksg1)
def conditional_mutual_information(
    x: TensorOrArray,
    y: TensorOrArray,
    z: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_z: Discrete = False,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Estimate:
    """Estimate the conditional mutual information I(x; y | z) from nearest neighbors.

    * "ksg1": ``psi(k) + <psi(nz + 1) - psi(nxz + 1) - psi(nyz + 1)>``. The counts are of samples strictly nearer than
      the k-th neighbor in (x, y, z) (Frenzel and Pompe 2007).
    * "ksg2": ``psi(k) - 2/k + <psi(nz) - psi(nxz) + 1/nxz - psi(nyz) + 1/nyz>``. The counts are of samples no farther
      in each of x, y and z than the k neighbors reach there (Lizier 2014).
    * "mixed": ``<psi(k') + psi(nz) - psi(nxz) - psi(nyz)>``, for variables that are partly or wholly discrete. The
      counts are of other samples no farther than the k-th neighbor in (x, y, z), and k' is this count in (x, y, z)
      itself: k, or more where neighbors tie (Mesner and Shalizi 2021, arXiv 1912.03387, as in their code, which counts
      ties at every distance). The authors replace a negative estimate by 0; here it stays negative.
    * "plug-in": ``H(x, z) + H(y, z) - H(z) - H(x, y, z)`` for discrete variables, with the entropies of the sample's
      frequencies as in :func:`entropy`; "miller-madow": the same with the corrected entropies. Both are biased upwards
      where (x, y, z) has about as many symbols as there are samples.

    N does not appear in the formulas of neighbors, so ``exclude_within`` changes neighbors and counts alone.

    Args:
        x, y, z: The variables, as x and y in :func:`mutual_information`; their batches broadcast. The bias towards
            zero grows with the number of columns of z.
        k, unit, local, exclude_within, groups, nan_policy, transform: As in :func:`mutual_information`.
        method: "ksg1", "ksg2", "mixed", "plug-in" or "miller-madow".
        discrete_x, discrete_y, discrete_z: As in :func:`mutual_information`.

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...). It has no gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`.

    Warns:
        DegenerateDataWarning, UserWarning: As in :func:`mutual_information`.

    Example:
        >>> import numpy as np
        >>> from echo_ext import conditional_mutual_information, mutual_information
        >>> rng = np.random.default_rng(0)
        >>> z = rng.standard_normal(2000)
        >>> x, y = z + 0.5 * rng.standard_normal((2, 2000))  # independent but for their common cause z
        >>> round(mutual_information(x, y), 2), round(conditional_mutual_information(x, y, z), 2)
        (0.5, 0.01)
        >>> side = np.where(x > z, "above", "below")  # x and z tell the side, which has ln(2) = 0.69 nats
        >>> round(conditional_mutual_information(x, side, z, method="mixed", discrete_y=True), 2)
        0.65
    """
    _checks.choice("method", method, MULTIVARIATE_METHODS)
    discrete = {"x": discrete_x, "y": discrete_y, "z": discrete_z}
    given = read_categories(method, {"x": x, "y": y, "z": z}, discrete, nan_policy)
    samples = read_samples(nan_policy=nan_policy, warn_if_wide=True, **given)
    options = read_options(
        samples.count,
        k=k,
        unit=unit,
        local=local,
        exclude_within=exclude_within,
        groups=groups,
        transform=transform,
        method=method,
        discrete=discrete,
    )

    def formula(variables: Sequence[Tensor], options: Options) -> Tensor:
        values = local_values.CONDITIONAL[method]([PointSet(v) for v in variables], options)
        return gradients.without_gradient(values, "conditional_mutual_information", *variables)

    return reduce_local_values(evaluate(formula, samples, options, remedy=USE_MIXED), samples, options)


def _each_column(samples: Sequence[Tensor]) -> Sequence[Tensor] | None:
    (x,) = samples
    return x.split(1, -1) if x.shape[-1] > 1 else None


@overload
def total_correlation(
    x: Tensor,
    *,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    groups: Sequence[Sequence[int]] | None = None,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Tensor: ...
@overload
def total_correlation(
    x: npt.ArrayLike,
    *,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    groups: Sequence[Sequence[int]] | None = None,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Array | float: ...
@try_plain_samples(local_values.ksg1, _each_column)
def total_correlation(
    x: TensorOrArray,
    *,
    k: NumNeighbors = 3,
    method: MultivariateMethod = "ksg1",
    groups: Sequence[Sequence[int]] | None = None,
    unit: Unit = "nats",
    local: bool = False,
    exclude_within: int = 0,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
) -> Estimate:
    """Estimate the total correlation (multi-information) of the columns of x from nearest neighbors.

    n_i is the number of other samples that are near a sample in variable i, of m variables.

    * "ksg1": ``psi(k) + (m - 1) psi(N) - <sum_i psi(n_i + 1)>`` (Kraskov et al. 2004, eq. 23).
    * "ksg2": ``psi(k) - (m - 1) / k + (m - 1) psi(N) - <sum_i psi(n_i)>`` (eq. 24).
    * "mixed": ``psi(k) + (m - 1) ln N - <sum_i psi(n_i + 1)>``, for variables that are partly discrete, with the rule
      of :func:`mutual_information` where the k-th neighbor is at distance 0, and its bias on a grid; the two agree for
      m = 2.
    * "plug-in": ``sum_i H(x_i) - H(x)`` for discrete variables, with the entropies of the sample's frequencies as in
      :func:`entropy`; "miller-madow": the same with the corrected entropies.

    Args:
        x: (..., N, d), of any kind that :func:`mutual_information` reads.
        groups: Disjoint sets of columns that are one variable each, for example ``[[0, 1], [2]]``. None makes each
            column a variable.
        k, unit, local, exclude_within, nan_policy, transform: As in :func:`mutual_information`.
        method: "ksg1", "ksg2", "mixed", "plug-in" or "miller-madow".

    Returns:
        For arrays a float, or an array if there is a batch, several k, or local is True. For tensors a tensor of shape
        (...). It has no gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also groups that are not two or more disjoint sets of
            columns.

    Warns:
        DegenerateDataWarning, UserWarning: As in :func:`mutual_information`.

    Example:
        >>> import numpy as np
        >>> from echo_ext import total_correlation
        >>> x = np.random.default_rng(0).standard_normal((1000, 3))
        >>> x[:, 2] += x[:, 0] + x[:, 1]  # the total correlation is ln(3) / 2 = 0.55 nats
        >>> round(total_correlation(x), 1)
        0.5
    """
    _checks.choice("method", method, MULTIVARIATE_METHODS)
    given = read_categories(method, {"x": x}, {}, nan_policy)
    samples = read_samples(nan_policy=nan_policy, warn_if_wide=True, **given)
    options = read_options(
        samples.count,
        k=k,
        unit=unit,
        local=local,
        exclude_within=exclude_within,
        transform=transform,
        method=method,
    )
    columns = _read_columns(groups, samples.variables[0].shape[-1])

    def formula(variables: Sequence[Tensor], options: Options) -> Tensor:
        (points,) = variables
        values = local_values.TOTAL_CORRELATION[method]([PointSet(points[..., each]) for each in columns], options)
        return gradients.without_gradient(values, "total_correlation", points)

    return reduce_local_values(evaluate(formula, samples, options, remedy=USE_MIXED), samples, options)


def formula_of_pairs(method: Method, boundary_width: int = 10) -> Formula:
    """Return the formula of mutual information, which has a gradient with "ksg1"."""

    def formula(variables: Sequence[Tensor], options: Options) -> Tensor:
        if method == "ksg1" and gradients.is_recording(*variables):
            return ksg1_with_gradient(variables, options, boundary_width)
        values = local_values.MUTUAL_INFORMATION[method]([PointSet(v) for v in variables], options)
        return gradients.without_gradient(values, f"method {method!r}", *variables)

    return formula


def _read_columns(groups: Sequence[Sequence[int]] | None, dim: int) -> list[list[int]]:
    try:
        read = [[c] for c in range(dim)] if groups is None else [[operator.index(c) for c in group] for group in groups]
    except TypeError:
        raise TypeError(f"groups must be sequences of column numbers, got {_checks.brief(groups)}") from None
    columns = [c % dim if -dim <= c < dim else dim for group in read for c in group]
    if any(c == dim for c in columns):
        raise ValueError(f"groups must name columns of x, 0 to {dim - 1}, got {_checks.brief(groups)}")
    if len(read) < 2 or not all(read) or len(set(columns)) != len(columns):
        given = f"got {_checks.brief(groups)}" if groups is not None else f"but x has {dim} column"
        raise ValueError(f"groups must be two or more disjoint sets of columns, {given}")
    return read
