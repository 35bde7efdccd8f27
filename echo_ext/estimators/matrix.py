"""Mutual information of every pair of columns, and tests of independence for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, overload

import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import NamedTuple

from echo_ext import _checks
from echo_ext._types import (
    Array,
    Discrete,
    Groups,
    Method,
    NanPolicy,
    NumNeighbors,
    TensorOrArray,
    Transform,
    Unit,
)
from echo_ext.estimators import gradients
from echo_ext.estimators.evaluation import convert_estimates
from echo_ext.estimators.ksg import METHODS, MULTIVARIATE_METHODS
from echo_ext.estimators.labels import read_categories
from echo_ext.estimators.options import Options, read_options, read_seed
from echo_ext.estimators.pair_tests import Settings, adjust, estimate_and_test
from echo_ext.estimators.samples import read_samples, restore_form
from echo_ext.estimators.tables import is_table

__all__ = ["MatrixTest", "mutual_information_matrix"]

Value = TypeVar("Value")


class MatrixTest(NamedTuple, Generic[Value]):
    """The result of tests of independence for all pairs of columns.

    Attributes:
        statistic: The estimates: (..., p, q), an array, a tensor or a DataFrame, as the columns are.
        pvalue: Their p-values, likewise.

    Example:
        >>> x, noise = np.random.default_rng(0).standard_normal((2, 200))
        >>> found = echo_ext.mutual_information_matrix(np.stack([x, x + noise], axis=1), n_resamples=99, seed=0)
        >>> found.statistic.shape, f"{found.pvalue[0, 1]:.2f}"
        ((2, 2), '0.01')
    """

    statistic: Value
    pvalue: Value


@overload
def mutual_information_matrix(  # type: ignore[overload-overlap]
    x: Tensor,
    y: Tensor | None = None,
    *,
    given: Tensor | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_given: Discrete = False,
    n_resamples: Literal[0] = 0,
    fdr: bool = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor: ...
@overload
def mutual_information_matrix(  # type: ignore[overload-overlap]
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    given: npt.ArrayLike | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_given: Discrete = False,
    n_resamples: Literal[0] = 0,
    fdr: bool = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Array: ...
@overload
def mutual_information_matrix(
    x: Tensor,
    y: Tensor | None = None,
    *,
    given: Tensor | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_given: Discrete = False,
    n_resamples: int,
    fdr: bool = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> MatrixTest[Tensor]: ...
@overload
def mutual_information_matrix(
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    given: npt.ArrayLike | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_given: Discrete = False,
    n_resamples: int,
    fdr: bool = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> MatrixTest[Array]: ...
def mutual_information_matrix(
    x: TensorOrArray,
    y: TensorOrArray | None = None,
    *,
    given: TensorOrArray | None = None,
    k: NumNeighbors = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_given: Discrete = False,
    n_resamples: int = 0,
    fdr: bool = False,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Any:
    """Estimate the mutual information of each column of x with each column of y, and test their independence.

    This is much faster than one call of :func:`mutual_information` for each pair: columns are sorted once for many
    pairs. Pairs are estimated one after another, which takes longer, with discrete columns or ``groups``, in tests with
    conditions or ranks, and in tests or with conditions where values are missing.

    Args:
        x: (..., N, p), or (N,) for one column, of any kind that :func:`mutual_information` reads.
        y: (..., N, q) of the same kind. None stands for x itself: the matrix is then symmetric, each pair is estimated
            once, and the diagonal holds I(x; x) as the method counts it (psi(N) - psi(k) for "ksg1", the entropy for
            "plug-in").
        given: Conditions for all pairs, (..., N, c), as z in :func:`conditional_mutual_information`: the matrix then
            holds I(x_i; y_j | given).
        method: As in :func:`mutual_information`, or with conditions as in :func:`conditional_mutual_information`.
        discrete_x, discrete_y, discrete_given: Which columns hold categories, as in :func:`mutual_information`.
        n_resamples: The number of surrogates for the tests, as in :func:`independence_test`: permutations of the rows
            of y, the same for all columns, or with conditions local exchanges. 0 for no tests.
        fdr: Whether to adjust the p-values for the number of pairs (Benjamini and Hochberg 1995). If those with at most
            0.05 are then called dependent, at most 5 % of them are expected to be independent.
        k, unit, exclude_within, groups, transform: As in :func:`mutual_information`.
        nan_policy: "raise", or "omit" to leave out of each pair the rows in which one of its two columns, or a
            condition, is NaN. Surrogates are made from the rows that are left.
        seed: The seed of the surrogates, which makes the p-values those of :func:`independence_test` with this seed,
            pair by pair. None draws one from PyTorch's generator.
        progress: A function that is called from time to time with the number of surrogates done, or without tests with
            that of pairs done, of p * q, or of p * (p + 1) / 2 if y is None.

    Returns:
        (..., p, q), an array or a tensor as x is, with one more leading dimension if k is a sequence. Of a DataFrame x,
        with no y or a DataFrame, and one k it is a DataFrame with the labels of the columns. It has no gradient. With
        ``n_resamples``, :class:`~echo_ext.estimators.MatrixTest`, the named tuple ``(statistic, pvalue)`` of two such
        matrices. If y is None, the p-values are symmetric, with NaN on the diagonal.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information` and :func:`independence_test`.

    Warns:
        DegenerateDataWarning: Once for all pairs in which more than 5 % of the samples equal k others.

    Example:
        >>> import numpy as np
        >>> from echo_ext import mutual_information_matrix
        >>> x = np.random.default_rng(0).standard_normal((1000, 3))
        >>> x[:, 1] += x[:, 0]  # their information is ln(2) / 2 = 0.35 nats
        >>> mutual_information_matrix(x).round(1)
        array([[6. , 0.4, 0. ],
               [0.4, 6. , 0. ],
               [0. , 0. , 6. ]])
        >>> mutual_information_matrix(x, n_resamples=99, fdr=True, seed=0).pvalue[0].round(2)
        array([ nan, 0.03, 0.16])
    """
    _checks.choice("method", method, METHODS if given is None else MULTIVARIATE_METHODS)
    others = {"y": y, "given": given}
    named: dict[str, object] = {"x": x, **{name: value for name, value in others.items() if value is not None}}
    discrete = {"x": discrete_x, "y": discrete_y, "given": discrete_given}
    named = read_categories(method, named, discrete, nan_policy)
    samples = read_samples(nan_policy=nan_policy, warn_if_wide=False, **named)
    options = read_options(
        samples.count,
        k=k,
        unit=unit,
        exclude_within=exclude_within,
        groups=groups,
        transform=transform,
        method=method,
        discrete=discrete,
    )
    settings = _read_settings(options, method, n_resamples, fdr, seed, groups, progress)
    values, p = estimate_and_test(samples, options, settings)
    symmetric = y is None
    if p is not None and settings.fdr:
        p = adjust(p, triangle=symmetric)
    if p is not None and symmetric:
        p = p.triu(1) + p.triu(1).mT
        p.diagonal(dim1=-2, dim2=-1).fill_(torch.nan)
    values = gradients.without_gradient(values, "mutual_information_matrix", *samples.variables)
    matrices: list[Any] = [convert_estimates(values, samples, options)]
    if p is not None:
        matrices.append(restore_form(p, samples))
    other: object = x if y is None else y
    if is_table(x) and is_table(other) and options.single_k:
        labels = {"index": x.columns, "columns": other.columns}
        matrices = [type(x)(matrix, **labels) for matrix in matrices]
    return MatrixTest(*matrices) if p is not None else matrices[0]


def _read_settings(
    options: Options,
    method: Method,
    n_resamples: int,
    fdr: bool,
    seed: int | None,
    groups: Groups | None,
    progress: Callable[[int], object] | None,
) -> Settings:
    _checks.whole("n_resamples", n_resamples, minimum=0)
    if fdr and n_resamples == 0:
        raise ValueError("fdr=True adjusts p-values, so n_resamples must be at least 1, got 0")
    if n_resamples > 0 and not options.single_k:
        raise TypeError(f"k must be one int or fraction for tests, got {_checks.brief(options.given_k)}")
    # A seed that nothing needs is not drawn, since that would change what PyTorch's generator gives next.
    seed = read_seed(seed) if n_resamples > 0 or seed is not None else 0
    return Settings(method, n_resamples, bool(fdr), seed, groups, progress)
