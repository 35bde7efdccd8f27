"""Level and power of the conditional independence test, next to those of tigramite's CMIknn where it is installed.

    python benchmarks/bench_level.py [--sets 1000] [--peer-sets 150] [--quick] [--out DIR] [--report]

A full run takes about half an hour on one core. The data sets follow the post-nonlinear models of Runge 2018,
section 4: with D conditions, all noise standard normal and the functions drawn for each data set,

    x = g(mean(z) + e_x),    y = h(mean(z) + e_y)      under the null hypothesis,
    x = g(0.5 e + e_x),      y = h(0.5 e + e_y)        under dependence, in which z has no part,

with g and h among the identity, the square, the cube, tanh and exp(-|.|). Each test has N = 300 rows, 100 surrogates,
k = 0.2 N neighbors, 5 shuffle neighbors and ranks. Under the null hypothesis all p-values are uniform if the test is
right: reported are the shares of p-values up to 0.05 and 0.1. The peer is run on the first data sets of the same
sequence. Writes level.json, level.md and level.png.
"""

import math
from functools import partial

import numpy as np
import torch
from reporting import finish, make_parser, markdown_table, parse

import echo_ext

N, RESAMPLES, FRACTION = 300, 100, 0.2
DIMS = (1, 2, 4, 8)
PEER_DIMS = (1, 4)
FUNCTIONS = (lambda v: v, np.square, lambda v: v**3, np.tanh, lambda v: np.exp(-np.abs(v)))


def draw(rng, dim, dependent):
    """One data set: x, y (N,) and z (N, dim)."""
    z, e, e_x, e_y = rng.standard_normal((N, dim)), *rng.standard_normal((3, N))
    shared = 0.5 * e if dependent else z.mean(1)
    g, h = (FUNCTIONS[i] for i in rng.integers(len(FUNCTIONS), size=2))
    return g(shared + e_x), h(shared + e_y), z


def ours(x, y, z, seed, surrogate="local"):
    return echo_ext.independence_test(
        x, y, z, k=FRACTION, transform="rank", surrogate=surrogate, n_resamples=RESAMPLES, seed=seed
    ).pvalue


def peer():
    """The peer's test, or None where it is not installed."""
    try:
        from tigramite.independence_tests.cmiknn import CMIknn
    except ImportError:
        return None

    def test(x, y, z, seed):
        cmi = CMIknn(knn=FRACTION, shuffle_neighbors=5, transform="ranks", sig_samples=RESAMPLES, workers=1, seed=seed)
        return cmi.run_test_raw(x[:, None], y[:, None], z)[1]

    return test


def measure(options):
    tests = {
        "echo_ext, local": (ours, options.sets, DIMS),
        "echo_ext, shuffle": (partial(ours, surrogate="shuffle"), min(options.sets, 300), PEER_DIMS),
    }
    other = peer()
    if other is not None:
        tests["tigramite CMIknn"] = (other, options.peer_sets, PEER_DIMS)
    cases = []
    for name, (test, sets, dims) in tests.items():
        for dim in dims:
            for dependent in (False, True):
                rngs = (np.random.default_rng([dim, dependent, seed]) for seed in range(sets))
                p = [float(test(*draw(rng, dim, dependent), seed=seed)) for seed, rng in enumerate(rngs)]
                cases.append({"test": name, "conditions": dim, "dependent": dependent, "p_values": p})
                print(name, dim, dependent, share(p, 0.05), flush=True)
    return {"samples": N, "resamples": RESAMPLES, "k": FRACTION, "cases": cases}


def share(p_values, level):
    return sum(p <= level + 1e-9 for p in p_values) / len(p_values)


def with_error(p_values, level):
    found = share(p_values, level)
    return f"{found:.3f} +- {math.sqrt(found * (1 - found) / len(p_values)):.3f}"


def find(result, test, dim, dependent):
    cases = result["cases"]
    matching = (c for c in cases if (c["test"], c["conditions"], c["dependent"]) == (test, dim, dependent))
    return next(matching, None)


def names(result):
    return list(dict.fromkeys(case["test"] for case in result["cases"]))


def table(result):
    heads = ("test", "conditions", "data sets", "level at 0.05", "level at 0.1", "power at 0.05")
    rows = []
    for name in names(result):
        for dim in DIMS:
            null, dependent = find(result, name, dim, False), find(result, name, dim, True)
            if null is not None:
                levels = [with_error(null["p_values"], level) for level in (0.05, 0.1)]
                rows.append((name, dim, len(null["p_values"]), *levels, with_error(dependent["p_values"], 0.05)))
    return "\n".join(markdown_table(heads, rows)) + "\n\n" + same_sets(result)


def same_sets(result):
    """The comparison on the data sets that the peer has seen."""
    rows = []
    for dim in PEER_DIMS:
        for dependent in (False, True):
            theirs = find(result, "tigramite CMIknn", dim, dependent)
            if theirs is None:
                continue
            both = theirs["p_values"], find(result, "echo_ext, local", dim, dependent)["p_values"]
            count = min(map(len, both))
            apart = np.mean(np.abs(np.subtract(*(each[:count] for each in both))))
            kind = "dependent" if dependent else "null"
            rows.append(
                (dim, kind, count, *(with_error(each[:count], 0.05) for each in reversed(both)), f"{apart:.3f}")
            )
    if not rows:
        return ""
    heads = ("conditions", "data", "data sets", "rejected by echo_ext", "rejected by tigramite", "mean difference of p")
    return "The same data sets, at the level 0.05:\n\n" + "\n".join(markdown_table(heads, rows)) + "\n"


def plot(result):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    calibration, power = figure.subplots(1, 2)
    grid = np.linspace(0, 1, RESAMPLES + 2)
    for name, style in zip(names(result), ("-", ":", "--"), strict=False):
        for color, dim in enumerate(DIMS):
            null = find(result, name, dim, False)
            if null is not None:
                label = f"{name}, {dim} condition{'s' if dim > 1 else ''}"
                shares = [share(null["p_values"], level) for level in grid]
                calibration.plot(grid, shares, style, color=f"C{color}", linewidth=1, label=label)
    calibration.plot((0, 1), (0, 1), color="0.7", linewidth=1, zorder=0)
    calibration.set(xlabel="level", ylabel="share of p-values up to it, null hypothesis", xlim=(0, 0.3), ylim=(0, 0.5))
    calibration.legend(fontsize=6)
    for name, style in zip(names(result), ("o-", "^:", "s--"), strict=False):
        found = [(dim, case) for dim in DIMS if (case := find(result, name, dim, True)) is not None]
        power.plot([d for d, _ in found], [share(c["p_values"], 0.05) for _, c in found], style, color="k", label=name)
    power.set(xlabel="conditions", ylabel="power at level 0.05", ylim=(0, 1), xticks=DIMS)
    power.legend(fontsize=6)
    return figure


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--sets", type=int, default=1000, help="data sets for each case")
    parser.add_argument("--peer-sets", type=int, default=150, help="data sets on which the peer is run")
    options = parse(parser)
    if options.quick:
        options.sets, options.peer_sets = 4, 2
    torch.set_num_threads(1)
    finish("level", options, measure, table, plot)


if __name__ == "__main__":
    main()
