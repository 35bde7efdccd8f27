"""The demonstration's pictures, each as a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from echo_ext.demo.training import MODELS, History, Measured

__all__ = ["curves", "reconstructions", "samples"]

_COLOURS = {"echo": "#c8553d", "vae": "#3d6fa5"}
_INK = "#333333"
_DPI = 150


def reconstructions(images: Tensor, reconstructed: Mapping[str, Tensor]) -> Figure:
    """Test images above what each model makes of them; all (n, channels, height, width)."""
    rows = {"test image": images, **{MODELS[kind]: mean for kind, mean in reconstructed.items()}}
    figure = Figure(figsize=(1.1 + 0.62 * len(images), 0.25 + 0.66 * len(rows)), dpi=_DPI, layout="constrained")
    for axes, (label, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        _show_grid(axes, row, columns=len(images))
        axes.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, color=_INK)
    return figure


def samples(drawn: Mapping[str, Tensor], *, columns: int = 8) -> Figure:
    """Decoded draws of each model's marginal side by side; each (n, channels, height, width)."""
    titles = {"echo": "Echo: z from its exact marginal", "vae": "VAE: z from N(0, I)"}
    figure = Figure(figsize=(7.6, 4.1), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    for axes, (kind, images) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        _show_grid(axes, images, columns=columns)
        axes.set_title(titles[kind], color=_INK, fontsize=11)
    return figure


def curves(history: Mapping[str, History], tested: Mapping[str, Measured], *, rate_floor: float) -> Figure:
    """Rate, distortion and -ELBO against the epoch: validation in full, training faintly, test as dots."""
    figure = Figure(figsize=(9.6, 3.4), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr, call-arg]
    titles = {"rate": "rate", "distortion": "distortion", "neg_elbo": "-ELBO = rate + distortion"}
    for axes, (quantity, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        settled: list[float] = []
        for kind, points in history.items():
            look = {"color": _COLOURS[kind], "clip_on": False}
            epochs, training = _thinned([getattr(measured, quantity) for measured, _ in points])
            _, validation = _thinned([getattr(measured, quantity) for _, measured in points])
            axes.plot(epochs, training, color=_COLOURS[kind], alpha=0.35, linewidth=1)
            axes.plot(epochs, validation, color=_COLOURS[kind], linewidth=1.8)
            test = getattr(tested[kind], quantity)
            axes.plot([len(points)], [test], "o", markersize=6, markeredgecolor="white", zorder=5, **look)
            skipped = min(3, len(validation) // 4)
            settled += [test, *training[skipped:], *validation[skipped:]]
        if quantity == "rate":
            axes.axhline(rate_floor, color=_INK, linewidth=1, linestyle=":")
            axes.set_ylim(0, 1.06 * max(*settled, rate_floor))
        else:  # the first epochs would flatten all that comes after them
            margin = 0.06 * (max(settled) - min(settled)) or 1.0
            axes.set_ylim(min(settled) - margin, max(settled) + margin)
        _dress(axes, title)
    figure.legend(handles=_key(), loc="outside lower center", ncols=6, frameon=False, labelcolor=_INK, fontsize=9)
    return figure


def _key() -> list[Line2D]:
    grey = "#888888"
    return [
        *(Line2D([], [], color=_COLOURS[kind], linewidth=3, label=name) for kind, name in MODELS.items()),
        Line2D([], [], color=_INK, linewidth=1, linestyle=":", label="Echo's least rate"),
        Line2D([], [], color=grey, linewidth=1.8, label="validation"),
        Line2D([], [], color=grey, linewidth=1, alpha=0.5, label="training"),
        Line2D([], [], color=grey, linewidth=0, marker="o", markersize=6, label="test, after training"),
    ]


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, color=_INK, fontsize=11)
    axes.set_xlabel("epoch", color=_INK)
    axes.set_ylabel("nats per sample", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _thinned(values: Sequence[float], points: int = 100) -> tuple[list[float], list[float]]:
    """At most ``points`` of (mean epoch, mean value) over runs of neighbouring epochs: less jitter, the same curve."""
    length = -(-len(values) // points)
    runs = [range(start, min(start + length, len(values))) for start in range(0, len(values), length)]
    return [fmean(run) + 1 for run in runs], [fmean(values[epoch] for epoch in run) for run in runs]


def _show_grid(axes: Axes, images: Tensor, *, columns: int) -> None:
    """Images side by side, dark on light, a thin gap between them."""
    rows = -(-len(images) // columns)
    _, height, width = images.shape[1:]
    gap = max(1, width // 14)
    grid = torch.zeros(rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(images.detach().cpu()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = image.mean(dim=0)
    axes.imshow(1 - grid.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
