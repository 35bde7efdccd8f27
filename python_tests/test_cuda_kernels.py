"""The CUDA kernels' own source, run on the CPU under ASan and UBSan (see cuda_shim/)."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from emulated_device import DTYPES, SAMPLINGS, Launch, Problem, Shim, ShimError

from echo_ext.echo import scan as ring_scan
from echo_ext.reference import echo_matrix_circle

# Of the largest sum of magnitudes in a column; half types round the result once.
TOLERANCE = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}


@dataclass
class Values:
    bank_f: torch.Tensor
    bank_s: torch.Tensor
    f: torch.Tensor
    s: torch.Tensor
    grad: torch.Tensor


def random_values(problem: Problem, scale: float = 0.97, rng: np.random.Generator | None = None) -> Values:
    rng = rng or np.random.default_rng(int(torch.randint(2**62, ())))

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(DTYPES[problem.dtype])

    def f(rows: int) -> torch.Tensor:
        return tensor(rng.standard_normal((rows, problem.width)))

    def s(rows: int) -> torch.Tensor:
        return tensor(scale / (1 + np.exp(rng.standard_normal((rows, problem.width)))))

    bank_f, bank_s = f(problem.bank_rows or problem.rows), s(problem.bank_rows or problem.rows)
    if problem.exclude_self:
        return Values(bank_f, bank_s, bank_f, bank_s, f(problem.rows))
    return Values(bank_f, bank_s, f(problem.rows), s(problem.rows), f(problem.rows))


def own_rows(problem: Problem, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return list(tensors) if problem.sample and not problem.exclude_self else []


def run_forward(shim: Shim, problem: Problem, values: Values) -> torch.Tensor:
    out = torch.empty_like(values.grad)
    rows = own_rows(problem, values.f, values.s)
    shim.call(problem.header("forward"), [values.bank_f, values.bank_s, *rows], [out])
    return out


def run_backward(shim: Shim, problem: Problem, values: Values) -> list[torch.Tensor]:
    results = [torch.empty_like(values.bank_f), torch.empty_like(values.bank_s)]
    results += [torch.empty_like(tensor) for tensor in own_rows(problem, values.s)]
    rows = own_rows(problem, values.s)
    shim.call(problem.header("backward"), [values.bank_f, values.bank_s, *rows, values.grad], results)
    return results


def run_indices(shim: Shim, problem: Problem, operation: str = "indices") -> np.ndarray:
    indices = torch.empty((problem.rows, problem.num_terms), dtype=torch.int64)
    shim.call(problem.header(operation), [], [indices])
    return indices.numpy()


def oracle(problem: Problem, values: Values, indices: np.ndarray, magnitudes: bool = False) -> list[np.ndarray]:
    """The formulas in float64: the result, then the gradients in run_backward's order.

    With `magnitudes`, of the absolute values, which is what rounding errors are relative to.
    """
    arrays = [getattr(values, name).double().numpy() for name in ("bank_f", "bank_s", "f", "s", "grad")]
    bank_f, bank_s, f, s, grad = [np.abs(array) for array in arrays] if magnitudes else arrays
    weights = [np.ones((problem.rows, problem.width))]
    for l in range(problem.num_terms):
        weights.append(weights[-1] * bank_s[indices[:, l]])
    tails = [np.zeros((problem.rows, problem.width))]
    for l in reversed(range(problem.num_terms)):  # the last term's s is no factor of anything
        behind = bank_s[indices[:, l]] * tails[-1] if l + 1 < problem.num_terms else 0
        tails.append(bank_f[indices[:, l]] + behind)
    tails.reverse()
    grad_eps = grad * s if problem.sample else grad
    grad_bank_f, grad_bank_s = np.zeros_like(bank_f), np.zeros_like(bank_s)
    for l in range(problem.num_terms):
        np.add.at(grad_bank_f, indices[:, l], grad_eps * weights[l])
        if l + 1 < problem.num_terms:
            np.add.at(grad_bank_s, indices[:, l], grad_eps * weights[l] * tails[l + 1])
    eps = tails[0]
    if not problem.sample:
        return [eps, grad_bank_f, grad_bank_s]
    if not problem.exclude_self:
        return [f + s * eps, grad_bank_f, grad_bank_s, grad * eps]
    return [f + s * eps, grad_bank_f + grad, grad_bank_s + grad * eps]


def assert_close(problem: Problem, found: torch.Tensor, expected: np.ndarray, scale: np.ndarray) -> None:
    found = found.double().numpy()
    # A gradient may meet what is not finite once more often than the oracle, as NaN times zero, in that column.
    finite = np.isfinite(found)
    assert not (finite & ~np.isfinite(expected)).any()
    assert finite[:, np.isfinite(expected).all(axis=0)].all()
    # Rounding errors of a product grow with its length, which counts where weights do not decay.
    largest = np.where(np.isfinite(scale), scale, 0).max(axis=0)
    tolerance = np.broadcast_to(TOLERANCE[problem.dtype] * (1 + problem.num_terms / 256) * largest, expected.shape)
    error = np.abs(np.where(finite, found - np.where(finite, expected, 0), 0))
    assert (error <= tolerance + np.finfo(np.float32).tiny).all(), f"{problem}: {np.max(error / (tolerance + 1e-300))}"


def check(shim: Shim, problem: Problem, values: Values | None = None) -> None:
    values = values or random_values(problem)
    indices = run_indices(shim, problem)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = oracle(problem, values, indices)
        scale = oracle(problem, values, indices, magnitudes=True)
    found = [run_forward(shim, problem, values), *run_backward(shim, problem, values)]
    assert len(found) == len(expected)
    for one_found, one_expected, one_scale in zip(found, expected, scale, strict=True):
        assert_close(problem, one_found, one_expected, one_scale)
    np.testing.assert_array_equal(np.isfinite(found[0].double().numpy()), np.isfinite(expected[0]))


# ---- The shim itself -------------------------------------------------------------------------------------------------


def self_test(shim: Shim, number: int, descending: bool = False) -> np.ndarray:
    values = torch.arange(64, dtype=torch.float32)
    out = torch.empty_like(values)
    shim.call(Problem(number, 1, 1, descending=descending).header("self_test"), [values], [out])
    return out.numpy()


@pytest.mark.parametrize("descending", [False, True])
def test_shim_runs_barriers_and_warp_intrinsics(shim, descending):
    np.testing.assert_array_equal(self_test(shim, 0, descending), np.arange(64)[::-1])
    sums = np.repeat([496 + 0, 1520 + 32000 + 100000], 32)
    np.testing.assert_array_equal(self_test(shim, 2, descending), sums)


@pytest.mark.parametrize("descending", [False, True])
def test_shim_shows_a_missing_barrier(shim, descending):
    assert np.isnan(self_test(shim, 1, descending)).any()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (3, "exited while others wait at __syncthreads"),
        (4, "names a lane that has exited"),
        (5, "waits at __syncthreads, another at a warp intrinsic"),
        (6, "use-after-poison"),
        (7, "heap-buffer-overflow"),
        (8, "invalid argument"),
        (9, "invalid configuration"),
    ],
)
def test_shim_catches(shim, number, message):
    with pytest.raises(ShimError, match=message):
        self_test(shim, number)


# ---- Draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("rows", "bank_rows"), [(2, 0), (3, 0), (33, 0), (257, 0), (1, 5), (17, 5), (5, 131)])
def test_indices_are_the_cpus(shim, sampling, rows, bank_rows):
    problem = Problem(rows, 1, (bank_rows or rows) - (bank_rows == 0), bank_rows, sampling, seed=-(2**62) + rows)
    indices = run_indices(shim, problem)
    np.testing.assert_array_equal(indices, run_indices(shim, problem, "host_indices"))
    assert indices.min() >= 0
    assert indices.max() < (bank_rows or rows)
    if problem.exclude_self:
        assert (indices != np.arange(rows)[:, None]).all()
    if sampling != "replacement":
        assert all(len(set(row)) == problem.num_terms for row in indices.tolist())


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("rows", "num_terms", "bank_rows"), [(1, 5003, 5003), (3, 3001, 4001), (70, 41, 31 * 41)])
def test_indices_are_the_cpus_where_a_thread_makes_many(shim, sampling, rows, num_terms, bank_rows):
    problem = Problem(rows, 1, num_terms, bank_rows, sampling, multiprocessors=1, seed=rows - 2**63)
    expected = run_indices(shim, problem, "host_indices")
    for descending in (False, True):
        np.testing.assert_array_equal(run_indices(shim, replace(problem, descending=descending)), expected)


# ---- The oracle ------------------------------------------------------------------------------------------------------

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
def test_matches_the_oracle(shim, shape, sampling, sample):
    rows, width, num_terms, bank_rows = shape
    problem = Problem(rows, width, num_terms, bank_rows, sampling, sample=sample, seed=rows * width)
    check(shim, problem)
    check(shim, replace(problem, dtype="float64", descending=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bank_rows", [0, 40])
def test_half_types(shim, dtype, sampling, bank_rows):
    check(shim, Problem(37, 18, 36, bank_rows, sampling, dtype))
    check(shim, Problem(37, 18, 36, bank_rows, sampling, dtype, sample=False, deterministic=True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deterministic_repeats_bit_for_bit(shim, sampling, dtype):
    problem = Problem(65, 35, 64, 0, sampling, dtype, deterministic=True)
    values = random_values(problem)
    check(shim, problem, values)
    first = run_backward(shim, problem, values)
    again = run_backward(shim, replace(problem, descending=True), values)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(run_forward(shim, problem, values), run_forward(shim, replace(problem, descending=True), values))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("width", [3, 70])
def test_bank_beyond_shared_memory(shim, sampling, width):
    check(shim, Problem(45, width, 44, 0, sampling, shared_bytes=22 * 1024))
    check(shim, Problem(9, width, 150, 150, sampling, "float64", shared_bytes=22 * 1024))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_many_rows_for_few_multiprocessors(shim, sampling):
    check(shim, Problem(300, 3, 20, 0, sampling, multiprocessors=1))
    check(shim, Problem(300, 3, 20, 37, sampling, multiprocessors=1, descending=True))


@pytest.mark.parametrize(
    ("bank_rows", "sample", "dtype"),
    [(0, True, "float32"), (0, False, "float64"), (900, True, "float64"), (900, False, "bfloat16")],
)
def test_ring_in_one_scan(shim, bank_rows, sample, dtype):
    # Weights that soon are zero, long segments; columns of long memory make a few segments take the exact way.
    problem = Problem(850, 21, 849, bank_rows, "ring", dtype, sample=sample, multiprocessors=1)
    values = random_values(problem, 0.1)
    check(shim, problem, values)
    values.bank_s[:, 20] = 0.97
    check(shim, problem, values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_weights_that_hardly_decay(shim, sampling, dtype):
    problem = Problem(130, 5, 129, 0, sampling, dtype)
    values = random_values(problem)
    values.s[:] = 0.99
    check(shim, problem, values)
    values.s[:, 1] = 1.02
    values.s[::3, 2] = -1
    check(shim, problem, values)
    for deterministic in (False, True):
        longer = Problem(20, 3, 390, 400, sampling, dtype, deterministic=deterministic)
        values = random_values(longer)
        values.bank_s[:] = 0.995
        check(shim, longer, values)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bank_rows", [0, 50])
def test_zeros(shim, sampling, bank_rows):
    problem = Problem(60, 6, 45, bank_rows, sampling, "float64")
    values = random_values(problem)
    values.bank_s[::7, 0] = 0
    values.bank_s[:, 1] = 0
    values.bank_s[3, 2] = 0
    values.bank_f[:, 3] = 0
    values.bank_s[::2, 4] = 0
    values.bank_s[1::2, 4] = 1.5
    check(shim, problem, values)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_row_stops_before_its_gradients_are_there(shim, sampling, dtype):
    problem = Problem(60, 6, 59, 0, sampling, dtype)
    values = random_values(problem)
    # Behind a zero no term counts for the noise, but all do for the derivative by that zero.
    values.s[:] = 0.95
    values.s[::9] = 0
    check(shim, problem, values)
    longer = Problem(200, 6, 40, 0, sampling, dtype)
    values = random_values(longer)
    values.s[:] = 0.95
    values.s[::12] = 0
    check(shim, longer, values)
    # Where f is zero the noise is, but its gradients are not.
    values = random_values(problem)
    values.f[:] = 0
    values.s[:] = 0.95
    check(shim, problem, values)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_column_and_rows(shim, sampling, bad):
    problem = Problem(40, 20, 6, 0, sampling)
    values = random_values(problem)
    values.f[5, 3] = bad
    values.s[7, 4] = bad
    values.f[2, 19] = -bad
    check(shim, problem, values)


# ---- Rows: permutation and replacement sampling ----------------------------------------------------------------------

ROWS_SAMPLINGS = ["permutation", "replacement"]


def launched(shim: Shim, problem: Problem, kernel: str) -> Launch:
    """The launch of a kernel in the call before."""
    (found,) = (launch for launch in shim.launches(problem)[0] if launch.kernel.startswith(kernel))
    return found


@pytest.mark.parametrize(
    ("shared_bytes", "width", "tile"),
    [(22, 70, "8, true"), (11, 70, "4, true"), (6, 70, "2, true"), (2, 70, "32, false"), (2, 3, "8, false")],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_tiles_of_every_width(shim, shared_bytes, width, tile, deterministic):
    problem = Problem(150, width, 149, 0, shared_bytes=shared_bytes * 1024, deterministic=deterministic)
    check(shim, problem)
    assert launched(shim, problem, "backward_kernel").kernel == f"backward_kernel<float, {tile}>"
    check(shim, replace(problem, dtype="float64", sampling="replacement", descending=True))
    assert launched(shim, problem, "backward_kernel").kernel == f"backward_kernel<double, {tile}>"


def meetings_of_staging(launch: Launch, columns_of_lane: int) -> int:
    lanes = int(launch.kernel.split(",")[1])
    return (
        launch.num_blocks
        * launch.threads
        * (2 + 2 * columns_of_lane * (32 // lanes).bit_length() - 2 * columns_of_lane)
    )


@pytest.mark.parametrize("sampling", ROWS_SAMPLINGS)
@pytest.mark.parametrize(("dtype", "columns_of_lane"), [("float32", 2), ("float64", 1)])
def test_rows_are_drawn_once(shim, sampling, dtype, columns_of_lane):
    """Walks over several tiles and passes meet only in staging and at one vote a step: no lane draws for others."""
    problem = Problem(96, 33, 95, 0, sampling, dtype)
    values = random_values(problem)
    values.s[:] = 0.9999  # all terms count
    steps, warps = -(-problem.num_terms // 16), problem.rows // 4
    run_forward(shim, problem, values)
    assert [launch.kernel.split("<")[0] for launch in shim.launches(problem)[0]] == ["draws_kernel", "forward_kernel"]
    walk = launched(shim, problem, "forward_kernel")
    assert walk.meetings == meetings_of_staging(walk, columns_of_lane) + walk.blocks[0] * warps * 32 * steps
    run_backward(shim, problem, values)
    names = [launch.kernel.split("<")[0] for launch in shim.launches(problem)[0]]
    assert names == ["draws_kernel", "backward_kernel", "finish_kernel"]
    walk = launched(shim, problem, "backward_kernel")
    assert walk.meetings == meetings_of_staging(walk, columns_of_lane) + walk.blocks[0] * warps * 32 * (steps - 1)


@pytest.mark.parametrize("sampling", ROWS_SAMPLINGS)
@pytest.mark.parametrize(
    ("dtype", "width", "shared_bytes"),
    [("float32", 19, 227), ("float64", 9, 227), ("float32", 9, 13), ("float32", 5, 7), ("float32", 33, 2)],
)
def test_rows_that_go_on_behind_the_draws_that_are_written_down(shim, sampling, dtype, width, shared_bytes):
    """A sample of the bank's rows tells how many are; here it misleads."""
    problem = Problem(24, width, 170, 176, sampling, dtype, shared_bytes=shared_bytes * 1024)
    values = random_values(problem)
    values.bank_s[:] = 0.98
    values.bank_s[::11] = 0.05
    check(shim, problem, values)
    walk = launched(shim, problem, "backward_kernel")
    assert walk.meetings > 2 * 16 * 32 * walk.blocks[0] * problem.rows // (32 // int(walk.kernel.split(",")[1]))
    run_backward(shim, replace(problem, deterministic=True, descending=True), values)


