"""Time and memory of Echo noise, compared with the pure-PyTorch reference in one run.

    python benchmarks/bench_echo.py [--device cuda] [--quick] [--out DIR] [--report]

A full run takes a quarter of an hour on a CPU; --quick takes half a minute. On CUDA the calls are recorded as graphs,
so that the times are those of the device alone, except for the compiled reference. Memory is what a call needs in
addition to its input; this includes its results. Writes echo_cpu.json, .md and .png (echo_cuda.* on CUDA).
"""

import functools

import torch
from memory import in_new_process, peak_bytes
from reporting import finish, make_parser, markdown_table, parse, three_digits
from timing import recorded, time_calls

import echo_ext
from echo_ext import reference

SHAPES = [(100, 32), (256, 64), (512, 128), (1024, 128), (4096, 256)]
LARGEST_REFERENCE = 1024  # with more rows the reference's terms alone take at least 16 GiB
RING_WIDTH = 64
RING_SHAPES = [*SHAPES[:4], *((rows, RING_WIDTH) for rows in (2**10, 2**14, 2**17, 2**20))]
SCALES = {
    "decaying": lambda shape: 0.97 * torch.sigmoid(torch.randn(shape)),
    "flat": lambda shape: torch.full(shape, 0.97),  # no row can stop early
}
DIRECTIONS = ("forward", "forward+backward")
TENSORS = dict(zip(DIRECTIONS, (3, 8), strict=True))  # f, s, z; and again f, s, z's gradient, theirs: read or written


def reference_sample(f, s):
    indices = reference.random_orderings(f.shape[0], f.shape[0] - 1, device=f.device)
    return reference.echo_sample(f, s, indices)


@functools.cache
def compiled_reference():
    return torch.compile(reference_sample, dynamic=False)


SAMPLES = {
    "echo_ext": echo_ext.echo_sample,
    "echo_ext ring": functools.partial(echo_ext.echo_sample, sampling="ring"),
    "reference": reference_sample,
}


def make_call(implementation, direction, rows, width, scale, device):
    """The call to be measured."""
    sample = SAMPLES.get(implementation) or compiled_reference()
    torch.manual_seed(0)
    f, s = (t.to(device).requires_grad_() for t in (torch.randn(rows, width).tanh(), SCALES[scale]((rows, width))))
    if direction == "forward":
        f, s = f.detach(), s.detach()
        return lambda: sample(f, s)
    grad = torch.ones_like(f)
    return lambda: torch.autograd.grad(sample(f, s), (f, s), grad)


def timed_call(implementation, direction, rows, width, scale, device):
    prepare = functools.partial(make_call, implementation, direction, rows, width, scale, device)
    return recorded(prepare) if device.type == "cuda" and implementation != "reference compiled" else prepare()


def peak_memory(implementation, direction, rows, width, scale, device):
    make_call(implementation, direction, 20, width, scale, device)()  # loads what is loaded once
    return peak_bytes(make_call(implementation, direction, rows, width, scale, device), device)


def measure(options):
    device, cases = options.device, []
    peers = ["reference", "reference compiled"] if device.type == "cuda" else ["reference"]
    sizes = [("permutation", *shape) for shape in SHAPES] + [("ring", *shape) for shape in RING_SHAPES]
    for sampling, rows, width in sizes[:: 5 if options.quick else 1]:
        names = ["echo_ext ring"] if sampling == "ring" else ["echo_ext"]
        names += peers if sampling == "permutation" and rows <= LARGEST_REFERENCE else []
        for scale in SCALES:
            for direction in DIRECTIONS:
                subject = (direction, rows, width, scale, device)
                times = time_calls({name: timed_call(name, *subject) for name in names}, options.seconds, rounds=3)
                for name in names:
                    case = {
                        "implementation": name,
                        "direction": direction,
                        "scale": scale,
                        "rows": rows,
                        "width": width,
                    }
                    case["seconds"] = times[name].summary()
                    # On the CPU in a process that does nothing else.
                    alone = peak_memory if device.type == "cuda" else functools.partial(in_new_process, peak_memory)
                    case["peak_memory"] = alone(name, *subject)
                    cases.append(case)
                    print(f"{name:<18} {direction:<16} {rows} x {width} {scale}: {case['seconds']['median']:.3g} s")
    return {"cases": cases}


# ---- Tables and figure -----------------------------------------------------------------------------------------------


def by_subject(result):
    """Median seconds and bytes by (implementation, direction, scale, rows, width)."""
    keys = ("implementation", "direction", "scale", "rows", "width")
    return {
        tuple(case[key] for key in keys): {"time": case["seconds"]["median"], "memory": case["peak_memory"]}
        for case in result["cases"]
    }


