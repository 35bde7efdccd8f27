"""Plot how bias and spread of the KSG estimate depend on k and on the number of samples: estimator_k.png.

    python docs/figures/estimator_k.py

It takes half a minute on one core, and prints the plotted values.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import echo_ext

DATA_SETS = 400
KS = (1, 2, 3, 5, 10, 20, 50, 100, 200)
SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000)
CASES = (("independent", 0.0, 1), ("0.22 nats", 0.6, 1), ("1.5 nats", 0.975, 1), ("1.1 nats in 5 + 5 columns", 0.6, 5))


def draw(rng, n, correlation, columns, data_sets):
    """Return x and y, (data_sets, n, columns), each column of x correlated with one of y."""
    x, noise = rng.standard_normal((2, data_sets, n, columns))
    return x, correlation * x + np.sqrt(1 - correlation**2) * noise


def main():
    """Compute the estimates, print and plot them."""
    rng = np.random.default_rng(0)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    bias, spread, growth = figure.subplots(1, 3)
    for name, correlation, columns in CASES:
        truth = -columns / 2 * np.log1p(-(correlation**2))
        found = echo_ext.mutual_information(*draw(rng, 1000, correlation, columns, DATA_SETS), k=KS)
        bias.plot(KS, found.mean(1) - truth, "o-", markersize=3, label=name)
        spread.plot(KS, found.std(1), "o-", markersize=3)
        print(f"{name}: {truth:.3f}; k = {KS}")
        print("  bias", (found.mean(1) - truth).round(4), " standard deviation", found.std(1).round(4))
        by_size = [
            echo_ext.mutual_information(*draw(rng, n, correlation, columns, max(40, 40_000 // n))) for n in SIZES
        ]
        mean, deviation = np.array([(each.mean(), each.std()) for each in by_size]).T
        (line,) = growth.plot(SIZES, mean, "o-", markersize=3)
        growth.fill_between(SIZES, mean - deviation, mean + deviation, alpha=0.2, color=line.get_color())
        growth.axhline(truth, color=line.get_color(), linewidth=0.8, linestyle=":")
        print(f"  N = {SIZES}: mean", mean.round(3), " standard deviation", deviation.round(3))
    bias.axhline(0, color="0.6", linewidth=0.8)
    bias.set(xscale="log", xlabel="k", title="bias, N = 1000 (nats)", ylim=(-0.8, 0.05))
    spread.set(xscale="log", xlabel="k", title="standard deviation, N = 1000 (nats)", ylim=(0, None))
    growth.set(xscale="log", xlabel="N", title="estimate with k = 3 (nats)")
    figure.legend(*bias.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
