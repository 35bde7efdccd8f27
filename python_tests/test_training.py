"""Training: exact resume, checkpoints kept after failures, the files of a run, and several processes."""

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

from echo_ext import data, metrics, training
from echo_ext.metrics import likelihood
from echo_ext.models import Model
from echo_ext.models.recipes import RECIPES
from echo_ext.training import Configuration, RunDirectory, evaluation, fitting, running, sweeping
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
def test_model_is_refreshed_before_validation_and_the_test(tmp_path, monkeypatch, models):
    configuration = Configuration.of("pixelwise", "digits", limit=100, epochs=3)
    measure = running.evaluation.measure
    monkeypatch.setattr(running.evaluation, "measure", None)
    with pytest.raises(TypeError):
        training.train(configuration, tmp_path)
    monkeypatch.setattr(running.evaluation, "measure", measure)
    training.train(configuration, tmp_path, resume=True)
    assert [(model.prepared, model.refreshed) for model in models] == [(1, 4), (0, 0)]


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
def test_training_follows_the_schedules_of_the_mim_code(tmp_path, models):
    settings = {"schedule": "inverse-square-root", "warm_up_epochs": 2, "warm_up_from_zero": False}
    configuration = Configuration.of("pixelwise", "digits", limit=100, epochs=4, learning_rate=0.5, **settings)
    training.train(configuration, tmp_path)
    assert [weight for weight, is_training, _ in models[0].seen if is_training] == [0.5, 1, 1, 1]
    rates = [float(row["learning_rate"]) for row in table(tmp_path / "metrics.csv")]
    assert rates == pytest.approx([0.25, 0.5, 0.5 * math.sqrt(2 / 3), 0.5 * math.sqrt(2 / 4)])


def test_training_without_validation_uses_all_rows(tmp_path):
    settings = {**SMALL, "limit": None, "epochs": 2}
    result = training.train(Configuration.of("vae", "digits", valid="none", **settings), tmp_path)
    parts = data.load("digits")
    first, rows = table(tmp_path / "metrics.csv")[0], len(parts["train"]) + len(parts["valid"])
    assert int(first["step"]) == round(rows / 100) > round(len(parts["train"]) / 100)
    assert not [name for name in first if name.startswith("valid")]
    assert result["rows"] == {"test": len(parts["test"])}
    assert (tmp_path / "curves.png").is_file()
    with pytest.raises(
        ValueError, match="patience must be None for valid='none', which leaves no loss to watch, got 3"
    ):
        Configuration.of("vae", "digits", valid="none", patience=3)


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
    with pytest.raises(
        ValueError, match=r"f_raw must have at least 100 rows for num_terms=99 .* or set num_terms to 49"
    ):
        training.train(
            Configuration.of("echo", "digits", limit=50, model_settings={"num_terms": 99}), tmp_path / "echo"
        )
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

    def full(self, content, **options):
        if content["epoch"] == 3:
            monkeypatch.setattr(os, "fsync", refuse)
        save(self, content, **options)

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as small_disk:
        small_disk.setattr(RunDirectory, "save_checkpoint", full)
        fsync = os.fsync
        with pytest.raises(OSError, match="epoch 3 could not be written"):
            training.train(configuration, tmp_path / "full")
        monkeypatch.setattr(os, "fsync", fsync)
    assert checkpoint(tmp_path / "full")["epoch"] == checkpoint(tmp_path / "full", "best.ckpt")["epoch"] == 2
    training.train(configuration, tmp_path / "full", resume=True)
    for name in ("last.ckpt", "best.ckpt"):
        assert same(checkpoint(tmp_path / "alone", name), checkpoint(tmp_path / "full", name))


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
    return path, training.train(
        Configuration.of("echo", "digits", beta=0.5, seed=2, **ECHO), path, loggers=["tensorboard"]
    )


