"""The share of this machine's limits that each kernel reaches.

    python benchmarks/bench_roofline.py [--device cuda] [--quick] [--out DIR] [--report]

A full run takes a minute; --quick takes some seconds. Both limits are measured in the same run: the copy limit
(copying a large tensor; bytes read and written) and the arithmetic limit (a large matrix product, with two operations
for each multiply-add). The model below states the minimum number of bytes that each kernel moves and of operations
that it performs. The minimum time is the larger of the times that these take at the limits, and the share is the
minimum time divided by the measured median. Small inputs stay in the cache, which is faster than memory.

The work of a search or a count depends on the points. Its model is the work of a search among all pairs, of which
trees and sorted columns do only a part. Its figure is therefore not a share but a speed, relative to a search among
all pairs at the limits: "2x all pairs". Writes roofline.json and .md (roofline_cuda.* on CUDA).

Bytes: inputs and results, each moved once between the processor and memory. Operations: echo by permutation has B * D
* d terms, of one multiply-add each in the forward pass (eps = f + s * eps) and three in the backward pass (the noise
again, and the adjoints of f and s); with s = 0.97 no row stops early. The ring has one term for each row instead of
D, with two multiply-adds in the forward pass (the noise and z) and four in the backward pass (the noise again, the
gradients of f and s, and what is passed to the next row). The matrix ring has d * d multiply-adds for each row in the
forward pass and twice as many in the backward pass. Neighbors among all pairs have N * N * d subtractions and
comparisons, which count as two operations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from reporting import finish, machine, make_parser, markdown_table, on_device, parse
from timing import time_call

import echo_ext
from echo_ext.estimators.neighbors import PointSet

SCALE = 0.97


@dataclass(frozen=True)
class Kernel:
    """A call and the minimum of what it moves and computes."""

    name: str
    size: str
    bytes: float
    operations: float
    precision: torch.dtype
    call: Callable[[], object]
    all_pairs: bool = False  # operations are those of a search among all pairs, and no lower bound


def measure_limits(device, seconds, quick):
    """The limits: bytes per second of a copy, and operations per second of a matrix product for each dtype."""
    source = torch.ones(2**20 if quick else 2**26, device=device)  # 256 MiB: far beyond the caches
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    bandwidth = copied / time_call(lambda: target.copy_(source), seconds)["median"]
    side = 1024 if device.type == "cpu" else 8192
    rates = {}
    for dtype in (torch.float32, torch.float64):
        a, b = torch.rand(2, side, side, dtype=dtype, device=device)
        out = torch.empty_like(a)
        taken = time_call(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds)["median"]
        rates[str(dtype).removeprefix("torch.")] = 2 * side**3 / taken
    return bandwidth, rates


def echo_kernels(device, quick):
    for sampling, rows, width in (
        ("permutation", 512, 128),
        ("permutation", 1024, 128),
        ("ring", 1024, 64),
        ("ring", 2**11 if quick else 2**17, 64),
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


def matrix_kernels(device, quick):
    rows, width = 256 if quick else 8192, 32
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


def neighbor_kernels(device, quick):
    k = 3
    for n, dim in ((2000 if quick else 100_000, 2), (2000 if quick else 10_000, 20)):
        points = torch.randn(n, dim, dtype=torch.float64, device=device)
        radii = PointSet(points).search_distances(k)[:, -1].unsqueeze(0)
        column = points[:, :1].contiguous()
        calls = {
            "k-NN search": (dim, k, lambda p=points: PointSet(p).search(k)),
            "counts within radii": (dim, 2, lambda p=points, r=radii: PointSet(p).count(r)),
            "counts in a sorted margin": (1, 2, lambda p=column, r=radii: PointSet(p).count(r)),
        }
        if dim > 8:
            brute_force = lambda p=points: torch.cdist(p, p, p=torch.inf).topk(k + 1, largest=False)  # noqa: E731
            calls["brute force (torch.cdist)"] = (dim, k, brute_force)
        for name, (columns, results, call) in calls.items():
            moved, operations = 8 * n * (columns + results), 2 * float(n) * n * columns
            yield Kernel(name, f"{n} x {columns}", moved, operations, points.dtype, call, all_pairs=True)


def measure(options):
    device, seconds, quick = options.device, options.seconds, options.quick
    torch.manual_seed(0)
    bandwidth, rates = measure_limits(device, seconds, quick)
    kernels = []
    for family in (echo_kernels, matrix_kernels, neighbor_kernels):
        for kernel in family(device, quick):
            taken = time_call(kernel.call, seconds)
            kernels.append({
                "kernel": kernel.name, "size": kernel.size, "dtype": str(kernel.precision).removeprefix("torch."),
                "bytes": kernel.bytes, "operations": kernel.operations, "all_pairs": kernel.all_pairs, "seconds": taken,
            })  # fmt: skip
            print(f"{kernel.name:<34} {kernel.size:<16} {taken['median'] * 1e3:10.3f} ms", flush=True)
    return {"copy_bytes_per_second": bandwidth, "operations_per_second": rates, "kernels": kernels}


def table(result):
    bandwidth, rates = result["copy_bytes_per_second"], result["operations_per_second"]
    rows = []
    for kernel in result["kernels"]:
        moving, computing = kernel["bytes"] / bandwidth, kernel["operations"] / rates[kernel["dtype"]]
        measured = kernel["seconds"]["median"]
        share = max(moving, computing) / measured
        work = [f"{kernel[name] / 1e6:.3g}" for name in ("bytes", "operations")]
        times = [f"{seconds * 1e3:.3g}" for seconds in (moving, computing, measured)]
        share = f"{share:.3g}x all pairs" if kernel["all_pairs"] else f"{share:.1%}"
        rows.append([kernel["kernel"], kernel["size"], kernel["dtype"], *work, *times, share])
    products = ", ".join(f"{name} {rate / 1e9:.4g}" for name, rate in rates.items())
    head = ["kernel", "size", "dtype", "minimum MB", "minimum Mop", "moving, ms", "computing, ms", "measured, ms"]
    lines = [
        f"{machine(result)}, {result['threads']} CPU threads. "
        f"Limits measured in this run: copy {bandwidth / 1e9:.4g} GB/s; GFLOP/s of a matrix product: {products}.",
        "",
        *markdown_table([*head, "share"], rows),
    ]
    return "\n".join(lines) + "\n"


def main():
    options = parse(make_parser(__doc__, device=True, seconds=0.5))
    finish(on_device("roofline", options.device), options, measure, table)


if __name__ == "__main__":
    main()
