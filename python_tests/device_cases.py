"""Shared helpers of the tests that compare a GPU with the reference (the oracle) or with the CPU.

Each of these tests also runs on the CPU, with small sizes, which shows that the test itself works. `pytest -m cuda`
selects the GPU's parameters, which are skipped on a machine without one.
"""

import contextlib
import functools
from unittest import mock

import pytest
import torch
from echo_cases import relative_error, signal_and_scale
from knn_cases import fresh, related

import echo_ext
from echo_ext import reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
ORACLE_BYTES = 2**30  # of one of the oracle's tensors, of which some ten live at a time


def on_devices(name, *, cpu, cuda):
    """Parametrize a test with `device` and one more name, which has other values on the CPU than on a GPU."""
    cases = [("cpu", value) for value in cpu]
    cases += [pytest.param("cuda", value, marks=pytest.mark.cuda) for value in cuda]
    return pytest.mark.parametrize(("device", name), cases)


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def busy_stream(device):
    """A stream of its own, on which all work starts late: a kernel launched on another one runs too early."""
    if device == "cpu":
        yield
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        yield
    stream.synchronize()


@contextlib.contextmanager
def deterministic(mode):
    torch.use_deterministic_algorithms(mode)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---- Memory that nothing has written ---------------------------------------------------------------------------------


class Poison:
    """Counts the tensors that it has filled."""

    count = 0

    def wrap(self, allocate):
        @functools.wraps(allocate)
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            tensor.untyped_storage().fill_(255)
            self.count += 1
            return tensor

        return allocate_poisoned


@contextlib.contextmanager
def poisoned_memory():
    """Fill every tensor that is allocated without values with 0xFF bytes, which is NaN in every floating type.

    An element of an output or workspace that no kernel writes, or that one reads too early, then shows in the results.
    Replaces torch's functions rather than being a TorchFunctionMode, which does not reach into torch.autograd.grad.
    """
    poison = Poison()
    with contextlib.ExitStack() as stack:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(owner, name, poison.wrap(getattr(owner, name))))
        yield poison


# ---- Echo ------------------------------------------------------------------------------------------------------------


def inputs(device, shape, dtype=torch.float32, largest_scale=0.97, *, flat=False, layout=torch.clone):
    """f and s, with random scales or, if `flat`, the largest one everywhere; `layout` places them in memory."""
    f, s = (tensor.detach() for tensor in signal_and_scale(shape, dtype, largest_scale, device))
    s = torch.full_like(s, largest_scale) if flat else s
    return [layout(tensor).detach().requires_grad_() for tensor in (f, s)]


def run(function, tensors, grad):
    """Return the value of the function and its gradients, of which `grad` is that of the value."""
    value = function(*tensors)
    return (value, *torch.autograd.grad(value, tensors, grad.to(value)))


def run_oracle(name, tensors, indices, grad):
    """Return the results of the reference in float64, some columns at a time so that (rows, terms, columns) fits."""

    def call(f, s, *bank):
        return getattr(reference, name)(f, s, indices, bank=bank or None)

    columns = max(1, ORACLE_BYTES // (8 * indices.numel()))
    parts = [tensor.detach().flatten(1).double().split(columns, 1) for tensor in (*tensors, grad)]
    found = [
        run(call, [piece.requires_grad_() for piece in inputs], grad) for *inputs, grad in zip(*parts, strict=True)
    ]
    return [torch.cat(pieces, 1) for pieces in zip(*found, strict=True)]


def assert_close(found, expected, tolerance, against="the oracle"):
    """Compare a value and its gradients, by the largest error relative to the largest expected value."""
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        error = relative_error(ours.reshape(theirs.shape), theirs)
        what = f"gradient {index}" if index else "value"
        # Written so that NaN fails.
        assert error <= tolerance, f"{what}: error {error:.2e} against {against}, must be at most {tolerance:.2e}"


def random_circles(device, rows, width, dtype, norm=0.9):
    """The noises made around a whole circle, each with its input: matrices, and one rank of many."""
    f, s = inputs(device, (rows, width), dtype, norm)
    matrices = torch.randn(rows, width, width, dtype=torch.float64)
    # On the CPU: above 32 x 32 a GPU takes a millisecond for each.
    matrices *= norm * torch.rand(rows, 1, 1) / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
    return {
        "matrix ring": (echo_ext.echo_sample_matrix, (f, matrices.to(device, dtype).requires_grad_())),
        "one rank's ring": (echo_ext.distributed.echo_sample, (f, s)),
    }


# ---- Estimators ------------------------------------------------------------------------------------------------------


def draw(n, dx=1, dy=1, kind="normal", dtype=torch.float64):
    """Two dependent variables on the CPU."""
    return [torch.from_numpy(values).to(dtype) for values in related(fresh(), n, dx, dy, kind)]


def estimates(package, x, y):
    """Yield estimates by a package (or by its reference) that together reach every kernel.

    These are lists in registers and in shared memory, windows, groups of columns, and pairs of columns.
    """
    yield package.mutual_information(x, y, k=[1, 6, 12, 30])
    for method in ("ksg1", "ksg2", "bi-ksg", "mixed"):
        yield package.mutual_information(x, y, k=[3, 40], method=method, exclude_within=2, local=True)
    yield package.conditional_mutual_information(x, y, x.flip(0), method="ksg2")
    yield package.mutual_information_discrete(x, (y[:, 0] > 0).long())
    yield package.mutual_information_matrix(x, y)
    for k in (2, 7, 15, 31, 50):
        yield from package.knn(x, k=k)
    yield from package.knn(x, y[:100], metric="euclidean")


def gradients(x, y):
    """Yield the gradients of a mutual information, whose neighbors on the boundary have kernels of their own."""
    x, y = (values.detach().requires_grad_() for values in (x, y))
    yield from torch.autograd.grad(echo_ext.mutual_information(x, y, k=[1, 6, 12, 30]).sum(), (x, y))
