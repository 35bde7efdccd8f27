"""Training: schedules and batches, exact resume, checkpoints kept after failures, and the files of a run."""

import csv
import errno
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_cases import CASES, checkpoint, same

from echo_ext import data, training
from echo_ext.models.recipes import RECIPES, find
from echo_ext.training import Configuration, RunDirectory, checkpoints, fitting, running, schedules, sweeping
from echo_ext.training.schedules import Stream, derive_seed, epoch_rows

for needed in ("lightning", "matplotlib", "sklearn", "yaml"):
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
    monkeypatch.setattr(Configuration, "build", lambda self, shape: built.append(build(self, shape)) or built[-1])
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
    with pytest.raises(ValueError, match="schedule must be one of 'constant-then-linear', 'constant', got 'cosine'"):
        schedules.learning_rate_factor("cosine", 0, 1)


def test_warm_up_weight_rises_from_zero_to_one():
    assert [schedules.warm_up_weight(epoch, 4) for epoch in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert schedules.warm_up_weight(0, 0) == 1


def test_patience_counts_from_the_best_epoch_after_the_warm_up():
    def history(*losses):
        return [{"valid_loss": loss} for loss in losses]

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
    configuration = Configuration.of("beta-vae", "digits", epochs=7, latent_dim=None)
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
    with pytest.raises(ValueError, match=r"not the configuration of a run: there is no setting 'epoch'; .* are epochs"):
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
        ({"format": 7}, "is a checkpoint of format 7, which echo-ext '0.1' has written, not of format 1 of"),
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


# ---- The loop --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_run_equals_a_plain_loop(tmp_path):
    configuration = Configuration.of("vae", "digits", seed=3, batch_size=50, **{**SMALL, "epochs": 2})
    training.train(configuration, tmp_path)

    parts = data.load("digits")
    train = parts["train"].select(slice(230))
    torch.manual_seed(derive_seed(3, Stream.WEIGHTS))
    model = configuration.build((1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for epoch, rate in enumerate((3e-4, 3e-4)):  # the rate begins to fall only after the second epoch
        torch.manual_seed(derive_seed(3, Stream.NOISE, epoch, 0))
        optimizer.param_groups[0]["lr"] = rate
        for rows in epoch_rows(230, 50, seed=3, epoch=epoch):
            optimizer.zero_grad()
            model.loss(train[rows][0])["loss"].backward()
            optimizer.step()
    assert same(dict(model.state_dict()), checkpoint(tmp_path)["state_dict"])


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("recipe", ["echo", "vae-vamp", pytest.param("factor-vae", marks=pytest.mark.slow)])
def test_run_resumes_bit_equal_after_an_error(tmp_path, monkeypatch, recipe):
    model = ECHO["model_settings"] if recipe == "echo" else {"hidden": [16]}
    configuration = Configuration.of(
        recipe, "digits", **{**SMALL, "limit": 800, "model_settings": model, "binarization": "dynamic", "epochs": 3}
    )
    alone = training.train(configuration, tmp_path / "alone")

    class Death(Exception):
        pass

    def dying_after(steps):
        def fit(*arguments, **options):
            left = iter(range(steps))

            def on_step():
                if next(left, None) is None:
                    raise Death

            return fitting.fit(*arguments, **{**options, "on_step": on_step})

        return fit

    broken = tmp_path / "broken"
    for resume, steps in ((False, 12), (True, 3)):  # twice in the second epoch
        monkeypatch.setattr(running, "fit", dying_after(steps))
        with pytest.raises(Death):
            training.train(configuration, broken, resume=resume)
        assert checkpoint(broken)["epoch"] == 1
    monkeypatch.setattr(running, "fit", fitting.fit)
    resumed = training.train(configuration, broken, resume=True)

    assert same(checkpoint(tmp_path / "alone"), checkpoint(broken))
    assert same(alone, resumed)
    # A finished run is not trained again.
    monkeypatch.setattr(running, "fit", None)
    assert training.train(configuration, broken, resume=True) == resumed


@pytest.mark.usefixtures("no_figures")
def test_model_is_refreshed_once_despite_a_resume(tmp_path, monkeypatch, models):
    configuration = Configuration.of("pixelwise", "digits", limit=100)
    measure = running.evaluation.measure
    monkeypatch.setattr(running.evaluation, "measure", None)
    with pytest.raises(TypeError):
        training.train(configuration, tmp_path)
    monkeypatch.setattr(running.evaluation, "measure", measure)
    training.train(configuration, tmp_path, resume=True)
    assert [(model.prepared, model.refreshed) for model in models] == [(1, 1), (0, 0)]


@pytest.mark.usefixtures("no_figures")
def test_training_follows_the_configured_schedules(tmp_path, models):
    configuration = Configuration.of(
        "pixelwise", "digits", limit=200, epochs=6, warm_up_epochs=4, learning_rate=0.5, batch_size=100
    )
    training.train(configuration, tmp_path)
    seen = models[0].seen
    assert [warm_up_weight for warm_up_weight, is_training, _ in seen if is_training] == [
        warm_up_weight for warm_up_weight in (0, 0.25, 0.5, 0.75, 1, 1) for _ in range(2)
    ]
    assert {warm_up_weight for warm_up_weight, is_training, _ in seen if not is_training} == {1}
    rows = table(tmp_path / "metrics.csv")
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.5, 0.5, 0.5, 0.5, 1 / 3, 1 / 6])
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert float(rows[-1]["valid_loss"]) < float(rows[0]["valid_loss"])


@pytest.mark.usefixtures("no_figures")
def test_training_stops_when_patience_runs_out(tmp_path):
    result = training.train(Configuration.of("stands", "digits", limit=100, epochs=50, patience=3), tmp_path)
    assert result["epochs"] == 4


@pytest.mark.usefixtures("no_figures")
def test_gradients_are_normalized_or_clipped(tmp_path, models):
    common = {**SMALL, "epochs": 1, "batch_size": 230}
    training.train(Configuration.of("vae", "digits", normalize_gradients=True, **common), tmp_path / "normalized")
    norms = torch.stack([parameter.grad.norm() for parameter in models[0].parameters()])
    torch.testing.assert_close(norms, torch.ones_like(norms))
    training.train(Configuration.of("vae", "digits", gradient_clip=0.01, **common), tmp_path / "clipped")
    total = torch.stack([parameter.grad.norm() for parameter in models[1].parameters()]).norm()
    torch.testing.assert_close(total, torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.usefixtures("no_figures")
def test_mixed_precision_keeps_float32_weights(tmp_path):
    parts = data.load("digits")
    whole, mixed = (
        training.train(Configuration.of("vae", "digits", precision=precision, **SMALL), tmp_path / precision)
        for precision in ("32-true", "bf16-mixed")
    )
    assert mixed["neg_elbo"] == pytest.approx(whole["neg_elbo"], rel=0.01)
    assert mixed["neg_elbo"] != whole["neg_elbo"]
    assert {value.dtype for value in checkpoint(tmp_path / "bf16-mixed")["state_dict"].values()} == {torch.float32}
    assert len(parts["test"]) == mixed["rows"]["test"]
    with pytest.raises(ValueError, match=r"precision must be .* on the CPU, got '16-mixed', which needs a GPU"):
        training.train(Configuration.of("vae", "digits", precision="16-mixed", **SMALL), tmp_path / "half")
    assert not (tmp_path / "half").exists()


@pytest.mark.usefixtures("no_figures")
def test_nan_loss_stops_the_run_and_keeps_the_last_epoch(tmp_path):
    configuration = Configuration.of("breaks-down", "digits", limit=200, epochs=9)
    with pytest.raises(
        FloatingPointError, match=r"^in step 5 \(epoch 3\) 'distortion' is nan; the last finished epoch is saved$"
    ):
        training.train(configuration, tmp_path)
    kept = checkpoint(tmp_path)
    assert kept["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


@pytest.mark.usefixtures("no_figures")
def test_run_that_cannot_begin_leaves_no_files(tmp_path):
    with pytest.raises(ValueError, match="f_raw must have at least 100 rows for num_terms=99"):
        training.train(Configuration.of("echo", "digits", limit=50), tmp_path / "echo")
    with pytest.raises(FloatingPointError, match=r"in step 1 \(epoch 1\).*; no epoch was finished"):
        training.train(Configuration.of("breaks-down", "digits", model_settings={"at": 1}), tmp_path / "broken")
    with pytest.raises(ValueError, match=r"data_shape must be \(channels, 28, 28\)"):
        training.train(Configuration.of("vae", "digits", model_settings={"architecture": "conv28"}), tmp_path / "shape")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_figures")
def test_run_resumes_after_a_full_disk(tmp_path, monkeypatch):
    configuration = Configuration.of("vae", "digits", **SMALL)
    training.train(configuration, tmp_path / "alone")
    save = RunDirectory.save_checkpoint

    def full(self, content):
        if content["epoch"] == 3:
            monkeypatch.setattr(os, "fsync", refuse)
        save(self, content)

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as small_disk:
        small_disk.setattr(RunDirectory, "save_checkpoint", full)
        fsync = os.fsync
        with pytest.raises(OSError, match="epoch 3 could not be written"):
            training.train(configuration, tmp_path / "full")
        monkeypatch.setattr(os, "fsync", fsync)
    assert checkpoint(tmp_path / "full")["epoch"] == 2
    training.train(configuration, tmp_path / "full", resume=True)
    assert same(checkpoint(tmp_path / "alone"), checkpoint(tmp_path / "full"))


def test_unwritable_folder_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"run is not writable: Permission denied"):
        training.train(Configuration.of("vae", "digits", **SMALL), tmp_path / "run")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError, match="must be a folder, but it is a file"):
        training.train(Configuration.of("vae", "digits", **SMALL), file)


# ---- Files of a run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def echo_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "echo"
    torch.set_num_threads(1)
    return path, training.train(Configuration.of("echo", "digits", beta=0.5, seed=2, **ECHO), path, tensorboard=True)


def test_run_directory_has_all_files(echo_run):
    path, result = echo_run
    names = {"config.yaml", "metrics.csv", "result.json", "last.ckpt"}
    assert {file.name for file in path.iterdir()} == names | {
        "reconstructions.png",
        "samples.png",
        "curves.png",
        "tensorboard",
    }
    assert json.loads((path / "result.json").read_text()) == result
    assert (result["recipe"], result["data"], result["beta"], result["seed"]) == ("echo", "digits", 0.5, 2)
    assert result["neg_elbo"] == pytest.approx(result["rate"] + result["distortion"])
    assert result["epochs"] == 4
    assert {"torch", "lightning", "echo-ext"} <= result["versions"].keys()
    assert next((path / "tensorboard").iterdir()).stat().st_size > 0


def test_loaded_model_is_the_trained_one(echo_run):
    path, result = echo_run
    run = training.load(path)
    assert not run.model.training
    assert same(dict(run.model.state_dict()), checkpoint(path)["state_dict"])
    assert len(run.history) == result["epochs"]
    x = data.load("digits")["test"][:1][0]
    assert run.model.reconstruct(x).shape == x.shape  # the bank encodes a single row


def test_evaluation_agrees_with_the_result(echo_run):
    path, result = echo_run
    found = training.evaluate(path)
    assert (found["rate"], found["distortion"]) == (result["rate"], result["distortion"])
    assert sum(found["latent_information"]) == pytest.approx(found["rate"], rel=1e-4)  # exact, for every draw
    assert 0 <= found["knn_accuracy"] <= 1
    assert found["noise_total_correlation"] >= 0
    assert "importance_nll" not in found
    assert json.loads((path / "evaluation.json").read_text()) == found
    assert {"marginal_activations.png", "rate_against_activation.png"} <= {file.name for file in path.iterdir()}
    with pytest.raises(TypeError, match="importance sampling needs the density"):
        training.evaluate(path, importance_draws=2)


@pytest.mark.usefixtures("no_figures")
def test_importance_sampled_nll_is_below_the_bound(tmp_path):
    training.train(Configuration.of("vae", "digits", **SMALL), tmp_path)
    found = training.evaluate(tmp_path, importance_draws=30, importance_rows=300)
    assert found["importance_nll"] < found["neg_elbo"]
    assert found["importance_rows"] == 300


# ---- Sweeps ----------------------------------------------------------------------------------------------------------


def test_sweep_averages_seeds_resumes_and_survives_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)
    grid = [
        Configuration.of("vae", "digits", beta=beta, seed=seed, **{**SMALL, "epochs": 2})
        for beta in (0.5, 2.0)
        for seed in (0, 1, 2)
    ]
    training.train(grid[0], tmp_path / "vae-beta0.5-seed0")
    trained = []
    train = sweeping.train
    monkeypatch.setattr(sweeping, "train", lambda *each, **options: trained.append(each[0]) or train(*each, **options))
    broken = Configuration.of("breaks-down", "digits", model_settings={"at": 1})
    done = training.sweep([*grid, broken], tmp_path, show_progress=False)

    assert list(done.failures) == ["breaks-down-beta1-seed0"]
    assert "'distortion' is nan" in done.failures["breaks-down-beta1-seed0"]
    rows = list(done.table.itertuples())
    assert [(row.recipe, row.beta, row.seeds, row.rate_name) for row in rows] == [
        ("vae", 0.5, 3, "rate_bound"),
        ("vae", 2.0, 3, "rate_bound"),
    ]
    for row in rows:
        results = [RunDirectory(tmp_path / f"vae-beta{row.beta:g}-seed{seed}").result() for seed in range(3)]
        for name, mean, error in (
            ("rate_bound", row.rate, row.rate_error),
            ("neg_elbo", row.neg_elbo, row.neg_elbo_error),
        ):
            values = [result[name] for result in results]
            assert mean == pytest.approx(statistics.mean(values))
            assert error == pytest.approx(statistics.stdev(values) / math.sqrt(3))
    assert [float(row["distortion"]) for row in table(tmp_path / "table.csv")] == [row.distortion for row in rows]
    assert json.loads((tmp_path / "table.json").read_text())[0]["rate"] == rows[0].rate
    assert (tmp_path / "rate_distortion.png").stat().st_size > 10_000

    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/last.ckpt")}
    again = training.sweep(grid, tmp_path, show_progress=False)
    assert again.table.equals(done.table)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/last.ckpt")} == before
    with pytest.raises(FileExistsError, match="contains another run, with epochs 2, not 4"):
        training.sweep([Configuration.of("vae", "digits", beta=0.5, seed=0, **SMALL)], tmp_path)


