"""Training that starts from the weights of another run."""

import shutil

import pytest
import torch
from test_cli_train import fail
from training_cases import CASES, PassesAfter, checkpoint, same

from echo_ext import cli, training
from echo_ext.models.recipes import RECIPES
from echo_ext.training import Configuration, TimeLimitReached, running
from echo_ext.training.schedules import Stream, derive_seed, epoch_rows

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"limit": 100, "latent_dim": 2, "epochs": 1, "batch_size": 100}
MLP = {**SMALL, "model_settings": {"hidden": [8]}}


@pytest.fixture(autouse=True)
def _cases(monkeypatch, tmp_path):
    for name, recipe in CASES.items():
        monkeypatch.setitem(RECIPES, name, recipe)
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "data", "settings", "others"),
    [
        ("echo", "digits", {"hidden": [8], "num_terms": 20}, {}),
        ("vae-vamp", "digits", {"hidden": [8], "pseudo_inputs": 7}, {}),
        ("mim", "gmm2d", {"hidden": [8], "objective": "vae"}, {"objective": "mim"}),
    ],
)
def test_first_step_has_the_loss_of_the_initial_model(recipe, data, settings, others):
    common = {**SMALL, "warm_up_epochs": 0, "schedule": "constant", "learning_rate": 1e-2}
    first = Configuration.of(recipe, data, model_settings=settings, **{**common, "epochs": 3})
    training.train(first, "first")
    second = Configuration.of(
        recipe, data, seed=5, model_settings={**settings, **others}, initial_run="first", **common
    )
    training.train(second, "second")
    found = training.load("second").history[0]["train_loss"]

    model = training.load("first").model.train()
    for name, value in others.items():
        setattr(model, name, value)
    torch.manual_seed(derive_seed(5, Stream.NOISE, 0, 0))
    (rows,) = epoch_rows(100, 100, seed=5, epoch=0)
    assert found == model.loss(second.load_data()["train"].values(rows))["loss"].item()
    moments = checkpoint("second")["optimizer"]["state"].values()
    assert {int(each["step"]) for each in moments} == {1}


def test_best_weights_of_an_early_stopped_run_are_used():
    losses = {"model_settings": {"losses": [3, 1, 2, 2, 2]}}
    first = Configuration.of("scripted", "digits", patience=2, **{**SMALL, "epochs": 5}, **losses)
    assert training.train(first, "first")["best_epoch"] == 2
    training.train(Configuration.of("scripted", "digits", initial_run="first", **SMALL, **losses), "second")
    assert int(training.load("second").model.steps) == 3


def test_initial_run_is_a_path_that_a_resumed_run_does_not_need(tmp_path, monkeypatch):
    first = training.train(Configuration.of("vae", "digits", **MLP), "first")
    words = ["train", "--recipe", "vae", "--data", "digits", "--limit", "200", "--epochs", "2", "--latent-dim", "2"]
    assert cli.main([*words, "--set", "hidden=[8]", "--initial-run", "first", "--out", "alone"]) == 0
    configuration = training.RunDirectory("alone").configuration()
    assert configuration.initial_run == str(tmp_path / "first")
    settings = {name: value for name, value in configuration.as_mapping().items() if name != "initial_run"}
    assert Configuration(**settings, initial_run=tmp_path / "first") == configuration
    assert training.RunDirectory("alone").result()["neg_elbo"] < first["neg_elbo"]

    monkeypatch.setattr(running, "MINIMUM_SECONDS", -1.0)
    with pytest.raises(TimeLimitReached, match="in step 2 of epoch 1"):
        training.train(configuration, "stopped", deadline=PassesAfter(0))
    shutil.rmtree("first")
    training.train(configuration, "stopped", resume=True)
    for name in ("last.ckpt", "best.ckpt"):
        assert same(checkpoint("alone", name), checkpoint("stopped", name))


def no_result(path):
    (path / "result.json").unlink()


def damage(path):
    (path / "last.ckpt").write_bytes(b"text")


@pytest.mark.parametrize(
    ("spoil", "words", "complaint"),
    [
        (shutil.rmtree, (), "--initial-run must be the folder of a finished run, but there is no run in {path}: it ha"),
        (no_result, (), "--initial-run must be the folder of a finished run, but the run in {path} is not finished"),
        (damage, (), "--initial-run must be the folder of a finished run, but {path}/last.ckpt is damaged"),
        (str, ("--data", "gmm2d"), "--initial-run must be a run on x of shape (2,), got (1, 8, 8) in {path}"),
        (
            str,
            ("--set", "hidden=[9]"),
            "--initial-run must be a run whose weights fit the model of recipe 'vae', got recipe 'vae' in {path}: size "
            "mismatch for encoder.",
        ),
        (
            str,
            ("--recipe", "vae-maf"),
            "fit the model of recipe 'vae-maf', got recipe 'vae' in {path}: Missing key(s) in",
        ),
    ],
)
def test_unusable_initial_run_is_one_line(tmp_path, capsys, spoil, words, complaint):
    path = tmp_path / "first"
    training.train(Configuration.of("vae", "digits", **MLP), path)
    spoil(path)
    given = ["--recipe", "vae", "--data", "digits", "--limit", "100", "--epochs", "1", "--latent-dim", "2"]
    given += ["--set", "hidden=[8]", "--out", "second", "--initial-run", "first"]
    code, line = fail(capsys, "train", *given, *words)
    assert (code, complaint.format(path=path) in line) == (2, True), line
    assert not (tmp_path / "second").exists()