def test_run_directory_has_all_files(echo_run):
    path, result = echo_run
    names = {"config.yaml", "metrics.csv", "result.json", "last.ckpt", "best.ckpt"}
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
    assert {"torch", "lightning-fabric", "echo-ext"} <= result["versions"].keys()
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
    model, parts = training.load(path).model, training.load(path).configuration.load_data()
    x, y = (parts[name][:] for name in ("train", "test"))
    with torch.no_grad():
        codes = [model.encode_mean(each[0]) for each in (x, y)]
    for k, name in ((1, "knn_accuracy_k1"), (3, "knn_accuracy_k3"), (5, "knn_accuracy"), (10, "knn_accuracy_k10")):
        assert found[name] == pytest.approx(metrics.knn_accuracy(codes[0], x[1], codes[1], y[1], k=k), abs=0.01)
    assert found["noise_total_correlation"] >= 0
    assert found["noise_log_det"] == 2 * found["noise_total_correlation"]
    torch.manual_seed(0)
    correlation = torch.corrcoef(model.channel.sample(100_000).double().T)
    assert found["noise_log_det"] == pytest.approx(-float(torch.logdet(correlation)), abs=0.1)
    assert "importance_nll" not in found
    assert json.loads((path / "evaluation.json").read_text()) == found
    assert {"marginal_activations.png", "rate_against_activation.png"} <= {file.name for file in path.iterdir()}
    with pytest.raises(TypeError, match="importance sampling needs the density"):
        training.evaluate(path, importance_draws=2)


@pytest.mark.usefixtures("no_figures")
def test_importance_sampled_nll_is_below_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(likelihood, "UNRELIABLE_SHARE", 1)
    training.train(Configuration.of("vae", "digits", **SMALL), tmp_path)
    found = training.evaluate(tmp_path, importance_draws=30, importance_rows=300)
    assert found["importance_nll"] < found["neg_elbo"]
    assert found["importance_rows"] == 300
    effective = found["importance_effective_draws"]
    assert effective == sorted(effective)
    assert 1 <= effective[0] <= effective[-1] <= 30
    assert found["importance_warning"] is None


@pytest.mark.usefixtures("no_figures")
def test_importance_sampling_uses_all_test_rows_and_warns(tmp_path, monkeypatch):
    training.train(Configuration.of("vae", "digits", **SMALL), tmp_path)
    monkeypatch.setattr(likelihood, "UNRELIABLE_SHARE", -1)
    with pytest.warns(RuntimeWarning, match="% of the rows have too few effective draws"):
        found = training.evaluate(tmp_path, importance_draws=20)
    assert found["importance_rows"] == len(data.load("digits")["test"])
    assert "-log p(x) is overestimated" in found["importance_warning"]


class Shifted(Model):
    """Codes that are x with Gaussian noise, so that I(x; z) and the error are known."""

    NOISE = 0.5

    def __init__(self):
        super().__init__((2,))

    def loss(self, x):
        raise NotImplementedError

    def encode(self, x):
        return x + self.NOISE * torch.randn_like(x)

    def decode(self, z):
        return z + 3.0

    def sample(self, n):
        raise NotImplementedError


def test_information_and_error_of_vectors_in_closed_form():
    measures = evaluation._vector_measures(Shifted(), 2 * torch.randn(4000, 2))
    # The estimate has a bias of -0.04 and a standard deviation of 0.02 here.
    assert measures["information_ksg"] == pytest.approx(math.log(1 + 4 / Shifted.NOISE**2), abs=0.15)
    assert measures["rmse"] == pytest.approx(math.sqrt(9 + Shifted.NOISE**2), abs=0.05)


@pytest.mark.usefixtures("no_figures")
def test_evaluation_of_vectors_and_number_of_parameters(tmp_path):
    settings = {"hidden": [7], "objective": "vae"}
    configuration = Configuration.of("mim", "gmm2d", latent_dim=3, limit=200, epochs=1, model_settings=settings)
    result = training.train(configuration, tmp_path)
    assert result["parameters"] == (2 * 7 + 7) + (7 * 6 + 6) + (3 * 7 + 7) + (7 * 4 + 4)  # encoder, decoder
    found = training.evaluate(tmp_path)
    assert found["rmse"] > 0
    assert math.isfinite(found["information_ksg"])


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
        assert row.neg_elbo_std == pytest.approx(row.neg_elbo_error * math.sqrt(3))
    assert [float(row["distortion"]) for row in table(tmp_path / "table.csv")] == [row.distortion for row in rows]
    assert json.loads((tmp_path / "table.json").read_text())[0]["rate"] == rows[0].rate
    assert (tmp_path / "rate_distortion.png").stat().st_size > 10_000

    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/last.ckpt")}
    again = training.sweep(grid, tmp_path, show_progress=False)
    assert again.table.equals(done.table)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/last.ckpt")} == before
    with pytest.raises(FileExistsError, match="contains another run, with epochs 2, not 4"):
        training.sweep([Configuration.of("vae", "digits", beta=0.5, seed=0, **SMALL)], tmp_path)


