"""Training on a GPU: recorded steps, stopped and resumed runs, and evaluation, for every recipe."""

import logging

import pytest
import torch
from training_cases import PassesAfter

from echo_ext import training
from echo_ext.models.recipes import RECIPES
from echo_ext.training import Configuration, running
from echo_ext.training.stepping import CudaRecorder

pytestmark = pytest.mark.cuda

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

DEVICE = "cuda"
SETTINGS = {
    "limit": 230,
    "batch_size": 50,
    "epochs": 3,
    "latent_dim": 4,
    "warm_up_epochs": 1,
    "binarization": "dynamic",
}


def configure(recipe, **more):
    model = {"num_terms": 20} if recipe.startswith("echo") else {}
    return Configuration.of(recipe, "digits", **{**SETTINGS, "model_settings": model, **more})


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)


@pytest.fixture
def recordings(monkeypatch):
    """The number of recordings so far."""
    record, made = CudaRecorder.record, []
    monkeypatch.setattr(CudaRecorder, "record", lambda self, step: made.append(1) or record(self, step))
    return made


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_is_recorded_and_evaluated(tmp_path, caplog, recordings, recipe):
    with caplog.at_level(logging.WARNING):
        result = training.train(configure(recipe, epochs=1), tmp_path, device=DEVICE)
    assert caplog.records == []
    assert len(recordings) == 1
    assert all(value == value for value in (result["distortion"], result["neg_elbo"]))


@pytest.mark.parametrize("recipe", ["echo", "vae-vamp", "echo-tc", "mim"])
def test_recorded_steps_equal_ordinary_steps(tmp_path, recordings, recipe):
    recorded, alone = (
        training.train(configure(recipe), tmp_path / name, device=DEVICE, cuda_graph=name == "recorded")
        for name in ("recorded", "alone")
    )
    assert len(recordings) == 2  # for the warm-up weights 0 and 1
    assert recorded["distortion"] == pytest.approx(alone["distortion"], rel=1e-3)
    losses = [[row["train_loss"] for row in training.load(tmp_path / name).history] for name in ("recorded", "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_stopped_run_resumes_with_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "MINIMUM_SECONDS", -1.0)
    alone = training.train(configure("echo"), tmp_path / "alone", device=DEVICE)
    with pytest.raises(training.TimeLimitReached):
        training.train(configure("echo"), tmp_path / "stopped", device=DEVICE, deadline=PassesAfter(6))
    resumed = training.train(configure("echo"), tmp_path / "stopped", device=DEVICE, resume=True)
    assert resumed["neg_elbo"] == pytest.approx(alone["neg_elbo"], rel=1e-3)


def test_run_of_one_device_is_evaluated_on_another(tmp_path):
    training.train(configure("echo", epochs=1), tmp_path / "run", device=DEVICE)
    found = {device: training.evaluate(tmp_path / "run", device=device) for device in ("cpu", DEVICE)}
    assert found[DEVICE]["rate"] == pytest.approx(found["cpu"]["rate"], rel=1e-4)
    assert found[DEVICE]["distortion"] == pytest.approx(found["cpu"]["distortion"], rel=0.01)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["finished"]
