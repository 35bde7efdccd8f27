"""The share of this machine's ceilings that each kernel reaches.

    python benchmarks/bench_roofline.py [--device cpu] [--out benchmarks/results] [--seconds 0.5] [--largest 1.0]

In the same run: the copy ceiling (a large tensor copied; bytes read and written) and the operation ceiling (a large
matrix product, two operations for each multiply-add). For each kernel the model below says what it must at least
move and compute; the least time is the larger of the two parts at the ceilings, and the share is that least time over
the measured median. Small inputs stay in cache, which is faster than memory. What a search or a count must compute
depends on the points: its model is the work among all pairs, of which trees and sorted columns do a part only, so that
its figure is a speed beside that of all pairs at the ceilings, "2x all pairs", and no share. On CUDA times are between
events. Writes roofline.json and roofline.md.

Bytes: what must come from and go to memory once, inputs and results. Operations: echo by permutation, B * D * d terms
of one multiply-add forward (eps = f + s * eps) and three backward (the scan again, and the adjoints of f and s); where
s = 0.97 no row stops early. The ring has a term for each row instead of D: it multiplies and adds twice forward (noise,
z), four times backward (the noise again, df, ds, what it hands on). Matrix ring: d * d multiply-adds a row forward,
twice as many backward. Neighbours among all pairs: N * N * d subtractions and comparisons, counted as two operations.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import echo_ext
from echo_ext.estimators.neighbors import PointSet

SCALE = 0.97


@dataclass(frozen=True)
class Kernel:
    """A call and what it must at least do."""

    name: str
    size: str
    bytes: float
    operations: float
    precision: torch.dtype
    call: Callable[[], object]
    all_pairs: bool = False  # operations are those of a search among all pairs, and no lower bound


def median_time(call, seconds, device):
    def once():
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    once()
    times, stop = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < stop and len(times) < 500):
        times.append(once())
    return statistics.median(times)


def ceilings(device, seconds, largest):
    """Bytes a second of a copy, and operations a second by dtype."""
    source = torch.ones(max(2**20, int(2**26 * largest)), device=device)  # 256 MiB: far beyond the caches
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    bandwidth = copied / median_time(lambda: target.copy_(source), seconds, device)
    side = 1024 if device.type == "cpu" else 8192
    rates = {}
    for dtype in (torch.float32, torch.float64):
        a, b = torch.rand(2, side, side, dtype=dtype, device=device)
        out = torch.empty_like(a)
        rates[dtype] = 2 * side**3 / median_time(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds, device)
    return bandwidth, rates


def echo_kernels(device, largest):
    for sampling, rows, width in (
        ("permutation", 512, 128),
        ("permutation", 1024, 128),
        ("ring", 1024, 64),
        ("ring", max(2048, int(2**17 * largest)), 64),
    ):
        f, s = torch.rand(rows, width, device=device), torch.full((rows, width), SCALE, device=device)
        f, s = f.requires_grad_(), s.requires_grad_()
        grad = torch.ones_like(f)
        terms = rows * width if sampling == "ring" else rows * (rows - 1) * width
        multiply_adds = (2, 4) if sampling == "ring" else (1, 3)
        seed = torch.tensor(1, device=device)
        z = echo_ext.echo_sample(f, s, sampling=sampling, seed=seed)

        def forward(f=f, s=s, sampling=sampling, seed=seed):
            with torch.no_grad():
                return echo_ext.echo_sample(f, s, sampling=sampling, seed=seed)

        def backward(z=z, f=f, s=s, grad=grad):
            return torch.autograd.grad(z, (f, s), grad, retain_graph=True)

        size, elements = f"{rows} x {width}", rows * width
        name = f"echo {sampling}"
        yield Kernel(f"{name} forward", size, 12 * elements, 2 * multiply_adds[0] * terms, f.dtype, forward)
        yield Kernel(f"{name} backward", size, 20 * elements, 2 * multiply_adds[1] * terms, f.dtype, backward)


def matrix_kernels(device, largest):
    rows, width = max(256, int(8192 * largest)), 32
    f = torch.rand(rows, width, device=device).requires_grad_()
    s = (torch.eye(width, device=device) * SCALE).expand(rows, width, width).contiguous().requires_grad_()
    grad = torch.ones_like(f)
    z = echo_ext.echo_sample_matrix(f, s)
    elements = rows * width * width
    size = f"{rows} x {width} x {width}"

    def forward():
        with torch.no_grad():
            return echo_ext.echo_sample_matrix(f, s)

    def backward():
        return torch.autograd.grad(z, (f, s), grad, retain_graph=True)

    yield Kernel("matrix ring forward", size, 4 * elements, 2 * elements, f.dtype, forward)
    yield Kernel("matrix ring backward", size, 8 * elements, 4 * elements, f.dtype, backward)


def neighbour_kernels(device, largest):
    k = 3
    for n, dim in ((max(2000, int(100_000 * largest)), 2), (max(2000, int(10_000 * largest)), 20)):
        points = torch.randn(n, dim, dtype=torch.float64, device=device)
        distances = PointSet(points).search_distances(k)
        radii = distances[:, -1].unsqueeze(0).contiguous()
        size, pairs = f"{n} x {dim}", float(n) * n * dim
        yield Kernel("k-NN search", size, 8 * n * (dim + k), 2 * pairs, points.dtype,
                     lambda p=points: PointSet(p).search_distances(k), True)  # fmt: skip
        yield Kernel("counts within radii", size, 8 * n * (dim + 2), 2 * pairs, points.dtype,
                     lambda p=points, r=radii: PointSet(p).count(r), True)  # fmt: skip
        column = points[:, :1].contiguous()
        yield Kernel("counts in a sorted margin", f"{n} x 1", 8 * n * 3, 2 * pairs / dim, points.dtype,
                     lambda c=column, r=radii: PointSet(c).count(r), True)  # fmt: skip
        if dim > 8:
            yield Kernel("brute force (torch.cdist)", size, 8 * n * (dim + k), 2 * pairs, points.dtype,
                         lambda p=points: torch.cdist(p, p, p=torch.inf).topk(k + 1, largest=False), True)  # fmt: skip


def measure(device, seconds, largest):
    bandwidth, rates = ceilings(device, seconds, largest)
    rows = []
    for family in (echo_kernels, matrix_kernels, neighbour_kernels):
        for kernel in family(device, largest):
            taken = median_time(kernel.call, seconds, device)
            moving, computing = kernel.bytes / bandwidth, kernel.operations / rates[kernel.precision]
            rows.append({
                "kernel": kernel.name, "size": kernel.size, "dtype": str(kernel.precision).removeprefix("torch."),
                "bytes": kernel.bytes, "operations": kernel.operations, "moving": moving, "computing": computing,
                "seconds": taken, "share": max(moving, computing) / taken, "all_pairs": kernel.all_pairs,
            })  # fmt: skip
            print(f"{kernel.name:<34} {kernel.size:<16} {taken * 1e3:10.3f} ms", flush=True)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "copy_bytes_per_second": bandwidth,
        "operations_per_second": {str(dtype).removeprefix("torch."): rate for dtype, rate in rates.items()},
        "kernels": rows,
    }


def report(result):
    rates = ", ".join(f"{name} {rate / 1e9:.4g}" for name, rate in result["operations_per_second"].items())
    lines = [
        f"{result['device']}, torch {result['torch']}, {result['threads']} CPU threads. Ceilings measured in this run: "
        f"copy {result['copy_bytes_per_second'] / 1e9:.4g} GB/s; GFLOP/s of a matrix product: {rates}.",
        "",
        "| kernel | size | dtype | least MB | least Mop | moving, ms | computing, ms | measured, ms | share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["kernels"]:
        share = f"{row['share']:.3g}x all pairs" if row["all_pairs"] else f"{row['share']:.1%}"
        times = " | ".join(f"{row[name] * 1e3:.3g}" for name in ("moving", "computing", "seconds"))
        lines.append(
            f"| {row['kernel']} | {row['size']} | {row['dtype']} | {row['bytes'] / 1e6:.3g} "
            f"| {row['operations'] / 1e6:.3g} | {times} | {share} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=0.5, help="for each kernel")
    parser.add_argument("--largest", type=float, default=1.0, help="share of the largest sizes, for a trial")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    result = measure(device, options.seconds, options.largest)
    table = report(result)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "roofline" if device.type == "cpu" else f"roofline_{device.type}"
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(table)


if __name__ == "__main__":
    main()
