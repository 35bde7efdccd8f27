"""The figures of the papers' experiments contain the given numbers."""

import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
sys.path.append(str(Path(__file__).parents[1] / "examples" / "papers"))

import figures
import numpy as np
import pandas as pd
from test_plots import drawn


def test_bars_highlight_the_first_latents():
    values, dots = torch.rand(12), torch.rand(12)
    figure = figures.bars({"model": values}, highlighted={"model": 5}, dots={"model": dots}, name="k-NN")
    drawn(figure)
    patches = figure.axes[0].patches
    np.testing.assert_allclose([bar.get_height() for bar in patches], values, rtol=1e-6)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), dots, rtol=1e-6)
    colors = [bar.get_facecolor() for bar in patches]
    assert len(set(colors[:5])) == len(set(colors[5:])) == 1
    assert colors[4] != colors[5]


def test_trends_contain_means_and_deviations_at_every_tick():
    measured = {
        "I": {"VAE": [(1.0, 0.1), (2.0, math.nan)], "MIM": [(3.0, 0.2), (4.0, 0.3)]},
        "NLL": {"VAE": [(5.0, 0.1), (6.0, 0.1)], "MIM": [(7.0, 0.1), (8.0, 0.1)]},
    }
    index = pd.MultiIndex.from_product([(5, 500), ("VAE", "MIM")], names=["hidden units", "model"])
    columns = {
        (quantity, name): [points[model][tick][place] for tick in range(2) for model in points]
        for quantity, points in measured.items()
        for place, name in enumerate(("mean", "std"))
    }
    figure = figures.trends(pd.DataFrame(columns, index))
    drawn(figure)
    assert [axes.get_title() for axes in figure.axes] == list(measured)
    for axes, lines in zip(figure.axes, measured.values(), strict=True):
        assert axes.get_xlabel() == "hidden units"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "500"]
        means = [container.lines[0].get_ydata().tolist() for container in axes.containers]
        assert means == [[mean for mean, _ in points] for points in lines.values()]
        (bars,) = axes.containers[1].lines[2]
        segments = [[(tick, mean - std), (tick, mean + std)] for tick, (mean, std) in enumerate(lines["MIM"])]
        np.testing.assert_allclose(bars.get_segments(), segments)


def test_scatters_color_every_point_by_its_label():
    points, labels = {title: torch.randn(30, 2) for title in "abc"}, torch.arange(30) % 3
    figure = figures.scatters(points, labels=labels, columns=2)
    drawn(figure)
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in shown] == list(points)
    for axes, each in zip(shown, points.values(), strict=True):
        assert len({tuple(cloud.get_facecolor()[0]) for cloud in axes.collections}) == 3
        for label, cloud in enumerate(axes.collections):
            torch.testing.assert_close(torch.tensor(cloud.get_offsets().tolist()), each[labels == label])


def test_correlations_are_those_of_the_codes():
    z = torch.randn(500, 2)
    codes = torch.stack([z[:, 0], -2 * z[:, 0], z[:, 1]], 1)
    figure = figures.correlations({"codes": codes})
    drawn(figure)
    (image,) = figure.axes[0].images
    matrix = torch.as_tensor(image.get_array().data)
    torch.testing.assert_close(matrix, torch.corrcoef(codes.double().T))
    assert matrix[0, 1] == pytest.approx(-1)


# ---- The Echo paper's figures ----------------------------------------------------------------------------------------


def test_echo_figures_are_written_with_their_measures(monkeypatch, tmp_path):
    pytest.importorskip("lightning")
    import echo_figures
    import experiment

    for name, value in {"HIDDEN": (16,), "ROWS": 60, "GRID_ROWS": 3000, "TESTED": 50, "HIGH": 2}.items():
        monkeypatch.setattr(echo_figures, name, value)
    monkeypatch.setattr(echo_figures, "EPOCHS", {"digits": 2})
    (row,) = experiment.run(*(echo_figures.EXPERIMENT, tmp_path), seeds=(0,), limit=200, show_progress=False).to_dict(
        "records"
    )
    assert row["-ELBO"] == pytest.approx(row["rate"] + row["distortion"])
    assert -1 <= row[echo_figures.RATE_ORDER] <= 1
    for name in ("noise", "densities-digits", "likelihood-digits"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_noise_figure_has_z_of_twice_the_noise():
    """z has the distribution of the Echo noise itself, and its moments are those of f / (1 - s)."""
    import echo_figures

    x = torch.randn(4000, 2)
    points = {axes.get_title(): axes.collections[0].get_offsets() for axes in echo_figures.noise(x).axes}
    np.testing.assert_allclose(points["q(x)"].std(0), 1, rtol=1e-3)
    for title in ("Echo noise", "z = x + s eps, Echo"):  # sum_l s^(2 l) = 4 / 3
        np.testing.assert_allclose(points[title].std(0), math.sqrt(4 / 3), rtol=0.05)
    np.testing.assert_allclose(points["Gaussian noise"].std(0), points["Echo noise"].std(0), rtol=0.05)


def test_anderson_darling_rejects_what_is_not_gaussian():
    import echo_figures

    quantiles = torch.special.ndtri(torch.arange(0.5, 500) / 500)
    found = echo_figures.anderson_darling(torch.stack([3 * quantiles + 7, torch.arange(500.0), quantiles.exp()], 1))
    assert found[0] < 0.1
    assert (found[1:] > 0.752).all()


def test_rows_are_in_the_order_of_their_likelihood():
    import echo_figures

    from echo_ext import models

    x = torch.rand(90, 1, 8, 8)
    model = models.build("echo", (1, 8, 8), latent_dim=3, hidden=[8], num_terms=9)
    model.loss(x)
    found = echo_figures.rows_by_likelihood(model.eval(), x)
    assert found["log p(x|z)"].is_monotonic_increasing
    assert sorted(found.index) == list(range(90))
    assert (found["rate"] >= 3 * model.channel.min_rate - 1e-5).all()
    drawn(echo_figures.likelihood_order(model, x))


def test_factor_figure_has_the_mean_latents_of_the_grid(monkeypatch):
    """A latent that is the horizontal position is a ramp over x, and flat for scale and orientation."""
    import echo_figures

    from echo_ext.data import DSprites

    class Position(torch.nn.Module):
        def encode_mean(self, x):
            return (x.flatten(1).double() @ (torch.arange(4096) % 64).double() / x.sum((1, 2, 3))).unsqueeze(1)

    bits = torch.zeros(737_280, 512, dtype=torch.uint8)
    columns = torch.arange(737_280) // 32 % 32
    bits[torch.arange(737_280), columns // 8] = (128 >> columns % 8).byte()
    monkeypatch.setattr(echo_figures, "GRID_ROWS", 60_000)
    monkeypatch.setattr(echo_figures.metrics, "latent_information", lambda model, x: torch.ones(1))
    figure = echo_figures.factors_and_latents(Position(), DSprites(bits))
    drawn(figure)
    place, scale, orientation = figure.axes
    np.testing.assert_allclose(place.images[0].get_array(), np.tile(np.arange(32.0), (32, 1)), atol=1e-4)
    for axes, values in ((scale, 6), (orientation, 40)):
        assert [len(line.get_ydata()) for line in axes.lines] == [values] * 3
        assert all(np.abs(line.get_ydata() - 15.5).max() < 2 for line in axes.lines)
