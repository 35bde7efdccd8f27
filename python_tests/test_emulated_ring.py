"""The ring kernels of CUDA on the CPU: long rings, several circles, and steps that grow linearly with the rows."""

from dataclasses import replace

import pytest
import torch
from emulated_cases import (
    Noise,
    Problem,
    check,
    expected_results,
    random_values,
    reference_noise,
    run,
    run_backward,
    run_forward,
    run_indices,
)
from emulated_device import Device, Launch

# ---- The noise of rings that are too long for the reference ----------------------------------------------------------


def circles_of(device: Device, problem: Problem) -> list[torch.Tensor]:
    """Which bank row lies at each position of each circle."""
    if problem.exclude_self:  # the row at a position begins with the next one
        following = run_indices(device, replace(problem, num_terms=1))[:, 0]
        circle = [0]
        while len(circle) < problem.rows:
            circle.append(int(following[circle[-1]]))
        return [torch.tensor(circle)]
    num_circles = -(-problem.rows // problem.bank_rows)
    every = run_indices(device, replace(problem, rows=num_circles * problem.bank_rows, num_terms=1))
    return list(every.view(num_circles, problem.bank_rows))


def window_sums(f: torch.Tensor, s: torch.Tensor, num_terms: int) -> torch.Tensor:
    """Of the window of so many terms from each position of a circle, by windows of 1, 2, 4, ... terms."""
    total, weight, taken = torch.zeros_like(f), torch.ones_like(f), 0
    for bit in range(num_terms.bit_length()):
        if num_terms >> bit & 1:
            total = total + weight * f.roll(-taken, 0)
            weight = weight * s.roll(-taken, 0)
            taken += 1 << bit
        f, s = f + s * f.roll(-(1 << bit), 0), s * s.roll(-(1 << bit), 0)
    return total


def window_noise(device: Device, problem: Problem) -> Noise:
    """The noise of the reference, in time that is linear in the rows but for a logarithm."""
    circles = circles_of(device, problem)

    def noise(f: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        eps = []
        for circle in circles:
            sums = window_sums(f[circle], s[circle], problem.num_terms)
            eps.append(torch.empty_like(sums).index_copy(0, circle.roll(1), sums) if problem.exclude_self else sums)
        return torch.cat(eps)[: problem.rows]

    return noise


@pytest.mark.parametrize(("rows", "num_terms", "bank_rows"), [(2, 1, 0), (60, 59, 0), (50, 13, 0), (70, 30, 31)])
def test_window_noise_is_that_of_the_reference(device, rows, num_terms, bank_rows):
    problem = Problem(rows, 4, num_terms, bank_rows, "ring", "float64")
    values = random_values(problem)
    results = [expected_results(problem, values, of(device, problem)) for of in (window_noise, reference_noise)]
    for windows, expected in zip(*results, strict=True):
        torch.testing.assert_close(windows, expected, rtol=1e-13, atol=1e-13)


def check_ring(device: Device, problem: Problem, values) -> list[Launch]:
    return check(device, problem, values, window_noise(device, problem))


def meetings_in(launches: list[Launch], kernel: str = "") -> int:
    return sum(launch.meetings for launch in launches if launch.kernel.startswith(kernel))


# ---- Kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bank_rows", "sample", "dtype"),
    [(0, True, "float32"), (0, False, "float64"), (900, True, "float64"), (900, False, "bfloat16")],
)
def test_ring_in_one_scan(device, bank_rows, sample, dtype):
    # Weights that soon are zero, long segments; columns of long memory make a few segments take the exact way.
    device = replace(device, multiprocessors=1)
    problem = Problem(850, 21, 849, bank_rows, "ring", dtype, sample=sample)
    values = random_values(problem, 0.1)
    check_ring(device, problem, values)
    values.bank_s[:, 20] = 0.97
    check_ring(device, problem, values)


# Two columns a lane or one, several circles, fewer rows than the bank, windows shorter than the circle.
LONG_RINGS = [(700, 34, 699, 0), (650, 19, 560, 0), (300, 34, 640, 650), (1400, 34, 530, 600), (1500, 3, 1499, 0)]


@pytest.mark.parametrize("shape", LONG_RINGS, ids=str)  # rows, width, num_terms, bank_rows
@pytest.mark.parametrize(
    ("dtype", "sample"), [("float32", True), ("float64", False), pytest.param("float16", True, marks=pytest.mark.slow)]
)
def test_long_ring(device, shape, dtype, sample):
    rows, width, num_terms, bank_rows = shape
    problem = Problem(rows, width, num_terms, bank_rows, "ring", dtype, sample=sample)
    launches = check_ring(replace(device, multiprocessors=1), problem, random_values(problem, 0.5))
    if width > 16 and dtype != "float64":  # all segments are scanned, and what is exact ends at once
        assert meetings_in(launches, "ring_forward_kernel") > 0
        assert meetings_in(launches, "ring_backward_kernel") > 0
        assert meetings_in(launches, "ring_forward_exact") + meetings_in(launches, "ring_backward_exact") < 10000
    values = random_values(problem, 0.97)
    for s in (values.bank_s, values.s):
        s[:, 0] = 0.999
        s[::7, 1] = 0
    device = replace(device, multiprocessors=3)
    check_ring(device, problem, values)
    first, again = (run(replace(device, descending=order), problem, values)[0] for order in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "bank_rows", "num_terms"), [(200, 5, 5), (170, 7, 3), (117, 2, 2), (40, 1, 1)])
def test_many_circles(device, dtype, rows, bank_rows, num_terms):
    """Each block adds up a copy of the gradients of the bank."""
    problem = Problem(rows, 5, num_terms, bank_rows, "ring", dtype)
    for multiprocessors in (1, 4):
        device = replace(device, multiprocessors=multiprocessors)
        values = random_values(problem)
        check(device, problem, values)
        first, again = (run_backward(replace(device, descending=order), problem, values) for order in (False, True))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.slow
def test_many_long_circles(device):
    problem = Problem(17 * 520 - 100, 34, 515, 520, "ring")
    values = random_values(problem, 0.5)
    check_ring(device, problem, values)
    values.bank_s[:, 3] = 0.999
    check_ring(device, problem, values)


@pytest.mark.parametrize("num_terms", [8399, 5000])
def test_maps_of_four_levels(device, num_terms):
    problem = Problem(8400, 17, num_terms, 0, "ring", "float64")
    values = random_values(problem)
    values.bank_s[:] = 0.9999
    check_ring(device, problem, values)


@pytest.mark.parametrize("value", [float("nan"), 1.0, -1.001, 0.9999], ids=str)
def test_steps_are_linear_in_the_rows(device, value):
    """Also where no weight ever vanishes."""
    totals = []
    for rows in (1200, 2400):
        problem = Problem(rows, 34, rows - 1, 0, "ring")
        values = random_values(problem, 0.5)
        values.bank_s[:, 5] = value
        results, launches = run(replace(device, multiprocessors=2), problem, values)
        for result in results:
            result[:, 5] = 0
            assert result.isfinite().all()
        totals.append(meetings_in(launches))
    assert totals[1] < 2.3 * totals[0]


def test_steps_of_few_rows_from_a_large_bank(device):
    """Only windows that exist are scanned."""
    device = replace(device, multiprocessors=2)
    steps = []
    for rows in (64, 2000):
        problem = Problem(rows, 34, 2000, 2000, "ring")
        run_forward(device, problem, random_values(problem, 0.5))
        steps.append(meetings_in(device.launches))
    assert 3 * steps[0] < steps[1]
