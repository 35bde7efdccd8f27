"""Mutual information estimated from nearest neighbors in the tasks of the "beyond normal" benchmark (Czyz et al. 2023).

    python benchmarks/bench_beyond_normal.py [--seeds 10] [--quick] [--out DIR] [--report]

A full run takes some minutes on one core; --quick takes some seconds. Each of 40 tasks, in which the true information
is known, is drawn with ten seeds and 5000 samples, and every column is standardized. The last estimates replace each
column by its normal scores; CCA is the formula of normal variables with the canonical correlations of the sample. The
second table has one and three pairs of normal columns with ever more information. The figure shows estimates of two
pairs of correlated columns, among others that are independent, against the number of samples. Writes
beyond_normal.json, beyond_normal.md and beyond_normal.png.
"""

import warnings

import numpy as np
from beyond_normal import normal, normal_estimate, tasks, two_pairs
from reporting import finish, make_parser, markdown_table, parse

from echo_ext import mutual_information, mutual_information_convergence
from echo_ext.estimators import Convergence

METHODS = ("ksg1", "ksg2", "mixed", "bi-ksg")
K = (3, 10)
NORMAL_SCORES = "ksg1 of normal scores"
PANELS = (2, 3, 5, 25)  # columns in the panels of the figure
STRONG = (1, 2, 4, 6, 8, 10)  # nats
STRONG_COLUMNS = (1, 3)


def standardized(x):
    return (x - x.mean(0)) / x.std(0)


def estimates(x, y):
    """The estimate of every method."""
    of_methods = {method: mutual_information(x, y, k=K, method=method) for method in METHODS}
    of_methods[NORMAL_SCORES] = mutual_information(x, y, k=K, transform="normal")
    found = {f"{method}, k = {k}": of_k[i] for method, of_k in of_methods.items() for i, k in enumerate(K)}
    return {"CCA": normal_estimate(x, y), **found}


def measure_task(task, options):
    found = []
    for seed in range(options.seeds):
        x, y = task.draw(np.random.default_rng(seed), options.samples)
        found.append(estimates(standardized(x), standardized(y)))
    values = {method: [each[method] for each in found] for method in found[0]}
    means = {method: {"mean": np.mean(each), "std": np.std(each, ddof=1)} for method, each in values.items()}
    return {"task": task.name, "columns": task.columns, "truth": task.truth, "estimates": means}


def strong(columns, information):
    """Pairs of normal columns that share the information equally."""
    correlation = np.sqrt(-np.expm1(-2 * information / columns))
    pair = np.array([[1, correlation], [correlation, 1]])
    return normal(f"Normal {columns} x {columns}", np.kron(pair, np.eye(columns)))


def measure_convergence(task, options):
    """Estimates from parts of one sample that is four times as large as those of the tasks."""
    x, y = task.draw(np.random.default_rng(0), 4 * options.samples)
    sizes = [4 * options.samples // 2**i for i in range(6)]
    found = mutual_information_convergence(x, y, sizes=sizes, k=K, repeats=1, seed=0)
    arrays = {"estimates": found.estimates.tolist(), "standard_errors": found.standard_errors.tolist()}
    return {"task": task.name, "truth": task.truth, "sizes": found.sizes, "k": found.k, **arrays}


def measure(options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="method 'bi-ksg' is for at most")
        return {
            "threads": 1,
            "samples": options.samples,
            "seeds": options.seeds,
            "tasks": [measure_task(task, options) for task in tasks()],
            "strong": [measure_task(strong(columns, each), options) for each in STRONG for columns in STRONG_COLUMNS],
            "convergence": [measure_convergence(two_pairs(columns), options) for columns in PANELS],
        }


def table(result):
    names = list(result["tasks"][0]["estimates"])
    rows, strong_rows = (
        [
            (
                each["task"],
                *(f"{value:.2f}" for value in (each["truth"], *(each["estimates"][n]["mean"] for n in names))),
            )
            for each in result[part]
        ]
        for part in ("tasks", "strong")
    )
    errors = np.abs([[each["estimates"][name]["mean"] - each["truth"] for name in names] for each in result["tasks"]])
    rows.append(("mean absolute error", "", *(f"{error:.2f}" for error in errors.mean(0))))
    rows.append(("tasks with an error below 0.1", "", *(errors < 0.1).sum(0)))
    tables = (markdown_table(["task", "true", *names], each) for each in (rows, strong_rows))
    return "\n\n".join("\n".join(lines) for lines in tables) + "\n"


def plot(result):
    from echo_ext import plots

    found, truths = {}, {}
    for each in result["convergence"]:
        arrays = (np.array(each[name]) for name in ("estimates", "standard_errors"))
        found[each["task"]] = Convergence(tuple(each["sizes"]), tuple(each["k"]), *arrays)
        truths[each["task"]] = each["truth"]
    return plots.convergence(found, truths=truths)


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="number of data sets of each task; default: 10")
    options = parse(parser)
    options.samples = 5000
    if options.quick:
        options.seeds, options.samples = 2, 200
    finish("beyond_normal", options, measure, table, plot)


if __name__ == "__main__":
    main()
