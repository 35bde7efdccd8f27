"""The kernels of CUDA for the rows of one rank, on the CPU: as the CPU's, whose own tests have the recurrence."""

import pytest
import torch
from device_worker import Native
from emulated_cases import DTYPES, TOLERANCE

from echo_ext._native import dtype_code
from echo_ext.echo import scan as ring_scan


@pytest.mark.parametrize(
    ("rows", "width", "chunk_rows"), [(0, 3, 5), (1, 1, 2), (9, 65, 9), (9, 65, 2), (70, 5, 128), (70, 5, 16)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scan_of_the_rows_of_one_rank(device, rows, width, chunk_rows, dtype, monkeypatch):
    monkeypatch.setattr(ring_scan, "CHUNK_ROWS", chunk_rows)
    f, grad = torch.randn(2, rows, width).to(DTYPES[dtype])
    s = (0.9 * torch.rand(rows, width)).to(DTYPES[dtype])
    order, (entry, entry_back) = (
        torch.randperm(rows),
        torch.randn(2, width).to(torch.promote_types(f.dtype, torch.float32)),
    )
    maps, maps_back = ring_scan.Composition(order, f, s), ring_scan.Composition(order, grad, s, backward=True)
    z = ring_scan.scan(order, f, s, entry, maps)
    gradients = ring_scan.scan_backward(order, s, grad, z, entry, entry_back, maps_back)

    def call(name: str, results: dict[str, torch.Tensor], **options) -> None:
        problem = Native("EchoScanProblem", (rows, width, dtype_code(f.dtype), chunk_rows), {})
        found = device.call(
            f"echo_scan_cuda_{name}", problem, results=results, order=order, s=s, **options, **device.place
        )
        for actual, wanted in zip(found, results.values(), strict=True):
            if wanted.numel():
                assert (actual.double() - wanted.double()).abs().max() <= 10 * TOLERANCE[dtype] * (
                    1 + wanted.abs().max()
                )

    for source, (constants, scales), backward in ((f, maps.levels[0], False), (grad, maps_back.levels[0], True)):
        call("compose", {"constants": constants, "scales": scales}, source=source, backward=backward)
    call("forward", {"z": z}, f=f, entries=maps.entries(entry))
    entries = {"entry": entry, "entries_back": maps_back.entries(entry_back)}
    call("backward", dict(zip(("grad_f", "grad_s"), gradients, strict=True)), grad=grad, z=z, **entries)
