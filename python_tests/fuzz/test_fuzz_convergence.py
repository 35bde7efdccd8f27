"""Estimates from parts of the sample compared with brute force on each part, for the partitions of a given seed."""

from __future__ import annotations

from dataclasses import dataclass

import fuzzing
import hypothesis.strategies as st
import information_definitions as definitions
import numpy as np
import torch
from information_definitions import Sample

import echo_ext
from echo_ext._native import num_threads

METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed", "plug-in", "miller-madow")


@dataclass(frozen=True)
class Case:
    numbers: int  # NumPy's seed
    n: int
    dims: tuple[int, int]
    sizes: tuple[int, ...] | None
    k: tuple[int, ...]
    window: int
    method: str
    kind: str
    dtype: str
    layout: str
    batch: int | None
    as_tensor: bool
    unit: str
    repeats: int
    seed: int
    threads: int


@st.composite
def _cases(draw):
    n, window = draw(st.integers(2, 24)), draw(st.sampled_from([0, 0, 0, 1, 2]))
    window = min(window, (n - 2) // 2)
    smallest = draw(st.integers(2 + 2 * window, n))
    return Case(
        numbers=draw(st.integers(0, 2**32)),
        n=n,
        dims=(draw(st.sampled_from([1, 1, 2, 4])), draw(st.sampled_from([1, 1, 3]))),
        sizes=draw(st.none() | st.lists(st.integers(smallest, n), min_size=1, max_size=3).map(tuple)),
        k=tuple(draw(st.lists(st.integers(1, smallest - 1 - 2 * window), min_size=1, max_size=3))),
        window=window,
        method=draw(st.sampled_from(METHODS)),
        kind=draw(st.sampled_from(definitions.KINDS)),
        dtype=draw(st.sampled_from(["float64", "float32"])),
        layout=draw(st.sampled_from(definitions.LAYOUTS)),
        batch=draw(st.sampled_from([None, None, 1, 2])),
        as_tensor=draw(st.booleans()),
        unit=draw(st.sampled_from(["nats", "bits"])),
        repeats=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 2**63 - 1)),
        threads=draw(st.integers(1, 3)),
    )


cases = _cases()


def check(case):
    rng = np.random.default_rng(case.numbers)
    batch = () if case.batch is None else (case.batch,)
    x, y = (
        definitions.laid_out(definitions.sample(rng, case.kind, (*of, case.n, dim), np.dtype(case.dtype)), case.layout)
        for of, dim in zip((batch, ()), case.dims, strict=True)
    )
    given = [torch.from_numpy(np.array(v)) for v in (x, y)] if case.as_tensor else [x, y]
    with num_threads(case.threads), np.errstate(all="ignore"):
        found = echo_ext.mutual_information_convergence(
            *given,
            sizes=case.sizes,
            k=case.k,
            method=case.method,
            unit=case.unit,
            exclude_within=case.window,
            repeats=case.repeats,
            seed=case.seed,
        )
        possible = (case.n // 8, case.n // 4, case.n // 2, case.n)
        enough = 0 if case.method in definitions.CELL_METHODS else max(case.k) + 2 * case.window
        sizes = (
            tuple(size for size in possible if size > enough or size == case.n) if case.sizes is None else case.sizes
        )
        assert (found.sizes, found.k) == (sizes, case.k)
        partitions = list(partitions_of(case, sizes))
        items = [x] if case.batch is None else list(x)
        wanted = [expected(case, item, y, sizes, partitions) for item in items]
    tolerance = 1e-9 if case.dtype == "float64" else 3e-6
    for which, name in enumerate(("estimates", "standard_errors")):
        values = getattr(found, name)
        assert isinstance(values, torch.Tensor if case.as_tensor else np.ndarray)
        values = np.asarray(values)
        assert values.dtype == case.dtype
        each = [one[which] for one in wanted]
        right = each[0] if case.batch is None else np.stack(each, -1)
        # The standard error is the root of a difference of numbers that may be equal.
        absolute = tolerance if name == "estimates" else 1e-6
        assert values.shape == right.shape
        assert np.allclose(values, right, rtol=tolerance, atol=absolute, equal_nan=True), (name, values, right)
    return 1


def partitions_of(case, sizes):
    """Yield the rows of the parts of each size, (repeats, parts, size)."""
    generator = torch.Generator().manual_seed(case.seed)
    for size in sizes:
        if size == case.n or case.window > 0:
            orders = [np.arange(case.n)]
        else:
            orders = [torch.randperm(case.n, generator=generator).numpy() for _ in range(case.repeats)]
        parts = case.n // size
        yield np.stack([order[: parts * size].reshape(parts, size) for order in orders])


def expected(case, x, y, sizes, partitions):
    """Return the means and the standard errors, (sizes, k) each."""
    means, squares, freedom = [], 0.0, 0
    for size, partition in zip(sizes, partitions, strict=True):
        each = np.array([[estimates(case, x[rows], y[rows]) for rows in parts] for parts in partition])
        means.append(each.mean((0, 1)))
        if each.shape[1] > 1:
            squares = squares + ((each - each.mean(1, keepdims=True)) ** 2).sum(1).mean(0) * size
            freedom += each.shape[1] - 1
    means = np.array(means)
    variance = squares / freedom if freedom else np.full(len(case.k), np.nan)
    return means, np.array([np.sqrt(variance / (case.n // size * size)) for size in sizes])


def estimates(case, x, y):
    sample = Sample([x, y], case.window)
    return [
        definitions.mutual_information(sample, k, case.method).mean() * definitions.UNITS[case.unit] for k in case.k
    ]


test_short_run, test_long_run = fuzzing.tests_of(__file__)
