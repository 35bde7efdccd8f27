"""The row kernels of CUDA on the CPU (permutation and replacement sampling): their tiles, draws, steps and sums."""

from dataclasses import replace

import pytest
import torch
from emulated_cases import (
    Problem,
    check,
    lanes_of,
    launched,
    random_values,
    run_backward,
    run_forward,
    workspace_bytes,
)
from emulated_device import Launch

SAMPLINGS = ["permutation", "replacement"]


@pytest.mark.parametrize(
    ("kilobytes", "width", "tile"),
    [(22, 70, "8, true"), (11, 70, "4, true"), (6, 70, "2, true"), (2, 70, "32, false"), (2, 3, "8, false")],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_tiles_of_every_width(device, kilobytes, width, tile, deterministic):
    device = replace(device, shared_bytes=kilobytes * 1024)
    problem = Problem(150, width, 149, 0, deterministic=deterministic)
    check(device, problem)
    assert launched(device, "backward_kernel").kernel == f"backward_kernel<float, {tile}>"
    check(replace(device, descending=True), replace(problem, dtype="float64", sampling="replacement"))
    assert launched(device, "backward_kernel").kernel == f"backward_kernel<double, {tile}>"


def meetings_of_staging(launch: Launch, columns_of_lane: int) -> int:
    exchanges = (32 // lanes_of(launch)).bit_length() - 1
    return launch.num_blocks * launch.threads * (2 + 2 * columns_of_lane * exchanges)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("dtype", "columns_of_lane"), [("float32", 2), ("float64", 1)])
def test_rows_are_drawn_once(device, sampling, dtype, columns_of_lane):
    """Walks over several tiles and passes meet only in staging and at one vote a step: no lane draws for others."""
    problem = Problem(96, 33, 95, 0, sampling, dtype)
    values = random_values(problem)
    values.s[:] = 0.9999  # all terms count
    steps, warps = -(-problem.num_terms // 16), problem.rows // 4
    run_forward(device, problem, values)
    assert [launch.name for launch in device.launches] == ["draws_kernel", "forward_kernel"]
    walk = launched(device, "forward_kernel")
    assert walk.meetings == meetings_of_staging(walk, columns_of_lane) + walk.blocks[0] * warps * 32 * steps
    run_backward(device, problem, values)
    assert [launch.name for launch in device.launches] == ["draws_kernel", "backward_kernel", "finish_kernel"]
    walk = launched(device, "backward_kernel")
    assert walk.meetings == meetings_of_staging(walk, columns_of_lane) + walk.blocks[0] * warps * 32 * (steps - 1)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("dtype", "width", "kilobytes"),
    [("float32", 19, 227), ("float64", 9, 227), ("float32", 9, 13), ("float32", 5, 7), ("float32", 33, 2)],
)
def test_rows_that_need_more_draws_than_were_prepared(device, sampling, dtype, width, kilobytes):
    """A sample of the rows of the bank decides how many are prepared; here it misleads."""
    device = replace(device, shared_bytes=kilobytes * 1024)
    problem = Problem(24, width, 170, 176, sampling, dtype)
    values = random_values(problem)
    values.bank_s[:] = 0.98
    values.bank_s[::11] = 0.05
    check(device, problem, values)
    walk = launched(device, "backward_kernel")
    assert walk.meetings > 2 * 16 * 32 * walk.blocks[0] * problem.rows // (32 // lanes_of(walk))
    run_backward(replace(device, descending=True), replace(problem, deterministic=True), values)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_checkpoints_of_one_interval_at_a_time(device, sampling):
    """More steps than the checkpoints of a multiprocessor: weights are recomputed from those of the intervals."""
    device = replace(device, multiprocessors=1)
    problem = Problem(128, 7, 1150, 1150, sampling)
    values = random_values(problem)
    values.bank_s[:] = 0.9995
    check(device, problem, values)
    walk = launched(device, "backward_kernel")
    assert walk.num_blocks * walk.threads == 512
    of_all_steps = 512 * 8 * -(-problem.num_terms // 16)
    draws, gradients = 128 * 1152 * 2, 1150 * 8 * 8
    assert workspace_bytes(device, problem, "backward") - draws - gradients < of_all_steps / 2 + 4096


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.0, -1.5])
def test_rows_that_cannot_stop_take_the_steps_of_all_terms(device, bad):
    problem = Problem(113, 40, 111, 0)
    values = random_values(problem)

    def meetings() -> list[int]:
        run_forward(device, problem, values)
        forward = launched(device, "forward_kernel").meetings
        run_backward(device, problem, values)
        return [forward, launched(device, "backward_kernel").meetings]

    values.s[:] = 0.9999
    every = meetings()
    values.s[:] = 0.73
    few = meetings()
    values.s[6, 3] = values.s[9, 33] = bad  # columns of two tiles
    bad_columns = meetings()
    assert few[0] < bad_columns[0]
    assert all(a <= b for a, b in zip(bad_columns, every, strict=True))
    # Where the sample misleads, the draws of their steps take two exchanges of 16 terms, and no more.
    values.s[:] = 0.1
    values.s[6, 3] = values.s[9, 33] = bad
    assert all(a < (1 + 3 * 2 * 16) * b for a, b in zip(meetings(), every, strict=True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deterministic_sums_for_any_number_of_multiprocessors(device, sampling, dtype):
    problem = Problem(150, 35, 149, 0, sampling, dtype, deterministic=True)
    values = random_values(problem)
    first = run_backward(device, problem, values)
    for multiprocessors in (1, 132):
        other = replace(device, multiprocessors=multiprocessors, descending=True)
        assert all(torch.equal(a, b) for a, b in zip(first, run_backward(other, problem, values), strict=True))
