"""The best checkpoint of a run, which is the model of a run with early stopping."""

import json
import os

import pytest
import torch
from test_cli_train import fail
from training_cases import CASES, checkpoint, same

from echo_ext import training
from echo_ext.models.recipes import RECIPES
from echo_ext.training import Configuration, RunDirectory, checkpoints, running

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = [5, 3, 4, 2, 6, 7, 2, 1]


@pytest.fixture(autouse=True)
def _cases(monkeypatch):
    for name, recipe in CASES.items():
        monkeypatch.setitem(RECIPES, name, recipe)
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)


def scripted(**settings):
    """A run of one step in each epoch."""
    common = {"limit": 100, "epochs": len(LOSSES), "latent_dim": 2, "model_settings": {"losses": LOSSES}}
    return Configuration.of("scripted", "digits", **{**common, **settings})


STOPPED = {"patience": 3}


def test_early_stopped_run_has_the_best_model(tmp_path):
    result = training.train(scripted(**STOPPED), tmp_path)
    assert (result["best_epoch"], result["epochs"]) == (4, 7)
    model, _, history = training.load(tmp_path)
    assert (int(model.steps), len(history)) == (4, 7)
    last, best = checkpoint(tmp_path), checkpoint(tmp_path, "best.ckpt")
    assert (last["epoch"], int(last["state_dict"]["steps"])) == (7, 7)
    assert (best["epoch"], len(best["history"])) == (4, 4)
    assert same(best["state_dict"], dict(model.state_dict()))
    assert torch.equal(best["state_dict"]["copied"], best["state_dict"]["logits"])
    assert "optimizer" not in best
    assert not torch.equal(best["state_dict"]["logits"], last["state_dict"]["logits"])
    assert training.evaluate(tmp_path)["distortion"] == result["distortion"]

    # A damaged result is measured again, by the same model.
    (tmp_path / "result.json").write_text("{}")
    assert training.train(scripted(**STOPPED), tmp_path, resume=True) == result


def test_best_epoch_is_after_the_warm_up(tmp_path):
    losses = {"model_settings": {"losses": [1, 5, 4, 6, 6, 6, 6, 6]}}
    result = training.train(scripted(**losses, patience=2, warm_up_epochs=1), tmp_path)
    assert (result["best_epoch"], result["epochs"]) == (3, 5)
    assert int(training.load(tmp_path).model.steps) == 3


def test_run_without_patience_keeps_the_best_but_is_the_last(tmp_path):
    result = training.train(scripted(epochs=7), tmp_path)
    assert "best_epoch" not in result
    assert int(training.load(tmp_path).model.steps) == 7
    assert checkpoint(tmp_path, "best.ckpt")["epoch"] == 4
    (tmp_path / "best.ckpt").unlink()
    assert int(training.load(tmp_path).model.steps) == 7


def test_run_without_validation_has_no_best_checkpoint(tmp_path):
    training.train(scripted(valid="none", epochs=1), tmp_path)
    assert not (tmp_path / "best.ckpt").exists()


class Death(BaseException):
    """Ends a process without any of its clean-up for errors."""


def dying_before(renames):
    """An ``os.replace`` that raises Death instead of renaming a file, after so many that it has renamed."""
    left = iter(range(renames))
    rename = os.replace

    def replace(source, target):
        if next(left, None) is None:
            raise Death(os.path.basename(target))
        rename(source, target)

    return replace


def test_run_killed_before_any_rename_resumes_bit_equal(tmp_path, monkeypatch):
    alone = training.train(scripted(**STOPPED), tmp_path / "alone")
    interrupted = []
    for renames in range(100):
        path = tmp_path / f"killed{renames}"
        with monkeypatch.context() as killed:
            killed.setattr(os, "replace", dying_before(renames))
            try:
                training.train(scripted(**STOPPED), path)
                break
            except Death as death:
                interrupted.append(str(death))
        if interrupted[-2:] == ["best.ckpt", "last.ckpt"] and RunDirectory(path).has_checkpoint:
            epochs = [checkpoint(path, name)["epoch"] for name in ("best.ckpt", "last.ckpt")]
            assert epochs[0] == epochs[1] + 1
            assert int(training.load(path).model.steps) == epochs[0]
        resumed = training.train(scripted(**STOPPED), path, resume=True)
        assert resumed == {**alone, "seconds": resumed["seconds"]}
        for name in ("last.ckpt", "best.ckpt"):
            assert same(checkpoint(tmp_path / "alone", name), checkpoint(path, name))
    # Epochs 1, 2 and 4 are the best so far. At the end there are the finished checkpoint and the result.
    names = {True: ("best.ckpt", "last.ckpt", "metrics.csv"), False: ("last.ckpt", "metrics.csv")}
    renamed = [name for epoch in range(1, 8) for name in names[epoch in (1, 2, 4)]]
    assert interrupted == [*renamed, "last.ckpt", "result.json"]


def unlink(file, older):
    file.unlink()


def damage(file, older):
    file.write_bytes(file.read_bytes()[:2000])


def put_older(file, older):
    file.write_bytes(older)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (unlink, "best.ckpt with the weights of epoch 4 is missing; train the run again"),
        (damage, "best.ckpt is damaged: its checksum does not match its content"),
        (put_older, "best.ckpt has the weights of epoch 2, but epoch 4 is the best; train the run again"),
    ],
)
def test_unusable_best_checkpoint_is_one_line(tmp_path, monkeypatch, capsys, spoil, complaint):
    path = tmp_path / "run"
    training.train(scripted(**STOPPED), path)
    best = checkpoint(path, "best.ckpt")
    older = {**best, "epoch": 2, "history": best["history"][:2]}
    spoil(path / "best.ckpt", checkpoints.dump(older))
    (path / "result.json").unlink()
    monkeypatch.setattr(running, "fit", None)  # refused before training
    for words in (("evaluate", path), ("train", "--resume", "--out", path), ("sample", path)):
        code, line = fail(capsys, *words)
        assert (code, complaint in line) == (2, True), line


def test_history_without_validation_is_refused(tmp_path, capsys):
    training.train(scripted(**STOPPED), tmp_path)
    content = checkpoint(tmp_path)
    rows = [{name: value for name, value in row.items() if name != "valid_loss"} for row in content["history"]]
    RunDirectory(tmp_path).save_checkpoint({**content, "history": rows})
    code, line = fail(capsys, "evaluate", tmp_path)
    assert (code, "last.ckpt is not a checkpoint of echo-ext: 'valid_loss' is missing in" in line) == (2, True)


def test_command_names_the_best_epoch(tmp_path, capsys):
    from echo_ext import cli

    words = ["train", "--recipe", "scripted", "--data", "digits", "--limit", "100", "--epochs", "7", "--patience", "3"]
    assert cli.main([*words, "--set", f"losses={json.dumps(LOSSES)}", "--out", str(tmp_path)]) == 0
    assert "after 7 epochs, of which epoch 4 is the best, in" in capsys.readouterr().out
