"""Pictures of models and of their codes, each as a matplotlib Figure: ``figure.savefig(path)`` writes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor

from echo_ext.metrics import RateDistortion, marginal_statistics

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pictures need matplotlib: pip install 'echo-ext[demo]'") from missing

__all__ = [
    "Course",
    "Line",
    "bars",
    "clouds",
    "correlations",
    "curves",
    "embedding",
    "lines",
    "marginal_activations",
    "rate_against_activation",
    "rate_distortion",
    "reconstructions",
    "rows",
    "samples",
    "trends",
]

_COLORS = (
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
_INK = "#333333"
_GRAY = "#888888"
_PALE = "#e6e6e6"
_DPI = 150
_Value = TypeVar("_Value")


# ---- Data and what models make of them -------------------------------------------------------------------------------


def reconstructions(x: Tensor, reconstructed: Mapping[str, Tensor], *, label: str = "test image") -> Figure:
    """Rows of data with what each model, by name, makes of them.

    Images (n, channels, height, width) stand in rows, the data above. Of vectors (n, d) the first two columns are
    drawn as points, each joined to what became of it, or a histogram if there is but one.
    """
    if x.ndim != 4:
        figure, panels = _panels(len(reconstructed))
        for axes, (name, mean) in zip(panels, reconstructed.items(), strict=True):
            if x.shape[1] > 1:
                joined = torch.stack([x, mean]).detach().cpu()  # a line for each row
                axes.plot(joined[..., 0], joined[..., 1], color=_PALE, linewidth=0.8, zorder=0)
            _show_vectors(axes, x, _GRAY, label="data")
            _show_vectors(axes, mean, _COLORS[0], label="reconstruction")
            _title(axes, name)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=_INK)
        return figure
    return rows({label: x, **reconstructed})


def rows(images: Mapping[str, Tensor]) -> Figure:
    """Rows of images (n, channels, height, width) below each other, by label."""
    columns = max(map(len, images.values()))
    figure = Figure(figsize=(1.1 + 0.62 * columns, 0.25 + 0.66 * len(images)), dpi=_DPI, layout="constrained")
    _show_rows(figure, images)
    return figure


def samples(drawn: Mapping[str, Tensor], *, columns: int = 8) -> Figure:
    """Draws of each model, by title, side by side: images (n, channels, height, width), or vectors (n, d) as points."""
    figure, panels = _panels(len(drawn))
    for axes, (title, x) in zip(panels, drawn.items(), strict=True):
        if x.ndim == 4:
            _show_grid(axes, x, columns=columns)
        else:
            _show_vectors(axes, x, _COLORS[0])
        _title(axes, title)
    return figure


# ---- Training and comparison -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """How a training went: each quantity's values, one per epoch, and what the test rows gave in the end.

    Quantities go by their names in results: "rate" or "rate_bound", "distortion", "neg_elbo", ...
    """

    training: Mapping[str, Sequence[float]] = field(default_factory=dict)
    validation: Mapping[str, Sequence[float]] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)


_TITLES = {"rate_bound": "rate", "neg_elbo": "-ELBO = rate + distortion"}


def curves(history: Mapping[str, Course], *, rate_floor: float | None = None) -> Figure:
    """Each quantity against the epoch, models by name: validation in full, training faintly, test as dots.

    Args:
        history: how each model's training went.
        rate_floor: the least rate that Echo's latents can send, for a line.
    """
    quantities = {_titled(name): None for course in history.values() for name in (*course.training, *course.validation)}
    figure = Figure(figsize=(3.2 * len(quantities), 3.4), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr, call-arg]
    for axes, title in zip(figure.subplots(1, len(quantities), squeeze=False).flat, quantities, strict=True):
        settled: list[float] = []
        for color, course in zip(_colors(history), history.values(), strict=True):
            for series, look in (
                (course.training, {"alpha": 0.35, "linewidth": 1}),
                (course.validation, {"linewidth": 1.8}),
            ):
                for values in _of(series, title):
                    epochs, means = _thinned(values)
                    alone = "o" if len(means) == 1 else ""  # a line of one epoch would not be seen
                    axes.plot(epochs, means, color=color, marker=alone, **look)
                    settled += means[min(3, len(means) // 4) :]
            for test in _of(course.test, title):
                length = max(map(len, (*course.training.values(), *course.validation.values())), default=1)
                axes.plot(
                    [length], [test], "o", color=color, clip_on=False, markersize=6, markeredgecolor="white", zorder=5
                )
                settled.append(test)
        if title == "rate":
            _limit_from_zero(axes, settled, rate_floor)
        else:
            _limit(axes, settled)
        _dress(axes, title, "epoch", "nats per sample")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    key = _key(history, rate_floor is not None)
    figure.legend(handles=key, loc="outside lower center", ncols=6, frameon=False, labelcolor=_INK, fontsize=9)
    return figure


def rate_distortion(
    measured: Mapping[str, Sequence[RateDistortion]], *, reconstructed: Mapping[str, Tensor] | None = None
) -> Figure:
    """Distortion against rate, a curve for each model, by name, with error bars of one standard error.

    Args:
        measured: what each model reached, one entry for each weight of the rate; in any order.
        reconstructed: rows of images (n, channels, height, width) to show beside the curves, by label.
    """
    if reconstructed:
        columns = max(map(len, reconstructed.values()))
        widths = (5.4, 0.8 + 0.5 * columns)
        figure = Figure(figsize=(sum(widths), 4.0), dpi=_DPI, layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=widths)  # type: ignore[misc]  # an array of two
        axes = left.subplots()
        _show_rows(right, reconstructed)
    else:
        figure = Figure(figsize=(5.4, 4.0), dpi=_DPI, layout="constrained")
        axes = figure.subplots()
    for color, (name, points) in zip(_colors(measured), measured.items(), strict=True):
        ordered = sorted(points, key=lambda point: point.rate)
        axes.errorbar(
            [point.rate for point in ordered],
            [point.distortion for point in ordered],
            xerr=[_known(point.rate_error) for point in ordered],
            yerr=[_known(point.distortion_error) for point in ordered],
            color=color,
            marker="o",
            markersize=4,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
            label=f"{name} ({'exact rate' if all(point.exact for point in ordered) else 'rate bound'})",
        )
    _dress(axes, "", "rate (nats per sample)", "distortion (nats per sample)")
    axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    return figure


def bars(
    values: Tensor | Mapping[str, Tensor],
    *,
    highlighted: int | Mapping[str, int] = 0,
    marks: Mapping[str, Tensor] | None = None,
    mark: str = "",
    title: str = "",
    quantity: str = "I(z_j; x) (nats)",
) -> Figure:
    """One bar for each latent (d,), the first ``highlighted`` of them in color, as AnchorVAE's anchored ones.

    Args:
        values: of one model, or of several by title, in panels on a common scale.
        highlighted: how many; of several models by title, 0 where it is not given.
        marks: other values of the same, by title, drawn as dots; ``mark`` says what they are.
        title: of a single model.
        quantity: what the values are.
    """
    panels = {title: values} if isinstance(values, Tensor) else values
    latents = max(map(len, panels.values()))
    figure = Figure(figsize=(max(3.6, 0.8 + 0.19 * latents) * len(panels), 2.8), dpi=_DPI, layout="constrained")
    for place, (axes, (name, each)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True).flat, panels.items(), strict=True)
    ):
        colored = highlighted if isinstance(highlighted, int) else highlighted.get(name, 0)
        colors = [_COLORS[0] if latent < colored else _COLORS[1] for latent in range(len(each))]
        axes.bar(range(len(each)), _numbers(each), color=colors, width=0.75)
        if marks is not None:
            axes.plot(range(len(each)), _numbers(marks[name]), ".", color=_INK, markersize=4, label=mark)
            axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
        _dress(axes, name, "latent", quantity if place == 0 else "")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    return figure


def trends(
    measured: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, places: Sequence[object], across: str
) -> Figure:
    """A panel for each quantity: its (mean, standard error) at each of the places, a line for each model by name.

    Args:
        measured: by quantity and by model, one pair for each place; an error that is not known is NaN.
        places: what is varied, such as a width; they stand side by side, whatever lies between them.
        across: what the places are.
    """
    figure = Figure(figsize=(2.9 * len(measured), 3.2), dpi=_DPI, layout="constrained")
    positions = range(len(places))
    for axes, (quantity, lines) in zip(
        figure.subplots(1, len(measured), squeeze=False).flat, measured.items(), strict=True
    ):
        for color, (name, points) in zip(_colors(lines), lines.items(), strict=True):
            means, errors = zip(*points, strict=True)
            look = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.5, "capsize": 2}
            axes.errorbar(positions, means, yerr=list(map(_known, errors)), label=name, **look)
        axes.set_xticks(positions, list(map(str, places)))
        axes.margins(x=0.12)
        _dress(axes, quantity, across, "")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor=_INK, fontsize=9)
    return figure


@dataclass(frozen=True)
class Line:
    """Values ``y`` at places ``x``, (n,) each; ``spread`` (n,) is drawn as a band, or as bars on marked points."""

    x: Tensor
    y: Tensor
    spread: Tensor | None = None
    marked: bool = False
    reference: bool = False  # what is known beforehand: dashed and gray


def lines(
    panels: Mapping[str, Mapping[str, Line]], *, across: str, up: str, columns: int = 3, key: bool = True
) -> Figure:
    """Panels of lines, by title and by name, on common scales.

    Args:
        panels: what to draw; a name has the same color in every panel.
        across: what x is.
        up: what y is.
        columns: panels side by side.
        key: name the lines below.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.5 * columns, 1.9 * rows + 0.4 * key), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    names = dict.fromkeys(name for each in panels.values() for name, line in each.items() if not line.reference)
    colors = dict(zip(names, _colors(names), strict=True))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles = {}
    for place, (axes, (title, each)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for name, line in each.items():
            handles[name] = _line(axes, line, colors.get(name, _GRAY))
        lowest = place + columns >= len(panels)
        _dress(axes, title, across if lowest else "", up if place % columns == 0 else "")
        axes.tick_params(labelbottom=lowest)
    if key:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=5,
            frameon=False,
            labelcolor=_INK,
            fontsize=9,
        )
    return figure


