"""How kernels are laid over an H200, computed with the registers that ptxas gives them. Nothing runs."""

import re
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


# ---- Ring ------------------------------------------------------------------------------------------------------------


def scan_of(launches):
    (scan,) = [launch for launch in launches if re.match(r"ring_(forward|backward)_kernel", launch.kernel)]
    return scan


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize(
    ("rows", "width"), [(2**16, 64), (2**17, 64), (2**18, 64), (2**20, 64), (2**20, 32), (100_000, 64), (10**6, 96)]
)
def test_ring_is_scanned_in_one_wave(planner, operation, rows, width):
    launches = plan(planner, problem(rows, rows - 1, width, "ring"), operation)
    assert 0.9 <= scan_of(launches).waves(MULTIPROCESSORS) <= 1
    for launch in launches:
        assert launch.waves(MULTIPROCESSORS) <= 1


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_circles_fill_the_device(planner, operation):
    """Also where the bank is smaller than the rows."""
    for rows, bank_rows in ((2**20, 2**16), (2**20, 2**14)):
        launches = plan(planner, problem(rows, bank_rows, 64, "ring", bank_rows=bank_rows), operation)
        scans = [launch for launch in launches if re.match(r"ring_(forward|backward)_kernel", launch.kernel)]
        assert all(0.9 <= launch.waves(MULTIPROCESSORS) <= 1 for launch in scans)
        assert scans
    # Circles too small for a scan: a block or more for each, or for a few of them.
    launches = plan(planner, problem(2**16, 64, 64, "ring", bank_rows=64), operation)
    assert max(launch.num_blocks for launch in launches) >= MULTIPROCESSORS


def test_few_rows_of_a_large_bank_are_few_blocks(planner):
    (scan, *_) = plan(planner, problem(64, 2**20, 64, "ring", bank_rows=2**20), "forward")
    assert scan.num_blocks < MULTIPROCESSORS


def test_workspace_of_the_ring_is_a_part_of_the_tensors(planner):
    rows, width = 2**20, 64
    for operation, most in (("forward", 0.2), ("backward", 0.5)):
        _, workspace_bytes = planner.launches(problem(rows, rows - 1, width, "ring"), f"plan_{operation}")
        assert workspace_bytes < most * 4 * rows * width
