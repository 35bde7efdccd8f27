"""Figures of models, of their codes and of estimates, as matplotlib figures that ``figure.savefig(path)`` writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from echo_ext.estimators import Convergence
from echo_ext.metrics import RateDistortion, marginal_statistics
from echo_ext.metrics.likelihood import RATE_WORDS
from echo_ext.models import Model

try:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    from echo_ext._figures import (
        COLORS,
        DPI,
        GRAY,
        INK,
        PALE,
        averaged,
        colors_of,
        draw_curve,
        limit,
        limit_from_zero,
        make_panels,
        scatter,
        set_title,
        show_grid,
        show_points,
        show_rows,
        show_vectors,
        style_axes,
        to_numbers,
    )
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("figures need matplotlib: pip install 'echo-ext[demo]'") from missing

__all__ = [
    "History",
    "convergence",
    "curves",
    "embedding",
    "factors_against_latents",
    "marginal_activations",
    "rate_against_activation",
    "rate_distortion_curves",
    "reconstructions",
    "rows",
    "samples",
    "traversals",
    "variances_against_information",
]

_Value = TypeVar("_Value")


def __dir__() -> list[str]:
    return sorted(__all__)


# ---- Reconstructions and samples -------------------------------------------------------------------------------------


def reconstructions(x: Tensor, reconstructed: Mapping[str, Tensor], *, label: str = "test image") -> Figure:
    """Plot data and their reconstructions by each model.

    Images (n, channels, height, width) are shown in rows, with the data in the first row. For vectors (n, d) the first
    two columns are shown as points, with a line from each point to its reconstruction; for d = 1 there is a histogram.

    Example:
        >>> x = torch.rand(8, 1, 28, 28)
        >>> figure = echo_ext.plots.reconstructions(x, {"echo": torch.rand_like(x), "vae": torch.rand_like(x)})
        >>> figure.savefig("reconstructions.png")
    """
    if x.ndim != 4:
        figure, panels = make_panels(len(reconstructed))
        for axes, (name, mean) in zip(panels, reconstructed.items(), strict=True):
            if x.shape[1] > 1:
                joined = torch.stack([x, mean]).detach().cpu()  # one line for each row
                axes.plot(joined[..., 0], joined[..., 1], color=PALE, linewidth=0.8, zorder=0)
            show_vectors(axes, x, GRAY, label="data")
            show_vectors(axes, mean, COLORS[0], label="reconstruction")
            set_title(axes, name)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
        return figure
    return rows({label: x, **reconstructed})


def rows(images: Mapping[str, Tensor]) -> Figure:
    """Plot rows of images (n, channels, height, width) with their labels.

    Example:
        >>> figure = echo_ext.plots.rows({"data": torch.rand(8, 1, 28, 28), "noise": torch.rand(8, 1, 28, 28)})
        >>> figure.savefig("rows.png")
    """
    columns = max(map(len, images.values()))
    figure = Figure(figsize=(1.1 + 0.62 * columns, 0.25 + 0.66 * len(images)), dpi=DPI, layout="constrained")
    show_rows(figure, images)
    return figure


def samples(drawn: Mapping[str, Tensor], *, columns: int = 8) -> Figure:
    """Plot samples of each model side by side: images (n, channels, height, width), or vectors (n, d) as points.

    Example:
        >>> figure = echo_ext.plots.samples({"echo": torch.randn(100, 2), "vae": torch.randn(100, 2)})
        >>> [axes.get_title() for axes in figure.axes]
        ['echo', 'vae']
    """
    figure, panels = make_panels(len(drawn))
    for axes, (title, x) in zip(panels, drawn.items(), strict=True):
        if x.ndim == 4:
            show_grid(axes, x, columns=columns)
        else:
            show_vectors(axes, x, COLORS[0])
        set_title(axes, title)
    return figure


# ---- Training and comparison -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """The values of each quantity after every epoch, and the final values for the test rows.

    The keys are the names of the quantities in results: "rate" or "rate_bound", "distortion", "neg_elbo" and so on.

    Attributes:
        training: The values of the training rows after each epoch.
        validation: Those of the validation rows.
        test: The final value of the test rows.

    Example:
        >>> history = echo_ext.plots.History(training={"rate": [9.0, 8.0]}, test={"rate": 8.1})
        >>> figure = echo_ext.plots.curves({"echo": history})
    """

    training: Mapping[str, Sequence[float]] = field(default_factory=dict)
    validation: Mapping[str, Sequence[float]] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)


_TITLES = {"rate_bound": "rate", "neg_elbo": "-ELBO = rate + distortion"}


def curves(history: Mapping[str, History], *, rate_floor: float | None = None) -> Figure:
    """Plot each quantity against the epoch, with faint lines for training and dots for the test rows.

    Args:
        history: The history of each model.
        rate_floor: The minimum rate of the Echo latents, which is drawn as a line; None for no line.

    Example:
        >>> training = {"rate": [9.0, 8.0, 7.5], "distortion": [40.0, 30.0, 28.0]}
        >>> figure = echo_ext.plots.curves({"echo": echo_ext.plots.History(training)}, rate_floor=5.7)
        >>> [axes.get_title() for axes in figure.axes]
        ['rate', 'distortion']
    """
    quantities = {_titled(name): None for each in history.values() for name in (*each.training, *each.validation)}
    figure = Figure(figsize=(3.2 * len(quantities), 3.4), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr, call-arg]
    for axes, title in zip(figure.subplots(1, len(quantities), squeeze=False).flat, quantities, strict=True):
        late_values: list[float] = []
        for color, each in zip(colors_of(history), history.values(), strict=True):
            for series, style in (
                (each.training, {"alpha": 0.35, "linewidth": 1}),
                (each.validation, {"linewidth": 1.8}),
            ):
                for values in _matching(series, title):
                    epochs, means = averaged(values)
                    marker = "o" if len(means) == 1 else ""  # a line through one point would be invisible
                    axes.plot(epochs, means, color=color, marker=marker, **style)
                    late_values += means[min(3, len(means) // 4) :]
            for test in _matching(each.test, title):
                length = max(map(len, (*each.training.values(), *each.validation.values())), default=1)
                axes.plot(
                    [length], [test], "o", color=color, clip_on=False, markersize=6, markeredgecolor="white", zorder=5
                )
                late_values.append(test)
        if title == "rate":
            limit_from_zero(axes, late_values, rate_floor)
        else:
            limit(axes, late_values)
        style_axes(axes, title, "epoch", "nats per sample")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    handles = _legend_handles(history, rate_floor is not None)
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, labelcolor=INK, fontsize=9)
    return figure


def rate_distortion_curves(
    measured: Mapping[str, Sequence[RateDistortion]],
    *,
    reconstructed: Mapping[str, Tensor] | None = None,
    min_rates: Mapping[str, float] | None = None,
) -> Figure:
    """Plot distortion against rate, with one curve for each model and error bars of one standard error.

    Args:
        measured: The rates and distortions of each model, one for each weight of the rate, in any order.
        reconstructed: Rows of images (n, channels, height, width) with their labels, which are shown next to the
            curves.
        min_rates: The minimum rates in nats of models that have one, such as those with Echo noise, by the names of the
            models; each is drawn as a dashed line.

    Example:
        >>> from echo_ext.metrics import RateDistortion
        >>> measured = [RateDistortion(5.0, 40.0, "rate"), RateDistortion(9.0, 30.0, "rate")]  # at two betas
        >>> figure = echo_ext.plots.rate_distortion_curves({"echo": measured}, min_rates={"echo": 2.9})
        >>> figure.savefig("rate_distortion.png")
    """
    if reconstructed:
        columns = max(map(len, reconstructed.values()))
        widths = (5.4, 0.08 * max(map(len, reconstructed)) + 0.5 * columns)
        figure = Figure(figsize=(sum(widths), 4.0), dpi=DPI, layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=widths)  # type: ignore[misc]  # an array of two subfigures
        axes = left.subplots()
        show_rows(right, reconstructed)
    else:
        figure = Figure(figsize=(5.4, 4.0), dpi=DPI, layout="constrained")
        axes = figure.subplots()
    for color, (name, points) in zip(colors_of(measured), measured.items(), strict=True):
        ordered = sorted(points, key=lambda point: point.rate)
        draw_curve(
            axes,
            [point.rate for point in ordered],
            [point.distortion for point in ordered],
            x_errors=[point.rate_error for point in ordered],
            y_errors=[point.distortion_error for point in ordered],
            color=color,
            label=f"{name} ({RATE_WORDS[ordered[0].rate_name]})",
        )
        if min_rates and name in min_rates:
            axes.axvline(min_rates[name], color=color, linewidth=1, linestyle="--", label=f"minimum rate of {name}")
    style_axes(axes, "", "rate (nats per sample)", "distortion (nats per sample)")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


# ---- Codes -----------------------------------------------------------------------------------------------------------


def embedding(points: Tensor, labels: Tensor | None = None, *, title: str = "") -> Figure:
    """Plot points (N, 2), such as those of :func:`echo_ext.metrics.tsne`, with colors for their labels (N,).

    Raises:
        ValueError: The points or the labels have another shape.

    Example:
        >>> points, labels = torch.randn(100, 2), torch.arange(100) % 10
        >>> echo_ext.plots.embedding(points, labels, title="codes").savefig("embedding.png")
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (N, 2), got {tuple(points.shape)}")
    if labels is not None and labels.shape != points.shape[:1]:
        raise ValueError(f"labels must have shape ({len(points)},), one for each point, got {tuple(labels.shape)}")
    figure = Figure(figsize=(4.8, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    if labels is None:
        show_points(axes, points, COLORS[1])
    else:
        values = torch.unique(labels).tolist()
        for color, value in zip(colors_of(values), values, strict=True):
            show_points(axes, points[labels == value], color, label=str(value))
        axes.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor=INK, fontsize=9, markerscale=2.5
        )
    set_title(axes, title)
    return figure


def marginal_activations(codes: Tensor, *, columns: int = 8) -> Figure:
    """Plot a histogram of each latent of codes (N, d) with the fitted Gaussian and the p-value of a normality test.

    Raises:
        ModuleNotFoundError: SciPy is not installed.
        ValueError: The codes do not have a shape or values that :func:`echo_ext.metrics.marginal_statistics` accepts.

    Example:
        >>> echo_ext.plots.marginal_activations(torch.randn(1000, 4)).savefig("marginal_activations.png")
    """
    found = marginal_statistics(codes)
    columns = min(columns, codes.shape[1])
    rows = -(-codes.shape[1] // columns)
    figure = Figure(figsize=(max(2.4, 1.25 * columns), 0.2 + 1.2 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for latent, axes in enumerate(panels):
        axes.set_axis_off()
        if latent >= codes.shape[1]:
            continue
        values, mean, std = codes[:, latent], found.mean[latent].item(), found.std[latent].item()
        axes.hist(to_numbers(values), bins=40, density=True, color=COLORS[1], alpha=0.55)
        x = torch.linspace(mean - 3.5 * std, mean + 3.5 * std, 100, dtype=torch.float64)
        density = (-0.5 * ((x - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))
        axes.plot(to_numbers(x), to_numbers(density), color=COLORS[0], linewidth=1)
        axes.set_title(f"{latent}: p = {found.p_value[latent]:.2g}", color=INK, fontsize=7, pad=2)
    return figure


def rate_against_activation(rates: Tensor, norms: Tensor) -> Figure:
    """Plot the rate of each row (N,) against the norm of its f(x) (N,), and show their correlation.

    Both are results of :func:`echo_ext.metrics.rates_and_activations`.

    Example:
        >>> norms = torch.rand(100)
        >>> figure = echo_ext.plots.rate_against_activation(2 * norms, norms)
        >>> figure.axes[0].get_title()
        'correlation 1.00'
    """
    figure = Figure(figsize=(4.2, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    scatter(axes, torch.stack([norms, rates], 1), COLORS[0])
    correlation = torch.corrcoef(torch.stack([norms, rates]).double())[0, 1]
    style_axes(axes, f"correlation {correlation:.2f}", "|f(x)|", "rate (nats)")
    return figure


@torch.no_grad()
def traversals(model: Model, codes: Tensor, values: Mapping[int, Tensor]) -> Figure:
    """Plot decoded images along single latents, in one panel for each latent and one row for each code.

    Args:
        model: A model of images.
        codes: The codes (n, latent_dim) that the other latents keep, such as ``model.encode_mean(x)``.
        values: The values of each latent that is varied: (steps,), or (n, steps) with other values for each code.

    Raises:
        ValueError: The shapes do not fit, or there is no such latent.

    Example:
        >>> model = echo_ext.models.build("vae", (1, 8, 8), latent_dim=4)
        >>> codes = model.encode_mean(torch.rand(3, 1, 8, 8))
        >>> values = torch.linspace(-3, 3, 7)
        >>> figure = echo_ext.plots.traversals(model, codes, {0: values, 2: values})
        >>> [axes.get_title() for axes in figure.axes]
        ['z_0', 'z_2']
    """
    if codes.ndim != 2 or not codes.numel():
        raise ValueError(f"codes must have shape (n, latent_dim), got {tuple(codes.shape)}")
    if not values:
        raise ValueError("values must have at least one latent, got none")
    steps = max(each.shape[-1] for each in values.values())
    size = (0.4 + 0.35 * steps * len(values), 0.5 + 0.37 * len(codes))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    for axes, (latent, wanted) in zip(figure.subplots(1, len(values), squeeze=False).flat, values.items(), strict=True):
        if not 0 <= latent < codes.shape[1]:
            raise ValueError(f"values must name latents from 0 to {codes.shape[1] - 1}, got {latent}")
        if wanted.ndim == 0 or wanted.ndim > 2 or wanted.shape[:-1] not in ((), codes.shape[:1]):
            raise ValueError(f"values must have shape (steps,) or ({len(codes)}, steps), got {tuple(wanted.shape)}")
        varied = codes.repeat_interleave(wanted.shape[-1], 0)
        varied[:, latent] = wanted.expand(len(codes), -1).flatten().to(codes)
        show_grid(axes, model.decode(varied), columns=wanted.shape[-1])
        set_title(axes, f"z_{latent}")
    return figure


def variances_against_information(variances: Mapping[str, Tensor], information: Mapping[str, Tensor]) -> Figure:
    """Plot the cumulative distribution of the variances of latents, and the variances against the information.

    Args:
        variances: The variance (d,) of each latent over the data, for each model.
        information: I(z_j; x) of each latent, as of :func:`echo_ext.metrics.latent_information`, (d,), in nats.

    Example:
        >>> figure = echo_ext.plots.variances_against_information({"vae": torch.rand(8)}, {"vae": torch.rand(8)})
        >>> figure.savefig("variances.png")
    """
    figure, (left, right) = make_panels(2)
    for color, (name, variance) in zip(colors_of(variances), variances.items(), strict=True):
        ordered = [0.0, *to_numbers(variance.sort().values)]
        shares = [index / len(variance) for index in range(len(ordered))]
        left.step(ordered, shares, where="post", color=color, label=name)
        right.plot(to_numbers(variance), to_numbers(information[name]), ".", color=color, label=name)
    style_axes(left, "", "var(z_j)", "share of latents below")
    style_axes(right, "", "var(z_j)", "I(z_j; x) (nats)")
    left.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def factors_against_latents(codes: Tensor, factors: Tensor, names: Sequence[str]) -> Figure:
    """Plot the mean of each latent for each value of a factor, in units of its standard deviation, as heat maps.

    Args:
        codes: Codes (N, d), such as those of ``model.encode_mean``.
        factors: The factors that the data were made from, (N, F), with a few distinct values each.
        names: The names of the factors.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        >>> codes = factors.flip(1) + 0.1 * torch.randn(12, 2)
        >>> figure = echo_ext.plots.factors_against_latents(codes, factors, ["shape", "size"])
        >>> figure.savefig("factors.png")
    """
    if codes.ndim != 2 or factors.shape != (len(codes), len(names)):
        wanted = f"({len(codes)}, {len(names)}), one column for each name"
        raise ValueError(f"factors must have shape {wanted}, got {tuple(factors.shape)}")
    standard = (codes - codes.mean(0)) / codes.std(0).clamp(min=torch.finfo(codes.dtype).tiny)
    figure, panels = make_panels(len(names))
    for axes, name, factor in zip(panels, names, factors.T, strict=True):
        means = [standard[factor == value].mean(0).tolist() for value in factor.unique()]
        image = axes.imshow(torch.tensor(means).T.numpy(), cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
        axes.set(xlabel="value", ylabel="latent" if axes is panels[0] else "")
        set_title(axes, name)
    figure.colorbar(image, ax=panels[-1], label="mean, in standard deviations")
    return figure


# ---- Estimates -------------------------------------------------------------------------------------------------------


def convergence(found: Mapping[str, Convergence[Any]], *, truths: Mapping[str, float] | None = None) -> Figure:
    """Plot estimates against the number of samples, with one curve for each k and error bars of one standard error.

    Args:
        found: Results of :func:`echo_ext.mutual_information_convergence`, without a batch, by the titles of their
            panels.
        truths: True values, which are drawn as dashed lines, by the same titles.

    Returns:
        The figure.

    Raises:
        ValueError: A result has a batch.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((2, 500))
        >>> found = echo_ext.mutual_information_convergence(x[0], x[0] + x[1], seed=0)
        >>> figure = echo_ext.plots.convergence({"ksg1": found}, truths={"ksg1": 0.35})
        >>> figure.savefig("convergence.png")
    """
    figure, panels = make_panels(len(found))
    for axes, (title, each) in zip(panels, found.items(), strict=True):
        if np.ndim(each.estimates) != 2:
            shape = tuple(each.estimates.shape)
            raise ValueError(f"estimates must have shape (sizes, k), without a batch, got {shape} of {title!r}")
        order = np.argsort(each.sizes)
        estimates, errors = (torch.as_tensor(values).double().cpu()[order] for values in each[2:])
        for index, (color, k) in enumerate(zip(colors_of(each.k), each.k, strict=True)):
            draw_curve(
                axes,
                [each.sizes[i] for i in order],
                to_numbers(estimates[:, index]),
                x_errors=None,
                y_errors=to_numbers(errors[:, index]),
                color=color,
                label=f"k = {k}",
            )
        if truths is not None and title in truths:
            axes.axhline(truths[title], color=INK, linewidth=1, linestyle="--", label="true")
        axes.set_xscale("log")
        style_axes(axes, title, "number of samples", "estimate" if axes is panels[0] else "")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    panels[0].legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


# ---- Helpers ---------------------------------------------------------------------------------------------------------


def _titled(quantity: str) -> str:
    return _TITLES.get(quantity, quantity.replace("_", " "))


def _matching(series: Mapping[str, _Value], title: str) -> list[_Value]:
    return [values for name, values in series.items() if _titled(name) == title]


def _legend_handles(history: Mapping[str, History], has_floor: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=color, linewidth=3, label=name)
        for color, name in zip(colors_of(history), history, strict=True)
    ]
    if has_floor:
        handles.append(Line2D([], [], color=INK, linewidth=1, linestyle=":", label="minimum rate of Echo"))
    styles = {
        "validation": {"linewidth": 1.8},
        "training": {"linewidth": 1, "alpha": 0.5},
        "test": {"linewidth": 0, "marker": "o", "markersize": 6},
    }
    labels = {"test": "test, after training"}
    for part, style in styles.items():
        if any(getattr(each, part) for each in history.values()):
            handles.append(Line2D([], [], color=GRAY, label=labels.get(part, part), **style))  # type: ignore[arg-type]
    return handles
