"""Time of a whole test of conditional independence, compared with tigramite's CMIknn in one run.

    python benchmarks/bench_independence.py [--quick] [--out DIR] [--report]

A test makes 500 surrogates on one thread. `independence_test` and the class of echo_ext.tigramite make all of them in
each call. tigramite's own class, which is measured if tigramite and numba are installed, makes 5 and 20, from which the
time of 500 follows by a straight line; the first case is also measured with all 500, once. All times are processor
times, in turns, the minimum of all calls, so that other work on the machine matters little.
Writes independence.json and .md.
"""

import importlib.util
import time
from functools import partial

import numpy as np
from reporting import finish, machine, make_parser, markdown_table, parse
from timing import time_in_turn
from torch.utils.benchmark import Timer

import echo_ext
from echo_ext._native import num_threads

CASES = [  # rows, conditions, k
    (1000, 3, 200),
    (2000, 3, 400),
    (1000, 3, 5),
    (2000, 3, 5),
    (500, 1, 100),
    (1000, 1, 200),
    (1000, 0, 200),
]
SURROGATES = 500
FEW = (5, 20)
ROUNDS = 3


def sample(n, conditions):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, conditions))
    x, y = z.sum(1) + rng.standard_normal((2, n))
    return x[:, None], y[:, None], z if conditions > 0 else None


def ours(x, y, z, k):
    return echo_ext.independence_test(x, y, z, k=k, n_resamples=SURROGATES, transform="rank", seed=0).pvalue


def raw(kind, k, num, x, y, z):
    return kind(knn=k, workers=1, sig_samples=num, sig_blocklength=1).run_test_raw(x, y, z)[1]


def processor_seconds(calls, seconds):
    """The minimum of the processor time of each call."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=1, timer=time.process_time)
        for name, call in calls.items()
    }
    return {name: each.summary()["minimum"] for name, each in time_in_turn(timers, seconds, ROUNDS).items()}


def measure(options):
    peers = {}
    if importlib.util.find_spec("tigramite") is not None:
        from echo_ext.tigramite import CMIknn

        peers["echo_ext.tigramite"] = CMIknn
        if importlib.util.find_spec("numba") is not None:
            from tigramite.independence_tests.cmiknn import CMIknn as Original

            peers["tigramite"] = Original
    cases = []
    for n, conditions, k in [(200, 1, 40)] if options.quick else CASES:
        x, y, z = sample(n, conditions)
        calls = {"independence_test": partial(ours, x, y, z, k)}
        if "echo_ext.tigramite" in peers:
            calls["echo_ext.tigramite"] = partial(raw, peers["echo_ext.tigramite"], k, SURROGATES, x, y, z)
        if "tigramite" in peers:
            calls |= {f"tigramite {num}": partial(raw, peers["tigramite"], k, num, x, y, z) for num in FEW}
        found = processor_seconds(calls, options.seconds)
        case = {"n": n, "conditions": conditions, "k": k, "pvalue": float(calls["independence_test"]())}
        case["seconds"] = {
            name: each for name, each in found.items() if name not in [f"tigramite {num}" for num in FEW]
        }
        if "tigramite" in peers:
            few, more = (found[f"tigramite {num}"] for num in FEW)
            case["seconds"]["tigramite"] = few + (more - few) / (FEW[1] - FEW[0]) * (SURROGATES - FEW[0])
            if not cases:
                case["tigramite_whole"], case["tigramite_pvalue"] = whole_test(peers["tigramite"], k, x, y, z)
        cases.append(case)
        print(case, flush=True)
    return {"threads": 1, "surrogates": SURROGATES, "cases": cases}


def whole_test(kind, k, x, y, z):
    """The processor time of one test with all surrogates, and its p-value."""
    with num_threads(1):
        start = time.process_time()
        p = raw(kind, k, SURROGATES, x, y, z)
        return time.process_time() - start, float(p)


def table(result):
    heads = ["T", "conditions", "k", "independence_test, s", "echo_ext.tigramite, s", "tigramite, s", "ratio"]
    rows = []
    for case in result["cases"]:
        seconds = case["seconds"]
        cells = [
            f"{seconds[name]:.{digits}f}" if name in seconds else "-"
            for name, digits in (("independence_test", 3), ("echo_ext.tigramite", 3), ("tigramite", 1))
        ]
        ratio = f"{seconds['tigramite'] / seconds['independence_test']:.1f}" if "tigramite" in seconds else "-"
        rows.append([case["n"], case["conditions"], case["k"], *cells, ratio])
    lines = [
        "# Tests of conditional independence",
        "",
        f"{machine(result)}, one thread, processor time of a whole test with {result['surrogates']} surrogates, ranks.",
        f"The times of tigramite's CMIknn are extrapolated from {FEW[0]} and {FEW[1]} surrogates.",
    ]
    first = result["cases"][0]
    if "tigramite_whole" in first:
        lines.append(
            f"With all {result['surrogates']}, its first case took {first['tigramite_whole']:.1f} s "
            f"(p = {first['tigramite_pvalue']:.3f}, and {first['pvalue']:.3f} with echo_ext)."
        )
    return "\n".join([*lines, "", *markdown_table(heads, rows)]) + "\n"


def main():
    options = parse(make_parser(__doc__, seconds=1.5))
    finish("independence", options, measure, table=table)


if __name__ == "__main__":
    main()
