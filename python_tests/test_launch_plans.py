"""How kernels are laid over an H200, computed with the registers that ptxas gives them. Nothing runs."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulated_device import CSRC, Emulator, Problem, usage_of

MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024
SOURCES = ("echo_cuda", "echo_rows_cuda", "echo_ring_cuda", "echo_ring_exact_cuda", "echo_matrix_cuda")


@pytest.fixture(scope="module")
def usage(tmp_path_factory):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is needed to know the kernels' registers")
    folder = tmp_path_factory.mktemp("usage")
    with ThreadPoolExecutor(2) as pool:
        every = pool.map(lambda name: usage_of(CSRC / f"{name}.cu", folder), SOURCES)
        return {name: one for found in every for name, one in found.items()}


@pytest.fixture(scope="module")
def planner(emulator_program, usage):
    emulator = Emulator(emulator_program, usage)
    yield emulator
    emulator.close()


def problem(rows, num_terms, width, sampling, **options):
    return Problem(
        rows, width, num_terms, sampling=sampling, multiprocessors=MULTIPROCESSORS, shared_bytes=SHARED_BYTES, **options
    )


def plan(planner, problem, operation):
    """The launches of the kernel that does the work, by name."""
    launches, _ = planner.launches(problem, f"plan_{operation}")
    return launches


def test_no_kernel_spills(usage):
    assert usage
    assert {name: one for name, one in usage.items() if one.spills or one.stack} == {}


def test_every_launch_is_one_of_a_kernel_whose_registers_are_known(planner, usage):
    for sampling in ("permutation", "ring"):
        for operation in ("forward", "backward"):
            launches = plan(planner, problem(1024, 1023, 128, sampling), operation)
            assert launches
            assert {launch.kernel for launch in launches} <= set(usage)
