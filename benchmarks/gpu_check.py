"""What gpu_check.sh runs with nothing but torch: results against the oracle, times, and a short tour for sanitizers.

python benchmarks/gpu_check.py compare | touch | time --json FILE
"""

import argparse
import itertools
import json
import platform
import sys
import time
from functools import partial

import torch

import echo_ext
from echo_ext import reference

SAMPLINGS = ("permutation", "replacement", "ring")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SHAPES = [(2, 1, 0), (33, 17, 0), (257, 129, 0), (600, 70, 0), (2100, 9, 0), (1, 5, 40), (300, 40, 7), (64, 20, 2500)]


def inputs(rows, width, dtype=torch.float32, scale=None):
    f = torch.randn(rows, width, device="cuda", dtype=torch.float64).tanh().to(dtype)
    s = torch.randn(rows, width, device="cuda", dtype=torch.float64)
    s = (0.97 * torch.sigmoid(s) if scale is None else torch.full_like(s, scale)).to(dtype)
    return f.requires_grad_(), s.requires_grad_()


def run(function, tensors, grad):
    value = function(*tensors)
    return (value, *torch.autograd.grad(value, tensors, grad.to(value.dtype)))


def case_error(rows, width, bank_rows, sampling, dtype, scale=None):
    """The largest error beside the largest value, of the result and each gradient."""
    seed = int(torch.randint(2**62, ()))
    tensors = inputs(rows, width, dtype, scale)
    bank = inputs(bank_rows, width, dtype, scale) if bank_rows else None
    indices = echo_ext.echo_indices(rows, sampling=sampling, seed=seed, bank_size=bank_rows or None, device="cuda")
    grad = torch.randn(rows, width, device="cuda", dtype=torch.float64)

    def ours(f, s, *bank):
        return echo_ext.echo_sample(f, s, sampling=sampling, bank=bank or None, seed=seed)

    def oracle(f, s, *bank):
        return reference.echo_sample(f, s, indices, bank=bank or None)

    tensors = (*tensors, *(bank or ()))
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found = [value.detach().double() for value in run(ours, tensors, grad)]
    pairs = zip(found, run(oracle, wide, grad.to(dtype).double()), strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item() for a, b in pairs)


def compare_echo():
    failed = 0
    for shape, sampling, dtype in itertools.product(SHAPES, SAMPLINGS, TOLERANCES):
        for deterministic, scale in ((False, None), (True, None), (False, 0.97)):
            torch.use_deterministic_algorithms(deterministic)
            error = case_error(*shape, sampling, dtype, scale)
            if not error <= TOLERANCES[dtype]:
                failed += 1
                print(f"{shape} {sampling} {dtype} deterministic={deterministic} scale={scale}: error {error:.2e}")
    for sampling in SAMPLINGS:
        torch.use_deterministic_algorithms(True)
        f, s = inputs(700, 50)
        grad = torch.randn_like(f)
        results = [
            run(lambda f, s, how=sampling: echo_ext.echo_sample(f, s, sampling=how, seed=5), (f, s), grad)
            for _ in range(2)
        ]
        if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
            failed += 1
            print(f"{sampling}: not the same bits twice")
        on_cpu = echo_ext.echo_indices(500, sampling=sampling, seed=9)
        if not torch.equal(echo_ext.echo_indices(500, sampling=sampling, seed=9, device="cuda").cpu(), on_cpu):
            failed += 1
            print(f"{sampling}: other draws than on the CPU")
    return failed


def circles(rows, width, dtype, scale=0.9):
    """The noises made around a whole circle, each with an input of its own: matrices, and one rank of many."""
    matrices = torch.randn(rows, width, width, device="cuda", dtype=torch.float64)
    matrices *= scale / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
    f, s = inputs(rows, width, dtype, scale)
    yield "matrix ring", echo_ext.echo_sample_matrix, (f, matrices.to(dtype).requires_grad_())
    yield "one rank's ring", echo_ext.distributed.echo_sample, (f, s)


