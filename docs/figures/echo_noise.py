"""Draw a code in two dimensions, its Echo noise, and z with Echo and with Gaussian noise, next to this file."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

import echo_ext

SCALE = 0.5


def main():
    torch.manual_seed(0)
    angle = 1.5 * torch.pi * torch.rand(2000)
    radius = 0.8 + 0.04 * torch.randn(2000)
    f = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    s = torch.full_like(f, SCALE)
    eps = echo_ext.echo_noise(f, s, num_terms=40)
    gaussian = eps.mean(dim=0) + eps.std(dim=0) * torch.randn_like(f)
    one = torch.full((2000, 2), 0.0).add(f[0])
    panels = {
        "the code f(x)": [(f, "C0")],
        "Echo noise": [(eps, "C1")],
        "z = f(x) + s * Echo noise": [(f + s * eps, "C0"), (one + s * eps, "C3")],
        "z = f(x) + s * Gaussian noise": [(f + s * gaussian, "C0"), (one + s * gaussian, "C3")],
    }
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for axes, (title, parts) in zip(figure.subplots(1, 4, sharex=True, sharey=True), panels.items(), strict=True):
        for points, color in parts:
            axes.scatter(*points.T.numpy(), s=2, alpha=0.25, color=color, linewidths=0)
        axes.set_title(title, fontsize=10)
        axes.set_aspect("equal")
    axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=95)


if __name__ == "__main__":
    main()
