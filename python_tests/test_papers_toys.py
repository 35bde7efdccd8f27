"""The experiments mutual-toys, anchor-vae and stacked-corex: measurements in closed form, and small runs."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from model_cases import diagonal

pytest.importorskip("lightning_fabric")
pytest.importorskip("matplotlib")
sys.path.append(str(Path(__file__).parents[1] / "examples" / "papers"))

import anchor_vae
import mutual_toys
import stacked_corex
from experiment import run

from echo_ext import metrics
from echo_ext.models import CategoricalLayer, GaussianChannel, StackedCorEx, build


class Fixed(torch.nn.Module):
    """A decoder that is a fixed function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


def toy_measures(model, function):
    model.decoder = Fixed(function)
    z = mutual_toys.quantiles(mutual_toys.PLACES)[:, None].float()
    return mutual_toys.measure_exactly(model, z)


def test_information_of_a_linear_decoder_is_gaussian():
    b, w = 0.8, 0.5
    model = build("mutual-ae", (1,), latent_dim=1)
    information, divergence = toy_measures(model, lambda z: torch.cat([b * z, torch.full_like(z, math.log(w))], dim=1))
    variance = b**2 + w
    assert information == pytest.approx(0.5 * math.log(variance / w), abs=2e-3)
    assert divergence == pytest.approx(0.5 * (1 / variance - 1 + math.log(variance)), abs=2e-4)


@pytest.mark.parametrize("states", [2, 5, 10])
def test_information_of_intervals_is_the_log_of_their_number(states):
    model = build("mutual-ae", (states,), latent_dim=1, likelihood="categorical")

    def which(z):
        places = (torch.special.ndtr(z[:, 0]) * states).long().clamp(max=states - 1)
        return 1e3 * torch.nn.functional.one_hot(places, states).float()

    information, divergence = toy_measures(model, which)
    assert information == pytest.approx(math.log(states), abs=1e-5)
    assert divergence == pytest.approx(0, abs=1e-5)


def test_maximum_bound_of_a_gaussian_r():
    assert mutual_toys.gaussian_ceiling(1) == pytest.approx(0, abs=1e-5)
    # Half of a normal distribution has the variance 1 - 2 / pi.
    assert mutual_toys.gaussian_ceiling(2) == pytest.approx(-0.5 * math.log(1 - 2 / math.pi), abs=1e-4)
    # For many intervals, almost all distributions are almost uniform.
    uniform = math.log(1000) - 0.5 * math.log(2 * math.pi * math.e / 12)
    assert mutual_toys.gaussian_ceiling(1000) == pytest.approx(uniform, abs=0.02)


def test_matching_does_not_depend_on_state_numbers():
    labels = torch.randint(10, (500,))
    assert stacked_corex.matched_accuracy(torch.randperm(10)[labels], labels) == 1
    # If two digits share a state, only the more frequent of them counts.
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert stacked_corex.matched_accuracy(labels.clamp(min=1), labels) == pytest.approx(4 / 6)


class DistantMeans(torch.nn.Module):
    """An encoder by which x determines the cluster of z."""

    def forward(self, x):
        mean = (16 * x[:, :1] - 8).expand(-1, 3)
        return mean, torch.zeros_like(mean)


class TwoClusters(CategoricalLayer):
    """Two distant clusters of independent z, which determines y."""

    def __init__(self):
        super().__init__(torch.nn.Linear(3, 2), torch.nn.Linear(2, 6), 2)

    def log_choice(self, z):
        return torch.log_softmax(torch.stack([-100 * z[:, 0], 100 * z[:, 0]], dim=1), dim=1)

    def log_given(self, z):
        return diagonal(torch.tensor([[-8.0], [8.0]]).expand(-1, 3), torch.zeros(2, 3)).log_prob(z[:, None])


def test_upper_term_is_the_explained_total_correlation():
    model = StackedCorEx(DistantMeans(), torch.nn.Linear(3, 4), GaussianChannel(), prior=TwoClusters())
    x = torch.randint(2, (20_000, 1)).float().expand(-1, 4)
    with torch.no_grad():
        lower_term, upper_term = metrics.layer_terms(model, x).tolist()
        losses = model.loss(x)
    log_two = math.log(2)
    assert upper_term == pytest.approx(2 * log_two, abs=0.08)
    # Four equal pixels have sum_i H(x_i) = 4 log 2, and each z_j determines their common bit.
    lower = 4 * log_two - losses["distortion"].item() - 3 * log_two
    assert lower_term == pytest.approx(lower, abs=0.08)
    bound = 4 * log_two - losses["distortion"].item() - losses["rate_bound"].item()
    assert lower_term + upper_term == pytest.approx(bound, abs=0.08)


@pytest.mark.parametrize("name", ["mutual-toys", "anchor-vae", "stacked-corex"])
def test_each_experiment_writes_its_results(name, tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    if name != "mutual-toys":
        pytest.importorskip("sklearn")
        monkeypatch.setattr(anchor_vae if name == "anchor-vae" else stacked_corex, "DATA", "digits")
    options = {"targets": (1.0,)} if name == "mutual-toys" else {}
    experiment = importlib.import_module(name.replace("-", "_")).EXPERIMENT
    run(experiment, tmp_path, options=options, seeds=[0], epochs=1, limit=300, show_progress=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["experiment"] == name
    assert all(
        math.isfinite(quantity["mean"]) for row in result["rows"] for quantity in row.values() if type(quantity) is dict
    )
    assert (tmp_path / "table.md").read_text().splitlines()[len(result["rows"]) + 2 :] == ["", "One seed."]
    assert list(tmp_path.glob("*.png"))
