"""Echo noise and its draws compared with extended-precision definitions written from the docstrings."""

from __future__ import annotations

from dataclasses import dataclass

import echo_definitions as definitions
import fuzzing
import hypothesis.strategies as st
import numpy as np
import torch
from echo_definitions import DTYPES, SAMPLINGS

import echo_ext
from echo_ext._native import num_threads


@dataclass(frozen=True)
class Case:
    numbers: int  # NumPy's seed
    seed: int
    seed_is_tensor: bool
    dtype: str
    rows: int
    shape: tuple[int, ...]
    bank_rows: int | None
    size: int | None
    num_terms: int | None
    sampling: str
    kind_f: str
    kind_s: str
    layout: str
    threads: int


@st.composite
def _cases(draw):
    is_large = draw(st.integers(0, 199)) == 199  # only large problems use several threads
    bank_rows = draw(st.none() | st.sampled_from([1, 2, 3, 5, 17, 31]))
    rows = 67 if is_large else draw(st.sampled_from([1, 2, 3, 4, 7, 13, 0]))
    if bank_rows is None:
        rows = max(rows, 2)
    available = rows - 1 if bank_rows is None else bank_rows
    return Case(
        numbers=draw(st.integers(0, 2**32)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        seed_is_tensor=draw(st.booleans()),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        rows=rows,
        shape=(257,) if is_large else draw(st.sampled_from(definitions.SHAPES)),
        bank_rows=bank_rows,
        size=draw(st.none() | st.integers(1, 40)) if bank_rows is not None else None,
        num_terms=None if is_large else draw(st.none() | st.integers(1, available)),
        sampling=draw(st.sampled_from(SAMPLINGS)),
        kind_f=draw(st.sampled_from(definitions.SIGNALS)),
        kind_s=draw(st.sampled_from(definitions.SCALES)),
        layout=draw(st.sampled_from(definitions.LAYOUTS)),
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
    layout: str
    threads: int


_matrix_cases = st.builds(
    MatrixCase,
    numbers=st.integers(0, 2**32),
    seed=st.integers(-(2**63), 2**63 - 1),
    dtype=st.sampled_from(sorted(DTYPES)),
    rows=st.sampled_from([2, 3, 5, 8, 13]),
    dim=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 17]),
    norm=st.sampled_from([0.0, 0.3, 0.9, 0.99]),
    layout=st.sampled_from(definitions.LAYOUTS),
    threads=st.integers(1, 3),
)

cases = st.integers(0, 9).flatmap(lambda pick: _matrix_cases if pick == 9 else _cases())


def check(case):
    with num_threads(case.threads):
        return check_matrix(case) if isinstance(case, MatrixCase) else check_noise(case)


def check_noise(case):
    rng = np.random.default_rng(case.numbers)
    dtype = DTYPES[case.dtype]
    f = definitions.tensor(rng, case.kind_f, (case.rows, *case.shape), dtype, case.layout)
    s = definitions.tensor(rng, case.kind_s, (case.rows, *case.shape), dtype, case.layout)
    bank = None
    if case.bank_rows is not None:
        bank_shape = (case.bank_rows, *case.shape)
        bank = (
            definitions.tensor(rng, case.kind_f, bank_shape, dtype, case.layout),
            definitions.tensor(rng, case.kind_s, bank_shape, dtype, case.layout),
        )
    inputs = [f, s, *(bank or ())]
    before = [definitions.bits(tensor).copy() for tensor in inputs]
    seed = torch.tensor(case.seed) if case.seed_is_tensor else case.seed
    options = {"num_terms": case.num_terms, "sampling": case.sampling, "seed": seed}

    noises = case.rows if case.size is None else case.size
    calls = 2
    indices = noise_indices = None
    if case.rows > 0:
        indices = _draws(case, case.rows, options)
    if noises == case.rows:
        noise_indices = indices
    elif noises > 0:
        noise_indices = _draws(case, noises, options)
    z = echo_ext.echo_sample(f, s, bank=bank, **options)
    noise = echo_ext.echo_noise(f, s, bank=bank, size=case.size, **options)
    for tensor, old in zip(inputs, before, strict=True):
        assert np.array_equal(definitions.bits(tensor), old), "an input was modified"

    bank_f, bank_s = inputs[-2:]
    if indices is not None:
        definitions.check_values(z, bank_f, bank_s, indices, case.sampling, own=(f, s))
    if noise_indices is not None:
        definitions.check_values(noise, bank_f, bank_s, noise_indices, case.sampling)

    # Another number of threads and contiguous copies must give bit-identical results.
    torch.set_num_threads(case.threads % 3 + 1)
    copies = [tensor.contiguous().clone() for tensor in inputs]
    again = echo_ext.echo_sample(*copies[:2], bank=copies[2:] or None, **options)
    assert np.array_equal(definitions.bits(z), definitions.bits(again)), "a repeated call differs"
    return calls + 1 + (indices is not None) + (noise_indices is not None and noise_indices is not indices)


def _draws(case, rows, options):
    indices = echo_ext.echo_indices(rows, bank_size=case.bank_rows, **options)
    definitions.check_draws(indices.numpy(), case.bank_rows, rows, case.num_terms, case.sampling)
    return indices.numpy()


def check_matrix(case):
    rng = np.random.default_rng(case.numbers)
    dtype = DTYPES[case.dtype]
    f = definitions.tensor(rng, "bounded", (case.rows, case.dim), dtype, case.layout)
    matrices = rng.standard_normal((case.rows, case.dim, case.dim))
    matrices *= case.norm / np.linalg.norm(matrices, 2, (1, 2), keepdims=True)
    S = definitions.laid_out(torch.from_numpy(matrices).to(dtype), case.layout)
    z = echo_ext.echo_sample_matrix(f, S, seed=case.seed)
    again = echo_ext.echo_sample_matrix(f.contiguous(), S.contiguous(), seed=case.seed)
    assert np.array_equal(definitions.bits(z), definitions.bits(again)), "a repeated call differs"
    order = echo_ext.echo_indices(1, sampling="ring", seed=case.seed, bank_size=case.rows).numpy()[0]
    expected = definitions.matrix_ring(definitions.wide(f), definitions.wide(S), order)
    definitions.check_near(z, expected, definitions.matrix_bound(expected, case.norm, dtype))
    return 2


test_short_run, test_long_run = fuzzing.tests_of(__file__)
