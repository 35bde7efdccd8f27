"""Settings of a run and what depends on the epoch: schedules, batches, seeds, configurations, checkpoints."""

import csv
import dataclasses
import errno
import math
import os
from pathlib import Path

import pytest
import torch
from training_cases import CASES, checkpoint

from echo_ext.models.recipes import RECIPES, find
from echo_ext.training import Configuration, RunDirectory, checkpoints, running, schedules
from echo_ext.training.schedules import Stream, derive_seed, epoch_rows

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent
SMALL = {"limit": 230, "latent_dim": 3, "epochs": 4}
ECHO = {**SMALL, "model_settings": {"num_terms": 15, "hidden": [16]}}


@pytest.fixture(autouse=True)
def _cases(monkeypatch):
    for name, recipe in CASES.items():
        monkeypatch.setitem(RECIPES, name, recipe)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)


@pytest.fixture
def models(monkeypatch):
    """The models that are built for training, in order."""
    built = []
    build = Configuration.build
    monkeypatch.setattr(Configuration, "build", lambda *of: built.append(build(*of)) or built[-1])
    return built


def table(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


# ---- Schedules -------------------------------------------------------------------------------------------------------


def test_learning_rate_is_constant_and_then_falls_to_zero():
    factors = [schedules.learning_rate_factor("constant-then-linear", epoch, 200) for epoch in range(201)]
    assert factors[:101] == [1.0] * 101
    assert factors[100:] == pytest.approx([(200 - epoch) / 100 for epoch in range(100, 201)])
    assert schedules.learning_rate_factor("constant", 199, 200) == 1
    with pytest.raises(ValueError, match="schedule must be one of 'constant-then-linear', 'constant', 'inv"):
        schedules.learning_rate_factor("cosine", 0, 1)


def test_inverse_square_root_rises_over_the_warm_up_and_then_falls():
    factors = [schedules.learning_rate_factor("inverse-square-root", epoch, 100, 4) for epoch in range(16)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1]
    assert factors[4:] == pytest.approx([math.sqrt(4 / epoch) for epoch in range(5, 17)])
    assert schedules.learning_rate_factor("inverse-square-root", 0, 100, 1) == 1


def test_warm_up_weight_rises_to_one():
    assert [schedules.warm_up_weight(epoch, 4) for epoch in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    weights = [schedules.warm_up_weight(epoch, 4, from_zero=False) for epoch in range(6)]
    assert weights == [0.25, 0.5, 0.75, 1, 1, 1]
    assert schedules.warm_up_weight(0, 0) == schedules.warm_up_weight(0, 0, from_zero=False) == 1


def history(*losses):
    return [{"valid_loss": loss} for loss in losses]


def test_best_epoch_is_the_first_of_the_lowest_after_the_warm_up():
    assert schedules.best_epoch(history(3, 2, 4, 2)) == 2
    assert schedules.best_epoch(history(1, 3, 2, 4), warm_up_epochs=1) == 3
    assert schedules.best_epoch(history(1, 3), warm_up_epochs=1) == 2
    assert schedules.best_epoch(history(3, 1), warm_up_epochs=2) == 2
    assert schedules.best_epoch(history(3), warm_up_epochs=2) == 1


def test_patience_counts_from_the_best_epoch_after_the_warm_up():
    assert not schedules.should_stop_early(history(), 1)
    assert not schedules.should_stop_early(history(3, 2, 2.5), 2)
    assert schedules.should_stop_early(history(3, 2, 2.5, 2), 2)
    assert not schedules.should_stop_early(history(1, 3, 2, 2.5), 2, warm_up_epochs=1)
    assert not schedules.should_stop_early(history(1, 2, 3, 4, 5), None)


@pytest.mark.parametrize("world_size", [1, 3])
def test_epoch_has_every_row_once_in_a_new_order(world_size):
    def order(epoch, seed=5):
        ranks = [
            epoch_rows(100, 7, seed=seed, epoch=epoch, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        assert len({tuple(map(len, batches)) for batches in ranks}) == 1
        return torch.cat([torch.cat(batches) for batches in ranks]).tolist()

    first = order(0)
    assert len(set(first)) == len(first)
    # 100 = 14 * 7 + 2 loses its small remainder. 33 = 4 * 7 + 5 keeps it, and three processes leave one row out.
    assert len(first) == (98 if world_size == 1 else 99)
    assert first == order(0)
    assert first != order(1)
    assert first != order(0, seed=6)


def test_all_batches_except_the_last_are_full():
    assert [len(rows) for rows in epoch_rows(25, 10, seed=0, epoch=0)] == [10, 10, 5]
    assert [len(rows) for rows in epoch_rows(24, 10, seed=0, epoch=0)] == [10, 10]
    assert [len(rows) for rows in epoch_rows(3, 10, seed=0, epoch=0)] == [3]
    with pytest.raises(ValueError, match="at least 4 training rows, one for each process, got 3"):
        epoch_rows(3, 10, seed=0, epoch=0, world_size=4)


def test_seeds_differ_between_streams_and_epochs():
    seeds = [derive_seed(seed, stream, epoch) for seed in range(4) for stream in Stream for epoch in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


# ---- Configurations and run directories ------------------------------------------------------------------------------


def test_configuration_defaults_are_those_of_the_recipe():
    configuration = Configuration.of("beta-vae", "digits", epochs=7)
    recipe = find("beta-vae")
    assert (configuration.beta, configuration.epochs, configuration.latent_dim) == (
        recipe.model_settings["beta"],
        7,
        32,
    )
    assert (recipe.model_settings["beta"], configuration.learning_rate) == (4, 3e-4)
    assert Configuration.of("mim", "gmm2d").learning_rate == find("mim").train_settings["learning_rate"] == 1e-3
    assert Configuration.from_mapping(configuration.as_mapping()) == configuration


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"recipe": "ecko"}, "there is no recipe 'ecko'; the most similar are echo"),
        ({"beta": -0.5}, "beta must be a finite number of at least 0, got -0.5"),
        ({"beta": math.nan}, "beta must be a finite number of at least 0, got nan"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**32}, "seed must be at most 4294967295, got 4294967296"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
        ({"precision": "8"}, "precision must be one of '32-true', 'bf16-mixed', '16-mixed', got '8'"),
        ({"binarization": "odd"}, "binarization must be one of 'none', 'static', 'dynamic', got 'odd'"),
        ({"model_settings": {"beta": 2}}, "model_settings must not contain beta, which is a setting of its own"),
        ({"schedule": "inverse-square-root"}, "warm_up_epochs must be at least 1 for schedule 'inverse-square-root'"),
        ({"precision": "16-mixed", "normalize_gradients": True}, "must be False for precision '16-mixed'"),
    ],
)
def test_bad_settings_raise(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        Configuration(**{"recipe": "echo", "data": "digits", **given})


def test_unknown_settings_are_answered_with_similar_ones():
    with pytest.raises(ValueError, match="there is no setting 'epoch'; the most similar are epochs"):
        Configuration.of("echo", "digits", epoch=3)
    with pytest.raises(ValueError, match="there is no model setting 'hiden'; the most similar are hidden"):
        Configuration.of("echo", "digits", model_settings={"hiden": [3]})
    with pytest.raises(ValueError, match="no data set 'digit'"):
        Configuration.of("echo", "digit")


def test_none_switches_off_the_optional_settings_of_a_recipe(monkeypatch):
    optional = {"limit": 100, "patience": 3, "gradient_clip": 1.0}
    monkeypatch.setitem(RECIPES, "stands", dataclasses.replace(RECIPES["stands"], train_settings=optional))
    kept = Configuration.of("stands", "digits")
    switched_off = Configuration.of("stands", "digits", **dict.fromkeys(optional))
    for name, value in optional.items():
        assert (getattr(kept, name), getattr(switched_off, name)) == (value, None)
    with pytest.raises(TypeError, match="latent_dim must be an int, got None"):
        Configuration.of("stands", "digits", latent_dim=None)


def test_settings_are_stored_as_plain_values():
    configuration = Configuration.of("echo", "digits", beta=2, model_settings={"hidden": (16, 8)})
    assert configuration.as_mapping()["model_settings"] == {"hidden": [16, 8]}
    assert isinstance(configuration.beta, float)
    with pytest.raises(TypeError, match="model_settings must contain only numbers, strings, lists and mappings, got"):
        Configuration.of("echo", "digits", model_settings={"hidden": torch.ones(2)})
    with pytest.raises(TypeError, match="normalize_gradients must be a bool, got 1"):
        Configuration.of("echo", "digits", normalize_gradients=1)


def test_beta_for_a_model_without_one_raises():
    with pytest.raises(ValueError, match=r"beta must be 1 for recipe 'breaks-down', .* got 2\.0"):
        Configuration.of("breaks-down", "digits", beta=2.0).build((1, 8, 8))


def test_folder_keeps_its_configuration(tmp_path):
    directory = RunDirectory(tmp_path / "deep" / "run")
    configuration = Configuration.of("echo", "digits", model_settings={"hidden": [8, 8]}, gradient_clip=2.0)
    directory.begin(configuration)
    assert directory.configuration() == configuration
    assert [path.name for path in directory.path.iterdir()] == ["config.yaml"]
    with pytest.raises(FileExistsError, match="contains this run already; resume it"):
        directory.begin(configuration)
    with pytest.raises(FileExistsError, match=r"contains another run, with gradient_clip 2.0, not None"):
        directory.begin(Configuration.of("echo", "digits", model_settings={"hidden": [8, 8]}))
    (directory.path / "config.yaml").write_text("recipe: echo\ndata: digits\nepoch: 3\n")
    with pytest.raises(
        ValueError, match=r"not the configuration of a run of .*: there is no setting 'epoch'; .* are epochs"
    ):
        directory.configuration()


def test_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path)
    directory.save_checkpoint({"recipe": "echo", "epoch": 1, "state_dict": {}})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"epoch 2 could not be written to .*: No space left on device; the previous one"):
        directory.save_checkpoint({"recipe": "echo", "epoch": 2, "state_dict": {}})
    assert checkpoint(tmp_path)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_damaged_and_foreign_checkpoints_are_named(tmp_path):
    directory, configuration = RunDirectory(tmp_path), Configuration.of("echo", "digits")
    with pytest.raises(FileNotFoundError, match=r"no epoch of the run in .* was finished"):
        directory.load_checkpoint(configuration)
    echo = {"format": checkpoints.FORMAT, "version": "0.1", **checkpoints.model_identity(configuration)}
    for change, complaint in (
        ({"recipe": "vae"}, "is the checkpoint of a model with recipe 'vae', not 'echo'"),
        ({"latent_dim": 5}, "is the checkpoint of a model with latent_dim 5, not 32"),
        ({"model_settings": {"hidden": torch.ones(2)}}, "is the checkpoint of a model with model_settings .*, not {}"),
        ({"format": 7}, "is a checkpoint of format 7, which echo-ext '0.1' has written, not of format 2 of"),
    ):
        directory.save_checkpoint({**echo, **change, "epoch": 1, "state_dict": {"w": torch.zeros(1000)}})
        with pytest.raises(ValueError, match=f"last.ckpt {complaint}"):
            directory.load_checkpoint(configuration)
    file = tmp_path / "last.ckpt"
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"no checkpoint at all"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"last.ckpt is damaged: its checksum does not match its content"):
            directory.load_checkpoint(configuration)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match=r"last.ckpt is not a checkpoint of echo-ext"):
        directory.load_checkpoint(configuration)
