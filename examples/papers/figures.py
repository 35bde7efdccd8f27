"""The figures that only the experiments need, as matplotlib figures in the style of :mod:`echo_ext.plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from echo_ext import plots


def bars(
    values: Tensor | Mapping[str, Tensor],
    *,
    highlighted: int | Mapping[str, int] = 0,
    marks: Mapping[str, Tensor] | None = None,
    mark: str = "",
    title: str = "",
    quantity: str = "I(z_j; x) (nats)",
) -> Figure:
    """Plot one bar for each latent, of which the first ``highlighted`` have another color.

    Args:
        values: The values (d,) of one model, or those of several models by title, in panels with a common scale.
        highlighted: Number of highlighted bars, or that of each model by title; models without one have none.
        marks: Further values of each model by title, which are drawn as dots.
        mark: The label of the dots in the legend.
        title: Title of the panel of a single model.
        quantity: Label of the values.
    """
    panels = {title: values} if isinstance(values, Tensor) else values
    latents = max(map(len, panels.values()))
    figure = Figure(figsize=(max(3.6, 0.8 + 0.19 * latents) * len(panels), 2.8), dpi=plots.DPI, layout="constrained")
    for panel, (axes, (name, each)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True).flat, panels.items(), strict=True)
    ):
        colored = highlighted if isinstance(highlighted, int) else highlighted.get(name, 0)
        colors = [plots.COLORS[0] if latent < colored else plots.COLORS[1] for latent in range(len(each))]
        axes.bar(range(len(each)), plots.numbers(each), color=colors, width=0.75)
        if marks is not None:
            axes.plot(range(len(each)), plots.numbers(marks[name]), ".", color=plots.INK, markersize=4, label=mark)
            axes.legend(frameon=False, labelcolor=plots.INK, fontsize=9)
        plots.style_axes(axes, name, "latent", quantity if panel == 0 else "")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    return figure


def trends(
    measured: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, ticks: Sequence[object], xlabel: str
) -> Figure:
    """Plot means and standard errors, in one panel for each quantity with one line for each model.

    Args:
        measured: Pairs (mean, standard error), by quantity and model, one for each tick. An unknown error is NaN.
        ticks: The settings that are varied, such as widths. They are equally spaced.
        xlabel: Label of the ticks.
    """
    figure = Figure(figsize=(2.9 * len(measured), 3.2), dpi=plots.DPI, layout="constrained")
    positions = range(len(ticks))
    for axes, (quantity, lines) in zip(
        figure.subplots(1, len(measured), squeeze=False).flat, measured.items(), strict=True
    ):
        for color, (name, points) in zip(plots.colors_of(lines), lines.items(), strict=True):
            means, errors = zip(*points, strict=True)
            style = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.5, "capsize": 2}
            axes.errorbar(positions, means, yerr=list(map(_known, errors)), label=name, **style)
        axes.set_xticks(positions, list(map(str, ticks)))
        axes.margins(x=0.12)
        plots.style_axes(axes, quantity, xlabel, "")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor=plots.INK, fontsize=9)
    return figure


@dataclass(frozen=True)
class Line:
    """A line through ``y`` at ``x``, (n,) each; ``error`` (n,) is drawn as a band, or as bars on marked points."""

    x: Tensor
    y: Tensor
    error: Tensor | None = None
    marked: bool = False
    reference: bool = False  # a known function, drawn dashed and gray


def lines(
    panels: Mapping[str, Mapping[str, Line]], *, xlabel: str, ylabel: str, columns: int = 3, legend: bool = True
) -> Figure:
    """Plot lines in panels with common scales.

    Args:
        panels: The lines by title of the panel and by name. A name has the same color in every panel.
        xlabel: Label of x.
        ylabel: Label of y.
        columns: Number of panels in a row.
        legend: Whether to show the names below the panels.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.5 * columns, 1.9 * rows + 0.4 * legend), dpi=plots.DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    names = dict.fromkeys(name for each in panels.values() for name, line in each.items() if not line.reference)
    colors = dict(zip(names, plots.colors_of(names), strict=True))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles = {}
    for panel, (axes, (title, each)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for name, line in each.items():
            handles[name] = _line(axes, line, colors.get(name, plots.GRAY))
        lowest = panel + columns >= len(panels)
        plots.style_axes(axes, title, xlabel if lowest else "", ylabel if panel % columns == 0 else "")
        axes.tick_params(labelbottom=lowest)
    if legend:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=5,
            frameon=False,
            labelcolor=plots.INK,
            fontsize=9,
        )
    return figure


def scatters(
    points: Mapping[str, Tensor],
    *,
    labels: Tensor | None = None,
    columns: int = 4,
    axes_names: tuple[str, str] = ("", ""),
) -> Figure:
    """Plot points in panels, with colors for the labels, which all panels share.

    Args:
        points: The points (N, 2) of each panel by title.
        labels: The labels (N,) of the points; None for one color.
        columns: Number of panels in a row.
        axes_names: Names of the two coordinates. If they are given, the panels have a common scale, which is shown.
    """
    columns = min(columns, len(points))
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.7 * rows), dpi=plots.DPI, layout="constrained")
    named = any(axes_names)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=named, sharey=named).flat)
    for axes in panels[len(points) :]:
        axes.set_axis_off()
    draw = plots.scatter if named else plots.show_points
    for axes, (title, each) in zip(panels, points.items(), strict=False):
        values = [None] if labels is None else torch.unique(labels).tolist()
        for color, value in zip(plots.colors_of(values), values, strict=True):
            draw(axes, each if labels is None else each[labels == value], color)
        if named:
            plots.style_axes(axes, "", *axes_names)
            axes.tick_params(labelsize=8)
        axes.set_title(title, color=plots.INK, fontsize=9)
    return figure


def correlations(codes: Mapping[str, Tensor]) -> Figure:
    """Plot the correlation matrix of codes (N, d) in one panel for each title; red is positive, blue is negative."""
    figure = Figure(figsize=(2.9 * len(codes) + 0.6, 3.1), dpi=plots.DPI, layout="constrained")
    panels = figure.subplots(1, len(codes), squeeze=False)[0]
    for axes, (title, each) in zip(panels, codes.items(), strict=True):
        matrix = torch.corrcoef(each.detach().cpu().double().T)
        image = axes.imshow(matrix.tolist(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        plots.hide_axes(axes)
        axes.set_title(title, color=plots.INK, fontsize=10)
    figure.colorbar(image, ax=list(panels), shrink=0.8)
    return figure


def _line(axes: Axes, line: Line, color: str) -> Any:
    """Draw one line and return its handle for a legend."""
    x, y, error = (None if each is None else plots.numbers(each) for each in (line.x, line.y, line.error))
    style = {"color": color, "linewidth": 1.5, "linestyle": "--" if line.reference else "-"}
    if line.marked:
        return axes.errorbar(x, y, yerr=error, marker="o", markersize=4, capsize=2, **style)  # type: ignore[arg-type]
    if line.error is not None:
        low, high = plots.numbers(line.y - line.error), plots.numbers(line.y + line.error)
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)  # type: ignore[arg-type]
    return axes.plot(x, y, **style)[0]  # type: ignore[arg-type]


def _known(error: float) -> float:
    return 0.0 if math.isnan(error) else error
