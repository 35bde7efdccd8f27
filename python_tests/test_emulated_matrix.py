"""The kernels of CUDA for circles of matrices, on the CPU: the recurrence, its adjoint, and the steps they take."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from device_worker import Native, Unwritten
from emulated_cases import DTYPES, TOLERANCE
from emulated_device import Device, DeviceError

from echo_ext._native import dtype_code
from echo_ext.reference import echo_matrix_circle


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

    @property
    def native(self) -> Native:
        return Native("EchoMatrixProblem", (*self.f.shape, dtype_code(self.f.dtype)), {})

    def scan(self, device: Device, source: torch.Tensor, backward: bool = False) -> torch.Tensor:
        (values,) = device.call(
            "echo_matrix_cuda_scan",
            self.native,
            results={"values": self.f},
            order=self.order,
            source=source,
            matrices=self.s,
            backward=backward,
            workspace=Unwritten(device.ask("echo_matrix_cuda_workspace_bytes", self.native)),
            **device.place,
        )
        return values

    def run(self, device: Device) -> list[torch.Tensor]:
        """The recurrence, its adjoint and the gradient of the matrices."""
        z = self.scan(device, self.f)
        values = self.scan(device, self.grad, backward=True)
        inputs = {"order": self.order, "values": values, "z": z}
        (grad_matrices,) = device.call(
            "echo_matrix_cuda_outer", self.native, results={"grad_matrices": self.s}, **inputs, **device.place
        )
        return [z, values, grad_matrices]

    def check(self, device: Device, norm: float) -> None:
        wide = [tensor.double().requires_grad_() for tensor in (self.f, self.s)]
        expected = echo_matrix_circle(*wide, self.order)
        gradients = torch.autograd.grad((expected * self.grad).sum(), wide)
        tolerance = max(10, 2 / (1 - norm) if norm < 1 else 0) * self.tolerance  # near norm 1 roundings add up
        for actual, wanted in zip(self.run(device), (expected, *gradients), strict=True):
            assert (actual - wanted).abs().max() < tolerance * wanted.abs().max()

    @property
    def tolerance(self) -> float:
        return next(TOLERANCE[name] for name, dtype in DTYPES.items() if dtype == self.f.dtype)

    def most_partly_finite_rows(self, device: Device) -> int:
        """How many rows have a finite value, forward or backward. An infinite entry of a matrix leaves one: the row of
        that entry, which is infinite in one dimension only.
        """
        scans = [self.scan(device, self.f, backward) for backward in (False, True)]
        return max(int(scan.isfinite().any(1).sum()) for scan in scans)

    def steps(self, device: Device, source: torch.Tensor) -> tuple[float, float]:
        """How often threads meet in rounds and in the block that goes on, for each row and thread; a step is up to five
        times.
        """
        self.scan(device, source)
        total = [launch.meetings / launch.threads / len(self.f) for launch in device.launches]
        assert [launch.name for launch in device.launches[-2:]] == ["matrix_arc_kernel", "matrix_finish_kernel"]
        return sum(total[:-1]), total[-1]


@pytest.mark.parametrize(("rows", "dim"), [(2, 1), (2, 64), (9, 33), (64, 3), (70, 5), (300, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", [0.3, 0.8, 0.97])
def test_matrix_circle(device, rows, dim, dtype, norm):
    Circle.random(rows, dim, dtype, norm).check(device, norm)


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 31, 32, 33, 36, 63, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrix_circle_of_each_width(device, dim, dtype):
    for rows, norm, descending in ((3, 0.9, False), (67, 0.3, True)):
        Circle.random(rows, dim, dtype, norm).check(replace(device, descending=descending), norm)


@pytest.mark.parametrize("kilobytes", [64, 99])
@pytest.mark.parametrize("dim", [64, 55])
def test_matrix_circle_in_little_shared_memory(device, kilobytes, dim):
    """With one matrix in it, or two."""
    small = replace(device, shared_bytes=kilobytes * 1024)
    circle = Circle.random(67, dim, "float64", 0.7)
    circle.check(small, 0.7)
    expected = circle.scan(device, circle.f)
    assert torch.equal(circle.scan(replace(small, descending=True), circle.f), expected)
    assert max(launch.shared_bytes for launch in device.launches) <= small.shared_bytes


@pytest.mark.parametrize("norm", [1.0, 1.1])
def test_matrices_that_decay_on_the_whole(device, norm):
    for rows, dim, dtype in ((5, 5, "float32"), (131, 4, "float64")):
        Circle.random(rows, dim, dtype, norm).check(device, norm)


@pytest.mark.parametrize(("norm", "arcs"), [(0.9, 5), (0.98, 16)])
def test_rotations_settle_in_the_rounds(device, norm, arcs):
    """What is forgotten within as many arcs leaves nothing to the one block that would go on."""
    circle = Circle.random(arcs * 64 - 5, 2, "float32", norm, rotations=True)
    rounds, rest = circle.steps(device, circle.f)
    assert rest == 0
    assert rounds < 5.2 * (np.log(2**-21) / np.log(norm) / 64 + 3)
    z = circle.scan(replace(device, descending=True, multiprocessors=1), circle.f)
    assert torch.equal(circle.scan(device, circle.f), z)
    expected = echo_matrix_circle(circle.f.double(), circle.s.double(), circle.order)
    assert (z - expected).abs().max() < 2 / (1 - norm) * TOLERANCE["float32"] * expected.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [300, 34 * 64])
def test_matrix_circle_with_a_nan_takes_few_steps(device, dtype, rows):
    circle = Circle.random(rows, 3, dtype, 0.5)
    healthy = sum(circle.steps(device, circle.f))
    source, matrices = circle.f.clone(), circle.s.clone()
    source[rows // 3, 1] = np.nan
    assert sum(circle.steps(device, source)) < 3 * healthy
    assert circle.scan(device, source).isnan().all()  # a row is in every noise
    matrices[rows // 2, 2, 0] = np.inf
    sick = replace(circle, s=matrices)
    assert sum(sick.steps(device, circle.f)) < 4 * healthy
    assert sick.most_partly_finite_rows(device) <= 1


@pytest.mark.parametrize("position", [0, 62, 100, 126, 172, 236])
def test_arcs_pass_on_what_is_infinite_in_one_dimension(device, position):
    """From an arc of 64 steps to the next: 0, 172 and 236 end an arc forward, 62 and 126 backward."""
    circle = Circle.random(300, 3, "float64", 0.5)
    matrices = circle.s.clone()
    matrices[circle.order[position], 2, 0] = np.inf
    sick = replace(circle, s=matrices)
    assert sick.most_partly_finite_rows(device) <= 1


@pytest.mark.parametrize("rows", [3, 130])
def test_matrices_that_grow_come_to_an_end(device, rows):
    circle = Circle.random(rows, 3, "float32", 1.5, rotations=True)
    assert sum(circle.steps(device, circle.f)) < 5.2 * (2 + 4 * 220 / rows)  # 1.5 to the 220th is no float
    assert not circle.scan(device, circle.f).isfinite().all()


@pytest.mark.parametrize("dim", [65, 100])
def test_matrices_that_are_too_large_are_refused(device, dim):
    with pytest.raises(DeviceError, match="at most 64 rows"):
        Circle.random(2, dim, "float32", 0.5).scan(device, torch.zeros(2, dim))
