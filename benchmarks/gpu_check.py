"""What gpu_check.sh runs: comparisons, times, and short tours for the sanitizers and the profiler.

python benchmarks/gpu_check.py echo | circles | neighbors | nonfinite | time | touch | profile [--device cpu --small]
"""

import argparse
import faulthandler
import itertools
import signal
import sys
import time

import torch
from gpu_compare import (
    SAMPLINGS,
    check_nonfinite,
    circles,
    compare_circles,
    compare_echo,
    compare_neighbors,
    deterministic,
    estimates,
    inputs,
    related,
)
from gpu_device import Cases, CpuStandIn, CudaDevice, DeviceLost
from gpu_time import measure_all

import echo_ext


def touch(cases, small):
    """Every kernel once, on sizes for a sanitizer: staged, from L2, deterministic, both ways of the ring; searches."""
    device = cases.device

    def touch_echo(shape):
        rows, width, bank_rows = shape
        for sampling, dtype, mode in itertools.product(SAMPLINGS, (torch.float32, torch.float64), (False, True)):
            tensors = inputs(device, rows, width, dtype)
            tensors += inputs(device, bank_rows, width, dtype) if bank_rows else []
            terms = min(160, bank_rows or rows - 1)
            with deterministic(mode):
                value = echo_ext.echo_sample(
                    *tensors[:2], num_terms=terms, sampling=sampling, bank=tuple(tensors[2:]) or None
                )
                torch.autograd.grad(value.sum(), tensors)

    def touch_circles(rows):
        for dtype in (torch.float32, torch.float64):
            for _, noise, tensors in circles(device, rows, 9, dtype):
                torch.autograd.grad(noise(*tensors).sum(), tensors)

    def touch_searches(dim):
        for dtype in (torch.float64, torch.float32):
            for _ in estimates(*(v.to(device.type) for v in related(150, dim, dtype))):
                pass

    shapes = [(70, 20, 0), (40, 9, 7), (3, 3, 2100), (2000, 40, 0)]
    parts = [(touch_echo, shape) for shape in shapes[: 2 if small else None]]
    parts += [(touch_searches, dim) for dim in (1, 3)] + [(touch_circles, rows) for rows in (70, 300)]
    for part, size in parts:
        begin = time.perf_counter()
        cases.run(f"{part.__name__} {size}", lambda part=part, size=size: part(size))
        print(f"{part.__name__} {size}: {time.perf_counter() - begin:.1f} s")


def profile(cases, small):
    """One launch of each of the main kernels, at the sizes for which speed was asked, or a part of them."""
    device = cases.device
    rows, ring_rows, points, columns = (64, 256, 300, 4) if small else (1024, 2**20, 10**5, 100)

    def rows_kernels():
        f, s = inputs(device, rows, 128, scale=0.97)
        torch.autograd.grad(echo_ext.echo_sample(f, s).sum(), (f, s))

    cases.run("forward_kernel and backward_kernel", rows_kernels)
    ring = [t.detach() for t in inputs(device, ring_rows, 64)]
    cases.run("ring_forward_kernel", lambda: echo_ext.echo_sample(*ring, sampling="ring"))
    x = torch.cat(related(points, 5), 1).to(device.type)
    cases.run("search_kernel", lambda: echo_ext.knn(x, k=5))
    x = related(min(points, 2000), columns)[0].to(device.type)
    cases.run("pairs_kernel", lambda: echo_ext.mutual_information_matrix(x))


COMMANDS = {
    "echo": compare_echo,
    "circles": compare_circles,
    "neighbors": compare_neighbors,
    "nonfinite": check_nonfinite,
    "time": measure_all,
    "touch": touch,
    "profile": profile,
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    parser.add_argument("--small", action="store_true", help="small sizes, for a dry run")
    parser.add_argument("--json", default="gpu_times.json", help="where 'time' writes what it measured")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 2**31, help="of the random input; default: the time"
    )
    options = parser.parse_args(arguments)

    device = CudaDevice() if options.device == "cuda" else CpuStandIn()
    why = device.refusal()
    if why is not None:
        print(f"gpu_check: {why}", file=sys.stderr)
        return 2
    print(f"seed {options.seed}, echo_ext from {echo_ext.__path__[0]}")
    torch.manual_seed(options.seed)
    cases = Cases(device)
    more = {"path": options.json} if options.command == "time" else {}
    try:
        COMMANDS[options.command](cases, options.small, **more)
    except DeviceLost as error:
        print(f"FAILED: the device is lost, and the step ends here: {error}")
    print(f"{cases.failed} of {cases.count} cases failed")
    return int(cases.failed > 0)


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # a step that is stopped at its limit says where it was
    sys.exit(main())
