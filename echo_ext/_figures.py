"""How figures look: colors, panels, axes, and grids of images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

COLORS = (
    "#c8553d",
    "#3d6fa5",
    "#5b8c5a",
    "#8a5a9e",
    "#d19a2e",
    "#4aa3a2",
    "#b0577f",
    "#8c7355",
    "#777777",
    "#2f4858",
)
INK = "#333333"
GRAY = "#888888"
PALE = "#e6e6e6"
DPI = 150


def colors_of(names: Iterable[object]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index, _ in enumerate(names)]


def to_numbers(values: Tensor) -> list[float]:
    numbers: list[float] = values.detach().cpu().tolist()
    return numbers


def make_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Make square panels side by side."""
    figure = Figure(figsize=(3.8 * count, 4.1), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    return figure, list(figure.subplots(1, count, squeeze=False).flat)


def show_rows(figure: FigureBase, rows: Mapping[str, Tensor]) -> None:
    """Show rows of images with their labels."""
    columns = max(map(len, rows.values()))
    for axes, (label, images) in zip(figure.subplots(len(rows), 1, squeeze=False).flat, rows.items(), strict=True):
        show_grid(axes, images, columns=columns)
        axes.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, color=INK)


def show_grid(axes: Axes, images: Tensor, *, columns: int) -> None:
    """Show images in a grid on white, with thin gaps between them: in color, or gray levels dark on light."""
    rows = -(-len(images) // columns)
    channels, height, width = images.shape[1:]
    gap = max(1, width // 14)
    shown = images if channels == 3 else 1 - images.mean(dim=1, keepdim=True)
    grid = torch.ones(rows * (height + gap) - gap, columns * (width + gap) - gap, shown.shape[1])
    for index, image in enumerate(shown.detach().cpu()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = image.clamp(0, 1).permute(1, 2, 0)
    # The means of some likelihoods lie outside of [0, 1].
    axes.imshow(grid.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    hide_axes(axes)


def show_vectors(axes: Axes, x: Tensor, color: str, **style: str) -> None:
    """Show the first two columns of (n, d) as points, or a single column as a histogram."""
    if x.shape[1] > 1:
        show_points(axes, x[:, :2], color, **style)
    else:
        axes.hist(to_numbers(x[:, 0]), bins=60, density=True, color=color, alpha=0.6, **style)  # type: ignore[arg-type]
        style_axes(axes, "", "x", "density")


def show_points(axes: Axes, points: Tensor, color: str, **style: str) -> None:
    """Show points (n, 2) without axes, since only their relative positions matter."""
    scatter(axes, points, color, **style)
    axes.set_aspect("equal", adjustable="datalim")
    hide_axes(axes)


def scatter(axes: Axes, points: Tensor, color: str, **style: str) -> None:
    """Show points (n, 2), which are more transparent the more there are."""
    alpha = min(0.9, max(0.15, 40 / math.sqrt(max(len(points), 1)) / 2))
    x, y = map(to_numbers, points.T)
    axes.scatter(x, y, s=6, color=color, alpha=alpha, linewidths=0, **style)  # type: ignore[arg-type]


def hide_axes(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def set_title(axes: Axes, title: str) -> None:
    axes.set_title(title, color=INK, fontsize=11)


def style_axes(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    set_title(axes, title)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def averaged(values: Sequence[float], points: int = 100) -> tuple[list[float], list[float]]:
    """Average over runs of consecutive epochs, so that at most ``points`` epochs and values remain."""
    length = -(-len(values) // points)
    runs = [range(start, min(start + length, len(values))) for start in range(0, len(values), length)]
    return [fmean(run) + 1 for run in runs], [fmean(values[epoch] for epoch in run) for run in runs]


def draw_curve(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    *,
    x_errors: Sequence[float] | None,
    y_errors: Sequence[float],
    color: str,
    label: str,
) -> None:
    """Draw a curve with error bars; errors that are NaN have none."""
    axes.errorbar(
        x,
        y,
        xerr=None if x_errors is None else [_known(error) for error in x_errors],
        yerr=[_known(error) for error in y_errors],
        color=color,
        marker="o",
        markersize=4,
        linewidth=1.5,
        elinewidth=1,
        capsize=2,
        label=label,
    )


def _known(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def limit_from_zero(axes: Axes, late_values: Sequence[float], floor: float | None) -> None:
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=1, linestyle=":")
    axes.set_ylim(0, 1.06 * max(*late_values, floor or 0.0, 1e-3))


def limit(axes: Axes, late_values: Sequence[float]) -> None:
    """Set the limits to the values of late epochs, since the first values may be far outside of their range."""
    margin = 0.06 * (max(late_values) - min(late_values)) or 1.0
    axes.set_ylim(min(late_values) - margin, max(late_values) + margin)