# ---- Codes -----------------------------------------------------------------------------------------------------------


def embedding(points: Tensor, labels: Tensor | None = None, *, title: str = "") -> Figure:
    """Points in the plane (N, 2), as of :func:`echo_ext.metrics.tsne`, colored by their labels (N,).

    Raises:
        ValueError: the points are not in the plane, or there is not one label for each.
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (N, 2), got {tuple(points.shape)}")
    if labels is not None and labels.shape != points.shape[:1]:
        raise ValueError(f"labels must have shape ({len(points)},), one for each point, got {tuple(labels.shape)}")
    figure = Figure(figsize=(4.8, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    if labels is None:
        _scatter(axes, points, _COLORS[1])
    else:
        values = torch.unique(labels).tolist()
        for color, value in zip(_colors(values), values, strict=True):
            _scatter(axes, points[labels == value], color, label=str(value))
        axes.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=_INK, fontsize=9, markerscale=2.5
        )
    _title(axes, title)
    return figure


def clouds(
    points: Mapping[str, Tensor],
    *,
    labels: Tensor | None = None,
    columns: int = 4,
    axes_names: tuple[str, str] = ("", ""),
) -> Figure:
    """Panels of points in the plane, (N, 2) each, by title; colored by the labels (N,) that all panels share.

    Args:
        points: what to draw.
        labels: of each point.
        columns: panels side by side.
        axes_names: what the two coordinates are; where this is given, the panels have one scale, which is shown.
    """
    columns = min(columns, len(points))
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.7 * rows), dpi=_DPI, layout="constrained")
    named = any(axes_names)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=named, sharey=named).flat)
    for axes in panels[len(points) :]:
        axes.set_axis_off()
    draw = _points if named else _scatter
    for axes, (title, each) in zip(panels, points.items(), strict=False):
        values = [None] if labels is None else torch.unique(labels).tolist()
        for color, value in zip(_colors(values), values, strict=True):
            draw(axes, each if labels is None else each[labels == value], color)
        if named:
            _dress(axes, "", *axes_names)
            axes.tick_params(labelsize=8)
        axes.set_title(title, color=_INK, fontsize=9)
    return figure


def correlations(codes: Mapping[str, Tensor]) -> Figure:
    """The correlation of each two latents of codes (N, d), a panel for each title; red is positive, blue negative."""
    figure = Figure(figsize=(2.9 * len(codes) + 0.6, 3.1), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(codes), squeeze=False)[0]
    for axes, (title, each) in zip(panels, codes.items(), strict=True):
        matrix = torch.corrcoef(each.detach().cpu().double().T)
        image = axes.imshow(matrix.tolist(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        _bare(axes)
        axes.set_title(title, color=_INK, fontsize=10)
    figure.colorbar(image, ax=list(panels), shrink=0.8)
    return figure


def marginal_activations(codes: Tensor, *, columns: int = 8) -> Figure:
    """A histogram of each latent of codes (N, d), the normal law of its moments, and the p-value of normality.

    Raises:
        ModuleNotFoundError, ValueError: as :func:`echo_ext.metrics.marginal_statistics`.
    """
    found = marginal_statistics(codes)
    columns = min(columns, codes.shape[1])
    rows = -(-codes.shape[1] // columns)
    figure = Figure(figsize=(max(2.4, 1.25 * columns), 0.2 + 1.2 * rows), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for latent, axes in enumerate(panels):
        axes.set_axis_off()
        if latent >= codes.shape[1]:
            continue
        values, mean, deviation = codes[:, latent], found.mean[latent].item(), found.deviation[latent].item()
        axes.hist(_numbers(values), bins=40, density=True, color=_COLORS[1], alpha=0.55)
        place = torch.linspace(mean - 3.5 * deviation, mean + 3.5 * deviation, 100, dtype=torch.float64)
        density = (-0.5 * ((place - mean) / deviation) ** 2).exp() / (deviation * math.sqrt(2 * math.pi))
        axes.plot(_numbers(place), _numbers(density), color=_COLORS[0], linewidth=1)
        axes.set_title(f"{latent}: p = {found.p_value[latent]:.2g}", color=_INK, fontsize=7, pad=2)
    return figure


def rate_against_activation(rates: Tensor, norms: Tensor) -> Figure:
    """The rate of each row (N,) against the norm of its f(x) (N,), as :func:`echo_ext.metrics.rates_and_activations`
    gives them, with their correlation."""
    figure = Figure(figsize=(4.2, 3.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    _points(axes, torch.stack([norms, rates], 1), _COLORS[0])
    correlation = torch.corrcoef(torch.stack([norms, rates]).double())[0, 1]
    _dress(axes, f"correlation {correlation:.2f}", "|f(x)|", "rate (nats)")
    return figure


# ---- Parts -----------------------------------------------------------------------------------------------------------


def _colors(names: Iterable[object]) -> list[str]:
    return [_COLORS[place % len(_COLORS)] for place, _ in enumerate(names)]


def _numbers(values: Tensor) -> list[float]:
    numbers: list[float] = values.detach().cpu().tolist()
    return numbers


def _known(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def _titled(quantity: str) -> str:
    return _TITLES.get(quantity, quantity.replace("_", " "))


def _of(series: Mapping[str, _Value], title: str) -> list[_Value]:
    return [values for name, values in series.items() if _titled(name) == title]


def _thinned(values: Sequence[float], points: int = 100) -> tuple[list[float], list[float]]:
    """At most ``points`` of (mean epoch, mean value) over runs of neighboring epochs: less jitter, the same curve."""
    length = -(-len(values) // points)
    runs = [range(start, min(start + length, len(values))) for start in range(0, len(values), length)]
    return [fmean(run) + 1 for run in runs], [fmean(values[epoch] for epoch in run) for run in runs]


def _line(axes: Axes, line: Line, color: str) -> Any:
    """Draw one line, and return what stands for it in a key."""
    x, y, spread = (None if each is None else _numbers(each) for each in (line.x, line.y, line.spread))
    look = {"color": color, "linewidth": 1.5, "linestyle": "--" if line.reference else "-"}
    if line.marked:
        return axes.errorbar(x, y, yerr=spread, marker="o", markersize=4, capsize=2, **look)  # type: ignore[arg-type]
    if line.spread is not None:
        low, high = _numbers(line.y - line.spread), _numbers(line.y + line.spread)
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)  # type: ignore[arg-type]
    return axes.plot(x, y, **look)[0]  # type: ignore[arg-type]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Square panels side by side."""
    figure = Figure(figsize=(3.8 * count, 4.1), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    return figure, list(figure.subplots(1, count, squeeze=False).flat)


def _show_rows(figure: FigureBase, rows: Mapping[str, Tensor]) -> None:
    """Labelled rows of images."""
    columns = max(map(len, rows.values()))
    for axes, (label, images) in zip(figure.subplots(len(rows), 1, squeeze=False).flat, rows.items(), strict=True):
        _show_grid(axes, images, columns=columns)
        axes.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, color=_INK)


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
    _bare(axes)


