"""The README's figure and table, from the measurements in benchmarks/results: ``python docs/figures/overview.py``."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def measured(name):
    """The JSON of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def seconds(name, **case):
    """The times of the case with these values."""
    cases = [each for each in measured(name)["cases"] if case.items() <= each.items()]
    (found,) = cases
    return found["seconds"]


def rows():
    """The task, our seconds, the best peer and its seconds, of each row of the table."""
    for n, d in ((10_000, 1), (100_000, 1), (10_000, 5)):
        times = {name: time["minimum"] for name, time in seconds("mutual_information", n=n, d=d).items()}
        yield f"mutual information, {n:,} samples, {d}+{d} columns", times.pop("echo_ext"), times
    times = seconds("independence", n=1000, conditions=3, k=200)
    task = "test of conditional independence, 1,000 samples, 500 permutations"
    yield task, times["independence_test"], {"tigramite": times["tigramite"]}
    case = {"direction": "forward", "scale": "flat", "rows": 512, "width": 128}
    ours, theirs = (seconds("echo_cpu", implementation=name, **case)["minimum"] for name in ("echo_ext", "reference"))
    yield "Echo noise, 512 x 128, 511 terms", ours, {"the definition in PyTorch": theirs}


def table():
    """The table as Markdown."""
    lines = ["| task | echo-ext | fastest other package | ratio |", "|---|---|---|---|"]
    for task, ours, peers in rows():
        peer = min(peers, key=peers.get)
        name = peer.replace("_", "-").replace("sklearn", "scikit-learn")
        lines.append(f"| {task} | {text(ours)} | {text(peers[peer])}, {name} | {peers[peer] / ours:.0f}x |")
    return "\n".join(lines)


def text(time):
    """A time with its unit."""
    return f"{1e3 * time:.3g} ms" if time < 1 else f"{time:.3g} s"


def draw(path):
    """Draw Echo noise of a mixture, and time against the number of samples."""
    import matplotlib.pyplot as plt
    import torch

    import echo_ext

    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.5], [0.45, -0.25], [-0.45, -0.25]])
    f = centers[torch.randint(3, (3000,))] + 0.08 * torch.randn(3000, 2)
    s = torch.full_like(f, 0.5)
    z = echo_ext.echo_sample(f, s, seed=0)
    rate = echo_ext.echo_rate(s).sum(1).mean()

    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.3), width_ratios=(1, 1, 1.5), layout="constrained")
    for axis, points, title in ((axes[0], f, "codes f(x)"), (axes[1], z, f"Echo noise: I(x; z) = {rate:.2f} nats")):
        axis.scatter(*points.T, s=3, alpha=0.3, linewidths=0, color="C0")
        axis.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), xticks=[], yticks=[], aspect="equal", title=title)
    cases = [case for case in measured("mutual_information")["cases"] if case["d"] == 1]
    names = {"echo_ext": "echo-ext", "npeet_plus": "npeet-plus", "sklearn": "scikit-learn", "ennemi": "ennemi"}
    for name, label in {**names, "infomeasure": "infomeasure"}.items():
        points = [(case["n"], case["seconds"][name]["minimum"]) for case in cases if name in case["seconds"]]
        width = 3 if name == "echo_ext" else 1.2
        axes[2].plot(*zip(*points, strict=True), "o-", label=label, linewidth=width, markersize=4)
    axes[2].set(xscale="log", yscale="log", xlabel="samples", ylabel="seconds", title="mutual information, one thread")
    axes[2].legend(frameon=False)
    axes[2].grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    print(table())
    draw(Path(__file__).with_suffix(".png"))
