"""Plot transfer entropy against the lag, and what shuffled rows do to tests of time series: time_series.png.

    python docs/figures/time_series.py

It takes some minutes on one core, and prints the plotted values, and how often tests given a third series reject at 5 %
although it explains all of the dependence.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import echo_ext

LAGS = range(1, 7)
MEMORIES = (0.0, 0.5, 0.8, 0.9, 0.95)
PAIRS = 200
ROWS = 300


def make_chain(rng, n):
    """Return three series, the first of which acts on the second after one row, and that on the last after two."""
    first, *noise = rng.standard_normal((3, n))
    middle = 0.8 * np.roll(first, 1) + 0.6 * noise[0]
    return first, middle, 0.8 * np.roll(middle, 2) + 0.6 * noise[1]


def make_series(rng, memory, n=ROWS):
    """Return an autoregressive series of standard deviation 1."""
    series = rng.standard_normal(n + 200)
    for t in range(1, len(series)):
        series[t] = memory * series[t - 1] + np.sqrt(1 - memory**2) * series[t]
    return series[200:]


def test_transfer(source, target, surrogate, seed):
    """Return the test of transfer from the last row of the source to the target, given the target's last row."""
    past = target[:-1]
    return echo_ext.independence_test(
        target[1:], source[:-1], past, k=0.1, surrogate=surrogate, n_resamples=99, seed=seed
    )


def rejected_given_middle(k, surrogate):
    """Return how often a test of the first and the last series of a chain, given the middle one, rejects at 5 %."""
    rejected = []
    for seed in range(PAIRS):
        first, middle, last = make_chain(np.random.default_rng(seed), 500)
        past = np.stack([last[2:-1], middle[1:-2]], 1)
        test = echo_ext.independence_test(
            last[3:], first[:-3], past, k=k, surrogate=surrogate, n_resamples=99, seed=seed
        )
        rejected.append(test.pvalue <= 0.05)
    return np.mean(rejected)


def main():
    """Compute the estimates, print and plot them."""
    rng = np.random.default_rng(0)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    scan, null, level = figure.subplots(1, 3)

    first, middle, last = make_chain(rng, 2000)
    curves = {
        "delayed mutual information": echo_ext.delayed_mutual_information(first, last, lags=LAGS),
        "transfer entropy": [echo_ext.transfer_entropy(first, last, lag=lag) for lag in LAGS],
        "given the middle series": [
            echo_ext.transfer_entropy(first, last, lag=lag, given=middle, given_history=2) for lag in LAGS
        ],
    }
    for name, values in curves.items():
        scan.plot(LAGS, values, "o-", markersize=3, label=name)
        print(name, np.round(values, 3))
    scan.set(xlabel="lag (rows)", title="first to last of a chain (nats)", ylim=(-0.03, 0.45))
    scan.legend(frameon=False, fontsize="small", loc="upper right")

    found = {"shuffle": [], "circular": []}
    rejected = {kind: [] for kind in found}
    for memory in MEMORIES:
        estimates = []
        tests = {kind: [] for kind in found}
        for pair in range(PAIRS):
            source, target = make_series(rng, memory), make_series(rng, memory)
            for kind in found:
                tests[kind].append(test_transfer(source, target, kind, pair))
            estimates.append(tests["shuffle"][-1].statistic)
        for kind in found:
            rejected[kind].append(np.mean([test.pvalue <= 0.05 for test in tests[kind]]))
            if memory == 0.9:
                found[kind] = np.concatenate([test.null_distribution for test in tests[kind]])
        if memory == 0.9:
            bins = np.linspace(-0.03, 0.07, 31)
            null.hist(estimates, bins, density=True, color="0.8", label="independent series")
            for kind, values in found.items():
                null.hist(values, bins, density=True, histtype="step", linewidth=1.5, label=f"{kind} surrogates")
                print(f"{kind}: mean {values.mean():.4f}, standard deviation {values.std():.4f}")
            print(f"estimates: mean {np.mean(estimates):.4f}, standard deviation {np.std(estimates):.4f}")
    null.set(xlabel="transfer entropy (nats)", title="estimates, memory 0.9", yticks=[])
    null.legend(frameon=False, fontsize="small")

    for kind, rates in rejected.items():
        level.plot(MEMORIES, 100 * np.array(rates), "o-", markersize=3, label=f"{kind} surrogates")
        print(kind, dict(zip(MEMORIES, rates, strict=True)))
    level.axhline(5, color="0.6", linewidth=0.8)
    level.set(xlabel="memory (correlation of consecutive rows)", title="rejected at 5 % (% of pairs)", ylim=(0, None))
    level.legend(frameon=False, fontsize="small")
    for k in (5, 0.1):
        print(
            f"given the middle series, k = {k}:",
            {kind: rejected_given_middle(k, kind) for kind in ("circular", "local")},
        )
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
