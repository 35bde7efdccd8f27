"""The figures of the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import pandas as pd
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

INK, GRAY = "#333333", "#888888"
COLORS = (
    *("#c8553d", "#3d6fa5", "#5b8c5a", "#8a5a9e", "#d19a2e"),
    *("#4aa3a2", "#b0577f", "#8c7355", "#777777", "#2f4858"),
)
STYLE = {
    **{"axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e6e6e6"},
    **{"axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 10},
    **{"axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK},
    **{"xtick.major.size": 0, "ytick.major.size": 0, "axes.prop_cycle": cycler(color=COLORS)},
    **{"figure.constrained_layout.use": True, "figure.dpi": 150},
    **{"legend.frameon": False, "legend.labelcolor": INK, "legend.fontsize": 9},
}


def panels(
    titles: Sequence[str],
    size: tuple[float, float],
    *,
    columns: int = 3,
    shared: bool = True,
    xlabel: str = "",
    ylabel: str = "",
) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure with one panel of this size for each title; those that share their scales are labeled outside."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
    for axes in grid.flat[len(titles) :]:
        axes.set_axis_off()
    by_title = dict(zip(titles, grid.flat, strict=False))
    for panel, (title, axes) in enumerate(by_title.items()):
        lowest = panel + columns >= len(titles)
        axes.set(title=title, xlabel=xlabel if lowest else "", ylabel="" if panel % columns else ylabel)
        axes.tick_params(labelbottom=lowest or not shared)
    return figure, by_title


def legend(figure: Figure, columns: int = 6) -> None:
    """Show the names of the lines of the first panel below the panels, in so many columns."""
    with matplotlib.rc_context(STYLE):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def bars(
    values: Mapping[str, Tensor], *, highlighted: Mapping[str, int], dots: Mapping[str, Tensor], name: str
) -> Figure:
    """Plot one bar for the information of each latent, in a panel for each model.

    Args:
        values: The values (d,) of each model by title.
        highlighted: Number of bars of each model, counted from the first, that have another color.
        dots: Further values (d,) of each model by title, which are drawn as dots.
        name: Name of the dots in the legend.
    """
    width = max(3.6, 0.8 + 0.19 * max(map(len, values.values())))
    figure, by_title = panels(list(values), (width, 2.8), xlabel="latent", ylabel="I(z_j; x) (nats)")
    for title, axes in by_title.items():
        latents, first = range(len(values[title])), highlighted.get(title, 0)
        axes.bar(latents, values[title].tolist(), color=[COLORS[each >= first] for each in latents], width=0.75)
        if title in dots:
            axes.plot(latents, dots[title].tolist(), ".", color=INK, label=name)
            axes.legend(loc="upper right", frameon=False, labelcolor=INK, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    return figure


def trends(table: pd.DataFrame) -> Figure:
    """Plot means with bars of one standard deviation over the seeds, in a panel for each quantity.

    Args:
        table: Columns (quantity, "mean") and (quantity, "std"), as of ``experiment.statistics``. The first level of the
            index is the setting that is varied, with equally spaced ticks; the second has one line for each value.
    """
    figure, by_quantity = panels(list(table.columns.unique(0)), (2.9, 3.2), columns=6, shared=False)
    ticks = table.index.unique(0)
    for quantity, axes in by_quantity.items():
        for name, line in table[quantity].groupby(level=1, sort=False):
            axes.errorbar(
                range(len(ticks)), line["mean"], yerr=line["std"].fillna(0), marker="o", capsize=2, label=name
            )
        axes.set_xticks(range(len(ticks)), list(map(str, ticks)))
        axes.set_xlabel(table.index.names[0])
        axes.margins(x=0.12)
    legend(figure)
    return figure


def scatters(
    points: Mapping[str, Tensor],
    *,
    labels: Tensor | None = None,
    columns: int = 4,
    axes_names: tuple[str, str] = ("", ""),
) -> Figure:
    """Plot points (N, 2) in panels, with colors for their labels (N,), which all panels share.

    Without names of the axes only the relative positions of the points matter, and no scales are shown.
    """
    named = any(axes_names)
    names = dict(zip(("xlabel", "ylabel"), axes_names, strict=True))
    figure, by_title = panels(list(points), (1.7, 1.7), columns=columns, shared=named, **names)
    for title, axes in by_title.items():
        alpha = min(0.9, max(0.15, 20 / len(points[title]) ** 0.5))
        for label in [None] if labels is None else labels.unique():
            x, y = (points[title] if label is None else points[title][labels == label]).T.tolist()
            axes.scatter(x, y, s=6, alpha=alpha, linewidths=0)
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
        if not named:
            axes.set_aspect("equal", adjustable="datalim")
            hide_axes(axes)
    return figure


def correlations(codes: Mapping[str, Tensor]) -> Figure:
    """Plot the correlation matrix of codes (N, d) in one panel for each title; red is positive, blue is negative."""
    figure, by_title = panels(list(codes), (3.1, 3.1), columns=len(codes), shared=False)
    for title, axes in by_title.items():
        matrix = torch.corrcoef(codes[title].double().T)
        image = axes.imshow(matrix.tolist(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        hide_axes(axes)
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    return figure


def hide_axes(axes: Axes) -> None:
    """Show neither ticks nor a frame."""
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
