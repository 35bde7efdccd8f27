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
from model_cases import log_normal
from test_joint import DATA, MARGINAL, REFERENCE, inconsistent
from test_plots import drawn

from echo_ext.data.mixtures import Mixture
from echo_ext.models import build


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


def test_planes_show_data_reconstructions_and_posteriors():
    data = Mixture(torch.tensor([[1.0, 0.5], [-0.5, 0.0]], dtype=torch.float64), 0.25)
    models = {title: build("mim", (2,), latent_dim=2, hidden=(5,)) for title in ("A", "B")}
    x = data.sample(40, seed=0)[0]
    torch.manual_seed(3)
    with torch.no_grad():
        figure = figures.planes(models, x, data, {"A": ("MI = 1.0", "RMSE = 2"), "B": ("", "")})
        torch.manual_seed(3)
        q = models["A"].posterior(x)
        decoded = models["A"].decode(q.sample())
    drawn(figure)
    above, _, below, _ = figure.axes
    assert above.get_title() == "A"
    assert [text.get_text() for text in above.texts] == ["MI = 1.0", "RMSE = 2"]
    assert (above.get_xlim(), above.get_ylim()) == ((-2, 2), (-2, 2))
    assert (below.get_xlim(), below.get_ylim()) == ((-3, 3), (-3, 3))
    contours, dots = above.collections
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        density = data.log_prob(torch.tensor(path.vertices)).exp()
        np.testing.assert_allclose(density, np.full(len(density), level), rtol=0.02)
    np.testing.assert_allclose(dots.get_offsets(), decoded, rtol=1e-5)
    ellipses, _ = below.collections
    np.testing.assert_allclose(ellipses.get_offsets(), q.mean, rtol=1e-5)
    axes = np.stack([ellipses.get_widths(), ellipses.get_heights()], 1)
    np.testing.assert_allclose(axes, 2 * q.stddev, rtol=1e-5)
    (circle,) = below.patches
    assert (circle.center, circle.radius) == ((0, 0), 1)


def test_procedures_draw_their_marginals():
    """All marginals of a linear Gaussian model are Gaussian, and their variances are known."""
    model, _ = inconsistent()
    x = math.sqrt(DATA) * torch.randn(40_000, 1, dtype=torch.float64)

    def decoded(variance):
        return model.b**2 * variance + model.w

    def encoded(variance):
        return model.a**2 * variance + model.v

    expected = {
        "reconstruction": (decoded(encoded(DATA)), encoded(decoded(REFERENCE))),
        "anchors": (decoded(REFERENCE), encoded(DATA)),
        "priors": (decoded(1.0), encoded(MARGINAL)),
    }
    assert set(expected) == set(figures.PROCEDURES)
    for procedure, variances in expected.items():
        found = [samples.var().item() for samples in figures.generated(model, x, procedure)]
        assert found == pytest.approx(variances, rel=0.05), procedure


def test_histograms_have_the_densities_of_both_spaces():
    model, _ = inconsistent()
    data = Mixture(torch.zeros(1, 1, dtype=torch.float64), math.sqrt(DATA))
    x = math.sqrt(DATA) * torch.randn(5000, 1, dtype=torch.float64)
    figure = figures.histograms({"A": model}, x, data, ["priors"])
    drawn(figure)
    exact = {"q(x)": MARGINAL, "P(x)": DATA, "p(z)": 1.0, "P(z)": REFERENCE}
    for axes, names in zip(figure.axes, (("q(x)", "P(x)"), ("p(z)", "P(z)")), strict=True):
        assert [line.get_label() for line in axes.lines] == list(names)
        for line, name in zip(axes.lines, names, strict=True):
            density = log_normal(torch.tensor(line.get_xdata()), 0.0, math.log(exact[name])).exp()
            np.testing.assert_allclose(line.get_ydata(), density, rtol=1e-5)
        bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
        places, heights = torch.tensor(bars, dtype=torch.float64).T
        variance = model.b**2 + model.w if axes is figure.axes[0] else model.a**2 * MARGINAL + model.v
        np.testing.assert_allclose(heights, log_normal(places, 0.0, math.log(variance)).exp(), atol=0.1)


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
    pytest.importorskip("lightning_fabric")
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
