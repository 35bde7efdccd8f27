"""The figures of the experiments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
import pandas as pd
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from echo_ext.data.mixtures import Mixture
from echo_ext.models import MIM, LatentModel

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
# The histograms of MIM's figures 12 to 14: for x and z the line of the given density, the name of the learned one, and
# its color and that of the samples.
PROCEDURES = ("reconstruction", "anchors", "priors")
DENSITY_STYLES = {"x": ("--", "q", (COLORS[0], COLORS[2])), "z": (":", "p", (COLORS[1], COLORS[4]))}


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


def legend(figure: Figure, columns: int = 6, panels: Iterable[Axes] = ()) -> None:
    """Show the names of what these panels contain, or the first one, below the figure, in so many columns."""
    with matplotlib.rc_context(STYLE):
        found = [axes.get_legend_handles_labels() for axes in panels or figure.axes[:1]]
        handles, labels = (list(itertools.chain(*zip(*each, strict=True))) for each in zip(*found, strict=True))
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


def planes(models: Mapping[str, LatentModel], x: Tensor, data: Mixture, insets: Mapping[str, Sequence[str]]) -> Figure:
    """Draw the data space above the latent space of models of two columns with two latents (MIM, figures 1 and 10).

    Above are contours of P(x), and the means of x decoded from samples of z for each row. Below are the ellipses of one
    standard deviation of q(z|x) for each row, and a dashed circle of one standard deviation of P(z) = N(0, I).

    Args:
        models: The models by title.
        x: Rows (N, 2).
        data: P(x).
        insets: Words for the upper and the lower left corner of the data space of each model.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * len(models) + 0.4, 3.4))
        grid = figure.subplots(2, len(models), squeeze=False, sharex="row", sharey="row")
    grid[0, 0].set(xlim=(-2, 2), ylim=(-2, 2), xticks=(-2, 0, 2), yticks=(-2, 0, 2), ylabel="x")
    grid[1, 0].set(xlim=(-3, 3), ylim=(-3, 3), xticks=(-3, 0, 3), yticks=(-3, 0, 3), ylabel="z")
    for axes in grid.flat:
        axes.set_aspect("equal")
        axes.grid(False)
        axes.spines[:].set(visible=True, color=GRAY)
        axes.tick_params(labelsize=7)
    axis = torch.linspace(-2, 2, 201, dtype=torch.float64)
    density = data.log_prob(torch.cartesian_prod(axis, axis)).exp().view(201, 201).T
    levels = (density.max() * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])).tolist()
    for (title, model), (above, below) in zip(models.items(), grid.T, strict=True):
        q = model.posterior(x)
        decoded = model.decode(q.sample())
        above.set_title(title, fontsize=9)
        above.contour(axis, axis, density, levels, colors="black", linewidths=0.6)
        above.scatter(*decoded.T.tolist(), s=5, color=COLORS[0], linewidths=0, zorder=3)
        for words, height, alignment in zip(insets[title], (0.96, 0.04), ("top", "bottom"), strict=True):
            above.text(0.04, height, words, fontsize=7, color=INK, va=alignment, transform=above.transAxes, zorder=4)
        widths, heights = (2 * q.stddev).T.tolist()
        style = {"facecolors": "none", "edgecolors": COLORS[2], "linewidths": 0.5, "alpha": 0.7, "units": "xy"}
        places = {"offsets": q.mean.tolist(), "offset_transform": below.transData}
        below.add_collection(EllipseCollection(widths, heights, [0.0] * len(x), **style, **places))
        below.scatter(*q.mean.T.tolist(), s=0.6, color=COLORS[2], linewidths=0)  # ellipses may be too small to see
        below.add_patch(Circle((0, 0), 1, fill=False, color="black", linestyle="--", linewidth=1, zorder=3))
    return figure


def histograms(models: Mapping[str, MIM], x: Tensor, data: Mixture, procedures: Sequence[str] = PROCEDURES) -> Figure:
    """Draw the marginal distributions of models of one column with one latent (MIM, figures 12 to 14).

    Each model has a column, and each procedure two rows, x above z. The curves are P(x) and q(x), or P(z) and p(z). The
    histograms are those of the samples that :func:`generated` draws by this procedure.

    Args:
        models: The models by title, each with a learned q(x).
        x: Samples of P(x), (N, 1).
        data: P(x).
        procedures: Some of PROCEDURES.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * len(models) + 0.3, 2.3 * len(procedures) + 0.4))
        grid = figure.subplots(2 * len(procedures), len(models), squeeze=False)
    for (title, model), column in zip(models.items(), grid.T, strict=True):
        reference = model.sampling_prior
        curves = {
            "x": (data.log_prob, model.data_marginal.log_prob),
            "z": (reference.log_prob, model.prior.log_prob),
        }
        given = {"x": x, "z": reference.sample(len(x))}
        for procedure, pair in zip(procedures, column.reshape(-1, 2), strict=True):
            pair[0].set_title(f"{title}: {procedure}", fontsize=9)
            for axes, name, samples in zip(pair, "xz", generated(model, x, procedure), strict=True):
                densities(axes, name, samples, curves[name], given[name])
    legend(figure, columns=3, panels=list(grid[:2, 0]))
    return figure


def densities(
    axes: Axes,
    name: str,
    samples: Tensor,
    log_densities: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    given_samples: Tensor,
) -> None:
    """Draw a histogram of samples (N, 1) of x or z, and curves of a given and of a learned density.

    Samples of the given density set the range of the panel.
    """
    low, high = given_samples.min().item(), given_samples.max().item()
    margin = 0.15 * (high - low)
    low, high = low - margin, high + margin
    places = torch.linspace(low, high, 401, dtype=samples.dtype)[:, None]
    given, learned = (log_density(places).exp().tolist() for log_density in log_densities)
    style, learned_name, colors = DENSITY_STYLES[name]
    bins = 60
    # The samples outside of the panel count as well.
    weights = [bins / (high - low) / len(samples)] * len(samples)
    bars = {"color": colors[1], "alpha": 0.6, "label": f"samples of {name}"}
    axes.hist(samples[:, 0].tolist(), bins, range=(low, high), weights=weights, **bars)
    axes.plot(places[:, 0].tolist(), learned, color=colors[0], label=f"{learned_name}({name})")
    axes.plot(places[:, 0].tolist(), given, style, color="black", linewidth=1.2, label=f"P({name})")
    axes.set(xlim=(low, high), yticks=[])
    axes.set_ylabel(name, rotation=0, labelpad=8)
    axes.tick_params(labelsize=7)


def generated(model: MIM, x: Tensor, procedure: str) -> tuple[Tensor, Tensor]:
    """Samples of x and of z, as many as there are samples x of P(x).

    "reconstruction" encodes and decodes samples of P(x), and decodes and encodes samples of P(z). "anchors" decodes
    samples of P(z), and encodes samples of P(x). "priors" decodes samples of p(z), and encodes samples of q(x).
    """

    def decoded(z: Tensor) -> Tensor:
        return model.observation(z).sample()

    n = len(x)
    z = model.sampling_prior.sample(n)
    if procedure == "reconstruction":
        return decoded(model.encode(x)), model.encode(decoded(z))
    if procedure == "anchors":
        return decoded(z), model.encode(x)
    return decoded(model.prior.sample(n)), model.encode(model.data_marginal.sample(n))


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
