"""What a lower rate floor costs: time of a channel's training step against the least rate that it can have.

    python benchmarks/bench_rate_floor.py [--out benchmarks/results] [--dim 32] [--seconds 1.0]

A channel with D terms has rates above -log max_scale(D) nats per dimension. Three ways to so many terms: batches of
D + 1 rows on one ring, the same by permutation, and batches of 100 filled up from the bank (ring). Scales are at their
largest, where no row stops early; one thread, the fastest of the repeats. Writes rate_floor.json and rate_floor.png.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch

import echo_ext

TERMS = (99, 255, 511, 1023, 2047, 4095, 8191)
SMALL_BATCH = 100
WAYS = {  # name: sampling, rows of a batch for so many terms
    "ring, whole batch": ("ring", lambda terms: terms + 1),
    "permutation, whole batch": ("permutation", lambda terms: terms + 1),
    "ring, batch of 100 and bank": ("ring", lambda terms: SMALL_BATCH),
}


def measure(sampling, rows, terms, dim, seconds):
    """Least seconds of forward and backward, and the rate, at the largest scales."""
    channel = echo_ext.EchoChannel(terms, sampling=sampling, bank_size=terms + 1)
    channel(torch.randn(terms + 1, dim), torch.zeros(terms + 1, dim))  # fills the bank
    f_raw = torch.randn(rows, dim, requires_grad=True)
    s_raw = torch.full((rows, dim), 15.0, requires_grad=True)
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        z, rate = channel(f_raw, s_raw)
        torch.autograd.backward([z.sum() + rate.sum()])
        times.append(time.perf_counter() - start)
    return min(times), float(rate.detach().mean())


def plot(cases, path):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for way in WAYS:
        own = [case for case in cases if case["way"] == way]
        axes.plot([case["floor"] for case in own], [1e3 * case["seconds"] for case in own], "o-", label=way)
    for case in cases[:: len(WAYS)]:
        axes.axvline(case["floor"], color="0.9", zorder=0)
        axes.annotate(case["terms"], (case["floor"], 1.01), xycoords=("data", "axes fraction"), fontsize=7, ha="center")
    axes.set(xscale="log", yscale="log", xlabel="rate floor, nats per dimension (above: terms)")
    axes.set_ylabel("channel's forward + backward, ms")
    axes.invert_xaxis()
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cases = []
    print(f"{'terms':>6} {'floor':>8} {'rate':>8} {'ms':>9} {'us/row':>8}  way")
    for terms in TERMS:
        for way, (sampling, batch) in WAYS.items():
            rows = batch(terms)
            seconds, rate = measure(sampling, rows, terms, options.dim, options.seconds)
            floor = -math.log(echo_ext.max_scale(terms))
            cases.append({"way": way, "terms": terms, "rows": rows, "floor": floor, "rate": rate, "seconds": seconds})
            print(f"{terms:6} {floor:8.5f} {rate:8.5f} {1e3 * seconds:9.3f} {1e6 * seconds / rows:8.3f}  {way}")
    options.out.mkdir(parents=True, exist_ok=True)
    note = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dim": options.dim,
    }
    (options.out / "rate_floor.json").write_text(json.dumps({"note": note, "cases": cases}, indent=1) + "\n")
    plot(cases, options.out / "rate_floor.png")


if __name__ == "__main__":
    main()
