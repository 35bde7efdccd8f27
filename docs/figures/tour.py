"""Draw the table and the series of the tour: information between columns, and between a series and a later one."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer

import echo_ext


def main():
    cells = load_breast_cancer(as_frame=True).data.iloc[:, :8]
    matrix = echo_ext.mutual_information_matrix(cells, transform="standardize").to_numpy(copy=True)
    np.fill_diagonal(matrix, np.nan)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    table, series = figure.subplots(1, 2)
    image = table.imshow(matrix, cmap="viridis")
    names = [name.removeprefix("mean ") for name in cells.columns]
    table.set_xticks(range(len(names)), names, rotation=45, ha="right")
    table.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=table, label="nats")
    rng = np.random.default_rng(0)
    drive, response = rng.standard_normal(3000), np.zeros(3000)
    for t in range(4, 3000):
        response[t] = 0.6 * response[t - 1] + np.tanh(2 * drive[t - 4]) + 0.3 * rng.standard_normal()
    lags = range(-8, 13)
    series.plot(lags, echo_ext.delayed_mutual_information(drive, response, lags=lags), "o-")
    series.axhline(0, color="0.6", linewidth=1, zorder=0)
    series.set(xlabel="lag, steps from drive to response", ylabel="mutual information, nats")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