def pair(cases, implementation, scale, rows, width, quantity):
    """Forward and forward+backward of one measured value."""
    found = [cases.get((implementation, direction, scale, rows, width)) for direction in DIRECTIONS]
    return [None if case is None else case[quantity] for case in found]


def joined(values, form):
    return " \\| ".join("-" if value is None else form(value) for value in values)


def ratios(numerators, denominators):
    return [None if None in (a, b) else a / b for a, b in zip(numerators, denominators, strict=True)]


def milliseconds(seconds):
    return three_digits(seconds * 1e3)


def mebibytes(count):
    return three_digits(count / 2**20)


def table(result):
    cases = by_subject(result)
    peers = [name for name in ("reference", "reference compiled") if any(key[0] == name for key in cases)]
    head = ["B x d", "s", "echo_ext, ms", *(cell for name in peers for cell in (f"{name}, ms", "ratio"))]
    rows_of_table = []
    for rows, width, scale in sorted({key[3:] + key[2:3] for key in cases if key[0] == "echo_ext"}):
        ours = pair(cases, "echo_ext", scale, rows, width, "time")
        cells = [f"{rows} x {width}", scale, joined(ours, milliseconds)]
        for name in peers:
            theirs = pair(cases, name, scale, rows, width, "time")
            cells += [
                joined(theirs, milliseconds),
                joined(ratios(theirs, ours), lambda ratio: f"**{three_digits(ratio)}x**"),
            ]
        ours, theirs = (pair(cases, name, scale, rows, width, "memory") for name in ("echo_ext", "reference"))
        cells += [joined(ours, mebibytes), joined(theirs, mebibytes)]
        cells.append(joined(ratios(theirs, [max(m, 2**16) for m in ours]), lambda ratio: f"{three_digits(ratio)}x"))
        rows_of_table.append(cells)
    ring = []
    for rows, width, scale in sorted({key[3:] + key[2:3] for key in cases if key[0] == "echo_ext ring"}):
        times = pair(cases, "echo_ext ring", scale, rows, width, "time")
        each = [seconds / rows / width for seconds in times]
        rates = [4 * TENSORS[direction] / seconds for direction, seconds in zip(DIRECTIONS, each, strict=True)]
        cells = [
            joined(times, milliseconds),
            *(joined(v, three_digits) for v in ([t * 1e9 for t in each], [r / 1e9 for r in rates])),
        ]
        ring.append([f"{rows} x {width}", scale, *cells])
    lines = [
        f"Device: {result['device']}, {result['threads']} CPU threads, torch {result['versions']['torch']}, float32, "
        "D = B - 1. Each cell: forward \\| forward+backward; medians.",
        "",
        *markdown_table([*head, "extra memory, MiB", "reference's, MiB", "ratio"], rows_of_table),
        "",
        *markdown_table(["ring, B x d", "s", "time, ms", "ns per element", "GB/s of minimum traffic"], ring),
    ]
    return "\n".join(lines) + "\n"


def plot(result):
    from matplotlib.figure import Figure

    cases = by_subject(result)
    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2)
    styles = {"decaying": "-", "flat": "--"}
    names = sorted({key[0] for key in cases if key[0] != "echo_ext ring"})
    for name in names:
        for scale, style in styles.items():
            draw(left, cases, (name, "forward+backward", scale), f"{name}, s {scale}", style, f"C{names.index(name)}")
    left.set(xlabel="elements, B x d  (D = B - 1 terms)", ylabel="forward + backward, ms", title="permutation")
    ring = {key: case for key, case in cases.items() if key[4] == RING_WIDTH}
    for scale, style in styles.items():
        for direction, color in zip(DIRECTIONS, ("C0", "C2"), strict=True):
            label = f"{direction}, s {scale}"
            draw(right, ring, ("echo_ext ring", direction, scale), label, style, color, size=lambda rows, width: rows)
    right.set(xlabel="rows B  (d = 64, D = B - 1 terms)", ylabel="ms", title="ring")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"Echo noise on {result['device']}, float32")
    return figure


def draw(axes, cases, subject, label, style, color, size=lambda rows, width: rows * width):
    points = sorted((size(*key[3:]), case["time"] * 1e3) for key, case in cases.items() if key[:3] == subject)
    if points:
        axes.loglog(*zip(*points, strict=True), style, marker="o", color=color, label=label)


def main():
    options = parse(make_parser(__doc__, device=True, seconds=1.5))
    finish(f"echo_{options.device.type}", options, measure, table, plot)


if __name__ == "__main__":
    main()