def compare_circles():
    """With the CPU, which draws the same circle."""
    failed = 0
    for rows, width, dtype in itertools.product((2, 70, 3000), (1, 33), TOLERANCES):
        for name, noise, tensors in circles(rows, width, dtype):
            grad = torch.randn(rows, width, dtype=dtype)
            on_cpu = [tensor.detach().cpu().requires_grad_() for tensor in tensors]
            draw = partial(noise, seed=rows)
            pairs = list(zip(run(draw, tensors, grad.cuda()), run(draw, on_cpu, grad), strict=True))
            error = max(((a.cpu() - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)
            if not error <= 4 * TOLERANCES[dtype]:
                failed += 1
                print(f"{name}, {rows} x {width} {dtype}: error {error:.2e} beside the CPU")
    return failed


# ---- Nearest neighbours ----------------------------------------------------------------------------------------------

METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed")


def related(n, dim, dtype=torch.float64, tied=False):
    """Two variables on the CPU; tied: with many equal values."""
    x = torch.randn(n, dim, dtype=torch.float64)
    y = 0.6 * x + 0.8 * torch.randn_like(x)
    return [(v.mul(2).round() if tied else v).to(dtype) for v in (x, y)]


def estimates(x, y):
    """What reaches every kernel: lists in registers and in shared memory, windows, groups of columns, boundaries."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    estimate = echo_ext.mutual_information(x, y, k=[1, 6, 12, 30])
    yield from (estimate, *torch.autograd.grad(estimate.sum(), (x, y)))
    x, y = x.detach(), y.detach()
    for method in METHODS:
        yield echo_ext.mutual_information(x, y, k=[3, 40], method=method, exclude_within=2, local=True)
    yield echo_ext.conditional_mutual_information(x, y, x.flip(0), method="ksg2")
    yield echo_ext.mutual_information_discrete(x, (y[:, 0] > 0).long())
    for k in (2, 7, 15, 31, 50):
        yield from echo_ext.knn(x, k=k)
    yield from echo_ext.knn(x, y[:100], metric="euclidean")


def compare_neighbours():
    failed = 0
    for n, dim, dtype, tied in itertools.product((61, 3000), (1, 4), (torch.float64, torch.float32), (False, True)):
        x, y = related(n, dim, dtype, tied)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        pairs = zip(estimates(x.cuda(), y.cuda()), estimates(x, y), strict=True)
        for i, (found, expected) in enumerate(pairs):
            if not torch.allclose(found.cpu(), expected, rtol=tolerance, atol=tolerance):
                failed += 1
                print(f"estimate {i} of {n} x {dim}, {dtype}, tied={tied}: not the CPU's")
    return failed


def compare():
    failed = compare_echo()
    torch.use_deterministic_algorithms(False)
    failed += compare_circles()
    failed += compare_neighbours()
    print(f"{failed} failed")
    return failed


def touch():
    """Every kernel once, on sizes for a sanitizer: staged, from L2, deterministic, both ways of the ring; searches."""
    for shape in ((70, 20, 0), (2000, 40, 0), (40, 9, 7), (3, 3, 2100)):
        for sampling, dtype in ((a, b) for a in SAMPLINGS for b in (torch.float32, torch.float64)):
            for deterministic in (False, True):
                torch.use_deterministic_algorithms(deterministic)
                rows, width, bank_rows = shape
                bank = inputs(bank_rows, width, dtype) if bank_rows else None
                tensors = (*inputs(rows, width, dtype), *(bank or ()))
                terms = min(160, bank_rows or rows - 1)
                value = echo_ext.echo_sample(*tensors[:2], num_terms=terms, sampling=sampling, bank=bank)
                torch.autograd.grad(value.sum(), tensors)
    torch.use_deterministic_algorithms(False)
    for rows, dtype in itertools.product((70, 300), (torch.float32, torch.float64)):
        for _, noise, tensors in circles(rows, 9, dtype):
            torch.autograd.grad(noise(*tensors).sum(), tensors)
    for dim, dtype in itertools.product((1, 3), (torch.float64, torch.float32)):
        for _ in estimates(*(v.cuda() for v in related(150, dim, dtype))):
            pass
    torch.cuda.synchronize()
    return 0


def device_seconds(call, repeats=20):
    """Of one call, replayed from a CUDA graph, so that launching costs nothing."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def copy_bandwidth():
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / device_seconds(lambda: target.copy_(source))


def time_case(sampling, rows, width, scale, bandwidth):
    f, s = inputs(rows, width, scale=scale)
    f_data, s_data, grad = f.detach(), s.detach(), torch.ones_like(f)

    def forward():
        return echo_ext.echo_sample(f_data, s_data, sampling=sampling)

    def forward_backward():
        return torch.autograd.grad(echo_ext.echo_sample(f, s, sampling=sampling), (f, s), grad)

    seconds, seconds_both = device_seconds(forward), device_seconds(forward_backward)
    return {
        "sampling": sampling,
        "rows": rows,
        "width": width,
        "scale": "flat" if scale else "decaying",
        "forward_us": seconds * 1e6,
        "forward_backward_us": seconds_both * 1e6,
        "share_of_copy_bandwidth": 3 * rows * width * 4 / seconds / bandwidth,  # f and s read, z written
    }


def time_circles():
    for rows, width in ((1024, 32), (2**14, 32)):
        for name, noise, (f, s) in circles(rows, width, torch.float32):
            f_data, s_data, grad = f.detach(), s.detach(), torch.ones_like(f)
            forward, both = partial(noise, f_data, s_data), partial(run, noise, (f, s), grad)
            seconds, seconds_both = device_seconds(forward), device_seconds(both)
            yield {
                "circle": name,
                "rows": rows,
                "width": width,
                "forward_us": seconds * 1e6,
                "forward_backward_us": seconds_both * 1e6,
            }


def host_seconds(call, repeats=10):
    """The least of some calls, from the call to the values on the host."""
    seconds = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        value = call().cpu()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), value


def time_neighbours():
    """What was asked of an H200, in milliseconds, beside what it takes; values beside the CPU's."""
    wide = torch.randn(2000, 100, dtype=torch.float64)
    jobs = {
        "1e6 samples, 1+1": (100, partial(echo_ext.mutual_information, k=3), related(10**6, 1)),
        "1e5 samples, 5+5": (30, partial(echo_ext.mutual_information, k=5), related(10**5, 5)),
        "100 x 100 matrix, N=2000": (50, echo_ext.mutual_information_matrix, [wide]),
    }
    for name, (bar, estimate, tensors) in jobs.items():
        for dtype in (torch.float64, torch.float32):
            on_device = [v.to("cuda", dtype) for v in tensors]
            seconds, value = host_seconds(lambda call=estimate, given=on_device: call(*given))
            difference = (value - estimate(*(v.to(dtype) for v in tensors))).abs().max().item()
            yield {
                "job": name,
                "dtype": str(dtype).removeprefix("torch."),
                "milliseconds": 1e3 * seconds,
                "bar_milliseconds": bar,
                "largest_difference_from_cpu": difference,
            }


def printed(cases):
    """Each as soon as it is there."""
    for case in cases:
        print(json.dumps(case), flush=True)
        yield case


def times(path):
    bandwidth = copy_bandwidth()
    shapes = [("permutation", 256, 64), ("permutation", 1024, 128), ("permutation", 4096, 256)]
    shapes += [("replacement", 1024, 128), ("ring", 1024, 128), ("ring", 2**16, 64), ("ring", 2**20, 64)]
    cases = (time_case(*shape, scale, bandwidth) for shape, scale in itertools.product(shapes, (None, 0.97)))
    report = {
        "device": torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "echo_ext": echo_ext.__version__,
        "copy_bandwidth": bandwidth,
        "cases": list(printed(cases)),
        "circles": list(printed(time_circles())),
        "estimators": list(printed(time_neighbours())),
    }
    with open(path, "w") as file:
        json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["compare", "touch", "time"])
    parser.add_argument("--json", default="gpu_times.json")
    options = parser.parse_args()
    torch.manual_seed(time.time_ns())
    sys.exit({"compare": compare, "touch": touch, "time": lambda: times(options.json)}[options.what]() != 0)