# ---- Several processes -----------------------------------------------------------------------------------------------

SPY = """
import os, sys, torch
import training_cases
training_cases.register()
from echo_ext import training
from echo_ext.training import running

out, recipe, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
fit = running.fit
def spy(model, *rest, **options):
    history = fit(model, *rest, **options)
    torch.save([parameter.detach() for parameter in model.parameters()], f"{out}-rank{os.environ.get('RANK', 0)}.pt")
    return history
running.fit = spy
model = {"num_terms": 15} if recipe == "echo" else {}
settings = {"limit": 800, "epochs": 3, "batch_size": batch_size, "learning_rate": 3e-3, "model_settings": model}
resume = len(sys.argv) > 4
try:
    result = training.train(training.Configuration.of(recipe, "digits", **settings), out, resume=resume)
except FileExistsError as refused:
    sys.exit(f"refused: {refused}")
if resume:
    assert "rate" in result
"""


def torchrun(tmp_path, *arguments):
    """Run the script in two processes."""
    script = tmp_path / "spy.py"
    script.write_text(SPY)
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment["OMP_NUM_THREADS"] = "1"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run(
        [*words, str(tmp_path / "run"), *arguments],
        env=environment,
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=110,
    )


def in_two_processes(tmp_path, recipe):
    """Train in two processes with batches of 40 rows each; return the final parameters of both."""
    done = torchrun(tmp_path, recipe, "40")
    assert done.returncode == 0, done.stderr
    losses = [float(row["valid_loss"]) for row in table(tmp_path / "run" / "metrics.csv")]
    assert losses[-1] < losses[0]
    assert RunDirectory(tmp_path / "run").is_finished
    return [torch.load(tmp_path / f"run-rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_equal_one_with_twice_the_batch(tmp_path, models):
    left, right = in_two_processes(tmp_path, "pixelwise")
    assert same(left, right)
    settings = {"limit": 800, "epochs": 3, "learning_rate": 3e-3, "batch_size": 80}
    training.train(Configuration.of("pixelwise", "digits", **settings), tmp_path / "alone")
    (alone,) = models[0].parameters()
    # Adam amplifies the rounding of gradients near 0; in about 30 steps the logits change by up to 0.1.
    torch.testing.assert_close(left[0], alone.detach(), atol=2e-3, rtol=0)
    assert alone.abs().max() > 0.05


@pytest.mark.usefixtures("no_figures")
def test_all_processes_learn_whether_the_folder_is_free(tmp_path):
    settings = {"limit": 800, "epochs": 3, "learning_rate": 3e-3, "batch_size": 40, "model_settings": {}}
    training.train(Configuration.of("pixelwise", "digits", **settings), tmp_path / "run")
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}
    with RunDirectory(tmp_path / "run").owned():
        done = torchrun(tmp_path, "pixelwise", "40")
    assert done.returncode == 1
    assert f"is in use by process {os.getpid()} on" in done.stderr
    done = torchrun(tmp_path, "pixelwise", "40", "resume")
    assert done.returncode == 0, done.stderr
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == files


@pytest.mark.slow
def test_two_processes_agree_on_an_echo_model(tmp_path):
    assert same(*in_two_processes(tmp_path, "echo"))
