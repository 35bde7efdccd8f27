"""How time and memory grow with rows, terms, width, samples, threads and ranks, and an estimate for 1,000 ranks.

    python benchmarks/bench_scaling.py [--only threads] [--quick] [--out DIR] [--report]

A full run takes some minutes; --quick takes half a minute. One quantity varies at a time. Reported are medians. Each
case runs in a process of its own, on one thread. The memory of results is reused, as the allocator does in a training
loop on a GPU, and as malloc does below its mapping threshold; glibc is told to keep freed memory, because page faults
would otherwise dominate large steps. A power of B is fitted to the times of the ring over three decades, once with
torch's default settings and once with huge pages (THP_MEM_ALLOC_ENABLE=1). Ranks are processes on this machine that
communicate over gloo, with one thread each. For strong scaling, the same step runs on 1, 2, 4, ... threads, up to the
number of processors, in turn; `--only threads` measures only this, prints its table, and writes nothing. Writes
scaling.json, .md and .png. The model of 1,000 ranks is an estimate from the constants in the table; docs/scaling.md
derives it.
"""

import ctypes
import functools
import json
import math
import os
import resource
import socket
import tempfile
from pathlib import Path

import torch
from memory import in_new_process, peak_bytes
from reporting import finish, machine, make_parser, markdown_table, parse
from timing import growth_exponent, make_timer, time_call, time_collective, time_in_turn
from torch import distributed as dist

import echo_ext

WIDTH = 64
RANKS = (1, 2, 4)
RANK_ROWS = 16384
ESTIMATED_RANKS = 1000
COLLECTIVE_BYTES = (1024, 2**20)


def keep_memory():
    """Tell glibc to keep freed memory, so that results do not cause page faults."""
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    libc = ctypes.CDLL("libc.so.6")
    if not (libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        raise SystemExit("glibc refuses to keep its memory")


def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def time_step(call, seconds):
    """The times of a step on one thread, after one step has allocated the memory that it needs."""
    for _ in range(10):
        before = page_faults()
        call()
        if page_faults() == before:
            break
    return time_call(call, seconds, threads=1)


def echo_step(rows, terms, width, sampling, direction, decaying=False):
    torch.manual_seed(0)
    f = torch.rand(rows, width, requires_grad=True)
    s = torch.full((rows, width), 0.97)  # no row can stop early
    if decaying:
        s *= torch.sigmoid(torch.randn(rows, width))
    s.requires_grad_()
    grad = torch.ones(rows, width)

    def forward():
        with torch.no_grad():
            return echo_ext.echo_sample(f, s, num_terms=terms, sampling=sampling)

    def both():
        z = echo_ext.echo_sample(f, s, num_terms=terms, sampling=sampling)
        return torch.autograd.grad(z, (f, s), grad)

    return forward if direction == "forward" else both


def information_step(samples):
    torch.manual_seed(0)
    x = torch.randn(samples, 1, dtype=torch.float64)
    y = 0.6 * x + 0.8 * torch.randn(samples, 1, dtype=torch.float64)
    return lambda: echo_ext.mutual_information(x, y)


def axes(quick):
    """For each case: the curve, what varies and its value, the function that makes the step, and its arguments."""

    def up_to(values, limit):
        return [value for value in values if value <= (min(values) if quick else limit)]

    for direction in ("forward", "forward+backward"):
        for rows in up_to([2**k for k in range(8, 21)], 2**20):
            yield f"ring, {direction}", "B", rows, (echo_step, rows, None, WIDTH, "ring", direction)
        for rows in up_to([128, 256, 512, 1024, 2048], 2048):
            yield f"permutation, {direction}", "B", rows, (echo_step, rows, None, WIDTH, "permutation", direction)
        for terms in up_to([15, 31, 63, 127, 255, 511, 1023], 1023):
            yield f"permutation, {direction}", "D", terms, (echo_step, 1024, terms, WIDTH, "permutation", direction)
            yield f"ring, {direction}", "D", terms, (echo_step, 1024, terms, WIDTH, "ring", direction)
        for width in up_to([1, 4, 16, 64, 256, 1024], 1024):
            yield f"ring, {direction}", "d", width, (echo_step, 1024, None, width, "ring", direction)
    for samples in up_to([1000, 10_000, 100_000, 1_000_000], 10**6):
        yield "mutual information, d = 1", "N", samples, (information_step, samples)


def time_alone(make_step, *arguments, seconds):
    torch.set_num_threads(1)
    keep_memory()
    return time_step(make_step(*arguments), seconds)


def peak_alone(make_step, *arguments):
    torch.set_num_threads(1)
    small = [min(value, 256) if isinstance(value, int) else value for value in arguments]
    if make_step is echo_step and small[1] is not None:
        small[1] = min(small[1], small[0] - 1)
    make_step(*small)()  # loads what is loaded once
    return peak_bytes(make_step(*arguments))


def measure_axes(seconds, quick):
    cases = []
    for curve, axis, value, step in axes(quick):
        is_ring = axis == "B" and curve.startswith("ring")
        timed = functools.partial(time_alone, *step, seconds=seconds)
        case = {"curve": curve, "axis": axis, "value": value, "seconds": in_new_process(timed)}
        extremes = ((2**10, 2**14, 2**17, 2**20) if is_ring else (512, 2048)) + (10**3, 10**5, 10**6)
        if axis in "BN" and value in extremes:
            case["bytes"] = in_new_process(peak_alone, *step)
        cases.append(case)
        if is_ring:
            huge = in_new_process(timed, THP_MEM_ALLOC_ENABLE="1")
            cases.append({"curve": f"{curve}, huge pages", "axis": axis, "value": value, "seconds": huge})
        print(f"{curve:<32} {axis} = {value:<8} {case['seconds']['median'] * 1e3:10.4f} ms", flush=True)
    return cases


THREAD_SIZES = (  # sampling, rows, terms, width, whether s decays
    ("permutation", 100, None, 32, True),
    ("permutation", 256, None, 64, True),
    ("permutation", 1024, None, 16, False),
    ("permutation", 1024, None, 16, True),
    ("permutation", 1024, None, 64, False),
    ("permutation", 1024, 99, 128, True),
    ("permutation", 4096, 99, 256, True),
    ("ring", 1024, None, 64, False),
    ("ring", 2**14, None, 16, True),
    ("ring", 2**17, None, 16, False),
    ("ring", 2**17, None, WIDTH, False),
)


def thread_counts():
    most = os.cpu_count() or 1
    return sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})


