"""Time, growth and memory of mutual information, compared with its peers in one run, and its speed-up over threads.

    python benchmarks/bench_mutual_information.py [--device cuda] [--quick] [--out DIR] [--report]

A full run takes some minutes; --quick takes some seconds. Peers are measured if they are installed (scikit-learn,
SciPy, npeet-plus, ennemi, infomeasure), all of them on one CPU thread. With ``--device cuda`` echo_ext is measured on
the GPU, from tensors on the device to the number on the host, and its values are compared with those of the CPU.
Writes mutual_information.json, .md and .png (mutual_information_cuda.* on CUDA).
"""

import importlib.util
import os
from functools import partial

import numpy as np
import torch
from memory import in_new_process, peak_bytes
from reporting import finish, machine, make_parser, markdown_table, on_device, parse, three_digits
from timing import growth_exponent, make_timer, time_calls, time_in_turn

import echo_ext

CASES = [
    (1000, 1, 3),
    (10_000, 1, 3),
    (100_000, 1, 3),
    (1_000_000, 1, 3),
    (1000, 5, 5),
    (10_000, 5, 5),
    (100_000, 5, 5),
]
PEER_SECONDS = 5.0  # how long a peer's next size, ten times larger, may be expected to take
TOLERANCE = 1e-12  # of CUDA's values relative to the CPU's, in nats


def sample(n, d):
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    return x, 0.6 * x + 0.8 * e


def place(array, device):
    """Arrays are what CPU users have, tensors what CUDA users have."""
    return array if device.type == "cpu" else torch.from_numpy(array).to(device)


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


PEERS = {  # of each package: the call, and whether it takes one column only
    "scipy": (scipy_script, False),
    "sklearn": (scikit_learn, True),
    "npeet_plus": (npeet_plus, False),
    "ennemi": (ennemi, True),
    "infomeasure": (infomeasure, False),
}


def measure(options):
    device = options.device
    largest = 1000 if options.quick else 1_000_000
    return {
        "threads": 1,
        "cores": available(),
        "isa": echo_ext._C.isa(),
        "cases": measure_sizes(options, largest),
        "threads_cases": measure_threads(options, largest),
        "peak_memory": {n: peak_memory(n, device) for n in (100_000, 1_000_000) if n <= 100 * largest},
    }


def measure_sizes(options, largest):
    device, cases, slowest = options.device, [], {}
    for n, d, k in CASES:
        if n > largest:
            continue
        x, y = sample(n, d)
        placed = place(x, device), place(y, device)
        case = {"n": n, "d": d, "k": k, "value": ours(*placed, k)}
        if device.type != "cpu":
            case["cpu_value"] = ours(x, y, k)
            if abs(case["value"] - case["cpu_value"]) > TOLERANCE:
                raise SystemExit(f"{device} gives {case['value']}, the CPU {case['cpu_value']}: N={n} {d}+{d} k={k}")
        calls = {"echo_ext": partial(ours, *placed, k)}
        for name, (peer, takes_one_column) in PEERS.items():
            installed = importlib.util.find_spec(name) is not None
            if installed and not (takes_one_column and d > 1) and slowest.get((name, d), 0.0) * 12 < PEER_SECONDS:
                calls[name] = partial(peer, x, y, k)
        times = time_calls(calls, options.seconds, threads=1, rounds=3)
        case["seconds"] = {name: found.summary() for name, found in times.items()}
        slowest.update({(name, d): case["seconds"][name]["minimum"] for name in calls})
        cases.append(case)
        print(line(case), flush=True)
    for d in (1, 5):
        points = [(case["n"], case["seconds"]["echo_ext"]["minimum"]) for case in cases if case["d"] == d]
        print(
            f"growth at {d}+{d}: N to the power of {growth_exponent([point for point in points if point[0] >= 10_000])}"
        )
    return cases


def line(case):
    seconds = {name: summary["minimum"] for name, summary in case["seconds"].items()}
    text = [f"N={case['n']:>8} {case['d']}+{case['d']} k={case['k']}  echo_ext {1e3 * seconds['echo_ext']:9.2f} ms"]
    text += [
        f"{name} {1e3 * each:9.1f} ms ({each / seconds['echo_ext']:.1f}x)"
        for name, each in seconds.items()
        if name != "echo_ext"
    ]
    return "   ".join(text)


def measure_threads(options, largest):
    device = options.device
    columns, n = 10 if options.quick else 100, largest // 5
    x = place(np.random.default_rng(1).standard_normal((2000, columns)), device)
    large = [place(v, device) for v in sample(n, 1)]
    calls = {f"matrix_{columns}x{columns}_n2000": partial(our_matrix, x), f"n{n}_1+1": partial(ours, *large, 3)}
    most = available() if device.type == "cpu" else 1
    counts = sorted({2**i for i in range(8) if 2**i < most} | {most})
    found = {count: {} for count in counts}
    for name, call in calls.items():
        times = time_in_turn({count: make_timer(call, count) for count in counts}, options.seconds, rounds=2)
        for count in counts:
            found[count][name] = times[count].summary()
    for count, summaries in found.items():
        text = "  ".join(f"{name} {1e3 * each['minimum']:.1f} ms" for name, each in summaries.items())
        print(f"{count} threads: {text}")
    return found


def available():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(n, device):
    """Bytes that an estimate of n points adds to the peak."""
    found = in_new_process(peak_of_estimate, n, device) if device.type == "cpu" else peak_of_estimate(n, device)
    print(f"peak memory of {n} points: {found / 2**20:.1f} MiB")
    return found


def peak_of_estimate(n, device):
    torch.set_num_threads(1)
    placed = [place(v, device) for v in sample(n, 1)]
    ours(*(v[:1000] for v in placed), 3)  # loads what is loaded once
    return peak_bytes(partial(ours, *placed, 3), device)


def table(result):
    """The times of all sizes."""
    heads = ["samples, columns", "echo_ext", *PEERS, "speedup over the best"]
    rows = []
    for case in result["cases"]:
        times = {name: each["minimum"] for name, each in case["seconds"].items()}
        cells = [three_digits(1e3 * times[name]) if name in times else "-" for name in ("echo_ext", *PEERS)]
        best = min((time for name, time in times.items() if name != "echo_ext"), default=None)
        speedup = "-" if best is None else f"**{three_digits(best / times['echo_ext'])}x**"
        rows.append([f"{case['n']:,}, {case['d']}+{case['d']}", *cells, speedup])
    first = f"{machine(result)}. Milliseconds, minimum of repeated calls, one CPU thread, float64:"
    return "\n".join([first, "", *markdown_table(heads, rows), ""])


def plot(result):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=150)
    where = "one thread" if result["device_type"] == "cpu" else "GPU (ours), one thread"
    for axes, d in zip(figure.subplots(1, 2), (1, 5), strict=True):
        for name in ("echo_ext", *PEERS):
            points = [
                (case["n"], 1e3 * case["seconds"][name]["minimum"])
                for case in result["cases"]
                if case["d"] == d and name in case["seconds"]
            ]
            if points:
                style = {"linewidth": 2.5, "color": "black"} if name == "echo_ext" else {"linewidth": 1.2}
                axes.loglog(*zip(*points, strict=True), marker="o", label=name, **style)
        axes.set_title(f"I(x; y), {d}+{d} columns, {where}, float64")
        axes.set_xlabel("samples")
        axes.set_ylabel("milliseconds")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main():
    options = parse(make_parser(__doc__, device=True, seconds=0.6))
    finish(on_device("mutual_information", options.device), options, measure, table, plot)


if __name__ == "__main__":
    main()
