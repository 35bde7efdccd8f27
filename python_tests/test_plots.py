"""Figures contain the given numbers, and are drawn without a warning."""

import io
import math

import pytest
import torch

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib.image import imread

from echo_ext import metrics, plots
from echo_ext.estimators import Convergence
from echo_ext.metrics import RateDistortion
from echo_ext.models import build
from echo_ext.plots import History


def drawn(figure):
    """Render a figure; check that it is not empty and return its pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    pixels = imread(buffer)
    assert pixels[..., :3].std() > 0.02
    return pixels


def shown(axes):
    """The only image on the axes, inverted so that ink is 1."""
    (image,) = axes.images
    return 1 - torch.as_tensor(image.get_array().data)


def test_reconstructions_are_below_the_data():
    x, mean = torch.rand(5, 1, 14, 14), torch.rand(5, 2, 14, 14)
    figure = plots.reconstructions(x, {"Echo": mean, "VAE": x})
    drawn(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["test image", "Echo", "VAE"]
    for axes, row in zip(figure.axes, (x.mean(1), mean.mean(1), x.mean(1)), strict=True):
        for index, image in enumerate(row):
            torch.testing.assert_close(shown(axes)[:, index * 15 : index * 15 + 14], image)


def test_color_images_keep_their_colors():
    x = torch.rand(5, 3, 14, 14)
    figure = plots.samples({"first": 2 * x - 0.5}, columns=3)
    drawn(figure)
    (image,) = figure.axes[0].images
    grid = torch.as_tensor(image.get_array().data).permute(2, 0, 1)
    assert grid.shape == (3, 2 * 15 - 1, 3 * 15 - 1)
    torch.testing.assert_close(grid[:, 15:29, 15:29], (2 * x[4] - 0.5).clamp(0, 1))
    assert grid[:, 14].min() == 1  # the gaps are white


def test_samples_fill_a_grid_row_by_row():
    x = torch.rand(7, 1, 8, 8)
    figure = plots.samples({"first": x, "second": x.flip(0)}, columns=3)
    drawn(figure)
    assert [axes.get_title() for axes in figure.axes] == ["first", "second"]
    grid = shown(figure.axes[0])
    assert grid.shape == (3 * 9 - 1, 3 * 9 - 1)
    torch.testing.assert_close(grid[9:17, 18:26], x[5, 0])
    assert grid[18:, 9:].abs().max() == 0  # nothing after the last


def test_vectors_are_points_joined_to_reconstructions():
    x, mean = torch.randn(30, 4), torch.randn(30, 4)
    figure = plots.reconstructions(x, {"MIM": mean})
    drawn(figure)
    (axes,) = figure.axes
    data, reconstruction = axes.collections
    np.testing.assert_allclose(data.get_offsets(), x[:, :2], rtol=1e-6)
    np.testing.assert_allclose(reconstruction.get_offsets(), mean[:, :2], rtol=1e-6)
    for line, before, after in zip(axes.lines, x, mean, strict=True):
        np.testing.assert_allclose(line.get_xydata(), torch.stack([before[:2], after[:2]]), rtol=1e-6)
    drawn(plots.samples({"MIM": x}))
    drawn(plots.samples({"MIM": x[:, :1]}))
    (axes,) = plots.reconstructions(x[:, :1], {"MIM": mean[:, :1]}).axes
    area = sum(bar.get_height() * bar.get_width() for bar in axes.patches)
    assert area == pytest.approx(2)  # two densities


def test_curves_contain_every_epoch_and_the_test_values():
    echo = History(
        {"rate": [5.0, 4.0, 3.0], "distortion": [9.0, 8.0, 7.0]},
        {"rate": [5.5, 4.5, 3.5], "distortion": [9.5, 8.5, 7.5]},
        {"rate": 3.2, "distortion": 7.2},
    )
    vae = History({"rate_bound": [6.0], "distortion": [2.0]})
    figure = plots.curves({"echo": echo, "vae": vae}, rate_floor=1.5)
    drawn(figure)
    rate, distortion = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["rate", "distortion"]  # rate and bound share a panel
    lines = [list(map(tuple, line.get_xydata())) for line in rate.lines]
    assert lines[:4] == [[(1, 5), (2, 4), (3, 3)], [(1, 5.5), (2, 4.5), (3, 3.5)], [(3, 3.2)], [(1, 6)]]
    assert rate.lines[4].get_ydata() == [1.5, 1.5]
    assert rate.get_ylim()[0] == 0
    assert distortion.get_ylim()[0] < 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["echo", "vae", "minimum rate of Echo", "validation", "training", "test, after training"]


def test_long_curves_are_averaged():
    values = torch.rand(730).tolist()
    figure = plots.curves({"vae": History(validation={"loss": values})})
    (line,) = figure.axes[0].lines
    assert len(line.get_xdata()) <= 100
    assert line.get_xdata()[0] == 4.5  # epochs 1 to 8
    assert line.get_ydata()[0] == pytest.approx(sum(values[:8]) / 8)


def test_rate_distortion_has_bars_of_one_standard_error():
    echo = [RateDistortion(8.0, 60.0, "rate", 0.5, 2.0), RateDistortion(2.0, 90.0, "rate")]
    vae = [RateDistortion(3.0, 95.0, "rate_bound", 0.1, 0.2)]
    images = torch.rand(4, 1, 8, 8)
    figure = plots.rate_distortion_curves(
        {"Echo": echo, "VAE": vae}, reconstructed={"beta 1": images, "beta 2": images}
    )
    drawn(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Echo (exact rate)", "VAE (rate bound)"]
    line, _, (across, up) = axes.containers[0]
    assert list(map(tuple, line.get_xydata())) == [(2, 90), (8, 60)]
    np.testing.assert_allclose(across.get_segments()[1], [(7.5, 60), (8.5, 60)])
    np.testing.assert_allclose(up.get_segments()[1], [(8, 58), (8, 62)])
    np.testing.assert_allclose(up.get_segments()[0], [(2, 90), (2, 90)])  # an unknown error
    assert [other.get_ylabel() for other in figure.axes[1:]] == ["beta 1", "beta 2"]
    assert len(plots.rate_distortion_curves({"VAE": vae}).axes) == 1


def test_minimum_rates_are_dashed_lines_in_the_color_of_the_curve():
    measured = {name: [RateDistortion(8.0, 60.0, "rate")] for name in ("VAE", "Echo")}
    (axes,) = plots.rate_distortion_curves(measured, min_rates={"Echo": 5.74}).axes
    (floor,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert set(floor.get_xdata()) == {5.74}
    assert floor.get_color() == axes.containers[1].lines[0].get_color()
    assert "minimum rate of Echo" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_embedding_has_a_color_for_each_label():
    points, labels = torch.randn(50, 2), torch.arange(50) % 12
    figure = plots.embedding(points, labels)
    drawn(figure)
    drawn(plots.embedding(points))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [str(label) for label in range(12)]
    for label, group in enumerate(axes.collections):
        np.testing.assert_allclose(group.get_offsets(), points[labels == label], rtol=1e-6)
    with pytest.raises(ValueError, match=r"points must have shape \(N, 2\), got \(50, 3\)"):
        plots.embedding(torch.randn(50, 3))
    with pytest.raises(ValueError, match=r"labels must have shape \(50,\), one for each point, got \(49,\)"):
        plots.embedding(points, labels[1:])


def test_histograms_have_the_density_of_their_moments():
    pytest.importorskip("scipy")
    codes = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.1]) + 2
    figure = plots.marginal_activations(codes, columns=2)
    drawn(figure)
    found = metrics.marginal_statistics(codes)
    for latent, axes in enumerate(figure.axes[:3]):
        assert axes.get_title() == f"{latent}: p = {found.p_value[latent]:.2g}"
        assert sum(bar.get_height() * bar.get_width() for bar in axes.patches) == pytest.approx(1)
        place, density = map(torch.tensor, axes.lines[0].get_data())
        inside = math.erf(3.5 / math.sqrt(2))  # the probability of 3.5 standard deviations
        assert torch.trapezoid(density, place).item() == pytest.approx(inside, abs=1e-4)
        assert torch.trapezoid(density * place, place).item() == pytest.approx(float(found.mean[latent]), rel=1e-3)
    assert not figure.axes[3].patches


def test_rates_are_plotted_against_activations():
    norms = torch.rand(100)
    figure = plots.rate_against_activation(3 - norms, norms)
    drawn(figure)
    (axes,) = figure.axes
    assert axes.get_title() == "correlation -1.00"
    np.testing.assert_allclose(axes.collections[0].get_offsets(), torch.stack([norms, 3 - norms], 1), rtol=1e-6)


def test_traversals_change_one_latent():
    model = build("vae", (1, 8, 8), latent_dim=3, hidden=(8,))
    decoded = []
    model.decode = lambda z: decoded.append(z) or torch.zeros(len(z), 1, 8, 8)
    codes, steps = torch.randn(2, 3), torch.tensor([-1.0, 0.0, 2.0])
    figure = plots.traversals(model, codes, {0: steps, 2: torch.stack([steps, 5 + steps])})
    assert [axes.get_title() for axes in figure.axes] == ["z_0", "z_2"]
    first, last = (z.view(2, 3, 3) for z in decoded)
    assert torch.equal(first[..., 0], steps.expand(2, 3))
    assert torch.equal(last[..., 2], torch.stack([steps, 5 + steps]))
    assert torch.equal(last[..., :2], codes[:, None, :2].expand(2, 3, 2))
    with pytest.raises(ValueError, match="values must name latents from 0 to 2, got 3"):
        plots.traversals(model, codes, {3: steps})
    with pytest.raises(ValueError, match=r"values must have shape \(steps,\) or \(2, steps\), got \(3, 3\)"):
        plots.traversals(model, codes, {0: torch.zeros(3, 3)})


def test_variances_are_cumulative():
    variances = {"a": torch.tensor([3.0, 1.0])}
    left, right = plots.variances_against_information(variances, {"a": torch.tensor([2.0, 0.5])}).axes
    assert left.lines[0].get_xydata().tolist() == [[0, 0], [1, 0.5], [3, 1]]
    assert right.lines[0].get_xydata().tolist() == [[3, 2], [1, 0.5]]


def test_means_of_latents_by_factor():
    factors = torch.stack([torch.arange(6) % 2, torch.arange(6) % 3], 1)
    codes = torch.stack([factors[:, 0].float(), torch.randn(6)], 1)
    figure = plots.factors_against_latents(codes, factors, ["shape", "scale"])
    shape, scale = (torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert shape.shape == (2, 2)
    assert scale.shape == (2, 3)
    torch.testing.assert_close(shape[0], torch.tensor([-1.0, 1.0]) * 0.5 / codes[:, 0].std())
    with pytest.raises(ValueError, match=r"factors must have shape \(6, 1\)"):
        plots.factors_against_latents(codes, factors, ["shape"])


def test_convergence_has_a_curve_for_each_k():
    estimates = np.array([[0.3, 0.2], [0.1, 0.15], [0.2, 0.1]])
    errors = np.array([[0.01, 0.02], [0.02, 0.01], [math.nan, 0.0]])
    found = Convergence((400, 100, 200), (3, 10), estimates, errors)
    tensors = Convergence((100,), (4,), torch.tensor([[0.5]]), torch.tensor([[0.1]]))
    figure = plots.convergence({"x and y": found, "x and z": tensors}, truths={"x and y": 0.4})
    drawn(figure)
    first, second = figure.axes
    for curve, column, k in zip(first.containers, estimates.T, found.k, strict=True):
        assert curve.get_label() == f"k = {k}"
        assert list(curve.lines[0].get_xdata()) == [100, 200, 400]
        np.testing.assert_array_equal(curve.lines[0].get_ydata(), column[[1, 2, 0]])
    bars = np.array(first.containers[1].lines[2][0].get_segments())[..., 1]
    np.testing.assert_allclose((bars[:, 1] - bars[:, 0]) / 2, [0.01, 0.0, 0.02], atol=1e-12)
    assert [line.get_label() for line in first.lines if line.get_linestyle() == "--"] == ["true"]
    assert [line.get_ydata()[0] for line in first.lines if line.get_linestyle() == "--"] == [0.4]
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    assert [axes.get_title() for axes in figure.axes] == ["x and y", "x and z"]
    assert len(second.containers) == 1
    with pytest.raises(ValueError, match=r"estimates must have shape \(sizes, k\), .* got \(1, 1, 2\) of 'x'"):
        plots.convergence({"x": Convergence((100,), (4,), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))})
