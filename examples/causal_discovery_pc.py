"""Find the graph of nonlinear relationships with causal-learn's PC and the test of echo_ext.causallearn.

Two causes have a common effect, which has an effect of its own. None of these relationships is linear. The script
prints the edges that PC finds with this test, and with causal-learn's kernel test (KCI), with their times.

    pip install causal-learn
    python examples/causal_discovery_pc.py

Both tests find the three true edges; the kernel test leaves one of them without a direction. The script succeeds (exit
status 0) if the edges of the first test are the true ones, and the common effect is recognized as one.
"""

import argparse
import time

import numpy as np
import torch
from causallearn.search.ConstraintBased.PC import pc

import echo_ext.causallearn  # noqa: F401 - registers "cmiknn"

EDGES = {(0, 2), (1, 2), (2, 3)}


def make_data(n, seed):
    """Return the variables (n, 4)."""
    data = np.random.default_rng(seed).standard_normal((n, 4))
    data[:, 2] = np.sin(2 * data[:, 0]) + np.sin(2 * data[:, 1]) + 0.2 * data[:, 2]
    data[:, 3] = data[:, 2] ** 2 + 0.3 * data[:, 3]
    return data


def edges(graph):
    """Return the adjacent pairs, and which edges have a direction."""
    adjacent = {tuple(sorted(map(int, pair))) for pair in graph.find_adj()}
    directed = {tuple(map(int, pair)) for pair in graph.find_fully_directed()}
    return adjacent, directed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="number of rows (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data (default: 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = make_data(args.n, args.seed)

    found = {}
    for name, options in (("cmiknn", {"knn": 10, "early_stopping": 0.01}), ("kci", {})):
        start = time.process_time()
        graph = pc(data, 0.01, name, show_progress=False, **options)
        seconds = time.process_time() - start
        found[name] = edges(graph)
        text = ", ".join(f"{a} -> {b}" if (a, b) in found[name][1] else f"{a} - {b}" for a, b in sorted(found[name][0]))
        print(f"{name}: {text}; {seconds:.1f} s of processor time")
    print("true: " + ", ".join(f"{a} -> {b}" for a, b in sorted(EDGES)))
    adjacent, directed = found["cmiknn"]
    return 0 if adjacent == EDGES and {(0, 2), (1, 2)} <= directed else 1


if __name__ == "__main__":
    raise SystemExit(main())
