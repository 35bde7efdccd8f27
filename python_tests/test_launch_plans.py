"""How kernels are laid over an H200, computed with the registers that ptxas gives them. Nothing runs."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulated_device import CSRC, Emulator, Problem, usage_of

MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024
SOURCES = ("echo_cuda", "echo_rows_cuda", "echo_ring_cuda", "echo_matrix_cuda")


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


# ---- Indices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "num_terms", "bank_rows", "sampling"),
    [(1, 2**20, 2**20, "ring"), (1024, 1023, 0, "permutation"), (2**20, 100, 0, "replacement")],
)
def test_indices_fill_the_device_once(planner, rows, num_terms, bank_rows, sampling):
    (launch,) = plan(planner, problem(rows, num_terms, 1, sampling, bank_rows=bank_rows), "indices")
    assert launch.kernel == "indices_kernel"
    assert 0.9 < launch.waves(MULTIPROCESSORS) <= 1


def test_few_indices_take_few_blocks(planner):
    (launch,) = plan(planner, problem(3, 300, 1, "ring", bank_rows=300), "indices")
    assert launch.blocks == (3, 3, 1)


# ---- Circles of matrices ---------------------------------------------------------------------------------------------


def matrix_plan(planner, rows, dim, **options):
    *arcs, finish = plan(planner, problem(rows, 1, dim, "permutation", **options), "matrix_scan")
    assert finish.kernel.startswith("matrix_finish_kernel<")
    assert finish.num_blocks == 1
    assert {launch.kernel.split("<")[0] for launch in arcs} == {"matrix_arc_kernel"}
    assert len(set(arcs)) == 1
    return len(arcs) - 1, arcs[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("rows", "dim", "arcs"), [(1024, 32, 16), (2**14, 64, 256), (2**20, 64, 256), (2**20, 32, 512), (2**20, 16, 1024)]
)
def test_arcs_of_matrices_run_at_once(planner, rows, dim, arcs, backward, dtype):
    rounds, launch = matrix_plan(planner, rows, dim, dtype=dtype, deterministic=backward)
    assert launch.num_blocks == arcs
    assert launch.waves(MULTIPROCESSORS) <= 1
    assert launch.threads == 4 * dim + 32
    assert rounds == min(arcs, 32)


def test_one_arc_of_matrices_takes_no_rounds(planner):
    assert matrix_plan(planner, 64, 8)[0] == 0


def test_matrices_are_copied_as_far_ahead_as_fits(planner):
    def matrices(rows, dtype, shared_bytes, multiprocessors=132):
        circle = Problem(rows, 64, 1, dtype=dtype, shared_bytes=shared_bytes, multiprocessors=multiprocessors)
        *_, last = plan(planner, circle, "matrix_scan")
        return last.shared_bytes // (64 * 64 * {"float32": 4, "float64": 8}[dtype])

    assert matrices(1024, "float32", 64 * 1024) == 3
    assert matrices(1024, "float64", 64 * 1024) == 1
    assert matrices(1024, "float64", 99 * 1024) == 2
    assert matrices(2**14, "float64", SHARED_BYTES) == 3
    assert matrices(2**14, "float64", SHARED_BYTES, 100) == 2  # so that all arcs run at once
