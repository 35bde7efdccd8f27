"""The source of the Echo kernels of CUDA, run on the CPU under ASan and UBSan: draws, and what all samplings share."""

from dataclasses import replace

import pytest
import torch
from emulated_cases import (
    DTYPES,
    SAMPLINGS,
    Problem,
    check,
    random_values,
    run_backward,
    run_forward,
    run_indices,
)
from knn_cases import fresh

import echo_ext

# ---- Draws -----------------------------------------------------------------------------------------------------------


def indices_of_cpu(problem: Problem) -> torch.Tensor:
    options = {"num_terms": problem.num_terms, "sampling": problem.sampling, "seed": problem.seed}
    return echo_ext.echo_indices(problem.rows, bank_size=problem.bank_rows or None, **options)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("rows", "bank_rows"), [(2, 0), (3, 0), (33, 0), (257, 0), (1, 5), (17, 5), (5, 131)])
def test_indices_equal_those_of_the_cpu(device, sampling, rows, bank_rows):
    problem = Problem(rows, 1, (bank_rows or rows) - (bank_rows == 0), bank_rows, sampling, seed=-(2**62) + rows)
    indices = run_indices(device, problem)
    assert torch.equal(indices, indices_of_cpu(problem))
    assert indices.min() >= 0
    assert indices.max() < (bank_rows or rows)
    if problem.exclude_self:
        assert (indices != torch.arange(rows).unsqueeze(1)).all()
    if sampling != "replacement":
        assert all(len(set(row)) == problem.num_terms for row in indices.tolist())


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("rows", "num_terms", "bank_rows"), [(1, 5003, 5003), (3, 3001, 4001), (70, 41, 31 * 41)])
def test_indices_of_which_a_thread_makes_many(device, sampling, rows, num_terms, bank_rows):
    problem = Problem(rows, 1, num_terms, bank_rows, sampling, seed=rows - 2**63)
    for descending in (False, True):
        one = replace(device, multiprocessors=1, descending=descending)
        assert torch.equal(run_indices(one, problem), indices_of_cpu(problem))


# ---- Results and gradients -------------------------------------------------------------------------------------------

SHAPES = [  # rows, width, num_terms, bank_rows
    (2, 1, 1, 0),
    (3, 3, 2, 0),
    (33, 17, 32, 0),
    (65, 33, 64, 0),
    (257, 5, 200, 0),
    (31, 129, 30, 0),
    (1, 3, 1, 1),
    (1, 17, 40, 40),
    (50, 2, 7, 7),
    (7, 33, 131, 300),
]


@pytest.mark.parametrize("sample", [True, False], ids=["sample", "noise"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(device, shape, sampling, sample):
    rows, width, num_terms, bank_rows = shape
    problem = Problem(rows, width, num_terms, bank_rows, sampling, sample=sample, seed=rows * width)
    check(device, problem)
    check(replace(device, descending=True), replace(problem, dtype="float64"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bank_rows", [0, 40])
def test_half_types(device, dtype, sampling, bank_rows):
    check(device, Problem(37, 18, 36, bank_rows, sampling, dtype))
    check(device, Problem(37, 18, 36, bank_rows, sampling, dtype, sample=False, deterministic=True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deterministic_repeats_bit_for_bit(device, sampling, dtype):
    problem = Problem(65, 35, 64, 0, sampling, dtype, deterministic=True)
    values = random_values(problem)
    check(device, problem, values)
    results = [
        (run_forward(ordered, problem, values), *run_backward(ordered, problem, values))
        for ordered in (device, replace(device, descending=True))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("width", [3, 70])
def test_bank_beyond_shared_memory(device, sampling, width):
    small = replace(device, shared_bytes=22 * 1024)
    check(small, Problem(45, width, 44, 0, sampling))
    check(small, Problem(9, width, 150, 150, sampling, "float64"))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_many_rows_for_few_multiprocessors(device, sampling):
    one = replace(device, multiprocessors=1)
    check(one, Problem(300, 3, 20, 0, sampling))
    check(replace(one, descending=True), Problem(300, 3, 20, 37, sampling))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_weights_that_hardly_decay(device, sampling, dtype):
    problem = Problem(130, 5, 129, 0, sampling, dtype)
    values = random_values(problem)
    values.s[:] = 0.99
    check(device, problem, values)
    values.s[:, 1] = 1.02
    values.s[::3, 2] = -1
    check(device, problem, values)
    for deterministic in (False, True):
        longer = Problem(20, 3, 390, 400, sampling, dtype, deterministic=deterministic)
        values = random_values(longer)
        values.bank_s[:] = 0.995
        check(device, longer, values)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bank_rows", [0, 50])
def test_zeros(device, sampling, bank_rows):
    problem = Problem(60, 6, 45, bank_rows, sampling, "float64")
    values = random_values(problem)
    values.bank_s[::7, 0] = 0
    values.bank_s[:, 1] = 0
    values.bank_s[3, 2] = 0
    values.bank_f[:, 3] = 0
    values.bank_s[::2, 4] = 0
    values.bank_s[1::2, 4] = 1.5
    check(device, problem, values)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_row_stops_before_its_gradients_are_complete(device, sampling, dtype):
    problem = Problem(60, 6, 59, 0, sampling, dtype)
    values = random_values(problem)
    # After a zero no term counts for the noise, but all do for the derivative by that zero.
    values.s[:] = 0.95
    values.s[::9] = 0
    check(device, problem, values)
    longer = Problem(200, 6, 40, 0, sampling, dtype)
    values = random_values(longer)
    values.s[:] = 0.95
    values.s[::12] = 0
    check(device, longer, values)
    # Where f is zero the noise is, but its gradients are not.
    values = random_values(problem)
    values.f[:] = 0
    values.s[:] = 0.95
    check(device, problem, values)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_in_column_and_rows(device, sampling, bad):
    problem = Problem(40, 20, 6, 0, sampling)
    values = random_values(problem)
    values.f[5, 3] = bad
    values.s[7, 4] = bad
    values.f[2, 19] = -bad
    check(device, problem, values)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_random_problems(device, sampling, dtype, deterministic):
    rng = fresh()
    for _ in range(12):
        rows, width = int(rng.integers(2, 150)), int(rng.integers(1, 80))
        bank_rows = int(rng.choice([0, rng.integers(1, 150)]))
        num_terms = int(rng.integers(1, (bank_rows or rows - 1) + 1))
        problem = Problem(rows, width, num_terms, bank_rows, sampling, dtype, int(rng.integers(2**62)))
        problem = replace(problem, sample=bool(rng.integers(2)), deterministic=deterministic)
        other = replace(device, multiprocessors=int(rng.choice([1, 4, 132])), descending=bool(rng.integers(2)))
        check(other, problem, random_values(problem, float(rng.choice([0.5, 0.97, 1.2])), rng))
