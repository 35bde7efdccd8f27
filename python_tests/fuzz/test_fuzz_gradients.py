"""Gradients compared with extended-precision adjoints and with brute force over all pairs of samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import echo_definitions
import fuzzing
import hypothesis.strategies as st
import information_definitions
import numpy as np
import torch
from echo_definitions import DTYPES, SAMPLINGS
from information_definitions import Sample

import echo_ext
from echo_ext._native import num_threads

SIGNALS = ("bounded", "zero", "one", "subnormal")
SCALES = ("bounded", "zero", "one", "above_one", "subnormal")


@dataclass(frozen=True)
class NoiseCase:
    numbers: int
    seed: int
    dtype: str
    rows: int
    shape: tuple[int, ...]
    bank_rows: int | None
    num_terms: int | None
    sampling: str
    of_sample: bool
    kind_f: str
    kind_s: str
    layout: str
    threads: int


@st.composite
def _noise_cases(draw):
    bank_rows = draw(st.none() | st.sampled_from([1, 2, 3, 7, 16]))
    rows = draw(st.sampled_from([2, 3, 4, 7, 13]))
    available = rows - 1 if bank_rows is None else bank_rows
    return NoiseCase(
        numbers=draw(st.integers(0, 2**32)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        rows=rows,
        shape=draw(st.sampled_from(echo_definitions.SHAPES)),
        bank_rows=bank_rows,
        num_terms=draw(st.none() | st.integers(1, available)),
        sampling=draw(st.sampled_from(SAMPLINGS)),
        of_sample=draw(st.booleans()),
        kind_f=draw(st.sampled_from(SIGNALS)),
        kind_s=draw(st.sampled_from(SCALES)),
        layout=draw(st.sampled_from(echo_definitions.LAYOUTS)),
        threads=draw(st.integers(1, 3)),
    )


@dataclass(frozen=True)
class MatrixCase:
    numbers: int
    seed: int
    dtype: str
    rows: int
    dim: int
    norm: float
    threads: int


_matrix_cases = st.builds(
    MatrixCase,
    numbers=st.integers(0, 2**32),
    seed=st.integers(-(2**63), 2**63 - 1),
    dtype=st.sampled_from(sorted(DTYPES)),
    rows=st.sampled_from([2, 3, 5, 8, 13]),
    dim=st.sampled_from([1, 2, 3, 4, 5, 8, 9]),
    norm=st.sampled_from([0.0, 0.3, 0.9]),
    threads=st.integers(1, 3),
)


@dataclass(frozen=True)
class EstimateCase:
    numbers: int
    n: int
    dims: tuple[int, int]
    k: tuple[int, ...]
    window: int
    width: int
    kind: str
    dtype: str
    metric: str | None  # of the entropy; None for mutual information
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    local: bool
    threads: int


@st.composite
def _estimate_cases(draw):
    n = draw(st.sampled_from([3, 5, 8, 12, 17, 25]))
    window = draw(st.sampled_from([0, 0, 0, 1, 2])) if n > 5 else 0
    return EstimateCase(
        numbers=draw(st.integers(0, 2**32)),
        n=n,
        dims=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        k=tuple(draw(st.lists(st.integers(1, n - 1 - 2 * window), min_size=1, max_size=2))),
        window=window,
        width=draw(st.sampled_from([1, 2, 10])),
        kind=draw(st.sampled_from(["normal", "ties", "lattice", "duplicates", "constant", "line"])),
        dtype=draw(st.sampled_from(["float64", "float32"])),
        metric=draw(st.sampled_from([None, "chebyshev", "euclidean"])),
        batch=draw(st.sampled_from([((), ()), ((), ()), ((2,), ()), ((2, 1), (2,)), ((0,), ())])),
        local=draw(st.booleans()),
        threads=draw(st.integers(1, 3)),
    )


cases = st.integers(0, 9).flatmap(
    lambda pick: _noise_cases() if pick < 6 else _matrix_cases if pick == 9 else _estimate_cases()
)


def check(case):
    checks = {NoiseCase: check_noise, MatrixCase: check_matrix, EstimateCase: check_estimate}
    with num_threads(case.threads), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return checks[type(case)](case)


def check_noise(case):
    rng = np.random.default_rng(case.numbers)
    dtype = DTYPES[case.dtype]

    def leaf(kind, rows):
        plain = echo_definitions.tensor(rng, kind, (rows, *case.shape), dtype, case.layout)
        return plain.detach().requires_grad_()

    tensors = [leaf(case.kind_f, case.rows), leaf(case.kind_s, case.rows)]
    if case.bank_rows is not None:
        tensors += [leaf(case.kind_f, case.bank_rows), leaf(case.kind_s, case.bank_rows)]
    options = {"num_terms": case.num_terms, "sampling": case.sampling, "seed": case.seed}
    indices = echo_ext.echo_indices(case.rows, bank_size=case.bank_rows, **options).numpy()
    call = echo_ext.echo_sample if case.of_sample else echo_ext.echo_noise
    value = call(*tensors[:2], bank=tensors[2:] or None, **options)
    grad = echo_definitions.tensor(rng, "bounded", value.shape, dtype, case.layout)
    used = tensors if case.of_sample else tensors[-2:]
    gradients = torch.autograd.grad(value, used, grad)
    echo_definitions.check_gradients(gradients, used, grad, indices, of_sample=case.of_sample)
    return len(used)


def check_matrix(case):
    rng = np.random.default_rng(case.numbers)
    dtype = DTYPES[case.dtype]
    f = echo_definitions.tensor(rng, "bounded", (case.rows, case.dim), dtype, "contiguous").requires_grad_()
    matrices = rng.standard_normal((case.rows, case.dim, case.dim))
    matrices *= case.norm / np.linalg.norm(matrices, 2, (1, 2), keepdims=True)
    S = torch.from_numpy(matrices).to(dtype).requires_grad_()
    z = echo_ext.echo_sample_matrix(f, S, seed=case.seed)
    grad = echo_definitions.tensor(rng, "bounded", z.shape, dtype, "transposed")
    actual = torch.autograd.grad(z, (f, S), grad)
    order = echo_ext.echo_indices(1, sampling="ring", seed=case.seed, bank_size=case.rows).numpy()[0]
    wide_f, wide_S = echo_definitions.wide(f), echo_definitions.wide(S)
    values = echo_definitions.matrix_ring(wide_f, wide_S, order)
    expected = echo_definitions.matrix_gradients(values, wide_S, order, echo_definitions.wide(grad))
    largest = 1 + np.abs(values).max() + np.abs(expected[0]).max()
    for ours, theirs in zip(actual, expected, strict=True):
        bound = echo_definitions.matrix_bound(np.atleast_2d(theirs), case.norm, dtype).reshape(theirs.shape)
        echo_definitions.check_near(ours, theirs, bound * largest)
    return 2


# ---- Estimates -------------------------------------------------------------------------------------------------------


def check_estimate(case):
    rng = np.random.default_rng(case.numbers)
    dtype = np.dtype(case.dtype).type
    count = 1 if case.metric else 2
    arrays = [
        information_definitions.sample(rng, case.kind, (*case.batch[i], case.n, case.dims[i]), dtype)
        for i in range(count)
    ]
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    options = {"k": list(case.k), "local": case.local, "exclude_within": case.window}
    if case.metric:
        value = echo_ext.entropy(*tensors, metric=case.metric, **options)
    else:
        value = echo_ext.mutual_information(*tensors, boundary_width=case.width, **options)
    grad = torch.from_numpy(rng.standard_normal(value.shape).astype(dtype))
    actual = torch.autograd.grad(value, tensors, grad)

    batch = np.broadcast_shapes(*(array.shape[:-2] for array in arrays))
    share = 1.0 if case.local else 1.0 / case.n
    upstream = grad.numpy().astype(np.float64)
    upstream = np.broadcast_to(upstream if case.local else upstream[..., None], (len(case.k), *batch, case.n)) * share
    expected = [np.zeros(array.shape) for array in arrays]
    views = [np.broadcast_to(array, (*batch, *array.shape[-2:])) for array in arrays]
    for index in np.ndindex(*batch):
        sample = Sample([view[index] for view in views], case.window)
        for k, weights in zip(case.k, upstream, strict=True):
            if case.metric:
                parts = information_definitions.entropy_gradient(sample, k, case.metric, weights[index])
            else:
                parts = information_definitions.mutual_information_gradient(sample, k, case.width, weights[index])
            for total, part in zip(expected, parts, strict=True):
                lead = len(batch) - (total.ndim - 2)
                own = tuple(i if size > 1 else 0 for i, size in zip(index[lead:], total.shape[:-2], strict=True))
                total[own] += part
    tolerance = 1e-9 if case.dtype == "float64" else 2e-4
    for ours, theirs in zip(actual, expected, strict=True):
        ours = ours.numpy()
        assert ours.dtype == case.dtype
        finite = np.isfinite(theirs)  # the derivative at a repeated sample is infinite
        scale = 1 + np.abs(theirs[finite]).max(initial=0)
        assert np.allclose(ours[finite], theirs[finite], rtol=tolerance, atol=tolerance * scale), (ours, theirs)
    return len(tensors)


test_short_run, test_long_run = fuzzing.tests_of(__file__)
