"""Runs that stop at a deadline, and sweeps of several processes that are stopped and killed."""

import contextlib
import itertools
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training_cases import PassesAfter, checkpoint, same, without_progress

from echo_ext import EchoChannel, cli, training
from echo_ext.cli.sweep import _print_equal_rate
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.training import Configuration, Deadline, RunDirectory, TimeLimitReached, running, sweeping
from echo_ext.training.processes import run_in_processes
from echo_ext.training.sweeping import EQUAL_RATES, at_equal_rate, matched_by_rate, series_label

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent
BATCHES = {"limit": 230, "batch_size": 50}


# ---- One run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["echo", "vae-vamp", "echo-tc", "mim"])
def test_run_stopped_at_any_step_resumes_bit_equal(tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)
    monkeypatch.setattr(running, "MINIMUM_SECONDS", -1.0)
    model = {"num_terms": 20} if recipe.startswith("echo") else {"hidden": [16]}
    configuration = Configuration.of(
        recipe,
        "digits",
        **{**BATCHES, "epochs": 6, "latent_dim": 3, "warm_up_epochs": 2, "model_settings": model},
        binarization="dynamic",
    )
    alone = training.train(configuration, tmp_path / "alone")
    stops, result = 0, None
    while result is None:
        with contextlib.suppress(TimeLimitReached):
            deadline = PassesAfter(random.randrange(6))
            result = training.train(configuration, tmp_path / "stopped", resume=stops > 0, deadline=deadline)
        stops += result is None
    assert stops >= 4  # of 30 steps, with at most 6 at a time
    assert same(checkpoint(tmp_path / "alone"), checkpoint(tmp_path / "stopped"))
    assert result == {**alone, "seconds": result["seconds"]}
    histories = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("alone", "stopped")]
    assert len(histories[0]) == len(histories[1]) == 7


def test_run_stopped_in_its_first_epoch_has_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "MINIMUM_SECONDS", -1.0)
    configuration = Configuration.of(
        "vae", "digits", limit=230, batch_size=50, epochs=1, model_settings={"hidden": [8]}
    )
    with pytest.raises(TimeLimitReached, match=r"the time limit was reached in step 3 of epoch 1"):
        training.train(configuration, tmp_path, deadline=PassesAfter(1))
    with pytest.raises(FileNotFoundError, match=r"no epoch of the run in .* was finished"):
        training.load(tmp_path)


def test_short_time_limit_makes_progress(tmp_path):
    configuration = Configuration.of("vae", "digits", epochs=10_000, latent_dim=2, model_settings={"hidden": [8]})
    passed = Deadline.after(1e-9)
    with pytest.raises(TimeLimitReached):
        training.train(configuration, tmp_path, deadline=passed)
    assert len(checkpoint(tmp_path)["unfinished_epoch"]["costs"]["values"]) + checkpoint(tmp_path)["epoch"] > 0
    with pytest.raises(ValueError, match="time_limit must be a finite number above 0, got 0"):
        training.sweep([configuration], tmp_path / "sweep", time_limit=0)
    with pytest.raises(ValueError, match="time_limit must be a finite number above 0, got nan"):
        Deadline.after(float("nan"))
    assert not (tmp_path / "sweep").exists()


def test_sweep_without_finished_runs_has_empty_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "MINIMUM_SECONDS", -1.0)
    configuration = Configuration.of("vae", "digits", epochs=10_000, latent_dim=2, model_settings={"hidden": [8]})
    done = training.sweep([configuration], tmp_path, time_limit=1e-3)
    assert done.unfinished == ["vae-beta1-seed0"]
    assert done.table.empty
    assert done.equal_rate.empty
    assert not (tmp_path / "table.csv").exists()


def test_deadline_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="deadline must be None for several processes"):
        training.train(Configuration.of("vae", "digits"), tmp_path / "run", deadline=Deadline.after(1))
    assert not (tmp_path / "run").exists()


