"""Tests of independence and of conditional independence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, get_args, overload

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
    NullDistribution,
    Surrogate,
    TensorOrArray,
    Transform,
    Unit,
)
from echo_ext.estimators import local_values, null_distribution, surrogates
from echo_ext.estimators.evaluation import Part, split_by_missing, warn_if_tied
from echo_ext.estimators.ksg import METHODS, MULTIVARIATE_METHODS, USE_MIXED
from echo_ext.estimators.labels import prepare_columns, read_categories
from echo_ext.estimators.null_distribution import Resampled
from echo_ext.estimators.options import UNITS, Options, read_options, read_seed
from echo_ext.estimators.samples import Samples, read_samples, restore_form
from echo_ext.estimators.surrogates import Orders
from echo_ext.estimators.tables import read_groups

__all__ = ["IndependenceTest", "independence_test"]

SURROGATES: tuple[Surrogate, ...] = get_args(Surrogate)
NULL_DISTRIBUTIONS: tuple[NullDistribution, ...] = get_args(NullDistribution)
FEWEST_TO_FIT = 10  # resamples from which a mean, a standard deviation and a skewness mean something

Value = TypeVar("Value")
Values = TypeVar("Values")


class IndependenceTest(NamedTuple, Generic[Value, Values]):
    """The result of a test of independence.

    Attributes:
        statistic: The estimate: a float or an array (...) if the samples were arrays, a tensor (...) if they were
            tensors.
        pvalue: Its p-value, likewise.
        null_distribution: The estimates with surrogates, an array or a tensor (n, ...).

    Example:
        >>> x, y = np.random.default_rng(0).standard_normal((2, 200))
        >>> found = echo_ext.independence_test(x, y, n_resamples=99, seed=0)
        >>> found.pvalue > 0.05, found.null_distribution.shape
        (True, (99,))
    """

    statistic: Value
    pvalue: Value
    null_distribution: Values


@overload
def independence_test(
    x: Tensor,
    y: Tensor,
    z: Tensor | None = None,
    *,
    k: int | float = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_z: Discrete = False,
    n_resamples: int = 1000,
    surrogate: Surrogate | None = None,
    shuffle_neighbors: int = 5,
    block_length: int | None = None,
    null: NullDistribution = "empirical",
    early_stopping: float | None = None,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> IndependenceTest[Tensor, Tensor]: ...
@overload
def independence_test(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    z: npt.ArrayLike | None = None,
    *,
    k: int | float = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_z: Discrete = False,
    n_resamples: int = 1000,
    surrogate: Surrogate | None = None,
    shuffle_neighbors: int = 5,
    block_length: int | None = None,
    null: NullDistribution = "empirical",
    early_stopping: float | None = None,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> IndependenceTest[Array | float, Array]: ...
def independence_test(
    x: TensorOrArray,
    y: TensorOrArray,
    z: TensorOrArray | None = None,
    *,
    k: int | float = 3,
    method: Method = "ksg1",
    discrete_x: Discrete = False,
    discrete_y: Discrete = False,
    discrete_z: Discrete = False,
    n_resamples: int = 1000,
    surrogate: Surrogate | None = None,
    shuffle_neighbors: int = 5,
    block_length: int | None = None,
    null: NullDistribution = "empirical",
    early_stopping: float | None = None,
    unit: Unit = "nats",
    exclude_within: int = 0,
    groups: Groups | None = None,
    nan_policy: NanPolicy = "raise",
    transform: Transform | None = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> IndependenceTest[Any, Any]:
    """Test whether x and y are independent, or independent given z, by mutual information and surrogate data.

    The statistic is I(x; y), or I(x; y | z). It is compared with estimates from surrogates of y: the same rows in other
    orders, in which the null hypothesis holds.

    * "shuffle" permutes all rows. The test is exact if rows are exchangeable. It does not keep the dependence of y on
      z, and is the default without z.
    * "local" exchanges each row of y with one of the rows that are nearest in z, each used once as far as possible, so
      that y keeps its dependence on z (Runge 2018). It is the default with z.
    * "circular" rotates y by a random offset, which is larger than the window of ``exclude_within`` in both directions.
      y keeps its autocorrelation, but not its dependence on z. If y depends on z, use a small k: at the level of 5 %,
      tests of the first and the last of three series in a chain, given the middle one, reject 2.5 % of the time with
      k = 5, but 42 % with k = 0.1 ("local": 3 % and 3.5 %; 500 rows).
    * "block" permutes blocks of ``block_length`` consecutive rows of y. Choose blocks longer than the autocorrelation.

    Args:
        x, y: The variables, as in :func:`mutual_information`. Batches broadcast; all tests of a batch use the same
            random numbers.
        z: The variable to condition on, as in :func:`conditional_mutual_information`. If it is constant, it is ignored
            with a warning.
        k: The number of neighbors, or a fraction of the rows in (0, 1). A larger k detects weak, smooth dependence
            better, a smaller k fine structure. For conditional tests 0.1 to 0.2 is usual.
        method: The estimator of :func:`mutual_information`, or with z of :func:`conditional_mutual_information`.
        discrete_x, discrete_y, discrete_z: As in :func:`mutual_information`.
        n_resamples: The number of surrogates. The smallest empirical p-value is 1 / (1 + n_resamples).
        surrogate: "shuffle", "local", "circular" or "block", as above.
        shuffle_neighbors: The number of nearest rows in z, the row itself among them, for "local" surrogates. More make
            surrogates more random, and keep less of the dependence of y on z.
        block_length: The number of rows in a block. By default the square root of the number of rows.
        null: "empirical": p = (1 + reached) / (1 + n_resamples), where ``reached`` surrogates have at least the
            statistic. "normal" and "gamma" fit a normal distribution, or a gamma distribution with the skewness of the
            surrogates' estimates: some tens of surrogates then suffice, also for smaller p-values, as far as the
            distribution fits.
        early_stopping: A significance level, such as 0.05. The test stops as soon as so many surrogates have reached
            the statistic that independence can no longer be rejected at this level, with p = reached / (number of
            surrogates so far) (Besag and Clifford 1991). A batch stops when all its tests have.
        unit, exclude_within, nan_policy: As in :func:`mutual_information`.
        transform: As in :func:`mutual_information`, but ranks of equal values are in a random order.
        groups: As in :func:`mutual_information`. Surrogates exchange rows only within a group.
        seed: The seed of the surrogates. None draws one from PyTorch's generator. The same seed gives the same p-value
            on each device and for any number of threads.
        progress: A function that is called from time to time with the number of surrogates done.

    Returns:
        :class:`~echo_ext.estimators.IndependenceTest`, the named tuple ``(statistic, pvalue, null_distribution)``.
        Statistic and p-value are as :func:`mutual_information` returns them; ``null_distribution`` holds the estimates
        with surrogates, (n, ...), in which a batch with early stopping has those of its last test. Nothing has a
        gradient.

    Raises:
        TypeError, ValueError: As in :func:`mutual_information`. Also a number of resamples, neighbors or rows that does
            not fit the samples, "local" without z, ``block_length`` without "block", and ``early_stopping`` with a
            fitted null distribution.

    Warns:
        DegenerateDataWarning: As in :func:`mutual_information`, except for ranks.
        UserWarning: As in :func:`mutual_information`. Also a constant z.

    Example:
        >>> import numpy as np
        >>> from echo_ext import independence_test
        >>> rng = np.random.default_rng(0)
        >>> z = rng.standard_normal(500)
        >>> x, y = z + 0.5 * rng.standard_normal((2, 500))  # independent but for their common cause z
        >>> independence_test(x, y, n_resamples=99, seed=0).pvalue
        0.01
        >>> independence_test(x, y, z, k=0.2, n_resamples=99, seed=0).pvalue
        0.79
    """
    _checks.choice("method", method, METHODS if z is None else MULTIVARIATE_METHODS)
    given: dict[str, object] = {"x": x, "y": y} if z is None else {"x": x, "y": y, "z": z}
    discrete = {"x": discrete_x, "y": discrete_y, "z": discrete_z}
    given = read_categories(method, given, discrete, nan_policy)
    samples = read_samples(nan_policy=nan_policy, warn_if_wide=True, **given)
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
    if not options.single_k:
        raise TypeError(f"k must be one int or fraction, got {_checks.brief(options.given_k)}")
    settings = Settings(
        method=method,
        n=n_resamples,
        surrogate=surrogate,
        shuffle_neighbors=shuffle_neighbors,
        block_length=block_length,
        null=null,
        early_stopping=early_stopping,
        groups=None if groups is None else torch.from_numpy(read_groups(groups, samples.count)),
        seed=read_seed(seed),
    )
    settings.check(samples.count, conditional=z is not None)
    found = [(part, _test(samples.names, part, settings, progress)) for part in split_by_missing(samples, options)]
    warn_if_tied(options.tied_shares, USE_MIXED)
    return _collect(found, samples, options, settings)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keywords of the test.

    Attributes:
        method: The estimator.
        n: The number of surrogates.
        surrogate: Their kind, or None for the default.
        shuffle_neighbors, block_length: As given.
        null: The kind of p-value.
        early_stopping: The significance level, or None.
        groups: The group of each row, int64 (N,) on the CPU, or None.
        seed: The seed.
    """

    method: Method
    n: int
    surrogate: Surrogate | None
    shuffle_neighbors: int
    block_length: int | None
    null: NullDistribution
    early_stopping: float | None
    groups: Tensor | None
    seed: int

    @property
    def enough(self) -> int | None:
        """How many surrogates may reach the statistic before the test can no longer be rejected."""
        return None if self.early_stopping is None else int(self.early_stopping * self.n) + 1

    def check(self, num_rows: int, *, conditional: bool) -> None:
        """Refuse what does not fit the samples, or each other."""
        _checks.choice("surrogate", self.surrogate, (None, *SURROGATES))
        _checks.choice("null", self.null, NULL_DISTRIBUTIONS)
        if self.surrogate == "local" and not conditional:
            raise ValueError("surrogate='local' needs z, whose neighbors it exchanges, got z=None")
        _checks.whole("n_resamples", self.n, minimum=1 if self.null == "empirical" else FEWEST_TO_FIT)
        near = _checks.whole("shuffle_neighbors", self.shuffle_neighbors, minimum=2)
        if self.surrogate in (None, "local") and conditional and near > num_rows - 1:
            raise ValueError(f"shuffle_neighbors must be at most N - 1, got {near} of {num_rows} rows")
        if self.block_length is not None:
            if self.surrogate != "block":
                raise ValueError(f"block_length={self.block_length} needs surrogate='block', got {self.surrogate!r}")
            length = _checks.whole("block_length", self.block_length, minimum=1)
            if length > num_rows // 2:
                raise ValueError(f"block_length must be at most half the number of rows, got {length} of {num_rows}")
        if self.early_stopping is not None:
            if _checks.number("early_stopping", self.early_stopping, above=0) >= 1:
                raise ValueError(f"early_stopping must be a significance level below 1, got {self.early_stopping}")
            if self.null != "empirical":
                raise ValueError(f"early_stopping needs null='empirical', got {self.null!r}")


