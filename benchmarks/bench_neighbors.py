"""Time of searches and estimates with many neighbors, with few, and in many columns, next to their peers in one run.

    python benchmarks/bench_neighbors.py [--quick] [--seconds S] [--out DIR] [--report]

A full run takes five to ten minutes; --quick takes some seconds. Peers are measured if they are installed (SciPy,
scikit-learn, pykdtree, and NumPy by brute force). Everything runs on one thread, in float64. Writes neighbors.json
and .md.
"""

import importlib.util
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of pykdtree and scikit-learn, before they are loaded

from functools import partial

import numpy as np
from reporting import finish, machine, make_parser, markdown_table, parse
from timing import time_calls

import echo_ext

PEER_SECONDS = 2.0  # a peer that took longer than this in a case is not measured in the larger ones that follow
MOST_PAIRS = 2000**2  # that NumPy's brute force is asked for


def related(n):
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal((n, 1)), rng.standard_normal((n, 1))
    return x, 0.6 * x + 0.8 * e


# ---- Peers -----------------------------------------------------------------------------------------------------------


def information_of(x, y, k, radii):
    from scipy.special import digamma

    inside = []
    for column in (x[:, 0], y[:, 0]):
        ascending = np.sort(column)
        last = np.searchsorted(ascending, column + radii, "right")
        inside.append(last - np.searchsorted(ascending, column - radii, "left"))
    return digamma(k) + digamma(len(x)) - np.mean(digamma(inside[0]) + digamma(inside[1]))


def scipy_information(x, y, k):
    from scipy.spatial import cKDTree

    joint = np.hstack([x, y])
    radii = cKDTree(joint).query(joint, [k + 1], p=np.inf)[0][:, 0]
    return information_of(x, y, k, np.nextafter(radii, 0))


def numpy_information(x, y, k):
    apart = np.maximum(np.abs(x - x.T), np.abs(y - y.T))
    return information_of(x, y, k, np.nextafter(np.partition(apart, k, axis=1)[:, k], 0))


def scikit_learn_information(x, y, k):
    from sklearn.feature_selection import mutual_info_regression

    return mutual_info_regression(x, y[:, 0], n_neighbors=k)[0]


def scipy_knn(points, queries, k):
    from scipy.spatial import cKDTree

    return cKDTree(points).query(points if queries is None else queries, k + (queries is None))


def scikit_learn_knn(points, queries, k, algorithm):
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm=algorithm).fit(points).kneighbors(queries)


def pykdtree_knn(points, queries, k):
    from pykdtree.kdtree import KDTree

    return KDTree(points).query(points if queries is None else queries, k + (queries is None))


INFORMATION_PEERS = {
    "scipy": ("scipy", scipy_information),
    "numpy": ("scipy", numpy_information),
    "sklearn": ("sklearn", scikit_learn_information),
}
KNN_PEERS = {
    "scipy": ("scipy", scipy_knn),
    "pykdtree": ("pykdtree", pykdtree_knn),
    "sklearn": ("sklearn", partial(scikit_learn_knn, algorithm="kd_tree")),
    "sklearn_brute": ("sklearn", partial(scikit_learn_knn, algorithm="brute")),
}

# ---- Cases -----------------------------------------------------------------------------------------------------------


def measure(options):
    cases = [*information_cases(options), *knn_cases(options)]
    return {"threads": 1, "isa": echo_ext._C.isa(), "cases": cases}


def information_cases(options):
    slow = set()
    for n in (100, 1000) if options.quick else (100, 1000, 10_000, 100_000):
        x, y = related(n)
        for k in (1, 3, 10, 30, 100, 200, 400):
            if k >= n:
                continue
            calls = {
                "ours": partial(echo_ext.mutual_information, x, y, k=k),
                "ksg2": partial(echo_ext.mutual_information, x, y, k=k, method="ksg2"),
            }
            for name, call in installed(INFORMATION_PEERS, slow).items():
                if name != "numpy" or n * n <= MOST_PAIRS:
                    calls[name] = partial(call, x, y, k)
            yield case(f"information, N = {n}, 1+1", k, calls, options, slow)


def knn_cases(options):
    rng = np.random.default_rng(0)
    n = 1000 if options.quick else 100_000
    for d in (2, 3, 5):
        points, slow = rng.standard_normal((n, d)), {"sklearn_brute"}
        for k in (1, 10, 100):
            yield case(f"knn, {n} points, d = {d}", k, knn_calls(points, None, k, slow), options, slow)
    for d in (10, 20):
        points, slow = rng.standard_normal((n, d)), set()
        for num in (500, 2000):
            queries = rng.standard_normal((num, d))
            for k in (1, 10, 100):
                calls = knn_calls(points, queries, k, slow)
                yield case(f"knn, {num} queries of {n} points, d = {d}", k, calls, options, slow)


def knn_calls(points, queries, k, slow):
    calls = {"ours": partial(echo_ext.knn, points, queries, k, metric="euclidean")}
    return calls | {name: partial(call, points, queries, k) for name, call in installed(KNN_PEERS, slow).items()}


def installed(peers, slow):
    found = {name: call for name, (package, call) in peers.items() if importlib.util.find_spec(package) is not None}
    return {name: call for name, call in found.items() if name not in slow}


def case(what, k, calls, options, slow):
    times = time_calls(calls, options.seconds, threads=1, rounds=1)
    seconds = {name: found.summary()["minimum"] for name, found in times.items()}
    slow.update(name for name, each in seconds.items() if name not in ("ours", "ksg2") and each > PEER_SECONDS)
    found = {"case": what, "k": k, "seconds": seconds}
    print(" | ".join(map(str, cells(found))), flush=True)
    return found


# ---- Report ----------------------------------------------------------------------------------------------------------


def cells(found):
    seconds = dict(found["seconds"])
    ours, ksg2 = seconds.pop("ours"), seconds.pop("ksg2", None)
    each = [f"{name} {1e3 * taken:.3g} ms ({taken / ours:.1f}x)" for name, taken in seconds.items()]
    ratio = f"{min(seconds.values()) / ours:.1f}x" if seconds else ""
    return (
        found["case"],
        found["k"],
        f"{1e3 * ours:.3g} ms",
        "" if ksg2 is None else f"{1e3 * ksg2:.3g} ms",
        ratio,
        *[", ".join(each)],
    )


def table(result):
    heads = ("case", "k", "echo_ext", "its ksg2", "best peer", "peers")
    return "\n".join(
        [
            f"{machine(result)}, {result['isa']}, one thread, float64; `knn` is Euclidean.",
            "",
            *markdown_table(heads, [cells(found) for found in result["cases"]]),
            "",
        ]
    )


def main():
    options = parse(make_parser(__doc__, seconds=0.6))
    finish("neighbors", options, measure, table)


if __name__ == "__main__":
    main()
