"""Feature selection compared with other implementations: the same features, and how much faster.

    python benchmarks/bench_selection.py [--quick] [--out DIR] [--report]

A full run takes some minutes; --quick takes some seconds. `MutualInformationSelector` selects 20 of 200 features from
5000 samples by each criterion, on one thread and on two; the bound for "mrmr" is 10 s. "mrmr" is compared with
feature-engine's MRMR (method "MID"), if it is installed, on continuous targets and on classes. "jmi" is compared with
the definition of mifs on the data of its own example (10 informative features, 5 that are redundant, 85 of noise); mifs
does not run with current versions of NumPy and scikit-learn, so its definition is written out here in SciPy. It differs
from ours in its Euclidean distances, its first feature (by the median over k from 3 to 10) and its columns, which it
does not scale. Writes selection.json and .md.
"""

import importlib.util
from functools import partial

import numpy as np
from reporting import finish, machine, make_parser, markdown_table, parse
from scipy.spatial import cKDTree
from scipy.special import digamma
from sklearn.datasets import make_classification
from timing import Times, make_timer

from echo_ext.sklearn import MutualInformationSelector

CRITERIA = ("mi", "mrmr", "jmi", "jmim", "cmim")
MAXIMUM_SECONDS = 10.0


def sample(n, p, target):
    """Half of the features are independent, the others noisy copies; the target is made of some of the first."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, p))
    X[:, p // 2 :] = X[:, : p // 2] + 0.5 * X[:, p // 2 :]
    y = X[:, : p // 20] @ np.linspace(1, 2, p // 20) + 0.5 * rng.standard_normal(n)
    return X, y if target == "continuous" else np.digitize(y, [-1.0, 1.0])


def timed(call, threads=1):
    """The result of one call and its seconds; the calls are long."""
    found = []
    measurement = make_timer(lambda: found.append(call()), threads).timeit(1)
    return found[-1], Times([measurement]).summary()["minimum"]


def ours(X, y, number, criterion, threads=1, k=3):
    selector = MutualInformationSelector(number, criterion=criterion, n_neighbors=k, n_jobs=threads, random_state=0)
    return selector.fit(X, y).selected_.tolist()


def feature_engine(X, y, number):
    import pandas as pd
    from feature_engine.selection import MRMR

    continuous = y.dtype.kind == "f"
    table = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    peer = MRMR(method="MID", max_features=number, regression=continuous, random_state=0).fit(table, pd.Series(y))
    dropped = set(peer.features_to_drop_)
    return [i for i, name in enumerate(table) if name not in dropped]


def mifs_definition(X, y, number, k=5):
    def ross(columns, k):
        radii, tree = np.empty(len(y)), cKDTree(columns)
        for label in np.unique(y):
            own = columns[y == label]
            radii[y == label] = cKDTree(own).query(own, k + 1)[0][:, -1]
        near = tree.query_ball_point(columns, radii * (1 + 1e-12), return_length=True) - 1
        sizes = np.array([np.sum(y == label) for label in y])
        return digamma(len(y)) + digamma(k) - np.mean(digamma(sizes)) - np.mean(digamma(near))

    features = set(range(X.shape[1]))
    relevance = np.array([np.median([max(ross(X[:, [j]], k), 0) for k in range(3, 11)]) for j in sorted(features)])
    selected, sums = [int(np.argmax(relevance))], np.zeros(X.shape[1])
    while len(selected) < number:
        for j in features - set(selected):
            sums[j] += max(ross(X[:, [selected[-1], j]], k), 0)
        selected.append(max(features - set(selected), key=lambda j: (sums[j], -j)))
    return selected


def measure(options):
    return {
        "criteria": measure_criteria(options),
        "feature_engine": measure_feature_engine(options),
        "mifs": measure_mifs(options),
    }


def measure_criteria(options):
    n, p, number = (300, 40, 4) if options.quick else (5000, 200, 20)
    rows = []
    for target in ("continuous", "classes"):
        X, y = sample(n, p, target)
        ours(X[:200], y[:200], 2, "jmi")  # loads what is loaded once
        for criterion in CRITERIA:
            found = {threads: timed(partial(ours, X, y, number, criterion, threads), threads) for threads in (1, 2)}
            if found[1][0] != found[2][0]:
                raise SystemExit(f"{criterion} selects {found[1][0]} on one thread and {found[2][0]} on two")
            seconds = {str(threads): found[threads][1] for threads in found}
            rows.append(
                {"n": n, "p": p, "number": number, "target": target, "criterion": criterion, "seconds": seconds}
            )
            print(rows[-1], flush=True)
    return rows


def measure_feature_engine(options):
    if importlib.util.find_spec("feature_engine") is None:
        print("feature-engine is not installed")
        return []
    rows = []
    for n, p, number in [(300, 40, 4)] if options.quick else [(1000, 50, 10), (5000, 200, 20)]:
        for target in ("continuous", "classes"):
            X, y = sample(n, p, target)
            (own, seconds), (peer, peer_seconds) = (
                timed(partial(call, X, y, number)) for call in (partial(ours, criterion="mrmr"), feature_engine)
            )
            row = {"n": n, "p": p, "number": number, "target": target, "same": sorted(own) == peer}
            rows.append({**row, "seconds": {"echo_ext": seconds, "feature_engine": peer_seconds}})
            print(rows[-1], flush=True)
    return rows


def measure_mifs(options):
    X, y = make_classification(200, 100, n_informative=10, n_redundant=5, random_state=0, shuffle=False)
    number = 4 if options.quick else 15
    (own, seconds), (peer, peer_seconds) = (
        timed(partial(call, X, y, number)) for call in (partial(ours, criterion="jmi", k=5), mifs_definition)
    )
    row = {
        "number": number,
        "selected": {"echo_ext": own, "mifs": peer},
        "seconds": {"echo_ext": seconds, "mifs": peer_seconds},
    }
    print(row)
    return row


def table(result):
    by_criterion = [
        (each["target"], each["criterion"], *(f"{each['seconds'][threads]:.2f}" for threads in ("1", "2")))
        for each in result["criteria"]
    ]
    first, mifs = result["criteria"][0], result["mifs"]
    slowest = max(max(each["seconds"].values()) for each in result["criteria"] if each["criterion"] == "mrmr")
    lines = [
        f"{machine(result)}. Seconds to select {first['number']} of {first['p']} features from {first['n']} samples:",
        "",
        *markdown_table(["target", "criterion", "1 thread", "2 threads"], by_criterion),
        "",
        f'In this table "mrmr" takes at most {slowest:.1f} s; the bound is {MAXIMUM_SECONDS:.0f} s.',
        "",
        '"mrmr" and feature-engine, one thread:',
        "",
        *markdown_table(
            ["samples, features, selected", "target", "echo_ext, s", "feature-engine, s", "ratio", "same features"],
            [
                (
                    f"{each['n']}, {each['p']}, {each['number']}",
                    each["target"],
                    f"{each['seconds']['echo_ext']:.2f}",
                    f"{each['seconds']['feature_engine']:.1f}",
                    f"{each['seconds']['feature_engine'] / each['seconds']['echo_ext']:.0f}x",
                    "yes" if each["same"] else "no",
                )
                for each in result["feature_engine"]
            ],
        ),
        "",
        f'"jmi" and the definition of mifs on its example, where features 0 to 14 matter; {mifs["number"]} selected:',
        "",
        *markdown_table(
            ["", "of those that matter", "seconds", "in the order of selection"],
            [
                (name, sum(i < 15 for i in selected), f"{mifs['seconds'][name]:.3f}", ", ".join(map(str, selected)))
                for name, selected in mifs["selected"].items()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def main():
    finish("selection", parse(make_parser(__doc__)), measure, table)


if __name__ == "__main__":
    main()
