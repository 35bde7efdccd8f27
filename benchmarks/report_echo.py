"""Print the tables of bench_echo.py's results and plot them: report_echo.py RESULTS.json writes RESULTS.md and .png."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

plt.switch_backend("agg")


def load(path):
    """Medians in seconds and notes, by (implementation, direction, scale, rows, width)."""
    results = {}
    for case in json.loads(path.read_text())["benchmarks"]:
        note = case["extra_info"]
        key = tuple(note[name] for name in ("implementation", "direction", "scale", "rows", "width"))
        results[key] = {"time": note.get("device_time", case["stats"]["median"]), **note}
    return results


def pair(results, implementation, scale, rows, width, value):
    """Forward | forward+backward of one measured value."""
    found = [results.get((implementation, d, scale, rows, width)) for d in ("forward", "forward+backward")]
    return [None if case is None else value(case) for case in found]


def joined(values, form):
    return " \\| ".join("-" if value is None else form(value) for value in values)


def ratios(numerators, denominators):
    return [None if None in (a, b) else a / b for a, b in zip(numerators, denominators, strict=True)]


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g}"


def mebibytes(count):
    return f"{count / 2**20:.3g}"


def report(results):
    note = next(iter(results.values()))
    reference_names = [n for n in ("reference", "reference compiled") if any(key[0] == n for key in results)]
    lines = [
        f"Device: {note['device']}, {note['threads']} CPU threads, torch {note['torch']}, float32, D = B - 1. "
        "Each cell: forward \\| forward+backward; medians.",
        "",
        "| B x d | s | echo_ext, ms | " + "".join(f"{n}, ms | ratio | " for n in reference_names)
        + "extra memory, MiB | reference's, MiB | ratio |",
    ]  # fmt: skip
    lines.append("|---" * (lines[-1].count("|") - 1) + "|")
    sizes = sorted({(rows, width, scale) for name, _, scale, rows, width in results if name == "echo_ext"})
    for rows, width, scale in sizes:
        ours = pair(results, "echo_ext", scale, rows, width, lambda case: case["time"])
        cells = [f"{rows} x {width}", scale, joined(ours, milliseconds)]
        for name in reference_names:
            theirs = pair(results, name, scale, rows, width, lambda case: case["time"])
            cells += [joined(theirs, milliseconds), joined(ratios(theirs, ours), lambda r: f"**{r:.3g}x**")]
        memory = pair(results, "echo_ext", scale, rows, width, lambda case: case["peak_memory"])
        theirs = pair(results, "reference", scale, rows, width, lambda case: case["peak_memory"])
        cells += [joined(memory, mebibytes), joined(theirs, mebibytes)]
        cells.append(joined(ratios(theirs, [max(m, 2**16) for m in memory]), lambda r: f"{r:.3g}x"))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| ring, B x d | s | time, ms | ns per element | GB/s of least traffic |", "|---|---|---|---|---|"]
    for rows, width, scale in sorted({key[3:] + key[2:3] for key in results if key[0] == "echo_ext ring"}):
        time = pair(results, "echo_ext ring", scale, rows, width, lambda case: case["time"])
        rate = pair(results, "echo_ext ring", scale, rows, width, lambda case: case["least_bytes"] / case["time"] / 1e9)
        each = [t / rows / width * 1e9 for t in time]
        lines.append(
            f"| {rows} x {width} | {scale} | {joined(time, milliseconds)} | {joined(each, lambda e: f'{e:.3g}')} "
            f"| {joined(rate, lambda r: f'{r:.3g}')} |"
        )
    return "\n".join(lines) + "\n"


def plot(results, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    names = sorted({key[0] for key in results if key[0] != "echo_ext ring"})
    for name in names:
        for scale, style in (("decaying", "-"), ("flat", "--")):
            points = sorted((k[3] * k[4], v["time"] * 1e3) for k, v in results.items()
                            if k[:3] == (name, "forward+backward", scale))  # fmt: skip
            colour = f"C{names.index(name)}"
            if points:
                left.loglog(*zip(*points, strict=True), style, marker="o", color=colour, label=f"{name}, s {scale}")
    left.set(xlabel="elements, B x d  (D = B - 1 terms)", ylabel="forward + backward, ms", title="permutation")
    for scale, style in (("decaying", "-"), ("flat", "--")):
        for direction, colour in (("forward", "C0"), ("forward+backward", "C2")):
            points = sorted((k[3], v["time"] * 1e3) for k, v in results.items()
                            if k[:3] == ("echo_ext ring", direction, scale) and k[4] == 64)  # fmt: skip
            if points:
                right.loglog(
                    *zip(*points, strict=True), style, marker="o", color=colour, label=f"{direction}, s {scale}"
                )
    right.set(xlabel="rows B  (d = 64, D = B - 1 terms)", ylabel="ms", title="ring")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    note = next(iter(results.values()))
    figure.suptitle(f"Echo noise on {note['device']}, float32")
    figure.savefig(path, dpi=130)


def main():
    path = Path(sys.argv[1])
    results = load(path)
    table = report(results)
    print(table)
    path.with_suffix(".md").write_text(table)
    plot(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
