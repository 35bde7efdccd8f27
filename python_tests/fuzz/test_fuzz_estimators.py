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
        threads=draw(st.integers(1, 3)),
    )


def check(case):
    with num_threads(case.threads), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return check_sklearn(case) if case.call == "sklearn" else CALLS[case.call](case)


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


def items(case, arrays):
    """Return the broadcast batch shape and, for each item of the batch, its (N, d) variables."""
    batch = np.broadcast_shapes(*(array.shape[:-2] for array in arrays))
    spread = [np.broadcast_to(array, (*batch, *array.shape[-2:])) for array in arrays]
    return batch, [[array[index] for array in spread] for index in np.ndindex(*batch)]


def expected(case, arrays, local_values, window=None):
    """Return the expected result, from a function that maps (sample, k) to N local values."""
    window = case.window if window is None else window
    batch, each = items(case, arrays)
    samples = [Sample(item, window) for item in each]
    n = arrays[0].shape[-2]
    values = np.array([[local_values(sample, k) for sample in samples] for k in ks(case)], dtype=np.float64)
    return shaped(case, values.reshape(len(ks(case)), *batch, n))


def shaped(case, values):
    """Convert (K, *batch, N) local values in nats to the shape and unit of the call."""
    values = values if case.local else values.mean(-1)
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
    arrays = variables(case, 2)
    method = case.pick(*METHODS)
    actual = echo_ext.mutual_information(*given(case, arrays), method=method, **options(case))
    wanted = expected(case, arrays, lambda sample, k: definitions.mutual_information(sample, k, method))
    return compare(case, actual, wanted)


def check_conditional(case):
    arrays = variables(case, 3)
    method = case.pick(*MULTIVARIATE)
    actual = echo_ext.conditional_mutual_information(*given(case, arrays), method=method, **options(case))
    wanted = expected(case, arrays, lambda sample, k: definitions.conditional_mutual_information(sample, k, method))
    return compare(case, actual, wanted)


def check_total_correlation(case):
    joint = np.concatenate(variables(replace(case, batch=((), ())), 3), -1)
    method = case.pick(*MULTIVARIATE)
    columns = np.random.default_rng(case.numbers).permutation(joint.shape[1])
    cuts = np.cumsum(case.dims)[:-1]
    groups = [list(map(int, group)) for group in np.split(columns, cuts)] if case.option % 4 < 2 else None
    sets = groups or [[c] for c in range(joint.shape[1])]
    points = given(replace(case, numbers=1), [definitions.laid_out(joint, case.layout)])
    actual = echo_ext.total_correlation(*points, method=method, groups=groups, **options(case))
    arrays = [joint[:, group] for group in sets]
    wanted = expected(case, arrays, lambda sample, k: definitions.total_correlation(sample, k, method))
    return compare(case, actual, wanted)


def check_entropy(case):
    arrays = variables(case, 1)
    metric, method = case.pick(*METRICS), case.pick("knn", "knn", *definitions.CELL_METHODS)
    actual = echo_ext.entropy(*given(case, arrays), method=method, metric=metric, **options(case))
    wanted = expected(case, arrays, lambda sample, k: definitions.entropy(sample, k, metric, method))
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
    arrays = variables(case, 2)
    history, source_history, lag = case.pick(1, 2, 3), case.pick(1, 2), case.pick(1, 1, 2)
    first = max(history, lag + source_history - 1)
    if max(ks(case)) > case.n - first - 1 - 2 * case.window:
        return 0
    method = case.pick(*MULTIVARIATE)
    histories = {"history": history, "source_history": source_history, "lag": lag}
    actual = echo_ext.transfer_entropy(*given(case, arrays), method=method, **histories, **options(case))
    batch, each = items(case, arrays)
    samples = [Sample(definitions.embedding(*item, history, source_history, lag), case.window) for item in each]
    conditional = definitions.conditional_mutual_information
    # The arguments (x, y, z) are the future of the target, the past of the source and the past of the target.
    values = np.array([[conditional(sample, k, method) for sample in samples] for k in ks(case)], dtype=np.float64)
    return compare(case, actual, shaped(case, values.reshape(len(ks(case)), *batch, case.n - first)))


def check_matrix(case):
    arrays = variables(case, 2)
    method = case.pick(*METHODS)
    keywords = {key: value for key, value in options(case).items() if key != "local"}
    with_itself = case.option % 3 == 0
    passed = given(replace(case, numbers=1), arrays)
    actual = echo_ext.mutual_information_matrix(*(passed[:1] if with_itself else passed), method=method, **keywords)
    used = [arrays[0], arrays[0]] if with_itself else arrays
    batch, each = items(case, used)
    values = np.array(
        [
            [
                [
                    [
                        definitions.mutual_information(Sample([x[:, [i]], y[:, [j]]], case.window), k, method).mean()
                        for j in range(y.shape[1])
                    ]
                    for i in range(x.shape[1])
                ]
                for x, y in each
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
    "mutual_information_matrix": check_matrix,
    "knn": check_knn,
}
cases = _cases()


test_short_run, test_long_run = fuzzing.tests_of(__file__)
