"""Mutual information beside what else there is, in one run: time, growth, speed-up over threads, peak memory.

    python benchmarks/bench_mutual_information.py [--device cpu] [--out benchmarks/results] [--largest 1000000]

Peers are measured where they are installed (scikit-learn, SciPy, npeet-plus, ennemi, infomeasure), all of them on one
CPU thread. With ``--device cuda`` ours is measured there, from tensors on the device to the number on the host, and its
values are compared with the CPU's. Writes mutual_information.json and .png (mutual_information_cuda.*).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import echo_ext
from echo_ext import _C

CASES = [
    (1000, 1, 3),
    (10_000, 1, 3),
    (100_000, 1, 3),
    (1_000_000, 1, 3),
    (1000, 5, 5),
    (10_000, 5, 5),
    (100_000, 5, 5),
]
PEER_BUDGET = 5.0  # seconds that a peer's next size may be expected to take


def sample(n, d):
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    return x, 0.6 * x + 0.8 * e


def place(array, device):
    """Arrays are what CPU users have, tensors what CUDA users have."""
    return array if device == "cpu" else torch.from_numpy(array).to(device)


def ours(x, y, k):
    return float(echo_ext.mutual_information(x, y, k=k))  # a float is there only when the device is done


def our_matrix(x):
    matrix = echo_ext.mutual_information_matrix(x)
    return matrix.cpu() if isinstance(matrix, torch.Tensor) else matrix


def scipy_script(x, y, k):
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    joint = np.hstack([x, y])
    eps = np.nextafter(cKDTree(joint).query(joint, k + 1, p=np.inf)[0][:, -1], 0)
    nx, ny = (cKDTree(v).query_ball_point(v, eps, p=np.inf, return_length=True) for v in (x, y))
    return digamma(k) + digamma(len(x)) - np.mean(digamma(nx) + digamma(ny))


def scikit_learn(x, y, k):
    from sklearn.feature_selection import mutual_info_regression

    return mutual_info_regression(x, y[:, 0], n_neighbors=k)[0]


def npeet_plus(x, y, k):
    from npeet_plus import mi

    return mi(x, y, k=k)


def ennemi(x, y, k):
    from ennemi import estimate_mi

    return estimate_mi(y[:, 0], x[:, 0], k=k).item()


def infomeasure(x, y, k):
    from infomeasure import mutual_information

    # Without its noise, which is added value by value in Python and would take most of the time.
    return float(mutual_information(x, y, approach="ksg", k=k, noise_level=0))


PEERS = {
    "scipy": scipy_script,
    "sklearn": scikit_learn,
    "npeet_plus": npeet_plus,
    "ennemi": ennemi,
    "infomeasure": infomeasure,
}
TOLERANCE = 1e-12  # of CUDA's values beside the CPU's, in nats


def best_time(call, seconds=0.6, at_least=3):
    times = []
    while len(times) < at_least or (sum(times) < seconds and len(times) < 200):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
        if times[-1] > 5:
            break
    return min(times)


def measure(largest, device):
    torch.set_num_threads(1)
    rows = []
    slowest = {}
    for n, d, k in CASES:
        if n > largest:
            continue
        x, y = sample(n, d)
        placed = place(x, device), place(y, device)
        row = {"n": n, "d": d, "k": k, "value": ours(*placed, k), "echo_ext": best_time(partial(ours, *placed, k))}
        if device != "cpu":
            row["cpu_value"] = ours(x, y, k)
            if abs(row["value"] - row["cpu_value"]) > TOLERANCE:
                raise SystemExit(f"{device} gives {row['value']}, the CPU {row['cpu_value']}: N={n} {d}+{d} k={k}")
        for name, peer in PEERS.items():
            if (name in ("sklearn", "ennemi") and d > 1) or slowest.get((name, d), 0.0) * 12 > PEER_BUDGET:
                continue
            try:
                row[name] = slowest[name, d] = best_time(partial(peer, x, y, k), at_least=2)
            except ImportError:
                continue
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row):
    peers = {name: row[name] for name in PEERS if name in row}
    text = f"N={row['n']:>8} {row['d']}+{row['d']} k={row['k']}  echo_ext {1e3 * row['echo_ext']:9.2f} ms"
    for name, seconds in peers.items():
        text += f"   {name} {1e3 * seconds:9.1f} ms ({seconds / row['echo_ext']:.1f}x)"
    return text


def growth(rows, d):
    points = [(math.log(r["n"]), math.log(r["echo_ext"])) for r in rows if r["d"] == d and r["n"] >= 10_000]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0]) if len(points) > 1 else None


def matrix_and_threads(device):
    result = {}
    x = place(np.random.default_rng(1).standard_normal((2000, 100)), device)
    large = [place(v, device) for v in sample(200_000, 1)]
    counts = {1, *(2**i for i in range(1, 8) if 2**i < available()), available()} if device == "cpu" else {1}
    for threads in sorted(counts):
        torch.set_num_threads(threads)
        result[threads] = {
            "matrix_100x100_n2000": best_time(lambda: our_matrix(x), at_least=2),
            "n200000_1+1": best_time(lambda: ours(*large, 3)),
        }
        print(f"{threads} threads: " + "  ".join(f"{name} {1e3 * s:.1f} ms" for name, s in result[threads].items()))
    torch.set_num_threads(1)
    return result


def available():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PEAK = """
import re, sys, numpy as np, echo_ext
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
n = int(sys.argv[1])
rng = np.random.default_rng(0)
x, y = rng.standard_normal(n), rng.standard_normal(n)
echo_ext.mutual_information(x[:1000], y[:1000])
before = peak()
echo_ext.mutual_information(x, y)
print(peak() - before)
"""


def peak_memory(n, device):
    """MiB that an estimate of n points adds to the peak: the process's (Linux), or torch's on the device."""
    if device == "cpu":
        run = subprocess.run([sys.executable, "-c", PEAK, str(n)], capture_output=True, text=True, check=True)
        return int(run.stdout) / 1024
    placed = [place(v, device) for v in sample(n, 1)]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ours(*placed, 3)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def plot(rows, path, device):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    where = "one thread" if device == "cpu" else "GPU (ours), one thread"
    for axes, d in zip(figure.subplots(1, 2), (1, 5), strict=True):
        for name in ("echo_ext", *PEERS):
            points = [(r["n"], 1e3 * r[name]) for r in rows if r["d"] == d and name in r]
            if points:
                style = {"linewidth": 2.5, "color": "black"} if name == "echo_ext" else {"linewidth": 1.2}
                axes.loglog(*zip(*points, strict=True), marker="o", label=name, **style)
        axes.set_title(f"I(x; y), {d}+{d} columns, {where}, float64")
        axes.set_xlabel("samples")
        axes.set_ylabel("milliseconds")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where ours is measured")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    rows = measure(args.largest, args.device)
    result = {
        "machine": platform.processor() or platform.machine(),
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(),
        "cores": available(),
        "isa": _C.isa(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cases": rows,
        "growth_exponent_1+1": growth(rows, 1),
        "growth_exponent_5+5": growth(rows, 5),
        "threads": matrix_and_threads(args.device),
        "peak_memory_mib": {n: peak_memory(n, args.device) for n in (100_000, 1_000_000) if n <= args.largest},
    }
    print(f"growth exponent at 1+1: {result['growth_exponent_1+1']}; peak memory MiB: {result['peak_memory_mib']}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / ("mutual_information.json" if on_cpu else "mutual_information_cuda.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, path.with_suffix(".png"), args.device)
    print(f"wrote {path} and .png")


if __name__ == "__main__":
    main()