@pytest.mark.parametrize("sampling", ROWS_SAMPLINGS)
def test_checkpoints_of_one_interval_at_a_time(shim, sampling):
    """More steps than the checkpoints of a multiprocessor: weights are recomputed from those of the intervals."""
    problem = Problem(128, 7, 1150, 1150, sampling, multiprocessors=1)
    values = random_values(problem)
    values.bank_s[:] = 0.9995
    check(shim, problem, values)
    walk = launched(shim, problem, "backward_kernel")
    assert walk.num_blocks * walk.threads == 512
    _, workspace_bytes = shim.launches(problem, "plan_backward")
    of_all_steps = 512 * 8 * -(-problem.num_terms // 16)
    draws, gradients = 128 * 1152 * 2, 1150 * 8 * 8
    assert workspace_bytes - draws - gradients < of_all_steps / 2 + 4096


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.0, -1.5])
def test_rows_that_cannot_stop_take_the_steps_of_all_their_terms(shim, bad):
    problem = Problem(113, 40, 111, 0)
    values = random_values(problem)

    def meetings() -> list[int]:
        run_forward(shim, problem, values)
        forward = launched(shim, problem, "forward_kernel").meetings
        run_backward(shim, problem, values)
        return [forward, launched(shim, problem, "backward_kernel").meetings]

    values.s[:] = 0.9999
    every = meetings()
    values.s[:] = 0.73
    few = meetings()
    values.s[6, 3] = values.s[9, 33] = bad  # columns of two tiles
    bad_columns = meetings()
    assert few[0] < bad_columns[0]
    assert all(a <= b for a, b in zip(bad_columns, every, strict=True))
    # Where a sample has not told that they go on, their steps' draws take two exchanges of 16 terms, and no more.
    values.s[:] = 0.1
    values.s[6, 3] = values.s[9, 33] = bad
    assert all(a < (1 + 3 * 2 * 16) * b for a, b in zip(meetings(), every, strict=True))