def _show_vectors(axes: Axes, x: Tensor, color: str, **look: str) -> None:
    """The first two columns of (n, d) as points, a single one as a histogram."""
    if x.shape[1] > 1:
        _scatter(axes, x[:, :2], color, **look)
    else:
        axes.hist(_numbers(x[:, 0]), bins=60, density=True, color=color, alpha=0.6, **look)  # type: ignore[arg-type]
        _dress(axes, "", "x", "density")


def _scatter(axes: Axes, points: Tensor, color: str, **look: str) -> None:
    """Points (n, 2) where only their places to each other matter."""
    _points(axes, points, color, **look)
    axes.set_aspect("equal", adjustable="datalim")
    _bare(axes)


def _points(axes: Axes, points: Tensor, color: str, **look: str) -> None:
    """Points (n, 2), the fainter the more there are."""
    alpha = min(0.9, max(0.15, 40 / math.sqrt(max(len(points), 1)) / 2))
    across, up = map(_numbers, points.T)
    axes.scatter(across, up, s=6, color=color, alpha=alpha, linewidths=0, **look)  # type: ignore[arg-type]


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, color=_INK, fontsize=11)


def _limit_from_zero(axes: Axes, settled: Sequence[float], floor: float | None) -> None:
    if floor is not None:
        axes.axhline(floor, color=_INK, linewidth=1, linestyle=":")
    axes.set_ylim(0, 1.06 * max(*settled, floor or 0.0, 1e-3))


