"""The tests of independence and the standard error compared with all permutations of a few samples."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import fuzzing
import hypothesis.strategies as st
import information_definitions as definitions
import numpy as np
import torch
from information_definitions import Sample

import echo_ext
from echo_ext._native import num_threads

METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed", "plug-in", "miller-madow")
BATCHES = ((), ()), ((), ()), ((2,), ()), ((2, 1), (1, 2)), ((), (1,))


@dataclass(frozen=True)
class Case:
    numbers: int  # NumPy's seed
    call: str
    n: int
    dims: tuple[int, int]
    k: int
    window: int
    method: str
    kind: str
    dtype: str
    layout: str
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    as_tensor: bool
    unit: str
    rounds: int  # permutations of the test, repeats of the standard error
    parts: int
    seed: int | None
    threads: int


@st.composite
def _cases(draw):
    call = draw(st.sampled_from(["independence_test", "conditional", "with_standard_error"]))
    parts = draw(st.integers(2, 4)) if call == "with_standard_error" else 1
    # Either few enough samples to enumerate all permutations, or more, for which only the other checks apply.
    n = draw(st.sampled_from([4, 4, 5, 6, 9, 16, 24, 40]))
    window = draw(st.sampled_from([0, 0, 0, 1, 2]))
    if n // parts - 1 - 2 * window < 1:
        parts, window = min(parts, n // 2), 0
    return Case(
        numbers=draw(st.integers(0, 2**32)),
        call=call,
        n=n,
        dims=(draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2]))),
        k=draw(st.integers(1, n // parts - 1 - 2 * window)),
        window=window,
        method=draw(st.sampled_from(METHODS)),
        kind=draw(st.sampled_from(definitions.KINDS)),
        dtype=draw(st.sampled_from(["float64", "float32"])),
        layout=draw(st.sampled_from(definitions.LAYOUTS)),
        batch=draw(st.sampled_from(BATCHES)),
        as_tensor=draw(st.booleans()),
        unit=draw(st.sampled_from(["nats", "bits"])),
        rounds=draw(st.integers(1, 20)),
        parts=parts,
        seed=draw(st.none() | st.integers(0, 2**63 - 1)),
        threads=draw(st.integers(1, 3)),
    )


cases = _cases()


def check(case):
    checks = {"independence_test": check_test, "conditional": check_conditional_test}
    with num_threads(case.threads), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return checks.get(case.call, check_error)(case)


def variables(case):
    rng = np.random.default_rng(case.numbers)
    dtype = np.dtype(case.dtype).type
    return [
        definitions.laid_out(definitions.sample(rng, case.kind, (*batch, case.n, dim), dtype), case.layout)
        for batch, dim in zip(case.batch, case.dims, strict=True)
    ]


def call(case, function, arrays, **options):
    given = [torch.from_numpy(np.array(array)) for array in arrays] if case.as_tensor else arrays
    torch.manual_seed(case.numbers)  # determines the draws if seed is None
    result = function(
        *given,
        k=case.k,
        method=case.method,
        unit=case.unit,
        exclude_within=case.window,
        seed=case.seed,
        **options,
    )
    for value in result:
        if case.as_tensor:
            assert isinstance(value, torch.Tensor)
            assert value.dtype == getattr(torch, case.dtype)
    return [np.asarray(value) for value in result]


def estimate(case, x, y):
    """Return the mutual information of one pair of (N, d) samples."""
    values = definitions.mutual_information(Sample([x, y], case.window), case.k, case.method)
    return values.mean() * definitions.UNITS[case.unit]


def items(arrays):
    batch = np.broadcast_shapes(*(array.shape[:-2] for array in arrays))
    spread = [np.broadcast_to(array, (*batch, *array.shape[-2:])) for array in arrays]
    return batch, [(index, *(array[index] for array in spread)) for index in np.ndindex(*batch)]


def near(case, actual, wanted):
    tolerance = 1e-9 if case.dtype == "float64" else 3e-6
    return np.isclose(actual, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


@lru_cache
def orders(n):
    return [list(order) for order in itertools.permutations(range(n))]


def check_results(case, result, batch, wanted):
    """Check the statistic, and the p-value against the estimates with surrogates, of which there are all."""
    observed, p_value, null = result
    assert observed.shape == p_value.shape == batch
    assert null.shape == (case.rounds, *batch)
    assert near(case, observed, wanted).all(), (observed, wanted)
    tolerance = 1e-9 if case.dtype == "float64" else 1e-5
    low, high = ((null >= observed + shift).sum(0) for shift in (tolerance, -tolerance))
    reached = p_value * (1 + case.rounds) - 1
    assert ((low - 1e-3 <= reached) & (reached <= high + 1e-3)).all(), (p_value, low, high)


def check_test(case):
    arrays = variables(case)
    steps = []
    result = call(case, echo_ext.independence_test, arrays, n_resamples=case.rounds, progress=steps.append)
    batch, each = items(arrays)
    assert steps[-1] == case.rounds
    check_results(case, result, batch, np.array([estimate(case, x, y) for _, x, y in each]).reshape(batch))
    if case.n <= 4:
        for index, x, y in each:
            possible = np.array([estimate(case, x, y[order]) for order in orders(case.n)])
            for value in result[2][(slice(None), *index)]:
                assert near(case, value, possible).any(), (value, possible)
    again = call(case, echo_ext.independence_test, arrays, n_resamples=case.rounds)
    for first, second in zip(result, again, strict=True):
        assert np.array_equal(first, second, equal_nan=True), "a repeated call differs"
    return 2


def check_conditional_test(case):
    """Surrogates exchange the rows of y among those that are nearest in z, of which each row has a few."""
    arrays = variables(case)
    z = definitions.sample(np.random.default_rng(case.numbers + 1), case.kind, (case.n, 2), np.dtype(case.dtype).type)
    case = replace(case, method="mixed" if case.method == "mixed" else "ksg1")
    near_z = min(3, case.n - 1)
    options = {"n_resamples": case.rounds, "shuffle_neighbors": near_z}
    result = call(case, echo_ext.independence_test, [*arrays, z], **options)
    batch, each = items(arrays)
    definition = definitions.conditional_mutual_information
    unit = definitions.UNITS[case.unit]

    def conditional(x, y):
        return definition(Sample([x, y, z], case.window), case.k, case.method).mean() * unit

    is_constant = bool((z == z[:1]).all())
    if not is_constant:
        check_results(case, result, batch, np.array([conditional(x, y) for _, x, y in each]).reshape(batch))
    if case.n <= 4 and not is_constant:
        distance = np.abs(z[:, None] - z[None]).max(-1)
        # Distances below the smallest normal numbers count as ties.
        reach = np.maximum(np.sort(distance, axis=1)[:, near_z - 1], case.n * np.finfo(z.dtype).tiny)
        for index, x, y in each:
            allowed = [np.flatnonzero(distance[i] <= reach[i]) for i in range(case.n)]
            possible = np.array([conditional(x, y[list(order)]) for order in itertools.product(*allowed)])
            for value in result[2][(slice(None), *index)]:
                assert near(case, value, possible).any(), (value, possible)
    return 1


def check_error(case):
    arrays = variables(case)
    options = {"parts": case.parts, "repeats": min(case.rounds, 4)}
    result = call(case, partial(echo_ext.with_standard_error, echo_ext.mutual_information), arrays, **options)
    observed, error = result
    batch, each = items(arrays)
    assert observed.shape == error.shape == batch
    wanted = np.array([estimate(case, x, y) for _, x, y in each]).reshape(batch)
    assert near(case, observed, wanted).all(), (observed, wanted)
    size = case.n // case.parts

    def standard_error(x, y, order):
        rows = np.array(order[: size * case.parts]).reshape(case.parts, size)
        return np.sqrt(np.var([estimate(case, x[part], y[part]) for part in rows], ddof=1) / case.parts)

    tolerance = {"rtol": 1e-6, "atol": 1e-7} if case.dtype == "float64" else {"rtol": 1e-3, "atol": 1e-4}
    for index, x, y in each:
        if case.window > 0:  # the parts are consecutive
            wanted = standard_error(x, y, range(case.n))
            assert np.allclose(error[index], wanted, equal_nan=True, **tolerance), (error[index], wanted)
        elif case.n == 4 and options["repeats"] == 1:
            possible = np.array([standard_error(x, y, order) for order in orders(4)])
            assert np.isclose(error[index], possible, equal_nan=True, **tolerance).any(), (error[index], possible)
    again = call(case, partial(echo_ext.with_standard_error, echo_ext.mutual_information), arrays, **options)
    for first, second in zip(result, again, strict=True):
        assert np.array_equal(first, second, equal_nan=True), "a repeated call differs"
    return 2


test_short_run, test_long_run = fuzzing.tests_of(__file__)
