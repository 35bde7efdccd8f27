"""What the tests of the Echo kernels on the emulated device share: problems, calls, and the reference's results."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from device_worker import Native, Unwritten
from emulated_device import Device, Launch
from knn_cases import fresh

from echo_ext import _native, reference
from echo_ext.echo._arguments import SAMPLINGS

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _native.DTYPES}
# Of the largest sum of magnitudes in a column; half types round the result once.
TOLERANCE = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}


@dataclass(frozen=True)
class Problem:
    """A call of the Echo kernels.

    Args:
        bank_rows: 0 where the batch is its own bank.
        sample: Whether the result is f + s * eps, instead of eps.
    """

    rows: int
    width: int
    num_terms: int
    bank_rows: int = 0
    sampling: str = "permutation"
    dtype: str = "float32"
    seed: int = 1
    sample: bool = True
    deterministic: bool = False

    @property
    def exclude_self(self) -> bool:
        return self.bank_rows == 0

    @property
    def has_own_rows(self) -> bool:
        """Whether there are rows that are not in the bank."""
        return self.sample and not self.exclude_self

    @property
    def native(self) -> Native:
        sampling, dtype = SAMPLINGS.index(self.sampling), _native.dtype_code(DTYPES[self.dtype])
        bank_rows = self.bank_rows or self.rows
        fields = (self.rows, bank_rows, self.width, self.num_terms, self.exclude_self, sampling, dtype)
        return Native("EchoProblem", fields, {})

    @property
    def seed_tensor(self) -> torch.Tensor:
        return torch.tensor([self.seed])


@dataclass
class Values:
    bank_f: torch.Tensor
    bank_s: torch.Tensor
    f: torch.Tensor
    s: torch.Tensor
    grad: torch.Tensor


def random_values(problem: Problem, scale: float = 0.97, rng: np.random.Generator | None = None) -> Values:
    rng = rng or fresh()

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


def workspace_bytes(device: Device, problem: Problem, operation: str) -> int:
    options = {"deterministic": problem.deterministic} if operation == "backward" else {}
    return device.ask(f"echo_cuda_{operation}_workspace_bytes", problem.native, device=device.number, **options)


def run_forward(device: Device, problem: Problem, values: Values) -> torch.Tensor:
    (out,) = device.call(
        "echo_cuda_forward",
        problem.native,
        results={"out": values.grad},
        seed=problem.seed_tensor,
        bank_f=values.bank_f,
        bank_s=values.bank_s,
        f=values.f if problem.sample else 0,
        s=values.s if problem.sample else 0,
        workspace=Unwritten(workspace_bytes(device, problem, "forward")),
        **device.place,
    )
    return out


def run_backward(device: Device, problem: Problem, values: Values) -> tuple[torch.Tensor, ...]:
    """The gradients of the bank, and of the rows' own s where they are not in the bank."""
    own_s = {"grad_s": values.s} if problem.has_own_rows else {}
    return device.call(
        "echo_cuda_backward",
        problem.native,
        results={"grad_bank_f": values.bank_f, "grad_bank_s": values.bank_s, **own_s},
        seed=problem.seed_tensor,
        bank_f=values.bank_f,
        bank_s=values.bank_s,
        s=values.s if problem.sample else 0,
        grad=values.grad,
        workspace=Unwritten(workspace_bytes(device, problem, "backward")),
        deterministic=problem.deterministic,
        **device.place,
        **({} if own_s else {"grad_s": 0}),
    )


def run_indices(device: Device, problem: Problem) -> torch.Tensor:
    shape = torch.empty((problem.rows, problem.num_terms), dtype=torch.int64)
    (indices,) = device.call(
        "echo_cuda_indices", problem.native, results={"indices": shape}, seed=problem.seed_tensor, **device.place
    )
    return indices


def launched(device: Device, kernel: str) -> Launch:
    """The launch of a kernel in the last call."""
    (found,) = (launch for launch in device.launches if launch.kernel.startswith(kernel))
    return found


def lanes_of(launch: Launch) -> int:
    """How many lanes a row kernel gives to each row."""
    return int(launch.kernel.split(",")[1])


# ---- The reference ---------------------------------------------------------------------------------------------------

Noise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of a bank's f and s


def reference_noise(device: Device, problem: Problem) -> Noise:
    indices = run_indices(device, problem)
    return lambda f, s: reference.echo_noise(f, s, indices)


def expected_results(problem: Problem, values: Values, noise: Noise) -> list[torch.Tensor]:
    """The result in float64, then the gradients in the order of run_backward."""
    leaves = {name: tensor.to(torch.float64, copy=True).requires_grad_() for name, tensor in vars(values).items()}
    if problem.exclude_self:
        leaves |= {"f": leaves["bank_f"], "s": leaves["bank_s"]}
    eps = noise(leaves["bank_f"], leaves["bank_s"])
    result = leaves["f"] + leaves["s"] * eps if problem.sample else eps
    wanted = [leaves[name] for name in ("bank_f", "bank_s", *(["s"] if problem.has_own_rows else []))]
    results = [result.detach(), *torch.autograd.grad(result, wanted, leaves["grad"])]
    not_finite = ~values.bank_s.isfinite()
    if not_finite.any():
        # Autograd divides by them. But the derivative with respect to an element that is drawn once does not depend on
        # the value of the element.
        bank_s = values.bank_s.where(~not_finite, 1.0)
        replaced = replace(values, bank_s=bank_s, s=bank_s if problem.exclude_self else values.s)
        results[2][not_finite] = expected_results(problem, replaced, noise)[2][not_finite]
    return results


def assert_close(problem: Problem, found: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> None:
    """Compare relative to the largest of a column's values in `scale`."""
    found = found.double()
    # A gradient may meet what is not finite once more often than the reference, as NaN times zero, in that column.
    finite = found.isfinite()
    assert not (finite & ~expected.isfinite()).any()
    assert finite[:, expected.isfinite().all(0)].all()
    # Rounding errors of a product grow with its length, which counts where weights do not decay.
    largest = scale.where(scale.isfinite(), 0).amax(0)
    tolerance = TOLERANCE[problem.dtype] * (1 + problem.num_terms / 256) * largest
    error = (found - expected).abs().where(finite, 0)
    assert (error <= tolerance + torch.finfo(torch.float32).tiny).all(), f"{problem}: {(error / tolerance).max()}"


def run(device: Device, problem: Problem, values: Values) -> tuple[list[torch.Tensor], list[Launch]]:
    """The result and the gradients, and the launches of both."""
    results = [run_forward(device, problem, values)]
    launches = device.launches
    results += run_backward(device, problem, values)
    return results, launches + device.launches


def check(device: Device, problem: Problem, values: Values | None = None, noise: Noise | None = None) -> list[Launch]:
    """Compare the result and the gradients with those of a noise, by default the reference's; the launches."""
    values = values or random_values(problem)
    noise = noise or reference_noise(device, problem)
    found, launches = run(device, problem, values)
    expected = expected_results(problem, values, noise)
    # What rounding errors are relative to.
    magnitudes = Values(**{name: tensor.abs() for name, tensor in vars(values).items()})
    scales = expected_results(problem, magnitudes, noise)
    for one_found, one_expected, one_scale in zip(found, expected, scales, strict=True):
        assert_close(problem, one_found, one_expected, one_scale)
    assert torch.equal(found[0].isfinite(), expected[0].isfinite())
    return launches