def _limit(axes: Axes, settled: Sequence[float]) -> None:
    """Room for what the curves settle to: the first epochs would flatten all that comes after them."""
    margin = 0.06 * (max(settled) - min(settled)) or 1.0
    axes.set_ylim(min(settled) - margin, max(settled) + margin)


def _dress(axes: Axes, title: str, across: str, up: str) -> None:
    _title(axes, title)
    axes.set_xlabel(across, color=_INK)
    axes.set_ylabel(up, color=_INK)
    axes.grid(axis="y", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _key(history: Mapping[str, Course], has_floor: bool) -> list[Line2D]:
    key = [Line2D([], [], color=c, linewidth=3, label=name) for c, name in zip(_colors(history), history, strict=True)]
    if has_floor:
        key.append(Line2D([], [], color=_INK, linewidth=1, linestyle=":", label="Echo's least rate"))
    looks = {
        "validation": {"linewidth": 1.8},
        "training": {"linewidth": 1, "alpha": 0.5},
        "test": {"linewidth": 0, "marker": "o", "markersize": 6},
    }
    labels = {"test": "test, after training"}
    for part, look in looks.items():
        if any(getattr(course, part) for course in history.values()):
            key.append(Line2D([], [], color=_GRAY, label=labels.get(part, part), **look))  # type: ignore[arg-type]
    return key