def _test(names: Sequence[str], part: Part, settings: Settings, progress: Callable[[int], object] | None) -> Resampled:
    """Test the items of a part: (B, M, d)."""
    raw = [v.detach() for v in part.variables]
    variables = _prepare(names, raw, part.options, settings.seed)
    options, sizes = part.options, [part.options.total]
    if settings.groups is not None:
        groups, order = settings.groups[part.kept.cpu()].sort(stable=True)
        sizes = torch.unique_consecutive(groups, return_counts=True)[1].tolist()
        variables = [v.index_select(-2, order.to(v.device)) for v in variables]
        if options.rows is not None:
            options = replace(options, rows=options.rows[order])
    if options.rows is not None:
        options = replace(options, rows=options.rows.to(variables[0].device))
    conditional = len(variables) == 3
    if conditional and bool((raw[2] == raw[2][..., :1, :]).all()):
        _checks.warn("z is constant, so independence_test ignores it and permutes all rows of y")
        conditional, variables = False, variables[:2]
    formulas = local_values.CONDITIONAL if conditional else local_values.MUTUAL_INFORMATION
    return null_distribution.resample(
        variables,
        formulas[settings.method],
        options,
        _orders(variables, sizes, options, settings),
        settings.n,
        enough=settings.enough,
        native=conditional and settings.method == "ksg1",
        progress=progress,
    )


