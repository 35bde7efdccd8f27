"""Echo noise against the pure-PyTorch reference, in one run.

    pytest benchmarks/bench_echo.py --benchmark-json=benchmarks/results/echo_cpu.json
    python benchmarks/report_echo.py benchmarks/results/echo_cpu.json

`-k cpu` and `-k cuda` choose a device. Every case notes its peak extra memory; on CUDA also the time on the device
alone and the bytes that the kernels must at least move.
"""

import subprocess
import sys
import time

import pytest
import torch
from process_memory import peak_bytes

import echo_ext
from echo_ext import reference

SHAPES = [(100, 32), (256, 64), (512, 128), (1024, 128), (4096, 256)]
LARGEST_REFERENCE = 1024  # beyond, the reference's terms alone take 16 GiB and more
RING_ROWS = [2**10, 2**14, 2**17, 2**20]
RING_WIDTH = 64
SCALES = {
    "decaying": lambda shape: 0.97 * torch.sigmoid(torch.randn(shape)),
    "flat": lambda shape: torch.full(shape, 0.97),  # no row can stop early
}
DIRECTIONS = ("forward", "forward+backward")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def inputs(rows, width, scale, device):
    torch.manual_seed(0)
    f = torch.randn(rows, width).tanh().to(device)
    s = SCALES[scale]((rows, width)).to(device)
    return f.requires_grad_(), s.requires_grad_()


def reference_sample(f, s):
    indices = reference.random_orderings(f.shape[0], f.shape[0] - 1, device=f.device)
    return reference.echo_sample(f, s, indices)


SAMPLES = {
    "echo_ext": echo_ext.echo_sample,
    "echo_ext ring": lambda f, s: echo_ext.echo_sample(f, s, sampling="ring"),
    "reference": reference_sample,
    "reference compiled": torch.compile(reference_sample, dynamic=False),
}


def step(implementation, direction, f, s):
    """The call to be timed."""
    sample = SAMPLES[implementation]
    if direction == "forward":
        f, s = f.detach(), s.detach()
        return lambda: sample(f, s)
    grad = torch.ones_like(f)
    return lambda: torch.autograd.grad(sample(f, s), (f, s), grad)


def peak_memory(implementation, direction, rows, width, scale, device):
    """Bytes that one call needs beyond its input, its results included."""
    if device == "cuda":
        call = step(implementation, direction, *inputs(rows, width, scale, device))
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    # On the CPU the operating system's own account (Linux's) of a process that does nothing else.
    arguments = [implementation, direction, str(rows), str(width), scale]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def device_time(call, repeats=20):
    """Seconds of one call on the device alone, replayed from a CUDA graph so that launching costs nothing."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def measure(benchmark, implementation, direction, rows, width, scale, device):
    call = step(implementation, direction, *inputs(rows, width, scale, device))
    benchmark.extra_info.update(
        implementation=implementation,
        direction=direction,
        rows=rows,
        width=width,
        scale=scale,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        # f and s read and the result written, and as much again backward: what a kernel must move.
        least_bytes=(3 if direction == "forward" else 8) * rows * width * 4,
        # f and s of every term: what it must read on chip where no row stops early.
        term_bytes=rows * (rows - 1) * width * 8,
        peak_memory=peak_memory(implementation, direction, rows, width, scale, device),
    )
    timed = call
    if device == "cuda":
        if implementation != "reference compiled":
            benchmark.extra_info["device_time"] = device_time(call)

        def timed():
            call()
            torch.cuda.synchronize()

    timed()
    begin = time.perf_counter()
    timed()
    rounds = min(50, max(3, int(1.5 / (time.perf_counter() - begin))))
    benchmark.pedantic(timed, rounds=rounds, iterations=1)


@pytest.mark.parametrize("implementation", ["echo_ext", "reference", "reference compiled"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_sample(benchmark, device, rows, width, scale, direction, implementation):
    if implementation != "echo_ext" and rows > LARGEST_REFERENCE:
        pytest.skip("the reference does not fit")
    if implementation == "reference compiled" and device == "cpu":
        pytest.skip("compiled on CUDA only")
    measure(benchmark, implementation, direction, rows, width, scale, device)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("rows", "width"), [*SHAPES[:4], *((rows, RING_WIDTH) for rows in RING_ROWS)])
@pytest.mark.parametrize("device", DEVICES)
def test_ring(benchmark, device, rows, width, scale, direction):
    measure(benchmark, "echo_ext ring", direction, rows, width, scale, device)


if __name__ == "__main__":
    _, implementation, direction, rows, width, scale = sys.argv
    small = step(implementation, direction, *inputs(20, int(width), scale, "cpu"))
    call = step(implementation, direction, *inputs(int(rows), int(width), scale, "cpu"))
    small()  # loads what is loaded once
    print(peak_bytes(call))