def measure_threads(seconds, quick):
    keep_memory()
    cases = []
    for sampling, rows, terms, width, decaying in THREAD_SIZES[: 2 if quick else None]:
        for direction in ("forward", "forward+backward"):
            step = echo_step(rows, terms, width, sampling, direction, decaying)
            times = time_in_turn({count: make_timer(step, count) for count in thread_counts()}, seconds)
            size = f"{rows} x {width}{f', {terms} terms' if terms else ''}, {'decaying' if decaying else '0.97'}"
            for count, found in times.items():
                case = {"curve": f"{sampling}, {direction}", "size": size, "threads": count}
                cases.append(case | {"seconds": found.summary()})
    return cases


def threads_table(cases):
    """The times on one thread, and the speed-up with more threads."""
    by_size = {}
    for case in cases:
        by_size.setdefault((case["curve"], case["size"]), {})[case["threads"]] = case["seconds"]["median"]
    counts = sorted({case["threads"] for case in cases})
    rows = [
        [*subject, f"{times[1] * 1e3:.4g}", *(f"{times[1] / times[count]:.2f}x" for count in counts[1:])]
        for subject, times in by_size.items()
    ]
    return markdown_table(["curve", "size, s", "1 thread, ms", *(f"{count} threads" for count in counts[1:])], rows)


def fit(cases, curve):
    """The cells of a table: the best fit of a power of B over three decades, and ns per element at both ends."""
    points = [
        (case["value"], case["seconds"]["median"]) for case in cases if (case["curve"], case["axis"]) == (curve, "B")
    ]
    points = [(rows, seconds) for rows, seconds in points if rows >= 2**10]  # below, the call itself
    if len(points) < 2:
        return None
    ends = points[0], points[-1]
    each = [f"{seconds / rows / WIDTH * 1e9:.2f}" for rows, seconds in ends]
    return [curve, f"{growth_exponent(points):.3f}", *(rows for rows, _ in ends), *each]


# ---- Ranks -----------------------------------------------------------------------------------------------------------


