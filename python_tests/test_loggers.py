"""Loggers of runs: every epoch is logged once, also when a run was stopped and resumed."""

import sys
from types import ModuleType

import pytest
from training_cases import CASES, PassesAfter

from echo_ext import cli, training
from echo_ext.models.recipes import RECIPES
from echo_ext.training import Configuration, TimeLimitReached, running, sweeping

for needed in ("lightning_fabric", "matplotlib", "sklearn", "tensorboard", "yaml"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGURATION = {"recipe": "pixelwise", "data": "digits", "limit": 230, "epochs": 4, "latent_dim": 2}
STEPS = [2, 4, 6, 8]  # at the end of each epoch of 230 rows


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, recipe in CASES.items():
        monkeypatch.setitem(RECIPES, name, recipe)
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)
    monkeypatch.setattr(running, "MINIMUM_SECONDS", 0)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for wandb, whose runs keep their rows on a server and refuse a step twice, as those of wandb do."""
    module, server = ModuleType("wandb"), {}

    class Run:
        def __init__(self, id, **given):
            self.id, self.given = id, given
            self.rows = server.setdefault(id, {})
            self.exit_code = None

        @property
        def step(self):
            return max(self.rows, default=-1) + 1

        def log(self, row, step):
            assert step >= self.step
            self.rows[step] = row

        def finish(self, exit_code):
            self.exit_code = exit_code

    module.runs, module.server = [], server
    module.init = lambda **given: module.runs.append(Run(**given)) or module.runs[-1]
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def train(path, **options):
    return training.train(Configuration.of(**CONFIGURATION), path, **options)


def stop_and_resume(path, steps, **options):
    with pytest.raises(TimeLimitReached):
        train(path, deadline=PassesAfter(steps), **options)
    return train(path, resume=True, **options)


def scalars(path):
    """The rows of each name in the event files, in the order in which they were written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for file in sorted(path.iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


@pytest.mark.parametrize("stopped_after", [1, 5])
def test_tensorboard_has_every_epoch_of_a_resumed_run_once(stopped_after, tmp_path):
    result = stop_and_resume(tmp_path, stopped_after, loggers=["csv", "tensorboard"])
    found = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in found["train_loss"]] == STEPS
    assert [epoch for _, epoch in found["epoch"]] == [1, 2, 3, 4]
    history = training.load(tmp_path).history
    assert [value for _, value in found["valid_loss"]] == pytest.approx([row["valid_loss"] for row in history])
    assert found["test_distortion"] == [(9, pytest.approx(result["distortion"]))]


def test_logger_that_is_added_later_has_all_epochs(tmp_path):
    with pytest.raises(TimeLimitReached):
        train(tmp_path, deadline=PassesAfter(5))
    train(tmp_path, resume=True, loggers=["tensorboard"])
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["train_loss"]] == STEPS


def test_wandb_run_is_continued(tmp_path, wandb):
    result = stop_and_resume(tmp_path, 5, loggers=["wandb"])
    first, second = wandb.runs
    assert first.id == second.id
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert second.given["config"]["recipe"] == "pixelwise"
    assert (second.given["name"], second.given["project"], second.given["resume"]) == (
        tmp_path.name,
        "echo-ext",
        "allow",
    )
    rows = wandb.server[first.id]
    assert list(rows) == [*STEPS, 9]
    assert [rows[step]["epoch"] for step in STEPS] == [1, 2, 3, 4]
    assert rows[9]["test_neg_elbo"] == result["neg_elbo"]


def test_new_run_in_the_folder_of_an_old_one_is_not_continued(tmp_path, wandb):
    train(tmp_path, loggers=["wandb"])
    for file in tmp_path.glob("*.*"):
        file.unlink()
    train(tmp_path, loggers=["wandb"])
    assert len(wandb.server) == 2


def test_refusal_of_wandb_leaves_no_run(tmp_path, wandb, monkeypatch):
    def refuse(**given):
        raise ValueError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(RuntimeError, match=r"api_key not configured \(no-tty\); log in by `wandb login`, or set WANDB"):
        train(tmp_path, loggers=["wandb"])
    assert not (tmp_path / "config.yaml").exists()


def test_sweep_logs_each_run(tmp_path, wandb):
    runs = [Configuration.of(**CONFIGURATION, seed=seed) for seed in (0, 1)]
    sweeping.sweep(runs, tmp_path, loggers=["wandb", "tensorboard"])
    assert [list(rows) for rows in wandb.server.values()] == [[*STEPS, 9]] * 2
    assert [run.given["name"] for run in wandb.runs] == ["pixelwise-beta1-seed0", "pixelwise-beta1-seed1"]
    assert len(list(tmp_path.glob("*/tensorboard/events*"))) == 2


def test_command_takes_a_list(tmp_path, wandb, capsys):
    words = "train --recipe pixelwise --data digits --limit 230 --epochs 1 --logger csv,tensorboard,wandb --out"
    assert cli.main([*words.split(), str(tmp_path)]) == 0
    assert len(wandb.runs) == len(list(tmp_path.glob("tensorboard/events*"))) == 1
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize("command", ["train --out", "sweep --out"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mlflow", "--logger must be one of 'csv', 'tensorboard', 'wandb', got 'mlflow'"),
        ("csv,", "--logger must be one of 'csv', 'tensorboard', 'wandb', got ''"),
        ("wandb", "the logger 'wandb' needs wandb: pip install wandb"),
    ],
)
def test_bad_loggers_are_one_line(command, given, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = [*command.split(), str(tmp_path / "run"), "--recipe", "pixelwise", "--data", "digits", "--logger", given]
    assert cli.main(words) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
