"""Every kernel once, on small sizes: `benchmarks/gpu_check.sh` runs these under compute-sanitizer."""

import pytest
import torch
from device_cases import DEVICES, deterministic, draw, estimates, gradients, inputs, on_devices, random_circles
from echo_cases import SAMPLINGS

import echo_ext

DTYPES = (torch.float32, torch.float64)


# Rows, columns, rows of a bank: staged, from the L2 cache, with few rows, in two passes over the rows.
@on_devices("shape", cpu=[(70, 20, 0), (40, 9, 7)], cuda=[(70, 20, 0), (40, 9, 7), (3, 3, 2100), (2000, 40, 0)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [False, True], ids=["any order", "deterministic"])
def test_echo(device, shape, sampling, dtype, mode):
    rows, width, bank_rows = shape
    tensors = inputs(device, (rows, width), dtype)
    tensors += inputs(device, (bank_rows, width), dtype) if bank_rows else []
    options = {"num_terms": min(160, bank_rows or rows - 1), "sampling": sampling, "bank": tuple(tensors[2:]) or None}
    with deterministic(mode):
        value = echo_ext.echo_sample(*tensors[:2], **options)
        found = torch.autograd.grad(value.sum(), tensors)
    assert all(tensor.isfinite().all() for tensor in found)


@on_devices("rows", cpu=[70], cuda=[70, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_circles(device, rows, dtype):
    for noise, tensors in random_circles(device, rows, 9, dtype).values():
        found = torch.autograd.grad(noise(*tensors).sum(), tensors)
        assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_estimates(device, dim, dtype):
    x, y = (values.to(device) for values in draw(150, dim, dim, dtype=dtype))
    assert all(value.isfinite().all() for value in [*estimates(echo_ext, x, y), *gradients(x, y)])