def work(rank, ranks, port, rows, seconds, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    keep_memory()
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.manual_seed(rank)
    f = torch.rand(rows, WIDTH, requires_grad=True)
    s = torch.full((rows, WIDTH), 0.97, requires_grad=True)
    grad = torch.ones(rows, WIDTH)

    def step():
        z = echo_ext.distributed.echo_sample(f, s)
        torch.autograd.grad(z, (f, s), grad)

    def gather(size):
        mine = torch.zeros(size, dtype=torch.uint8)
        everyone = list(torch.empty(ranks, size, dtype=torch.uint8).unbind(0))
        return lambda: dist.all_gather(everyone, mine)

    repeats = max(5, int(seconds / 0.05))
    result = {"ranks": ranks, "rows": rows, "step": time_collective(step, repeats)}
    for size in COLLECTIVE_BYTES:
        result[f"gather {size}"] = time_collective(gather(size), repeats)
    if rank == 0:
        Path(path).write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure_ranks(rows, seconds):
    cases = []
    for ranks in RANKS:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            torch.multiprocessing.spawn(work, (ranks, free_port(), rows, seconds, file.name), nprocs=ranks)
            cases.append(json.loads(Path(file.name).read_text()))
        print(cases[-1], flush=True)
    return cases


def estimate_many_ranks(cases):
    """An estimate by docs/scaling.md: local work as measured on one rank, collectives as alpha + beta * bytes."""
    alone, most = (
        {name: value["median"] if isinstance(value, dict) else value for name, value in case.items()}
        for case in (cases[0], cases[-1])
    )
    ranks = most["ranks"]
    small, large = COLLECTIVE_BYTES
    # A ring all-gather passes W - 1 messages one after another.
    beta = max(0.0, (most[f"gather {large}"] - most[f"gather {small}"]) / ((ranks - 1) * (large - small)))
    alpha = max(0.0, most[f"gather {small}"] / (ranks - 1) - beta * small)
    message = 4096  # a block, which has room for the numbers of WIDTH columns
    gathers = 2 * (ESTIMATED_RANKS - 1) * (alpha + beta * message)
    gathered = 2 * (ESTIMATED_RANKS - 1) * beta * alone["rows"] * WIDTH * 4  # f and s, in permutation mode
    return {
        "alpha_us": alpha * 1e6,
        "beta_ns_per_byte": beta * 1e9,
        "local_ms": alone["step"] * 1e3,
        "gathers_ms": gathers * 1e3,
        "rows_for_half": math.ceil(gathers / (alone["step"] / alone["rows"])),
        "gathered_ms": gathered * 1e3,
        "gathered_gib": 2 * ESTIMATED_RANKS * alone["rows"] * WIDTH * 4 / 2**30,
    }


# ---- Tables and figure -----------------------------------------------------------------------------------------------


def table(result):
    cases, (small, large) = result["cases"], COLLECTIVE_BYTES
    ring_curves = dict.fromkeys(
        case["curve"] for case in cases if case["axis"] == "B" and case["curve"].startswith("ring")
    )
    fits = [cells for curve in ring_curves if (cells := fit(cases, curve)) is not None]
    curves = [
        [
            case["curve"],
            f"{case['axis']} = {case['value']}",
            f"{case['seconds']['median'] * 1e3:.4g}",
            f"{case['bytes'] / 2**20:.3g}" if "bytes" in case else "",
        ]
        for case in cases
    ]
    ranks = [
        [
            case["ranks"],
            case["rows"],
            f"{case['step']['median'] * 1e3:.4g}",
            *(f"{case[f'gather {size}']['median'] * 1e6:.4g}" for size in COLLECTIVE_BYTES),
        ]
        for case in result["ranks_cases"]
    ]
    estimate = [(name, f"{value:.4g}") for name, value in estimate_many_ranks(result["ranks_cases"]).items()]
    gathers = [f"gather of {small} B, us", f"of {large} B, us"]
    lines = [
        f"{machine(result)}, float32, d = {WIDTH}; one thread except where stated.",
        "",
        *markdown_table(["ring", "power of B", "from B", "to B", "ns per element, first", "last"], fits),
        "",
        *markdown_table(["curve", "axis", "ms", "extra memory, MiB"], curves),
        "",
        *threads_table(result["threads_cases"]),
        "",
        *markdown_table(["ranks", "rows of each", "step, ms", *gathers], ranks),
        "",
        *markdown_table([f"estimate for {ESTIMATED_RANKS} ranks", "value"], estimate),
    ]
    return "\n".join(lines) + "\n"


def plot(result):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 5), layout="constrained", dpi=110)
    panels = figure.subplots(1, 5)
    for panel, axis in zip(panels, ("B", "D", "d", "N"), strict=False):
        cases = [case for case in result["cases"] if case["axis"] == axis]
        for curve in dict.fromkeys(case["curve"] for case in cases):
            points = [(case["value"], case["seconds"]["median"] * 1e3) for case in cases if case["curve"] == curve]
            panel.loglog(*zip(*points, strict=True), "o-", label=curve)
        panel.set(xlabel=axis, ylabel="ms")
    points = [(case["ranks"], case["step"]["median"] * 1e3) for case in result["ranks_cases"]]
    panels[-1].plot(*zip(*points, strict=True), "o-", label=f"{result['ranks_cases'][0]['rows']} rows on each rank")
    panels[-1].set(xlabel="ranks", ylabel="ms", ylim=(0, None))
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def measure(options):
    seconds, quick = options.seconds, options.quick
    return {
        "cases": measure_axes(seconds, quick),
        "threads_cases": measure_threads(seconds, quick),
        "ranks_cases": measure_ranks(256 if quick else RANK_ROWS, seconds),
    }


def main():
    parser = make_parser(__doc__, seconds=0.5)
    parser.add_argument("--only", choices=["threads"], help="measure this alone, and write nothing")
    options = parse(parser)
    if options.only == "threads":
        print("\n".join(threads_table(measure_threads(options.seconds, options.quick))))
    else:
        finish("scaling", options, measure, table, plot)


if __name__ == "__main__":
    main()
