"""Measure how much the rows of one batch depend on each other with each sampling; draw it next to this file."""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

import echo_ext

ROWS = 100
BATCHES = 3000
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8358)


def statistics(sampling, scale):
    """z of many batches, of f uniform in [-1, 1] (BATCHES, ROWS), and the mean and the variance of each (BATCHES,)."""
    f = 2 * torch.rand(BATCHES, ROWS, dtype=torch.float64) - 1
    s = torch.full((ROWS, 1), scale, dtype=torch.float64)
    z = torch.stack([echo_ext.echo_sample(batch[:, None], s, sampling=sampling)[:, 0] for batch in f])
    return z.mean(dim=1), z.var(dim=1), z


def main():
    torch.manual_seed(0)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for sampling in ("permutation", "replacement", "ring"):
        curves = []
        for scale in SCALES:
            mean, var, z = statistics(sampling, scale)
            independent = z.flatten()[torch.randperm(z.numel())].reshape(z.shape)
            ratios = mean.std() / independent.mean(dim=1).std(), var.std() / independent.var(dim=1).std()
            curves.append(ratios)
            limit = math.sqrt(1 / 3 / (1 - scale**2))
            print(
                f"{sampling}, s = {scale}: standard deviation {z.std():.3f}, of exact Echo noise {limit:.3f};", end=" "
            )
            print("of a batch's mean {:.2f}, of its variance {:.2f} times that of independent rows".format(*ratios))
        for axes, curve in zip(panels, zip(*curves, strict=True), strict=True):
            axes.plot(SCALES, curve, "o-", markersize=3, label=sampling)
    for axes, name in zip(panels, ("mean", "variance"), strict=True):
        axes.axhline(1, color="0.6", linewidth=1, zorder=0)
        axes.set(xlabel="s", title=f"standard deviation of a batch's {name} of z", ylim=(0, None))
        axes.title.set_fontsize(10)
    panels[0].set_ylabel("relative to independent rows")
    panels[0].legend()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
