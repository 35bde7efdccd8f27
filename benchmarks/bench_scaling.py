"""How time and memory grow with rows, terms, width, samples, threads and ranks, and what 1,000 ranks would cost.

    python benchmarks/bench_scaling.py [--out benchmarks/results] [--seconds 0.5] [--largest 1.0] [--only threads]

One axis at a time, the others held; medians. Each case of an axis runs in a process of its own, on one thread, with the
result's memory reused, as a training loop's allocator does on a GPU and as malloc does below its mapping threshold:
glibc is told not to give memory back, or page faults would be most of a large step. The ring is fitted by a power of B
over three decades, once as torch comes and once with torch's own setting for huge pages, THP_MEM_ALLOC_ENABLE=1. Ranks
are processes on this machine over gloo, one thread each. Strong scaling is the same step on 1, 2, 4, ... threads, as
many as there are processors, taken by turns so that a disturbance of the machine meets all of them; `--only threads`
measures nothing else, and prints its table. --largest scales the largest sizes down, for a trial. Writes scaling.json,
scaling.md and scaling.png. The model of 1,000 ranks is an estimate from the constants in the table;
docs/scaling.md derives it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from process_memory import peak_bytes
from torch import distributed as dist

import echo_ext

WIDTH = 64
RANKS = (1, 2, 4)
RANK_ROWS = 16384
PEER_RANKS = 1000
COLLECTIVE_BYTES = (1024, 2**20)


def keep_memory():
    """Have glibc keep freed memory, so that results come on pages that are there."""
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    libc = ctypes.CDLL("libc.so.6")
    if not (libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        raise SystemExit("glibc refuses to keep its memory")


def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def median_time(call, seconds):
    """Once the memory that calls need is there."""
    for _ in range(10):
        before = page_faults()
        call()
        if page_faults() == before:
            break
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 500):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


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


STEPS = {"echo_step": echo_step, "information_step": information_step}


def axes(largest):
    """A curve's name, its axis, the value there, and the step as its maker's name and arguments."""

    def up_to(values, limit):
        return [value for value in values if value <= max(limit * largest, min(values))]

    for direction in ("forward", "forward+backward"):
        for rows in up_to([2**k for k in range(8, 21)], 2**20):
            yield f"ring, {direction}", "B", rows, ("echo_step", rows, None, WIDTH, "ring", direction)
        for rows in up_to([128, 256, 512, 1024, 2048], 2048):
            yield f"permutation, {direction}", "B", rows, ("echo_step", rows, None, WIDTH, "permutation", direction)
        for terms in up_to([15, 31, 63, 127, 255, 511, 1023], 1023):
            yield f"permutation, {direction}", "D", terms, ("echo_step", 1024, terms, WIDTH, "permutation", direction)
            yield f"ring, {direction}", "D", terms, ("echo_step", 1024, terms, WIDTH, "ring", direction)
        for width in up_to([1, 4, 16, 64, 256, 1024], 1024):
            yield f"ring, {direction}", "d", width, ("echo_step", 1024, None, width, "ring", direction)
    for samples in up_to([1000, 10_000, 100_000, 1_000_000], 10**6):
        yield "mutual information, d = 1", "N", samples, ("information_step", samples)


def alone(step, seconds=None, *, huge_pages=False):
    """A step's median time in a process of its own; without seconds the bytes beyond its input that it needs, by the
    system's account (Linux's).
    """
    script = [sys.executable, __file__, "--alone", json.dumps([seconds, *step])]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"} if huge_pages else None
    return float(subprocess.run(script, capture_output=True, text=True, check=True, env=environment).stdout)


def print_alone(text):
    seconds, name, *arguments = json.loads(text)
    torch.set_num_threads(1)
    if seconds is not None:
        keep_memory()
        print(median_time(STEPS[name](*arguments), seconds))
        return
    small = [min(value, 256) if isinstance(value, int) else value for value in arguments]
    if name == "echo_step" and small[1] is not None:
        small[1] = min(small[1], small[0] - 1)
    STEPS[name](*small)()  # loads what is loaded once
    call = STEPS[name](*arguments)
    print(peak_bytes(call))


def measure_axes(seconds, largest):
    cases = []
    for curve, axis, value, step in axes(largest):
        is_ring = axis == "B" and curve.startswith("ring")
        case = {"curve": curve, "axis": axis, "value": value, "seconds": alone(step, seconds)}
        extremes = ((2**10, 2**14, 2**17, 2**20) if is_ring else (512, 2048)) + (10**3, 10**5, 10**6)
        if axis in "BN" and value in extremes:
            case["bytes"] = alone(step)
        cases.append(case)
        if is_ring:
            time_ = alone(step, seconds, huge_pages=True)
            cases.append({"curve": f"{curve}, huge pages", "axis": axis, "value": value, "seconds": time_})
        print(f"{curve:<32} {axis} = {value:<8} {case['seconds'] * 1e3:10.4f} ms", flush=True)
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


def measure_threads(seconds, largest):
    keep_memory()
    before = torch.get_num_threads()
    cases = []
    for sampling, rows, terms, width, decaying in THREAD_SIZES:
        rows = max(min(rows, 1024), int(rows * largest))
        for direction in ("forward", "forward+backward"):
            step = echo_step(rows, terms, width, sampling, direction, decaying)
            times = {count: [] for count in thread_counts()}
            for _ in range(5):
                for count, found in times.items():
                    torch.set_num_threads(count)
                    found.append(median_time(step, seconds / 5))
            size = f"{rows} x {width}{f', {terms} terms' if terms else ''}, {'decaying' if decaying else '0.97'}"
            for count, found in times.items():
                case = {"curve": f"{sampling}, {direction}", "size": size, "threads": count}
                cases.append(case | {"seconds": statistics.median(found)})
    torch.set_num_threads(before)
    return cases


def threads_table(cases):
    """The times on one thread, and how many times faster more threads are."""
    counts = sorted({case["threads"] for case in cases})
    heads = ["curve", "size, s", "1 thread, ms", *(f"{count} threads" for count in counts[1:])]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in cases:
        if case["threads"] != 1:
            continue
        alike = {
            other["threads"]: other["seconds"]
            for other in cases
            if (other["curve"], other["size"]) == (case["curve"], case["size"])
        }
        ratios = [f"{alike[1] / alike[count]:.2f}x" for count in counts[1:]]
        lines.append("| " + " | ".join([case["curve"], case["size"], f"{alike[1] * 1e3:.4g}", *ratios]) + " |")
    return lines


def slope(cases, curve):
    """The exponent of B that fits best over three decades, and nanoseconds per element at the ends."""
    points = [(case["value"], case["seconds"]) for case in cases if case["curve"] == curve and case["axis"] == "B"]
    points = [(rows, seconds) for rows, seconds in points if rows >= 2**10]  # below, the call itself
    if len(points) < 2:
        return None
    logs = [(math.log(rows), math.log(seconds)) for rows, seconds in points]
    mean_x, mean_y = (statistics.fmean(column) for column in zip(*logs, strict=True))
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    each = [seconds / rows / WIDTH * 1e9 for rows, seconds in points]
    return {"slope": exponent, "rows": [points[0][0], points[-1][0]], "ns_per_element": [each[0], each[-1]]}


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

    repeats = max(5, int(seconds / 0.02))  # the same number on every rank: each call is a collective
    result = {"ranks": ranks, "rows": rows}
    for name, call in [("step", step), *((f"gather {size}", gather(size)) for size in COLLECTIVE_BYTES)]:
        times = []
        for _ in range(repeats + 2):
            dist.barrier()
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        result[name] = statistics.median(times[2:])
    if rank == 0:
        Path(path).write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure_ranks(rows, seconds, out):
    cases = []
    for ranks in RANKS:
        port, path = free_port(), out / "scaling_ranks.tmp"
        torch.multiprocessing.spawn(work, (ranks, port, rows, seconds, str(path)), nprocs=ranks)
        cases.append(json.loads(path.read_text()))
        path.unlink()
        print(cases[-1], flush=True)
    return cases


def thousand_ranks(cases):
    """An estimate by docs/scaling.md: local work as measured on one rank, collectives as alpha + beta * bytes."""
    alone, most = cases[0], cases[-1]
    ranks = most["ranks"]
    small, large = COLLECTIVE_BYTES
    # A ring all-gather passes W - 1 messages one after another.
    beta = max(0.0, (most[f"gather {large}"] - most[f"gather {small}"]) / ((ranks - 1) * (large - small)))
    alpha = max(0.0, most[f"gather {small}"] / (ranks - 1) - beta * small)
    message = 4096  # a block, which has room for the numbers of WIDTH columns
    gathers = 2 * (PEER_RANKS - 1) * (alpha + beta * message)
    gathered = 2 * (PEER_RANKS - 1) * beta * alone["rows"] * WIDTH * 4  # f and s, in permutation mode
    return {
        "alpha_us": alpha * 1e6,
        "beta_ns_per_byte": beta * 1e9,
        "local_ms": alone["step"] * 1e3,
        "gathers_ms": gathers * 1e3,
        "rows_for_half": math.ceil(gathers / (alone["step"] / alone["rows"])),
        "gathered_ms": gathered * 1e3,
        "gathered_gib": 2 * PEER_RANKS * alone["rows"] * WIDTH * 4 / 2**30,
    }


# ---- What is written -------------------------------------------------------------------------------------------------


def report(result):
    lines = [f"{result['device']}, torch {result['torch']}, float32, d = {WIDTH}; one thread but where said.", ""]
    lines += ["| ring | power of B | from B | to B | ns per element, first | last |", "|---|---|---|---|---|---|"]
    for curve, fit in result["slopes"].items():
        if fit is not None:
            cells = [curve, f"{fit['slope']:.3f}", *map(str, fit["rows"]), *(f"{t:.2f}" for t in fit["ns_per_element"])]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| curve | axis | ms | extra memory, MiB |", "|---|---|---|---|"]
    for case in result["cases"]:
        memory = f"{case['bytes'] / 2**20:.3g}" if "bytes" in case else ""
        lines.append(f"| {case['curve']} | {case['axis']} = {case['value']} | {case['seconds'] * 1e3:.4g} | {memory} |")
    lines += ["", *threads_table(result["threads_cases"])]
    small, large = COLLECTIVE_BYTES
    lines += [
        "",
        f"| ranks | rows of each | step, ms | gather of {small} B, us | of {large} B, us |",
        "|---|---|---|---|---|",
    ]
    for case in result["ranks_cases"]:
        gathers = f"{case[f'gather {small}'] * 1e6:.4g} | {case[f'gather {large}'] * 1e6:.4g}"
        lines.append(f"| {case['ranks']} | {case['rows']} | {case['step'] * 1e3:.4g} | {gathers} |")
    lines += ["", f"| estimate for {PEER_RANKS} ranks | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in result["thousand_ranks"].items()]
    return "\n".join(lines) + "\n"


def plot(result, path):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    figure, every = plt.subplots(1, 5, figsize=(20, 5), layout="constrained")
    for panel, axis in zip(every, ("B", "D", "d", "N"), strict=False):
        for curve in dict.fromkeys(case["curve"] for case in result["cases"] if case["axis"] == axis):
            points = [
                (c["value"], c["seconds"] * 1e3) for c in result["cases"] if (c["curve"], c["axis"]) == (curve, axis)
            ]
            panel.loglog(*zip(*points, strict=True), "o-", label=curve)
        panel.set(xlabel=axis, ylabel="ms")
    points = [(case["ranks"], case["step"] * 1e3) for case in result["ranks_cases"]]
    every[-1].plot(*zip(*points, strict=True), "o-", label=f"{result['ranks_cases'][0]['rows']} rows on each rank")
    every[-1].set(xlabel="ranks", ylabel="ms", ylim=(0, None))
    for panel in every:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case")
    parser.add_argument("--largest", type=float, default=1.0, help="share of the largest sizes")
    parser.add_argument("--only", choices=["threads"], help="measure this alone, and write nothing")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print_alone(options.alone)
        return
    if options.only == "threads":
        print("\n".join(threads_table(measure_threads(options.seconds, options.largest))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    cases = measure_axes(options.seconds, options.largest)
    ring_curves = [case["curve"] for case in cases if case["axis"] == "B" and case["curve"].startswith("ring")]
    ranks = measure_ranks(max(256, int(RANK_ROWS * options.largest)), options.seconds, options.out)
    result = {
        "device": platform.machine(),
        "torch": torch.__version__,
        "slopes": {curve: slope(cases, curve) for curve in dict.fromkeys(ring_curves)},
        "cases": cases,
        "threads_cases": measure_threads(options.seconds, options.largest),
        "ranks_cases": ranks,
        "thousand_ranks": thousand_ranks(ranks),
    }
    (options.out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "scaling.md").write_text(report(result))
    plot(result, options.out / "scaling.png")
    print(report(result))


if __name__ == "__main__":
    main()
