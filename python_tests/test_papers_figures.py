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


def test_trends_contain_means_and_errors_at_every_tick():
    measured = {
        "I": {"VAE": [(1.0, 0.1), (2.0, math.nan)], "MIM": [(3.0, 0.2), (4.0, 0.3)]},
        "NLL": {"VAE": [(5.0, 0.1), (6.0, 0.1)], "MIM": [(7.0, 0.1), (8.0, 0.1)]},
    }
    index = pd.MultiIndex.from_product([(5, 500), ("VAE", "MIM")], names=["hidden units", "model"])
    columns = {
        (quantity, name): [points[model][tick][place] for tick in range(2) for model in points]
        for quantity, points in measured.items()
        for place, name in enumerate(("mean", "sem"))
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
        segments = [[(tick, mean - error), (tick, mean + error)] for tick, (mean, error) in enumerate(lines["MIM"])]
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
