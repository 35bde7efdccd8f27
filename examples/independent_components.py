"""Find independent components by minimizing mutual information with its gradients.

Two independent sources are mixed by a matrix. After whitening, only a rotation is unknown. Gradient descent on
echo_ext.mutual_information finds it, without a contrast function or a density model.

    python examples/independent_components.py

The information falls from 0.63 nats to 0, and the components are the sources to within 1.1 degrees. The script writes
the points before and after, and the path of the descent, to independent_components.png. It succeeds (exit status 0) if
the components are the sources to within 2 degrees.
"""

import argparse
import math
from pathlib import Path

import torch

import echo_ext


def mixed_sources(n):
    """Return a uniform and a bimodal source, and their whitened mixture, (n, 2) each."""
    uniform = torch.rand(n, dtype=torch.float64) - 0.5
    bimodal = torch.randn(n, dtype=torch.float64) * 0.3 + (torch.rand(n) < 0.5).double().mul(2).sub(1)
    sources = torch.stack([uniform / uniform.std(), bimodal / bimodal.std()], dim=1)
    mixture = sources @ torch.tensor([[1.0, 0.6], [-0.4, 1.2]], dtype=torch.float64)
    mixture = mixture - mixture.mean(0)
    values, vectors = torch.linalg.eigh(mixture.T @ mixture / n)
    return sources, mixture @ vectors / values.sqrt()


def rotated(white, angle):
    """Return the points rotated by an angle in radians, through which gradients pass."""
    cos, sin = angle.cos(), angle.sin()
    return white @ torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])


def information(points):
    """Return the mutual information between the two columns in nats."""
    return echo_ext.mutual_information(points[:, 0], points[:, 1], k=5)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out = Path("independent_components.png")
    parser.add_argument("--n", type=int, default=4000, help="number of samples (default: 4000)")
    parser.add_argument("--steps", type=int, default=60, help="steps of gradient descent (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")
    parser.add_argument("--out", type=Path, default=out, help="the figure (default: %(default)s)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    sources, white = mixed_sources(args.n)

    angle = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([angle], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    path = []
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss = information(rotated(white, angle))
        loss.backward()
        path.append((angle.item(), loss.item()))
        optimizer.step()
        schedule.step()

    found = rotated(white, angle.detach())
    correlation = (found.T @ sources / args.n).abs()
    worst = math.degrees(math.acos(min(1.0, correlation.max(dim=1).values.min().item())))
    print(f"mutual information: {path[0][1]:.3f} nats before, {information(found).item():.3f} after {args.steps} steps")
    print(f"largest angle between a component and its source: {worst:.2f} degrees")
    plot(white, found, path, args.out)
    print(f"wrote {args.out}")
    return 0 if worst < 2 else 1


def plot(white, found, path, out):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    before, after, landscape = figure.subplots(1, 3)
    for axes, points, title in ((before, white, "mixed, whitened"), (after, found, "unmixed")):
        axes.scatter(*points[:1500].T, s=2, alpha=0.4)
        axes.set_title(title)
        axes.set_aspect("equal")
    angles = torch.linspace(-math.pi / 2, math.pi / 2, 121, dtype=torch.float64)
    landscape.plot(angles, [information(rotated(white, a)).item() for a in angles], color="0.6")
    landscape.plot(*zip(*path, strict=True), "o-", markersize=3, linewidth=0.8)
    landscape.set_xlabel("angle")
    landscape.set_ylabel("mutual information (nats)")
    landscape.set_title("gradient descent")
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    raise SystemExit(main())