@pytest.mark.parametrize("sampling", ROWS_SAMPLINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deterministic_sums_are_those_of_any_number_of_multiprocessors(shim, sampling, dtype):
    problem = Problem(150, 35, 149, 0, sampling, dtype, deterministic=True)
    values = random_values(problem)
    first = run_backward(shim, problem, values)
    for multiprocessors in (1, 132):
        again = run_backward(shim, replace(problem, multiprocessors=multiprocessors, descending=True), values)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ---- Random problems -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_random_problems(shim, sampling, dtype, deterministic):
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    for _ in range(12):
        rows, width = int(rng.integers(2, 150)), int(rng.integers(1, 80))
        bank_rows = int(rng.choice([0, rng.integers(1, 150)]))
        num_terms = int(rng.integers(1, (bank_rows or rows - 1) + 1))
        problem = Problem(rows, width, num_terms, bank_rows, sampling, dtype, int(rng.integers(2**62)))
        problem = replace(problem, sample=bool(rng.integers(2)), deterministic=deterministic)
        problem = replace(problem, multiprocessors=int(rng.choice([1, 4, 132])), descending=bool(rng.integers(2)))
        check(shim, problem, random_values(problem, float(rng.choice([0.5, 0.97, 1.2])), rng))


# ---- Circles of matrices ---------------------------------------------------------------------------------------------


@dataclass
class Circle:
    f: torch.Tensor
    s: torch.Tensor
    order: torch.Tensor
    grad: torch.Tensor

    @classmethod
    def random(cls, rows: int, dim: int, dtype: str, norm: float, rotations: bool = False) -> "Circle":
        s = torch.randn(rows, dim, dim, dtype=torch.float64)
        s = torch.linalg.qr(s).Q if rotations else s / torch.linalg.matrix_norm(s, 2)[:, None, None]
        f, grad = torch.randn(2, rows, dim).to(DTYPES[dtype])
        return cls(f, (norm * s).to(DTYPES[dtype]).contiguous(), torch.randperm(rows), grad)

    def problem(self, **options) -> Problem:
        dtype = next(name for name, dtype in DTYPES.items() if dtype == self.f.dtype)
        return Problem(*self.f.shape, 1, dtype=dtype, **options)

    def scan(self, shim: Shim, source: torch.Tensor, **options) -> torch.Tensor:
        values = torch.empty_like(self.f)
        shim.call(self.problem(**options).header("matrix_scan"), [self.order, source, self.s], [values])
        return values

    def run(self, shim: Shim, **options) -> list[torch.Tensor]:
        """The recurrence, its adjoint and the matrices' gradient."""
        z = self.scan(shim, self.f, **options)
        values = self.scan(shim, self.grad, deterministic=True, **options)
        grad_s = torch.empty_like(self.s)
        shim.call(self.problem(**options).header("matrix_outer"), [self.order, values, z], [grad_s])
        return [z, values, grad_s]

    def check(self, shim: Shim, norm: float, **options) -> None:
        wide = [tensor.double().requires_grad_() for tensor in (self.f, self.s)]
        expected = echo_matrix_circle(*wide, self.order)
        gradients = torch.autograd.grad((expected * self.grad).sum(), wide)
        dtype = self.problem().dtype
        tolerance = max(10, 2 / (1 - norm) if norm < 1 else 0) * TOLERANCE[dtype]  # near norm 1 roundings add up
        for actual, wanted in zip(self.run(shim, **options), (expected, *gradients), strict=True):
            assert (actual - wanted).abs().max() < tolerance * wanted.abs().max()

    def most_partly_finite_rows(self, shim: Shim) -> int:
        """How many rows have a finite value, forward or backward. An infinite entry of a matrix leaves one: the row of
        that entry, which is infinite in one dimension only.
        """
        scans = [self.scan(shim, self.f, deterministic=backward) for backward in (False, True)]
        return max(int(scan.isfinite().any(1).sum()) for scan in scans)

    def steps(self, shim: Shim, source: torch.Tensor, **options) -> tuple[float, float]:
        """How often threads meet in rounds and in the block that goes on, for each row and thread; a step is up to five
        times.
        """
        self.scan(shim, source, **options)
        launches, _ = shim.launches(self.problem())
        total = [launch.meetings / launch.threads / len(self.f) for launch in launches]
        assert [launch.kernel.split("<")[0] for launch in launches[-2:]] == [
            "matrix_arc_kernel",
            "matrix_finish_kernel",
        ]
        return sum(total[:-1]), total[-1]


@pytest.mark.parametrize(("rows", "dim"), [(2, 1), (2, 64), (9, 33), (64, 3), (70, 5), (300, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", [0.3, 0.8, 0.97])
def test_matrix_circle(shim, rows, dim, dtype, norm):
    Circle.random(rows, dim, dtype, norm).check(shim, norm)


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 31, 32, 33, 36, 63, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrix_circle_of_each_width(shim, dim, dtype):
    for rows, norm, descending in ((3, 0.9, False), (67, 0.3, True)):
        Circle.random(rows, dim, dtype, norm).check(shim, norm, descending=descending)


@pytest.mark.parametrize("shared_bytes", [64 * 1024, 99 * 1024])
@pytest.mark.parametrize("dim", [64, 55])
def test_matrix_circle_in_little_shared_memory(shim, shared_bytes, dim):
    """With one matrix in it, or two."""
    circle = Circle.random(67, dim, "float64", 0.7)
    circle.check(shim, 0.7, shared_bytes=shared_bytes)
    launches, _ = shim.launches(circle.problem())
    deeper = circle.scan(shim, circle.f)
    assert torch.equal(circle.scan(shim, circle.f, shared_bytes=shared_bytes, descending=True), deeper)
    assert max(launch.shared_bytes for launch in launches) <= shared_bytes


@pytest.mark.parametrize("norm", [1.0, 1.1])
def test_matrices_that_decay_on_the_whole(shim, norm):
    for rows, dim, dtype in ((5, 5, "float32"), (131, 4, "float64")):
        Circle.random(rows, dim, dtype, norm).check(shim, norm)


@pytest.mark.parametrize(("norm", "arcs"), [(0.9, 5), (0.98, 16)])
def test_rotations_settle_in_the_rounds(shim, norm, arcs):
    """What is forgotten within as many arcs leaves nothing to the one block that would go on."""
    circle = Circle.random(arcs * 64 - 5, 2, "float32", norm, rotations=True)
    rounds, rest = circle.steps(shim, circle.f)
    assert rest == 0
    assert rounds < 5.2 * (np.log(2**-21) / np.log(norm) / 64 + 3)
    z = circle.scan(shim, circle.f, descending=True, multiprocessors=1)
    assert torch.equal(circle.scan(shim, circle.f), z)
    expected = echo_matrix_circle(circle.f.double(), circle.s.double(), circle.order)
    assert (z - expected).abs().max() < 2 / (1 - norm) * TOLERANCE["float32"] * expected.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [300, 34 * 64])
def test_matrix_circle_with_a_nan_takes_few_steps(shim, dtype, rows):
    circle = Circle.random(rows, 3, dtype, 0.5)
    healthy = sum(circle.steps(shim, circle.f))
    source, matrices = circle.f.clone(), circle.s.clone()
    source[rows // 3, 1] = np.nan
    assert sum(circle.steps(shim, source)) < 3 * healthy
    assert circle.scan(shim, source).isnan().all()  # a row is in every noise
    matrices[rows // 2, 2, 0] = np.inf
    sick = replace(circle, s=matrices)
    assert sum(sick.steps(shim, circle.f)) < 4 * healthy
    assert sick.most_partly_finite_rows(shim) <= 1


@pytest.mark.parametrize("position", [0, 62, 100, 126, 172, 236])
def test_matrix_circle_hands_on_what_is_infinite_in_one_dimension(shim, position):
    """From an arc of 64 steps to the next: 0, 172 and 236 end an arc forward, 62 and 126 backward."""
    circle = Circle.random(300, 3, "float64", 0.5)
    matrices = circle.s.clone()
    matrices[circle.order[position], 2, 0] = np.inf
    sick = replace(circle, s=matrices)
    assert sick.most_partly_finite_rows(shim) <= 1


@pytest.mark.parametrize("rows", [3, 130])
def test_matrices_that_grow_come_to_an_end(shim, rows):
    circle = Circle.random(rows, 3, "float32", 1.5, rotations=True)
    assert sum(circle.steps(shim, circle.f)) < 5.2 * (2 + 4 * 220 / rows)  # 1.5 to the 220th is no float
    assert not circle.scan(shim, circle.f).isfinite().all()


@pytest.mark.parametrize("dim", [65, 100])
def test_matrices_that_are_too_large_are_refused(shim, dim):
    with pytest.raises(ShimError, match="at most 64 rows"):
        Circle.random(2, dim, "float32", 0.5).scan(shim, torch.zeros(2, dim))


# ---- One rank's rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "width", "chunk_rows"), [(0, 3, 5), (1, 1, 2), (9, 65, 9), (9, 65, 2), (70, 5, 128), (70, 5, 16)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scan_of_one_ranks_rows(shim, rows, width, chunk_rows, dtype, monkeypatch):
    """As the CPU's kernels, whose own tests have the recurrence."""
    monkeypatch.setattr(ring_scan, "CHUNK_ROWS", chunk_rows)
    f, grad = torch.randn(2, rows, width).to(DTYPES[dtype])
    s = (0.9 * torch.rand(rows, width)).to(DTYPES[dtype])
    order, entries = torch.randperm(rows), torch.randn(2, width).to(torch.promote_types(f.dtype, torch.float32))
    composition, adjoint = ring_scan.Composition(order, f, s), ring_scan.Composition(order, grad, s, backward=True)
    z = ring_scan.scan(order, f, s, entries[0], composition)
    expected = (
        *composition.levels[0],
        *adjoint.levels[0],
        z,
        *ring_scan.scan_backward(order, s, grad, z, *entries, adjoint),
    )
    inputs = [order, f, s, grad, entries[0], composition.entries(entries[0]), adjoint.entries(entries[1])]
    results = [torch.empty_like(value) for value in expected]
    shim.call(Problem(rows, width, chunk_rows, dtype=dtype).header("scan"), inputs, results)
    for actual, wanted in zip(results, expected, strict=True):
        if wanted.numel():
            assert (actual.double() - wanted.double()).abs().max() <= 10 * TOLERANCE[dtype] * (1 + wanted.abs().max())


# ---- The ring at length ----------------------------------------------------------------------------------------------


def circles_of(shim: Shim, problem: Problem) -> list[torch.Tensor]:
    """Which bank row lies at each position of each circle."""
    if problem.exclude_self:  # the row at a position begins with the next one
        following = run_indices(shim, replace(problem, num_terms=1))[:, 0]
        circle = [0]
        while len(circle) < problem.rows:
            circle.append(int(following[circle[-1]]))
        return [torch.tensor(circle)]
    num_circles = -(-problem.rows // problem.bank_rows)
    rows = run_indices(shim, replace(problem, rows=num_circles * problem.bank_rows, num_terms=1))[:, 0]
    return list(torch.from_numpy(rows.copy()).view(num_circles, problem.bank_rows))


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


def ring_oracle(shim: Shim, problem: Problem, values: Values) -> list[torch.Tensor]:
    """As oracle(), in time that is linear in the rows but for a logarithm."""
    leaves = {name: getattr(values, name).double().requires_grad_() for name in ("bank_f", "bank_s", "f", "s")}
    if problem.exclude_self:
        leaves |= {"f": leaves["bank_f"], "s": leaves["bank_s"]}
    eps = []
    for circle in circles_of(shim, problem):
        sums = window_sums(leaves["bank_f"][circle], leaves["bank_s"][circle], problem.num_terms)
        eps.append(torch.empty_like(sums).index_copy(0, circle.roll(1), sums) if problem.exclude_self else sums)
    noise = torch.cat(eps)[: problem.rows]
    result = leaves["f"] + leaves["s"] * noise if problem.sample else noise
    wanted = [leaves["bank_f"], leaves["bank_s"], *own_rows(problem, leaves["s"])]
    return [result.detach(), *torch.autograd.grad(result, wanted, values.grad.double())]


def run_ring(shim: Shim, problem: Problem, values: Values) -> tuple[list[torch.Tensor], dict[str, int]]:
    """The results, and how often threads met in each kernel."""
    found = [run_forward(shim, problem, values)]
    launches, _ = shim.launches(problem)
    found += run_backward(shim, problem, values)
    launches += shim.launches(problem)[0]
    meetings = dict.fromkeys((launch.kernel for launch in launches), 0)
    for launch in launches:
        meetings[launch.kernel] += launch.meetings
    return found, meetings


def check_ring(shim: Shim, problem: Problem, values: Values) -> dict[str, int]:
    found, meetings = run_ring(shim, problem, values)
    expected = ring_oracle(shim, problem, values)
    magnitudes = Values(**{name: tensor.abs() for name, tensor in vars(values).items()})
    scales = ring_oracle(shim, problem, magnitudes)
    for one_found, one_expected, one_scale in zip(found, expected, scales, strict=True):
        error = (one_found.double() - one_expected).abs()
        tolerance = TOLERANCE[problem.dtype] * (1 + problem.num_terms / 256) * one_scale.max(0).values
        assert (error <= tolerance + np.finfo(np.float32).tiny).all(), f"{problem}: {(error / tolerance).max()}"
    return meetings


def uses(meetings: dict[str, int], kernel: str) -> int:
    return sum(count for name, count in meetings.items() if name.startswith(kernel))


# Two columns a lane or one, several circles, fewer rows than the bank, windows shorter than the circle.
LONG_RINGS = [(700, 34, 699, 0), (650, 19, 560, 0), (300, 34, 640, 650), (1400, 34, 530, 600), (1500, 3, 1499, 0)]


@pytest.mark.parametrize("shape", LONG_RINGS, ids=str)  # rows, width, num_terms, bank_rows
@pytest.mark.parametrize(
    ("dtype", "sample"), [("float32", True), ("float64", False), pytest.param("float16", True, marks=pytest.mark.slow)]
)
def test_long_ring(shim, shape, dtype, sample):
    rows, width, num_terms, bank_rows = shape
    problem = Problem(rows, width, num_terms, bank_rows, "ring", dtype, sample=sample, multiprocessors=1)
    meetings = check_ring(shim, problem, random_values(problem, 0.5))
    if width > 16 and dtype != "float64":  # all segments are scanned, and what is exact ends at once
        assert uses(meetings, "ring_forward_kernel") > 0
        assert uses(meetings, "ring_backward_kernel") > 0
        assert uses(meetings, "ring_forward_exact") + uses(meetings, "ring_backward_exact") < 10000
    values = random_values(problem, 0.97)
    for s in (values.bank_s, values.s):
        s[:, 0] = 0.999
        s[::7, 1] = 0
    problem = replace(problem, multiprocessors=3)
    check_ring(shim, problem, values)
    first, again = (run_ring(shim, replace(problem, descending=order), values)[0] for order in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "bank_rows", "num_terms"), [(200, 5, 5), (170, 7, 3), (117, 2, 2), (40, 1, 1)])
def test_many_circles(shim, dtype, rows, bank_rows, num_terms):
    """Each block adds up a copy of the bank's gradients."""
    for multiprocessors in (1, 4):
        problem = Problem(rows, 5, num_terms, bank_rows, "ring", dtype, multiprocessors=multiprocessors)
        values = random_values(problem)
        check(shim, problem, values)
        first = run_backward(shim, problem, values)
        again = run_backward(shim, replace(problem, descending=True), values)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.slow
def test_many_long_circles(shim):
    problem = Problem(17 * 520 - 100, 34, 515, 520, "ring")
    values = random_values(problem, 0.5)
    check_ring(shim, problem, values)
    values.bank_s[:, 3] = 0.999
    check_ring(shim, problem, values)


@pytest.mark.parametrize("num_terms", [8399, 5000])
def test_maps_of_four_levels(shim, num_terms):
    problem = Problem(8400, 17, num_terms, 0, "ring", "float64")
    values = random_values(problem)
    values.bank_s[:] = 0.9999
    check_ring(shim, problem, values)


@pytest.mark.parametrize("value", [float("nan"), 1.0, -1.001, 0.9999], ids=str)
def test_steps_are_linear_in_the_rows(shim, value):
    """Also where no weight ever vanishes."""
    totals = []
    for rows in (1200, 2400):
        problem = Problem(rows, 34, rows - 1, 0, "ring", multiprocessors=2)
        values = random_values(problem, 0.5)
        values.bank_s[:, 5] = value
        found, meetings = run_ring(shim, problem, values)
        assert all(np.isfinite(np.delete(result.numpy(), 5, axis=1)).all() for result in found)
        totals.append(sum(meetings.values()))
    assert totals[1] < 2.3 * totals[0]


def test_steps_of_few_rows_from_a_large_bank(shim):
    """Only windows that exist are scanned."""
    problem = Problem(64, 34, 2000, 2000, "ring", multiprocessors=2)
    values = random_values(problem, 0.5)
    many = replace(problem, rows=2000)
    run_forward(shim, problem, values)
    few_steps = sum(launch.meetings for launch in shim.launches(problem)[0])
    run_forward(shim, many, random_values(many, 0.5))
    assert 3 * few_steps < sum(launch.meetings for launch in shim.launches(many)[0])