def test_leftovers_of_a_killed_process_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)
    configuration = Configuration.of("vae", "digits", limit=100, epochs=1, latent_dim=2, model_settings={"hidden": [8]})
    RunDirectory(tmp_path).begin(configuration)
    (tmp_path / ".part-abc").mkdir()
    (tmp_path / ".part-abc" / "last.ckpt").write_bytes(b"half a checkpoint")
    training.train(configuration, tmp_path, resume=True)
    names = {"config.yaml", "last.ckpt", "best.ckpt", "metrics.csv", "result.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_device_out_of_memory_fails_only_one_run(capsys, tmp_path, monkeypatch):
    loss = Autoencoder.loss

    def allocate_too_much(self, x):
        if self.beta == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 MiB free.")
        return loss(self, x)

    monkeypatch.setattr(Autoencoder, "loss", allocate_too_much)
    words = ["sweep", "--recipe", "vae", "--data", "digits", "--beta", "2,1", "--limit", "100", "--epochs", "1"]
    assert cli.main([*words, "--set", "hidden=[8]", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "echo-ext sweep: error: RuntimeError: 1 of 2 runs failed; the first error is that of vae-beta2-seed0: "
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 MiB free. "
        "(--debug shows where)\n"
    )
    assert "vae-beta1-seed0: -ELBO" in captured.out
    assert not (tmp_path / "vae-beta2-seed0").exists()
    assert (tmp_path / "table.csv").is_file()


def test_damaged_result_does_not_stop_the_sweep(tmp_path):
    settings = {"limit": 100, "epochs": 1, "latent_dim": 2, "model_settings": {"hidden": [8]}}
    grid = [Configuration.of("vae", "digits", seed=seed, **settings) for seed in (0, 1, 2)]
    assert training.sweep(grid[:2], tmp_path).unfinished == []
    (tmp_path / "vae-beta1-seed0" / "result.json").write_text("")
    (tmp_path / "vae-beta1-seed1" / ".part-left").mkdir()  # left by a process that was killed at its end
    done = training.sweep(grid, tmp_path)
    assert not (tmp_path / "vae-beta1-seed1" / ".part-left").exists()
    assert list(done.failures) == ["vae-beta1-seed0"]
    assert "result.json is damaged" in done.failures["vae-beta1-seed0"]
    assert list(done.table["seeds"]) == [2]


# ---- Comparison at equal rates ---------------------------------------------------------------------------------------


def on_a_line(recipe, seed, rates, slope, offset):
    name = "rate" if recipe == "echo" else "rate_bound"
    return [{"recipe": recipe, "seed": seed, name: rate, "distortion": offset - slope * rate} for rate in rates]


def test_lines_are_compared_at_equal_rates():
    echo = [
        each for seed, rates in enumerate([(9, 2, 4), (1, 8)]) for each in on_a_line("echo", seed, rates, 2, 90 + seed)
    ]
    vae = [each for seed in range(3) for each in on_a_line("vae", seed, (3, 5, 6, 12), 1, 80 + 3 * seed)]
    single = on_a_line("vae", 7, (100,), 1, 0)
    found = at_equal_rate([*echo, *vae, *single])
    rates = np.linspace(3, 8, EQUAL_RATES)  # what all curves have in common
    assert list(found["recipe"]) == ["echo"] * EQUAL_RATES + ["vae"] * EQUAL_RATES
    assert list(found["seeds"]) == [2] * EQUAL_RATES + [3] * EQUAL_RATES
    np.testing.assert_allclose(found["rate"], [*rates, *rates])
    np.testing.assert_allclose(found["distortion"], [*(90.5 - 2 * rates), *(83 - rates)])
    np.testing.assert_allclose(found["distortion_std"], [math.sqrt(0.5)] * EQUAL_RATES + [3] * EQUAL_RATES)
    np.testing.assert_allclose(found["distortion_error"], [0.5] * EQUAL_RATES + [math.sqrt(3)] * EQUAL_RATES)


def test_curves_are_not_extrapolated():
    curves = [
        *on_a_line("echo", 0, (2, 4), 1, 9),
        *on_a_line("echo", 1, (3, 6), 1, 11),
        *on_a_line("vae", 0, (5, 7), 1, 9),
    ]
    assert at_equal_rate(curves).empty  # they have no range in common
    assert at_equal_rate(curves[:1]).empty
    found = at_equal_rate(curves, rates=[1, 2.5, 3.5, 5, 8])
    assert list(found["seeds"]) == [0, 1, 2, 1, 0, 0, 0, 0, 1, 0]
    np.testing.assert_allclose(found["distortion"][:5], [math.nan, 6.5, 6.5, 6, math.nan])
    assert found["distortion_error"][:5].isna().tolist() == [True, True, False, True, True]


def test_sweep_compares_at_equal_rates_above_the_minimum(capsys, tmp_path):
    words = [
        "sweep",
        "--recipe",
        "echo",
        "vae",
        "--data",
        "digits",
        "--beta",
        "0.01,50",
        "--limit",
        "100",
        "--epochs",
        "9",
    ]
    words += ["--set", "architecture=mlp", "--set", "hidden=[16]", "--latent-dim", "3", "--batch-size", "20"]
    assert cli.main([*words, "--learning-rate", "0.01", "--out", str(tmp_path)]) == 0
    floor = 3 * EchoChannel(19).min_rate
    result = json.loads((tmp_path / "echo-beta50-seed0" / "result.json").read_text())
    assert result["min_rate"] == pytest.approx(floor)
    assert result["rate"] >= floor - 1e-5
    assert "min_rate" not in json.loads((tmp_path / "vae-beta50-seed0" / "result.json").read_text())
    lines = (tmp_path / "equal_rate.csv").read_text().splitlines()
    assert lines[0] == "recipe,rate,seeds,distortion,distortion_std,distortion_error"
    assert len(lines) == 1 + 2 * EQUAL_RATES
    assert "distortion at equal rates, interpolated between betas\nrate" in capsys.readouterr().out


def test_figure_shows_runs_of_similar_rate():
    rates = {"vae": (1, 4.4, 9, 30), "echo": (20, 5, 7, 6, 8, 21, 11), "vae-maf": (5.9,)}
    results = [
        {"recipe": recipe, "seed": seed, ("rate" if recipe == "echo" else "rate_bound"): rate + seed / 8}
        | ({"min_rate": 4.0} if recipe == "echo" else {})
        for recipe, each in rates.items()
        for rate in each
        for seed in (0, 1)
    ]
    chosen = [results[index] for index in matched_by_rate(results)]
    found = [(each["recipe"], each.get("rate", each.get("rate_bound"))) for each in chosen]
    matches = {5: (4.525, 5.9), 7: (9, 6.025), 11: (9.125, 6.025), 21: (30, 6.025)}
    assert found == [
        pair for rate, (vae, maf) in matches.items() for pair in [("echo", rate), ("vae", vae), ("vae-maf", maf)]
    ]
    assert matched_by_rate([]) == []


def test_curves_of_echo_have_its_minimum_rate(tmp_path, monkeypatch):
    from echo_ext import plots

    seen, curves = [], plots.curves
    monkeypatch.setattr(
        plots, "curves", lambda history, rate_floor: seen.append(rate_floor) or curves(history, rate_floor=rate_floor)
    )
    settings = {"limit": 40, "epochs": 1, "latent_dim": 3, "batch_size": 20, "model_settings": {"hidden": [8]}}
    for recipe in ("echo", "vae"):
        training.train(Configuration.of(recipe, "digits", **settings), tmp_path / recipe)
    assert seen == [pytest.approx(3 * EchoChannel(19).min_rate), None]


def test_figure_has_mean_reconstructions_and_their_rates(tmp_path, monkeypatch):
    from echo_ext import plots

    seen = []
    reconstruct, curves = Autoencoder.reconstruct, plots.rate_distortion_curves
    monkeypatch.setattr(
        Autoencoder, "reconstruct", lambda model, x, draws=1: seen.append(draws) or reconstruct(model, x, draws)
    )
    monkeypatch.setattr(
        plots,
        "rate_distortion_curves",
        lambda measured, **options: seen.append((list(measured), options)) or curves(measured, **options),
    )
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)
    settings = {"limit": 100, "epochs": 1, "latent_dim": 2, "batch_size": 20}
    grid = [Configuration.of("vae", "digits", **settings, model_settings={"hidden": [width]}) for width in (8, 4)]
    rates = training.sweep(grid, tmp_path).table["rate"]
    labels = ["vae, hidden=[8]", "vae, hidden=[4]"]
    *draws, (curve_labels, options) = seen
    assert (draws, curve_labels) == ([10, 10], labels)
    shown = [f"{label}, {rate:.1f} nats" for label, rate in zip(labels, rates, strict=True)]
    assert list(options["reconstructed"]) == ["test image", *shown]
    assert options["min_rates"] is None


# ---- Model settings --------------------------------------------------------------------------------------------------


def mim(seed=0, epochs=1, **settings):
    more = {"seed": seed, "epochs": epochs, "model_settings": settings}
    return Configuration.of("mim", "gmm2d", limit=100, latent_dim=2, patience=None, **more)


def test_grid_of_model_settings_is_averaged_over_its_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(running.evaluation, "write_figures", lambda *_: None)
    points = list(itertools.product(([4], [8, 8]), ("vae", "mim")))
    grid = [mim(seed, hidden=hidden, objective=objective) for seed in (0, 1) for hidden, objective in points]
    done = training.sweep(grid, tmp_path)
    assert done.settings == ["hidden", "objective"]
    rows = done.table.to_dict("records")
    assert [(row["hidden"], row["objective"], row["seeds"]) for row in rows] == [
        (str(hidden), objective, 2) for hidden, objective in points
    ]
    for row, (hidden, objective) in zip(rows, points, strict=True):
        folders = [f"mim-beta1-seed{seed}-hidden{'_'.join(map(str, hidden))}-objective{objective}" for seed in (0, 1)]
        losses = [RunDirectory(tmp_path / folder).result()["neg_elbo"] for folder in folders]
        assert row["neg_elbo"] == pytest.approx(statistics.mean(losses))
        assert row["neg_elbo_std"] == pytest.approx(statistics.stdev(losses))
    assert (tmp_path / "table.csv").read_text().startswith("recipe,hidden,objective,beta,seeds,rate_name,rate,")
    assert json.loads((tmp_path / "table.json").read_text())[3]["hidden"] == "[8, 8]"
    with pytest.raises(ValueError, match=r"which is 2 for 'mim, hidden=\[4\], objective=vae' at beta 1, got 1"):
        training.sweep(grid, tmp_path, trim=1)


def test_extreme_seeds_are_those_of_each_series():
    losses = {1: [5, 90, 7, 6], 0.5: [50, 60, 40, 0], "": [1, 2, 3, 4]}
    results = [
        {"recipe": "echo", "gain": gain, "beta": 1.0, "seed": seed, "rate": 0.0, "distortion": loss, "neg_elbo": loss}
        for gain, each in losses.items()
        for seed, loss in enumerate(each)
    ]
    table = sweeping._table(results, 1, ["gain"])
    assert list(table["gain"]) == [1, 0.5, ""]
    assert list(table["neg_elbo"]) == [6.5, 45, 2.5]
    assert "gain_std" not in table


def test_series_have_curves_of_their_own(capsys):
    lines = {1: (2, 90), 0.5: (1, 80)}
    results = [{**each, "gain": gain} for gain, line in lines.items() for each in on_a_line("echo", 0, (2, 6), *line)]
    found = at_equal_rate(results, settings=["gain"])
    rates = np.linspace(2, 6, EQUAL_RATES)
    assert list(found.columns[:3]) == ["recipe", "gain", "rate"]
    np.testing.assert_allclose(found["distortion"], [*(90 - 2 * rates), *(80 - rates)])
    assert [results[index]["gain"] for index in matched_by_rate(results, ["gain"])] == [1, 0.5, 1, 0.5]
    _print_equal_rate(found, ["gain"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ") == ["rate", "echo, gain=1", "echo, gain=0.5"]
    assert lines[-1].split() == ["6.00", "78.00", "74.00"]
    assert series_label({"recipe": "vae", "gain": "", "sync": True}, ["gain", "sync"]) == "vae, sync=true"


@pytest.mark.parametrize(
    ("other", "folder"),
    [
        (mim(prior="a/b"), "mim-beta1-seed0"),
        (mim(prior="a/b", epochs=2), "mim-beta1-seed0"),
        (mim(prior="a:b"), "mim-beta1-seed0-priora_b"),
    ],
)
def test_runs_of_one_folder_are_refused(tmp_path, other, folder):
    complaint = "configurations must differ in recipe, beta, seed or the letters and digits of a model setting, got two"
    with pytest.raises(ValueError, match=f"{complaint} for the folder '{folder}'; leave one of them out"):
        training.sweep([mim(prior="a/b"), other], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


# ---- Calls in processes ----------------------------------------------------------------------------------------------


class Unpicklable(Exception):
    def __init__(self, left, right):
        super().__init__(f"{left} and {right}")


def call(what):
    """The call that the tests make in other processes."""
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raises":
        raise ValueError("what must not be 'raises'")
    if what == "raises an unpicklable error":
        raise Unpicklable(1, 2)
    return what, os.getpid(), torch.get_num_threads()


def test_calls_in_processes_fail_independently():
    calls = {what: (what,) for what in ("returns", "dies", "raises", "raises an unpicklable error", "returns too")}
    outcomes = dict(run_in_processes(call, calls, 2))
    assert outcomes.keys() == calls.keys()
    assert {outcomes["returns"][0], outcomes["returns too"][0]} == {"returns", "returns too"}
    assert len({os.getpid(), outcomes["returns"][1], outcomes["returns too"][1]}) == 3
    assert str(outcomes["dies"]) == "its process ended with exit code -9"
    assert (type(outcomes["raises"]), str(outcomes["raises"])) == (ValueError, "what must not be 'raises'")
    assert str(outcomes["raises an unpicklable error"]) == "Unpicklable: 1 and 2"


def test_processes_share_threads_and_obey_may_start():
    torch.set_num_threads(4)
    (only,) = run_in_processes(call, {"a": ("a",)}, 2)
    assert (only[0], only[1][2]) == ("a", 2)
    assert list(run_in_processes(call, {"a": ("a",)}, 2, may_start=lambda: False)) == []


# ---- Sweeps from the shell -------------------------------------------------------------------------------------------

GRID = ("sweep", "--recipe", "echo", "vae", "--data", "digits", "--beta", "1", "--seeds", "0,1", "--limit", "400")
GRID += ("--latent-dim", "2", "--set", "hidden=[32]", "--binarization", "dynamic")
RUNS = [f"{recipe}-beta1-seed{seed}" for seed in (0, 1) for recipe in ("echo", "vae")]


def start(*words):
    """Start the command in its own process group and capture its output."""
    return subprocess.Popen(
        [sys.executable, "-m", "echo_ext", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_all(group, seconds=60.0):
    """Wait until no process of the group is left."""
    until = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.02)
        raise AssertionError("processes outlive the sweep")


def unfinished(out):
    return [name for name in RUNS if not (out / name / "result.json").is_file()]


@pytest.mark.parametrize(
    ("interruptions", "epochs", "seconds"), [(3, 30, 5), pytest.param(10, 800, 12, marks=pytest.mark.slow)]
)
def test_stopped_and_killed_sweep_resumes_bit_equal(tmp_path, interruptions, epochs, seconds):
    out = tmp_path / "broken"
    grid = (*GRID, "--epochs", epochs)
    results, turns = {}, 0
    kinds = ["limit", signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    for turn in range(interruptions):
        kind = kinds[turn % len(kinds)]
        if not unfinished(out):
            break
        turns += 1
        limit = ("--time-limit", f"{random.uniform(0.5, 3):.2f}s") if kind == "limit" else ()
        sweep = start(*grid, "--out", out, "--jobs", "2", *limit)
        if kind != "limit":
            time.sleep(random.uniform(0, seconds))
            sweep.send_signal(kind)
        printed, errors = sweep.communicate(timeout=100)
        errors = without_progress(errors)
        wait_for_all(sweep.pid)
        if kind == "limit":
            assert (sweep.returncode, errors) == (0, "")
            if unfinished(out):
                assert f"the time limit was reached: {len(unfinished(out))} of 4 runs are not finished" in printed
        elif kind == signal.SIGKILL:
            assert sweep.returncode in (0, -signal.SIGKILL)
        elif "interrupted" in errors:
            assert sweep.returncode == 130
            assert errors == "echo-ext sweep: interrupted; run the same command again to continue\n"
        for name in RUNS:
            file = out / name / "result.json"
            if file.is_file():
                assert results.setdefault(name, file.stat().st_mtime_ns) == file.stat().st_mtime_ns, (
                    "a run was repeated"
                )

    assert turns == interruptions or epochs < 100  # the short sweep may finish earlier
    for path, jobs in ((out, 2), (tmp_path / "alone", 1)):
        sweep = start(*grid, "--out", path, "--jobs", jobs)
        printed, errors = sweep.communicate(timeout=500)
        assert (sweep.returncode, without_progress(errors)) == (0, "")
        assert unfinished(path) == []
    assert all((out / name / "result.json").stat().st_mtime_ns == when for name, when in results.items())
    for name in RUNS:
        assert same(checkpoint(tmp_path / "alone" / name), checkpoint(out / name))
    assert [file for file in out.rglob("*") if ".part-" in str(file)] == []
    assert (out / "table.csv").read_text() == (tmp_path / "alone" / "table.csv").read_text()


@pytest.mark.parametrize("limit", ["0", "0s", "-3m", "soon", "", "9m5h"])
def test_invalid_time_limit_is_refused(capsys, tmp_path, limit):
    assert cli.main([*GRID, "--out", str(tmp_path / "sweep"), f"--time-limit={limit}"]) == 2
    complaint = f"--time-limit must be a positive time, such as 90s, 9m or 1h30m, got {limit!r}"
    assert capsys.readouterr().err == f"echo-ext sweep: error: {complaint}\n"
    assert not (tmp_path / "sweep").exists()
