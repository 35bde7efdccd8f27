"""How kernels are laid over an H200, computed with the registers that ptxas gives them. Nothing runs."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from device_worker import Native
from emulated_cases import DTYPES, Problem, lanes_of, workspace_bytes
from emulated_device import CSRC, ECHO_KERNELS, SOMEWHERE, Device, Worker, usage_of

from echo_ext._native import dtype_code

MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024


@pytest.fixture(scope="module")
def usage(tmp_path_factory):
    return usage_of(ECHO_KERNELS, tmp_path_factory.mktemp("usage"))


@pytest.fixture(scope="module")
def planner(sanitized_library, usage):
    worker = Worker(sanitized_library, usage)
    yield Device(worker, MULTIPROCESSORS, SHARED_BYTES)
    worker.close()


def plan(planner, problem, operation):
    """The launches of a call, in their order."""
    addresses = {
        "forward": ("bank_f", "bank_s", "f", "s", "out", "workspace"),
        "backward": ("bank_f", "bank_s", "s", "grad", "grad_s", "grad_bank_f", "grad_bank_s", "workspace"),
        "indices": ("indices",),
    }[operation]
    options = dict.fromkeys(("seed", *addresses), SOMEWHERE)
    if operation == "backward":
        options |= {"deterministic": problem.deterministic} | ({"grad_s": 0} if problem.exclude_self else {})
    return planner.plan(f"echo_cuda_{operation}", problem.native, **options, **planner.place)


def test_no_kernel_spills(usage):
    assert usage
    assert {name: one for name, one in usage.items() if one.spills or one.stack} == {}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("float v[64]; for (int i = 0; i < 64; ++i) v[i] = a[i * 1024 + threadIdx.x]; __syncthreads();"
         "for (int i = 0; i < 64; ++i) a[i * 1024 + threadIdx.x] = v[i] * v[63 - i];", "Registers are spilled"),
        ("float v[16] = {}; for (int i = 0; i < *n; ++i) v[(n[i] + i) % 16] += i; a[0] = v[*n % 16];", "Local memory"),
    ],
    ids=["spills", "stack"],
)  # fmt: skip
def test_the_build_refuses_kernels_that_use_local_memory(body, says, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    flags = re.search(r"PRIVATE (--Werror\S+ -Xptxas\S+)\)", (CSRC.parent / "CMakeLists.txt").read_text())[1].split()
    source = tmp_path / "kernel.cu"
    source.write_text(f"__global__ void __launch_bounds__(1024, 2) kernel(float* a, const int* n) {{ {body} }}")
    command = ["nvcc", "-arch=sm_90", "-cubin", source, "-o", tmp_path / "kernel"]
    assert subprocess.run(command, check=False).returncode == 0
    refused = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert says in refused.stderr + refused.stdout


def test_registers_of_every_launched_kernel_are_known(planner, usage):
    for sampling in ("permutation", "ring"):
        for operation in ("forward", "backward"):
            launches = plan(planner, Problem(1024, 128, 1023, sampling=sampling), operation)
            assert launches
            assert {launch.kernel for launch in launches} <= set(usage)


# ---- Rows: permutation and replacement sampling ----------------------------------------------------------------------

ROWS_SHAPES = [  # rows, num_terms, width, bank_rows
    (1024, 1023, 128, 0),
    (1024, 1023, 64, 0),
    (1030, 1029, 128, 0),
    (2048, 2047, 128, 0),
    (3600, 3599, 128, 0),
    (4096, 4095, 256, 0),
    (7000, 6999, 128, 0),
    (8000, 7999, 64, 0),
    (65536, 1000, 128, 1000),
]


def rows_walk(planner, rows, num_terms, width, bank_rows=0, operation="forward", **options):
    """The launch that walks the rows, after that of the draws and where the bank is too large that which packs it."""
    walked = Problem(rows, width, num_terms, bank_rows, **options)
    launches = plan(planner, walked, operation)
    names = [launch.name for launch in launches]
    walk = launches[names.index(f"{operation}_kernel")]
    packs = [] if walk.kernel.endswith("true>") else ["pack_kernel"]
    finishes = ["finish_kernel"] if operation == "backward" else []
    assert names == ["draws_kernel", *packs, f"{operation}_kernel", *finishes]
    assert launches[0].waves(MULTIPROCESSORS) <= 1
    return walk


def rows_in_flight(launch):
    return launch.blocks[1] * launch.threads // lanes_of(launch)


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_1024_by_128_fill_all_multiprocessors_but_four(planner, operation, dtype):
    walk = rows_walk(planner, 1024, 1023, 128, operation=operation, dtype=dtype)
    assert (walk.num_blocks, walk.threads) == (128, 512)
    assert rows_in_flight(walk) == (1024 if dtype == "float32" else 512)
    assert 0.95 < walk.waves(MULTIPROCESSORS) <= 1


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", ROWS_SHAPES, ids=str)
def test_rows_fill_the_device_once(planner, shape, operation, dtype):
    walk = rows_walk(planner, *shape, operation=operation, dtype=dtype)
    assert walk.waves(MULTIPROCESSORS) <= 1
    assert walk.num_blocks >= 0.95 * MULTIPROCESSORS
    # No rows wait for a pass of their own that a few more at once would save.
    assert walk.threads * -(-walk.num_blocks // MULTIPROCESSORS) >= 256


def test_few_rows_are_spread_over_the_device(planner):
    walk = rows_walk(planner, 256, 255, 128)
    assert walk.num_blocks == 128
    assert rows_in_flight(walk) == 256


@pytest.mark.parametrize(
    ("bank_rows", "lanes", "staged"),
    [(1815, 8, True), (1816, 4, True), (3631, 4, True), (3632, 2, True), (7263, 2, True), (7264, 32, False)],
)
@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_tiles_of_large_banks_are_narrow_until_none_fits(planner, bank_rows, lanes, staged, operation):
    walk = rows_walk(planner, bank_rows, bank_rows - 1, 128, operation=operation)
    assert lanes_of(walk) == lanes
    assert walk.kernel.endswith("true>") == staged
    assert walk.shared_bytes <= SHARED_BYTES


@pytest.mark.parametrize("shape", [(1024, 1023, 128, 0), (100, 99, 16, 0), (65536, 1000, 128, 1000)], ids=str)
def test_deterministic_copies_are_many_and_equal_everywhere(planner, shape):
    walk = rows_walk(planner, *shape, operation="backward", deterministic=True)
    copies = rows_in_flight(walk)
    assert walk.waves(MULTIPROCESSORS) <= 1
    assert copies >= min(shape[0], 256)
    for multiprocessors in (1, 40):
        asked = Problem(shape[0], shape[2], shape[1], shape[3], deterministic=True)
        launches = plan(replace(planner, multiprocessors=multiprocessors), asked, "backward")
        walks = [each for each in launches if each.kernel.startswith("backward")]
        assert [rows_in_flight(each) for each in walks] == [copies]


MEGABYTE = 2**20


@pytest.mark.parametrize(
    ("shape", "operation", "deterministic", "most"),
    [
        ((1024, 1023, 128, 0), "forward", False, 3 * MEGABYTE),  # the draws
        ((1024, 1023, 128, 0), "backward", False, 36 * MEGABYTE),  # and the gradients, and checkpoints
        ((1024, 1023, 128, 0), "backward", True, 300 * MEGABYTE),  # and the copies
        ((65536, 65535, 8, 0), "backward", False, 130 * MEGABYTE),
        ((2**20, 2**20 - 1, 128, 0), "forward", False, 2 * 2**30 + MEGABYTE),  # the bank, and as much of draws
        ((2**20, 2**20 - 1, 128, 0), "backward", False, 3 * 2**30 + 300 * MEGABYTE),
    ],
)
def test_workspace_of_rows_is_bounded_for_many_terms(planner, shape, operation, deterministic, most):
    rows, num_terms, width, bank_rows = shape
    asked = Problem(rows, width, num_terms, bank_rows, deterministic=deterministic)
    assert 0 < workspace_bytes(planner, asked, operation) <= most


# ---- Indices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "num_terms", "bank_rows", "sampling"),
    [(1, 2**20, 2**20, "ring"), (1024, 1023, 0, "permutation"), (2**20, 100, 0, "replacement")],
)
def test_indices_fill_the_device_once(planner, rows, num_terms, bank_rows, sampling):
    (launch,) = plan(planner, Problem(rows, 1, num_terms, bank_rows, sampling), "indices")
    assert launch.kernel == "indices_kernel"
    assert 0.9 < launch.waves(MULTIPROCESSORS) <= 1


def test_few_indices_take_few_blocks(planner):
    (launch,) = plan(planner, Problem(3, 1, 300, 300, "ring"), "indices")
    assert launch.blocks == (3, 3, 1)


# ---- Circles of matrices ---------------------------------------------------------------------------------------------


def plan_matrices(planner, rows, dim, dtype="float32", backward=False):
    circle = Native("EchoMatrixProblem", (rows, dim, dtype_code(DTYPES[dtype])), {})
    options = dict.fromkeys(("order", "source", "matrices", "values", "workspace"), SOMEWHERE)
    return planner.plan("echo_matrix_cuda_scan", circle, backward=backward, **options, **planner.place)


def matrix_rounds(planner, rows, dim, **options):
    """How many rounds there are, and the launch of each."""
    *arcs, finish = plan_matrices(planner, rows, dim, **options)
    assert finish.kernel.startswith("matrix_finish_kernel<")
    assert finish.num_blocks == 1
    assert {launch.name for launch in arcs} == {"matrix_arc_kernel"}
    assert len(set(arcs)) == 1
    return len(arcs) - 1, arcs[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("rows", "dim", "arcs"), [(1024, 32, 16), (2**14, 64, 256), (2**20, 64, 256), (2**20, 32, 512), (2**20, 16, 1024)]
)
def test_arcs_of_matrices_run_at_once(planner, rows, dim, arcs, backward, dtype):
    rounds, launch = matrix_rounds(planner, rows, dim, dtype=dtype, backward=backward)
    assert launch.num_blocks == arcs
    assert launch.waves(MULTIPROCESSORS) <= 1
    assert launch.threads == 4 * dim + 32
    assert rounds == min(arcs, 32)


def test_one_arc_of_matrices_takes_no_rounds(planner):
    assert matrix_rounds(planner, 64, 8)[0] == 0


def test_matrices_are_copied_as_far_ahead_as_fits(planner):
    def matrices(rows, dtype, shared_bytes, multiprocessors=MULTIPROCESSORS):
        device = replace(planner, shared_bytes=shared_bytes, multiprocessors=multiprocessors)
        *_, last = plan_matrices(device, rows, 64, dtype)
        return last.shared_bytes // (64 * 64 * {"float32": 4, "float64": 8}[dtype])

    assert matrices(1024, "float32", 64 * 1024) == 3
    assert matrices(1024, "float64", 64 * 1024) == 1
    assert matrices(1024, "float64", 99 * 1024) == 2
    assert matrices(2**14, "float64", SHARED_BYTES) == 3
    assert matrices(2**14, "float64", SHARED_BYTES, 100) == 2  # so that all arcs run at once


# ---- Ring ------------------------------------------------------------------------------------------------------------


def scan_of(launches):
    (scan,) = [launch for launch in launches if re.match(r"ring_(forward|backward)_kernel", launch.kernel)]
    return scan


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize(
    ("rows", "width"), [(2**16, 64), (2**17, 64), (2**18, 64), (2**20, 64), (2**20, 32), (100_000, 64), (10**6, 96)]
)
def test_ring_is_scanned_in_one_wave(planner, operation, rows, width):
    launches = plan(planner, Problem(rows, width, rows - 1, sampling="ring"), operation)
    assert 0.9 <= scan_of(launches).waves(MULTIPROCESSORS) <= 1
    for launch in launches:
        assert launch.waves(MULTIPROCESSORS) <= 1


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_circles_fill_the_device(planner, operation):
    """Also where the bank is smaller than the rows."""
    for rows, bank_rows in ((2**20, 2**16), (2**20, 2**14)):
        launches = plan(planner, Problem(rows, 64, bank_rows, bank_rows, "ring"), operation)
        scans = [launch for launch in launches if re.match(r"ring_(forward|backward)_kernel", launch.kernel)]
        assert all(0.9 <= launch.waves(MULTIPROCESSORS) <= 1 for launch in scans)
        assert scans
    # Circles too small for a scan: a block or more for each, or for a few of them.
    launches = plan(planner, Problem(2**16, 64, 64, 64, "ring"), operation)
    assert max(launch.num_blocks for launch in launches) >= MULTIPROCESSORS


def test_few_rows_of_a_large_bank_are_few_blocks(planner):
    (scan, *_) = plan(planner, Problem(64, 64, 2**20, 2**20, "ring"), "forward")
    assert scan.num_blocks < MULTIPROCESSORS


def test_workspace_of_the_ring_is_a_part_of_the_tensors(planner):
    rows, width = 2**20, 64
    for operation, most in (("forward", 0.2), ("backward", 0.5)):
        size = workspace_bytes(planner, Problem(rows, width, rows - 1, sampling="ring"), operation)
        assert size < most * 4 * rows * width