def test_table_averages_every_measure_without_the_extremes():
    """Of ten runs the best and the worst by -ELBO are left out; what a run does not have is no number."""
    losses = torch.randn(10, dtype=torch.float64).mul(3).add(90).tolist()
    common = {
        "recipe": "echo",
        "data": "digits",
        "beta": 2.0,
        "draws": 4,
        "rows": {"test": 9},
        "parameters": 77,
        "seconds": 1.0,
    }
    results = [
        {**common, "seed": seed, "rate": 0.1 * seed, "rate_error": 9.0, "distortion": loss - 0.1 * seed}
        | {"neg_elbo": loss, "mig": None if seed == 4 else loss / 7, "nothing": None, "latent_information": [1.0]}
        for seed, loss in enumerate(losses)
    ]
    kept = sorted(results, key=lambda each: each["neg_elbo"])[2:-2]
    (row,) = sweeping._table(results, 2).to_dict("records")
    assert row["seeds"] == 6
    for name in ("rate", "distortion", "neg_elbo", "mig", "parameters"):
        values = [each[name] for each in kept if each[name] is not None]
        assert row[name] == pytest.approx(statistics.mean(values))
        assert row[f"{name}_std"] == pytest.approx(statistics.stdev(values), abs=1e-12)
        assert row[f"{name}_error"] == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-12)
    assert (
        not {"nothing", "beta_std", "seed", "draws", "rows", "seconds", "latent_information", "rate_error_std"}
        & row.keys()
    )
    (row,) = sweeping._table(results).to_dict("records")
    assert (row["seeds"], row["neg_elbo"]) == (10, pytest.approx(statistics.mean(losses)))
    assert sweeping._table(results[:4], 2).empty
    assert sweeping._table([]).empty


@pytest.mark.usefixtures("no_figures")
def test_evaluated_sweep_averages_scores_and_trims(tmp_path, monkeypatch):
    evaluated = []
    evaluate = sweeping.evaluate_run
    monkeypatch.setattr(sweeping, "evaluate_run", lambda path, **more: evaluated.append(path) or evaluate(path, **more))
    grid = [Configuration.of("vae", "digits", seed=seed, **{**SMALL, "epochs": 1}) for seed in (0, 1, 2)]
    training.sweep(grid[:1], tmp_path, show_progress=False)
    assert not evaluated
    (row,) = training.sweep(grid, tmp_path, evaluate=True, show_progress=False).table.to_dict("records")
    assert sorted(evaluated) == sorted(tmp_path / f"vae-beta1-seed{seed}" for seed in (0, 1, 2))
    found = [json.loads((path / "evaluation.json").read_text()) for path in sorted(evaluated)]
    for name in ("knn_accuracy", "knn_accuracy_k1", "rate"):
        values = [each["rate_bound" if name == "rate" else name] for each in found]
        assert row[name] == pytest.approx(statistics.mean(values))
        assert row[f"{name}_std"] == pytest.approx(statistics.stdev(values), abs=1e-12)

    evaluated.clear()
    (tmp_path / "vae-beta1-seed1" / "evaluation.json").write_text("{")
    (row,) = training.sweep(grid, tmp_path, evaluate=True, trim=1, show_progress=False).table.to_dict("records")
    assert evaluated == [tmp_path / "vae-beta1-seed1"]
    middle = statistics.median(each["neg_elbo"] for each in found)
    assert (row["seeds"], row["neg_elbo"]) == (1, pytest.approx(middle))
    assert float(table(tmp_path / "table.csv")[0]["neg_elbo"]) == row["neg_elbo"]
    with pytest.raises(ValueError, match="trim must be less than half the number of seeds, which is 3 for 'vae'"):
        training.sweep(grid, tmp_path, trim=2)
    with pytest.raises(ValueError, match="trim must be at least 0, got -1"):
        training.sweep(grid, tmp_path, trim=-1)


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
settings = {"limit": 800, "epochs": 3, "batch_size": batch_size, "learning_rate": 3e-3, "patience": 3}
settings["model_settings"] = model
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
    assert RunDirectory(tmp_path / "run").result()["best_epoch"] == 1 + losses.index(min(losses))
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
    settings = {"limit": 800, "epochs": 3, "learning_rate": 3e-3, "batch_size": 40, "patience": 3}
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