def _prepare(names: Sequence[str], variables: Sequence[Tensor], options: Options, seed: int) -> list[Tensor]:
    """Transform the variables; ranks break ties at random, for each variable in another way.

    In the order of the rows, which is the same in all variables, ranks of tied values would depend on each other.
    """
    if options.transform not in ("rank", "normal"):
        return prepare_columns(names, variables, options)
    prepared = []
    for stream, (name, variable) in enumerate(zip(names, variables, strict=True)):
        order = surrogates.shuffled(options.total, seed, stream=-2 - stream)(0, 1)[0].to(variable.device)
        (ranked,) = prepare_columns([name], [variable.index_select(-2, order)], options)
        prepared.append(ranked.index_select(-2, order.argsort()))
    return prepared


def _orders(variables: Sequence[Tensor], sizes: Sequence[int], options: Options, settings: Settings) -> Orders:
    """Return the surrogates' orders of the rows, of which consecutive groups have these sizes."""
    kind = settings.surrogate
    if kind is None or (kind == "local" and len(variables) == 2):
        kind = "local" if len(variables) == 3 else "shuffle"

    def make(begin: int, end: int, stream: int) -> Orders:
        size, seed = end - begin, settings.seed
        if kind == "local":
            near = min(settings.shuffle_neighbors, size)
            return surrogates.exchanged_locally(variables[2][..., begin:end, :], near, seed, stream=stream)
        if kind == "circular":
            window = 2 * options.exclude_within + 1
            if size <= window:
                raise ValueError(
                    f"surrogate='circular' needs groups of more than {window} rows, for rotations beyond the window, "
                    f"got one of {size}"
                )
            return surrogates.rotated(size, options.exclude_within, seed, stream=stream)
        if kind == "block":
            length = settings.block_length or round(size**0.5)
            return surrogates.permuted_in_blocks(size, min(length, size), seed, stream=stream)
        return surrogates.shuffled(size, seed, stream=stream)

    return surrogates.within_groups(make, sizes)


def _collect(
    found: Sequence[tuple[Part, Resampled]], samples: Samples, options: Options, settings: Settings
) -> IndependenceTest[Any, Any]:
    """Return the results of all parts in the form of the input."""
    num = max((len(each.null) for _, each in found), default=settings.n)
    device = samples.variables[0].device
    size = samples.batch.numel()
    statistic, p = (torch.full((size,), torch.nan, dtype=torch.float64, device=device) for _ in range(2))
    null = torch.full((num, size), torch.nan, dtype=torch.float64, device=device)
    for part, each in found:
        statistic[part.items] = each.statistic
        null[: len(each.null), part.items] = each.null
        p[part.items] = null_distribution.p_value(each, settings.null, settings.enough)
    scale = UNITS[options.unit]
    return IndependenceTest(
        restore_form((statistic * scale).view(samples.batch), samples),
        restore_form(p.view(samples.batch), samples),
        restore_form((null * scale).view(num, *samples.batch), samples),
    )
