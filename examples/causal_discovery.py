"""Find the links of a nonlinear time series with tigramite's PCMCI and the test of echo_ext.tigramite.

Variable 1 drives variables 0 and 2 by its square, at lags 1 and 2, so that no correlation shows the links. The script
prints the links that PCMCI finds, and how long one test takes compared with tigramite's own CMIknn, if numba is there.

    pip install tigramite numba
    python examples/causal_discovery.py

PCMCI finds the two true links, each with p = 0.002, and no others. The script succeeds (exit status 0) if so.
"""

import argparse
import importlib.util
import time

import numpy as np
import torch
from tigramite.data_processing import DataFrame
from tigramite.pcmci import PCMCI

from echo_ext.tigramite import CMIknn

LINKS = {(1, 0, 1), (1, 2, 2)}  # from, to, lag


def make_series(n, seed):
    """Return the series (n, 3) of tigramite's tutorial on nonlinear tests."""
    data = np.random.default_rng(seed).standard_normal((n, 3))
    for t in range(1, n):
        data[t, 0] += 0.4 * data[t - 1, 1] ** 2
        data[t, 2] += 0.3 * data[t - 2, 1] ** 2
    return data


def seconds_of_test(test, data):
    """Return the processor time of one test, of variables 0 and 2 given two others."""
    x, y, z = data[1:-1, [0]], data[2:, [2]], np.column_stack([data[:-2, 1], data[1:-1, 1]])
    test.run_test_raw(x[:50], y[:50], z[:50])  # loads what is loaded once
    start = time.process_time()
    test.run_test_raw(x, y, z)
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="number of rows (default: 500)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the series and the surrogates (default: 42)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = make_series(args.n, args.seed)

    # Tests that cannot reject at the level of PCMCI's first stage stop early.
    test = CMIknn(early_stopping=0.05, seed=args.seed)
    start = time.perf_counter()
    found = PCMCI(DataFrame(data), test, verbosity=0).run_pcmci(tau_min=1, tau_max=2, pc_alpha=0.05)
    print(f"PCMCI took {time.perf_counter() - start:.1f} s")
    links = {tuple(map(int, link)) for link in np.argwhere(found["p_matrix"] < 0.01)}
    for link in sorted(links | LINKS):
        source, target, lag = link
        verdict = "a true link" if link in links & LINKS else "missed" if link in LINKS else "a false alarm"
        print(f"variable {source} -> variable {target} at lag {lag}: {verdict}, p = {found['p_matrix'][link]:.3f}")

    ours = seconds_of_test(CMIknn(workers=1), data)
    print(f"one test given two variables, 500 surrogates, one thread: {ours:.2f} s")
    if importlib.util.find_spec("numba") is not None:
        from tigramite.independence_tests.cmiknn import CMIknn as Original

        theirs = seconds_of_test(Original(workers=1), data)
        print(f"the same with tigramite's CMIknn: {theirs:.2f} s, {theirs / ours:.0f} times as long")
    return 0 if links == LINKS else 1


if __name__ == "__main__":
    raise SystemExit(main())
