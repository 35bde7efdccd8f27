"""The information estimators compared with brute force over all pairs of samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import fuzzing
import hypothesis.strategies as st
import information_definitions as definitions
import numpy as np
import torch
from information_definitions import Sample
from sklearn import feature_selection

import echo_ext
import echo_ext.sklearn
from echo_ext._native import num_threads

MULTIVARIATE = ("ksg1", "ksg2", "mixed", *definitions.CELL_METHODS)
METHODS = (*MULTIVARIATE, "bi-ksg")
METRICS = ("chebyshev", "euclidean")


@dataclass(frozen=True)
class Case:
    numbers: int  # NumPy's seed
    call: str
    n: int
    dims: tuple[int, int, int]
    k: int | tuple[int, ...]
    window: int
    kind: str
    dtype: str
    layout: str
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    as_tensor: bool
    local: bool
    unit: str
    option: int  # picks the method, metric or histories of the call
    missing: bool  # some values are NaN
    trials: int  # the number of groups, which are interleaved; 0 for none
    transform: str | None
    threads: int

    def pick(self, *choices):
        return choices[self.option % len(choices)]


BATCHES = ((), ()), ((2,), (2,)), ((3,), ()), ((), (2,)), ((2, 1), (1, 2)), ((0,), ()), ((1,), (1,))


@st.composite
def _cases(draw):
    n = draw(st.sampled_from([2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 33, 40]))
    window = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3]))
    window = min(window, (n - 2) // 2)
    largest_k = n - 1 - 2 * window
    several = (
        draw(st.lists(st.integers(1, largest_k), min_size=1, max_size=3)) if draw(st.integers(0, 3)) == 3 else None
    )
    return Case(
        numbers=draw(st.integers(0, 2**32)),
        call=draw(st.sampled_from([*CALLS] * 5 + ["sklearn"])),
        n=n,
        dims=tuple(draw(st.sampled_from([1, 1, 1, 2, 3, 5])) for _ in range(3)),
        k=tuple(several) if several else draw(st.integers(1, min(largest_k, 5)) | st.integers(1, largest_k)),
        window=window,
        kind=draw(st.sampled_from(definitions.KINDS)),
        dtype=draw(st.sampled_from(["float64", "float32"])),
        layout=draw(st.sampled_from(definitions.LAYOUTS)),
        batch=draw(st.sampled_from(BATCHES)) if draw(st.integers(0, 3)) == 3 else ((), ()),
        as_tensor=draw(st.booleans()),
        local=draw(st.booleans()),
        unit=draw(st.sampled_from(["nats", "bits"])),
        option=draw(st.integers(0, 11)),
        missing=draw(st.integers(0, 4)) == 4,
        trials=draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3])),
        transform=draw(st.sampled_from([None, None, None, None, "rank", "normal"])),
        threads=draw(st.integers(1, 3)),
    )


def check(case):
    with num_threads(case.threads), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return check_sklearn(case) if case.call == "sklearn" else CALLS[case.call](case)
        except TooFew:
            return 0


# ---- Shared by the calls ---------------------------------------------------------------------------------------------


def variables(case, count):
    """Return `count` variables of one kind, some of them dependent."""
    rng = np.random.default_rng(case.numbers)
    dtype = np.dtype(case.dtype).type
    made = []
    for i in range(count):
        batch = case.batch[min(i, 1)]
        values = definitions.sample(rng, case.kind, (*batch, case.n, case.dims[i]), dtype)
        if i == 1 and case.numbers % 2 and batch == case.batch[0]:  # equal in the first half
            shared = min(case.dims[:2])
            values[..., : case.n // 2, :shared] = made[0][..., : case.n // 2, :shared]
        made.append(definitions.laid_out(values, case.layout))
    return made


def given(case, arrays):
    """Return the arguments of the call: tensors or arrays, sometimes one-dimensional."""
    if case.numbers % 5 == 0:
        arrays = [array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array for array in arrays]
    if not case.as_tensor:
        return arrays
    # torch.from_numpy does not support negative strides and warns about read-only arrays.
    return [torch.from_numpy(np.array(array) if _refused_by_torch(array) else array) for array in arrays]


def _refused_by_torch(array):
    return not array.flags.writeable or any(stride < 0 for stride in array.strides)


def ks(case):
    return case.k if isinstance(case.k, tuple) else (case.k,)


def options(case):
    return {
        "k": list(case.k) if isinstance(case.k, tuple) else case.k,
        "unit": case.unit,
        "exclude_within": case.window,
        "local": case.local,
    }


def table_options(case):
    return {**options(case), "nan_policy": "omit" if case.missing else "raise", "transform": case.transform}


def with_method(case, *methods):
    """Return the case and one of the methods; those that count cells have no transform."""
    method = case.pick(*methods)
    return (replace(case, transform=None) if method in definitions.CELL_METHODS else case), method


def items(case, arrays):
    """Return the broadcast batch shape and, for each item of the batch, its (N, d) variables."""
    batch = np.broadcast_shapes(*(array.shape[:-2] for array in arrays))
    spread = [np.broadcast_to(array, (*batch, *array.shape[-2:])) for array in arrays]
    return batch, [[array[index] for array in spread] for index in np.ndindex(*batch)]


class TooFew(Exception):
    """An item of the batch has too few rows for k: such calls are covered by test_fuzz_errors."""


def with_missing(case, arrays):
    """Return the arrays with some values NaN, if the case has missing values."""
    if not case.missing:
        return arrays
    rng = np.random.default_rng(case.numbers + 2)
    spoiled = [np.where(rng.random(array.shape) < 0.05, np.nan, array).astype(array.dtype) for array in arrays]
    return [definitions.laid_out(array, case.layout) for array in spoiled]


def trials(case):
    """Return the group of each row, or None."""
    return np.random.default_rng(case.numbers + 3).integers(0, case.trials, case.n) if case.trials else None


def row_numbers(case, groups):
    """Return row numbers that are far apart in different groups, which come in the order of their first row."""
    if groups is None or case.window == 0:
        return np.arange(case.n)
    first = {label: place for place, label in enumerate(dict.fromkeys(groups.tolist()))}
    return np.array([1000 * first[label] + np.sum(groups[:i] == label) for i, label in enumerate(groups)])


def expected(case, arrays, local_values, *, groups=None, rows=None, split=None):
    """Return the expected result, from a function that maps (sample, k) to N local values.

    ``rows`` are the row numbers if ``groups`` do not say all; ``split`` makes several variables of each item's.
    """
    batch, each = items(case, arrays)
    n = arrays[0].shape[-2]
    rows = row_numbers(case, groups) if rows is None else rows
    values = np.full((len(ks(case)), len(each), n), np.nan)
    for place, item in enumerate(each):
        kept = np.flatnonzero(~np.any([np.isnan(v).any(1) for v in item], axis=0))
        order = np.argsort(rows[kept])
        used = [definitions.transformed(v[kept], case.transform)[order] for v in item]
        sample = Sample(used if split is None else split(used), case.window, rows[kept][order])
        if len(kept) == 0 or max(ks(case)) > sample.others.min():
            raise TooFew
        for which, k in enumerate(ks(case)):
            values[which, place, kept[order]] = local_values(sample, k)
    return shaped(case, values.reshape(len(ks(case)), *batch, n))


def shaped(case, values):
    """Convert (K, *batch, N) local values in nats to the shape and unit of the call."""
    values = values if case.local else np.nanmean(values, -1) if case.missing else values.mean(-1)
    values = values if isinstance(case.k, tuple) else values[0]
    return values * definitions.UNITS[case.unit]


def compare(case, actual, wanted):
    """Check that the result has the type and dtype of the input and the value of the definition."""
    if case.as_tensor:
        assert isinstance(actual, torch.Tensor)
        assert actual.dtype == getattr(torch, case.dtype)
        actual = actual.numpy()
    elif np.ndim(wanted) == 0:
        assert type(actual) is float
    else:
        assert actual.dtype == case.dtype
    close(case, actual, wanted)
    return 1


def close(case, actual, wanted):
    assert np.shape(actual) == np.shape(wanted)
    tolerance = 1e-9 if case.dtype == "float64" else 3e-6
    assert np.allclose(actual, wanted, rtol=tolerance, atol=tolerance, equal_nan=True), (actual, wanted)


# ---- The calls -------------------------------------------------------------------------------------------------------


def check_mutual_information(case):
    arrays, groups = with_missing(case, variables(case, 2)), trials(case)
    case, method = with_method(case, *METHODS)
    wanted = expected(case, arrays, lambda sample, k: definitions.mutual_information(sample, k, method), groups=groups)
    actual = echo_ext.mutual_information(*given(case, arrays), method=method, groups=groups, **table_options(case))
    return compare(case, actual, wanted)


def check_conditional(case):
    arrays, groups = with_missing(case, variables(case, 3)), trials(case)
    case, method = with_method(case, *MULTIVARIATE)
    definition = definitions.conditional_mutual_information
    wanted = expected(case, arrays, lambda sample, k: definition(sample, k, method), groups=groups)
    actual = echo_ext.conditional_mutual_information(
        *given(case, arrays), method=method, groups=groups, **table_options(case)
    )
    return compare(case, actual, wanted)


def check_total_correlation(case):
    joint = np.concatenate(variables(replace(case, batch=((), ())), 3), -1)
    case, method = with_method(case, *MULTIVARIATE)
    columns = np.random.default_rng(case.numbers).permutation(joint.shape[1])
    cuts = np.cumsum(case.dims)[:-1]
    groups = [list(map(int, group)) for group in np.split(columns, cuts)] if case.option % 4 < 2 else None
    sets = groups or [[c] for c in range(joint.shape[1])]
    (joint,) = with_missing(case, [joint])
    wanted = expected(
        case,
        [joint],
        lambda sample, k: definitions.total_correlation(sample, k, method),
        split=lambda used: [used[0][:, group] for group in sets],
    )
    points = given(replace(case, numbers=1), [definitions.laid_out(joint, case.layout)])
    actual = echo_ext.total_correlation(*points, method=method, groups=groups, **table_options(case))
    return compare(case, actual, wanted)


def check_entropy(case):
    arrays, groups = with_missing(case, variables(case, 1)), trials(case)
    metric = case.pick(*METRICS)
    case, method = with_method(case, "knn", "knn", *definitions.CELL_METHODS)
    wanted = expected(case, arrays, lambda sample, k: definitions.entropy(sample, k, metric, method), groups=groups)
    actual = echo_ext.entropy(*given(case, arrays), method=method, metric=metric, groups=groups, **table_options(case))
    return compare(case, actual, wanted)


def check_discrete(case):
    arrays = variables(case, 1)
    rng = np.random.default_rng(case.numbers + 1)
    labels = rng.integers(0, case.pick(1, 2, 3, 5), (*case.batch[1], case.n))
    batch = np.broadcast_shapes(case.batch[0], case.batch[1])
    x = np.broadcast_to(arrays[0], (*batch, *arrays[0].shape[-2:]))
    y = np.broadcast_to(labels, (*batch, case.n))
    usable = definitions.allowed(case.n, case.window)
    conditions = rng.integers(0, 3, (*case.batch[0], case.n)) if case.option % 3 == 0 else None
    z = np.broadcast_to(0 if conditions is None else conditions, (*batch, case.n))
    same = (y[..., :, None] == y[..., None, :]) & (z[..., :, None] == z[..., None, :])
    shared = same.sum(-1) > 1
    left = (same & usable).sum(-1)
    if (shared & (left == 0)).any() or not shared.any(-1).all():
        return 0  # invalid calls are covered by test_fuzz_errors
    kind = case.pick("integers", "strings", "floats", "objects")
    passed = {
        "integers": labels,
        "strings": labels.astype(str),
        "floats": labels.astype(float),
        "objects": labels.astype(str).astype(object),
    }[kind]
    if case.as_tensor and kind in ("integers", "floats"):
        passed = torch.from_numpy(passed)
    actual = echo_ext.mutual_information_discrete(*given(case, arrays), passed, conditions, **options(case))
    values = [
        [
            definitions.mutual_information_discrete(x[index], y[index], k, case.window, z[index])
            for index in np.ndindex(*batch)
        ]
        for k in ks(case)
    ]
    values = np.array(values, dtype=np.float64).reshape(len(ks(case)), *batch, case.n)
    if not case.local:
        values = np.broadcast_to(np.nanmean(values, -1, keepdims=True), values.shape)
    return compare(case, actual, shaped(case, values))


def check_transfer_entropy(case):
    arrays = variables(case, 3 if case.option % 4 < 2 else 2)
    history, source_history, lag = case.pick(1, 2, 3), case.pick(1, 2), case.pick(1, 1, 2)
    given_history = case.option % 5 + 1 if len(arrays) == 3 else 0
    first = max(history, lag + source_history - 1, given_history)
    if max(ks(case)) > case.n - first - 1 - 2 * case.window:
        return 0
    case, method = with_method(case, *MULTIVARIATE)
    histories = {"history": history, "source_history": source_history, "lag": lag}
    if given_history:
        histories["given_history"] = given_history
    source, target, *others = given(case, arrays)
    passed = {"given": others[0]} if others else {}
    actual = echo_ext.transfer_entropy(source, target, method=method, **passed, **histories, **options(case))
    batch, each = items(case, arrays)
    samples = [Sample(definitions.embedding(*item, **histories), case.window) for item in each]
    conditional = definitions.conditional_mutual_information
    # The arguments (x, y, z) are the future of the target, the past of the source and the condition.
    values = np.array([[conditional(sample, k, method) for sample in samples] for k in ks(case)], dtype=np.float64)
    return compare(case, actual, shaped(case, values.reshape(len(ks(case)), *batch, case.n - first)))


def check_delays(case):
    arrays, groups = with_missing(case, variables(case, 2)), trials(case)
    case, method = with_method(case, *METHODS)
    lags = np.random.default_rng(case.numbers + 4).integers(-4, 5, case.pick(1, 3)).tolist()
    label = np.zeros(case.n) if groups is None else groups
    wanted = []
    for lag in lags:
        place = {(label[t], np.sum(label[:t] == label[t])): t for t in range(case.n)}  # by trial and time within it
        pairs = [(place[trial, time - lag], t) for (trial, time), t in place.items() if (trial, time - lag) in place]
        early, late = np.array(sorted(pairs, key=max), int).reshape(-1, 2).T
        at_lag = replace(case, n=len(pairs), local=False)
        sides = [arrays[0][..., early, :], arrays[1][..., late, :]]
        rows = row_numbers(case, groups)[np.maximum(early, late)]
        usable = definitions.allowed(len(pairs), case.window, rows)
        if len(pairs) < 2 or max(ks(case)) > usable.sum(1).min():
            raise TooFew
        definition = lambda sample, k: definitions.mutual_information(sample, k, method)  # noqa: E731
        wanted.append(expected(at_lag, sides, definition, rows=rows))
    keywords = {key: value for key, value in table_options(case).items() if key != "local"}
    actual = echo_ext.delayed_mutual_information(
        *given(case, arrays), lags=lags, method=method, groups=groups, **keywords
    )
    return compare(case, actual, np.stack(wanted, 1 if isinstance(case.k, tuple) else 0))


def check_matrix(case):
    with_itself, conditional = case.option % 3 == 0, case.numbers % 3 == 0
    x, y, z = variables(case, 3)
    case, method = with_method(case, *(MULTIVARIATE if conditional else METHODS))
    keywords = {key: value for key, value in options(case).items() if key != "local"}
    x_given, y_given, z_given = given(replace(case, numbers=1), [x, y, z])
    actual = echo_ext.mutual_information_matrix(
        x_given, None if with_itself else y_given, given=z_given if conditional else None, method=method, **keywords
    )
    used = [x, x if with_itself else y, *([z] if conditional else [])]
    estimate = definitions.conditional_mutual_information if conditional else definitions.mutual_information
    batch, each = items(case, used)
    values = np.array(
        [
            [
                [
                    [
                        estimate(Sample([x[:, [i]], y[:, [j]], *others], case.window), k, method).mean()
                        for j in range(y.shape[1])
                    ]
                    for i in range(x.shape[1])
                ]
                for x, y, *others in each
            ]
            for k in ks(case)
        ],
        dtype=np.float64,
    ).reshape(len(ks(case)), *batch, used[0].shape[-1], used[1].shape[-1])
    return compare(replace(case, local=True), actual, shaped(replace(case, local=True), values))


def check_knn(case):
    metric = case.pick(*METRICS)
    (points,) = variables(case, 1)
    k = max(ks(case))
    with_queries = case.option % 3 == 2
    rng = np.random.default_rng(case.numbers + 1)
    window = 0 if with_queries else case.window
    arrays = [points]
    if with_queries:
        shape = (*case.batch[1], case.pick(1, 3, 9, 0), case.dims[0])
        arrays.append(definitions.laid_out(definitions.sample(rng, case.kind, shape, points.dtype.type), case.layout))
    passed = given(replace(case, numbers=1), arrays)
    found = echo_ext.knn(*passed, k=k, metric=metric, exclude_within=window)
    batch, each = items(case, arrays)
    wanted = []
    for item in each:
        distance = definitions.distances(item[0], item[-1], euclidean=metric == "euclidean")
        usable = np.ones(distance.shape, bool) if with_queries else definitions.allowed(case.n, window)
        neighbors = definitions.nearest(distance, usable, k)
        values = np.take_along_axis(distance, neighbors, 1)
        wanted.append((np.sqrt(values) if metric == "euclidean" else values, neighbors))
    rows = arrays[-1].shape[-2]
    distances = np.array([each[0] for each in wanted], dtype=points.dtype).reshape(*batch, rows, k)
    indices = np.array([each[1] for each in wanted], dtype=np.int64).reshape(*batch, rows, k)
    found = [np.asarray(each) for each in found]
    assert found[0].dtype == points.dtype
    rounding = 2 * np.finfo(points.dtype).eps if metric == "euclidean" else 0  # the square root is rounded
    assert np.allclose(found[0], distances, rtol=rounding, atol=0), (found[0], distances)
    assert np.array_equal(found[1], indices), (found[1], indices)
    return 1


def check_count_within(case):
    metric, inclusive = case.pick(*METRICS), case.option % 3 == 0
    (points,) = variables(case, 1)
    with_queries = case.option % 4 == 3
    rng = np.random.default_rng(case.numbers + 1)
    window = 0 if with_queries else case.window
    arrays = [points]
    if with_queries:
        shape = (*case.batch[1], case.pick(1, 3, 9, 0), case.dims[0])
        arrays.append(definitions.sample(rng, case.kind, shape, points.dtype.type))
    batch, each = items(case, arrays)
    m = arrays[-1].shape[-2]
    euclidean = metric == "euclidean"
    apart = [definitions.distances(item[0], item[-1], euclidean=euclidean) for item in each]
    # Half of the radii are distances to some point, at which the comparison has to be exact.
    radii = np.array([distance[np.arange(m), rng.integers(0, case.n, m)] for distance in apart]).reshape(*batch, m)
    radii = (np.sqrt(radii) if euclidean else radii) * rng.choice([1, 1, 0.5, -1], (*batch, m))
    radii = radii.astype(points.dtype)
    limits = (np.where(radii < 0, -1, radii * radii) if euclidean else radii).reshape(len(each), m, 1)
    usable = np.ones((m, case.n), bool) if with_queries else definitions.allowed(case.n, window)
    near = [distance <= limit if inclusive else distance < limit for distance, limit in zip(apart, limits, strict=True)]
    wanted = np.array([(one & usable).sum(1) for one in near], np.int64).reshape(*batch, m)
    passed = given(replace(case, numbers=1), [points, radii, *arrays[1:]])
    found = echo_ext.count_within(*passed, metric=metric, inclusive=inclusive, exclude_within=window)
    assert np.array_equal(np.asarray(found), wanted), (found, wanted)
    return 1


def check_sklearn(case):
    rng = np.random.default_rng(case.numbers)
    n = max(case.n, 8)
    X = definitions.sample(rng, case.pick("normal", "ties", "lattice"), (n, sum(case.dims)), np.float64)
    mask = rng.random(X.shape[1]) < 0.3
    X[:, mask] = np.round(X[:, mask])
    continuous = case.option % 2 == 0
    y = rng.standard_normal(n) if continuous else rng.integers(0, 3, n)
    name = "mutual_info_regression" if continuous else "mutual_info_classif"
    keywords = {
        "discrete_features": case.pick("auto", mask, False),
        "n_neighbors": min(max(ks(case)), n // 4),
        "random_state": case.numbers % 2**32,
    }
    outcomes = []
    for module in (echo_ext.sklearn, feature_selection):
        try:
            outcomes.append(getattr(module, name)(X, y, **keywords))
        except ValueError as error:
            outcomes.append(error)
    if isinstance(outcomes[1], ValueError):
        assert isinstance(outcomes[0], ValueError), outcomes
    else:
        assert np.allclose(*outcomes, rtol=0, atol=1e-9), outcomes
    return 1


CALLS = {
    "mutual_information": check_mutual_information,
    "conditional_mutual_information": check_conditional,
    "total_correlation": check_total_correlation,
    "entropy": check_entropy,
    "mutual_information_discrete": check_discrete,
    "transfer_entropy": check_transfer_entropy,
    "delayed_mutual_information": check_delays,
    "mutual_information_matrix": check_matrix,
    "knn": check_knn,
    "count_within": check_count_within,
}
cases = _cases()


test_short_run, test_long_run = fuzzing.tests_of(__file__)
