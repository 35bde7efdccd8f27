"""The commands recipes, train, evaluate and sweep: their output and exit codes, and runs that are killed."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from training_cases import without_progress

from echo_ext import cli, metrics, models
from echo_ext.cli.train import settings
from echo_ext.metrics import likelihood
from echo_ext.training.configuration import SETTINGS, Configuration
from echo_ext.training.sweeping import Sweep

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

HERE = Path(__file__).parent
TRAIN = ("train", "--recipe", "vae", "--data", "digits")
QUICK = ("--limit", "150", "--epochs", "2", "--latent-dim", "2", "--set", "hidden=[8]")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fail(capsys, *argv):
    """Run a command that fails; return its exit code and its one line on stderr."""
    try:
        code = cli.main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("echo-ext")
    assert captured.out == ""
    return code, captured.err


def test_recipes_prints_one_line_per_recipe(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in lines} == models.recipes()


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("train", "--data", "digits"), "--recipe is missing"),
        (("train", "--recipe", "vae"), "--data is missing"),
        (("train", "--recipe", "vay", "--data", "digits"), "there is no recipe 'vay'; the most similar are vae"),
        (("train", "--recipe", "vae", "--data", "digit"), "no data set 'digit'"),
        (("train", "--recipe", "vae", "--data", "mnist", "--data-dir", "/nowhere/at/all"), "/nowhere/at/all"),
        ((*TRAIN, "--latent-dim", "0"), "error: --latent-dim must be at least 1, got 0"),
        ((*TRAIN, "--beta", "-1"), "error: --beta must be a finite number of at least 0, got -1.0"),
        ((*TRAIN, "--set", "hidden"), "--set must be NAME=VALUE, got 'hidden'"),
        ((*TRAIN, "--set", "hidden=[1"), "--set hidden must be YAML, got '[1'"),
        ((*TRAIN, "--set", "hiden=1"), "there is no model setting 'hiden'; the most similar are hidden"),
        ((*TRAIN, "--set", "architecture=conv28"), "(channels, 28, 28) for architecture 'conv28', got (1, 8, 8)"),
        ((*TRAIN, "--resume"), "there is nothing to resume in runs/vae-digits-beta1-seed0"),
        (("train", "--resume", "--out", "empty"), "there is no run in empty"),
        (("train", "--resume"), "--resume needs --out, or --recipe and --data of the run"),
        ((*TRAIN, "--device", "abacus"), "--device must be cpu, cuda or cuda:N, got 'abacus'"),
        (("evaluate", "empty"), "there is no run in empty"),
        (("evaluate", "empty", "--draws", "0"), "--draws must be at least 1, got 0"),
        (("evaluate", "empty", "--importance-rows", "0"), "--importance-rows must be at least 1, got 0"),
        (
            ("evaluate", "empty", "--information-method", "guess"),
            "--information-method must be one of 'formula', 'knn', got 'guess'",
        ),
        ((*TRAIN, "--patience", "0"), "error: --patience must be at least 1, got 0"),
        (
            (*TRAIN, "--binarization", "odd"),
            "error: --binarization must be one of 'none', 'static', 'dynamic', got 'odd'",
        ),
        ((*TRAIN, "--set", "beta=2"), "error: --set must not contain beta, which is a setting of its own"),
        ((*TRAIN, "--set", "hidden=2020-01-01"), "error: --set must contain only numbers, strings, lists"),
        (("train", "--recipe", "mutual-ae", "--data", "digits", "--beta", "2"), "error: --beta must be 1 for recipe"),
        (
            ("sweep", "--recipe", "vae", "--data", "digits", "--beta", "1,two", "--out", "o"),
            "--beta must be numbers separated by commas, got '1,two'",
        ),
        (
            ("sweep", "--recipe", "vae", "mim", "--data", "digits", "--beta", "1,2", "--out", "o"),
            "--beta must be 1 for recipe 'mim', which has no such weight, got 2",
        ),
        *(
            (
                ("sweep", "--recipe", "vae", "--data", "digits", "--out", "o", "--set", f"hidden={values}"),
                f"--set hidden must be {what}, got '{values}'",
            )
            for what, wrong in (
                ("one or more values in YAML, separated by commas and none of them empty", ("", "[5],", "4,,5", "[5")),
                ("distinct values", ("[5],[6],[ 5 ]", "1,1.0")),
            )
            for values in wrong
        ),
        (("sweep", "--recipe", "vae", "--data", "digits", "--out", "o", "--set", "hidden"), "--set must be NAME=VALUE"),
        (
            ("sweep", "--recipe", "vae", "--data", "digits", "--beta", "1", "--out", "o", "--jobs", "0"),
            "--jobs must be at least 1, got 0",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_files(capsys, tmp_path, argv, complaint):
    code, line = fail(capsys, *argv)
    assert complaint in line
    assert code == 2
    assert list(tmp_path.iterdir()) == []


def test_every_setting_has_a_flag():
    parser = cli._parser()
    words = ["train", "--no-normalize-gradients", "--set", "a=1", "--warm-up-epochs", "3", "--patience", "none"]
    arguments = parser.parse_args(words)
    assert SETTINGS.keys() <= arguments.flags.keys()
    given = {"normalize_gradients": False, "model_settings": {"a": 1}, "warm_up_epochs": 3, "patience": None}
    assert settings(arguments) == given
    assert settings(parser.parse_args(["train"])) == {}
    assert settings(parser.parse_args(["train", "--set", "a=1,2"])) == {"model_settings": {"a": "1,2"}}


def test_none_switches_off_early_stopping(capsys):
    words = ["train", "--recipe", "convhvae-s-vae", "--data", "digits", "--patience"]
    for word, patience in (("none", None), ("7", 7)):
        given = settings(cli._parser().parse_args([*words, word]))
        assert Configuration.of(**given).patience == patience
    assert "invalid int or none value: 'never'" in fail(capsys, *words, "never")[1]
    assert "invalid int value: 'none'" in fail(capsys, *TRAIN, "--epochs", "none")[1]


def test_missing_packages_of_train_are_named_with_their_extra(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    code, line = fail(capsys, *TRAIN)
    assert code == 1
    assert "train needs lightning_fabric and matplotlib and tqdm and yaml: pip install 'echo-ext[train]'" in line


def test_run_is_reported_evaluated_and_protected(capsys):
    assert cli.main([*TRAIN, *QUICK, "--out", "run"]) == 0
    report = capsys.readouterr().out
    assert "rate bound" in report
    assert "written to run" in report
    assert cli.main(["evaluate", "run"]) == 0
    report = capsys.readouterr().out
    for measure in ("rate bound", "distortion", "-ELBO", "1-NN accuracy", "5-NN accuracy", "I(z_j; x)"):
        assert measure in report
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(likelihood, "UNRELIABLE_SHARE", -1)
        assert cli.main(["evaluate", "run", "--importance-draws", "20", "--importance-rows", "50"]) == 0
    captured = capsys.readouterr()
    assert "-log p(x) at most" in captured.out
    assert "effective draws of 20 on 50 test rows: median" in captured.out
    assert captured.err.startswith("echo-ext evaluate: warning: ")
    assert "% of the rows have too few effective draws" in captured.err
    assert captured.err.count("\n") == 1

    code, line = fail(capsys, *TRAIN, *QUICK, "--out", "run")
    assert (code, "contains this run already; resume it (--resume)" in line) == (2, True)
    for again in ((*TRAIN, *QUICK, "--beta", "2"), ("train", "--beta", "2")):
        code, line = fail(capsys, *again, "--out", "run", "--resume")
        assert (code, "contains another run, with beta 1.0, not 2.0" in line) == (2, True)
    code, line = fail(capsys, "train", "--recipe", "echo", "--data", "digits", "--out", "run", "--resume")
    assert (code, "contains another run, with recipe 'vae', not 'echo'" in line) == (2, True)

    Path("run/result.json").unlink()
    Path("run/last.ckpt").write_bytes(Path("run/last.ckpt").read_bytes()[:2000])
    for command in (("evaluate", "run"), ("train", "--resume", "--out", "run")):
        code, line = fail(capsys, *command)
        assert (code, "last.ckpt is damaged" in line) == (2, True)


def test_sweep_prints_its_table(capsys):
    words = ["sweep", "--recipe", "vae", "beta-vae", "--data", "digits", "--beta", "0.5,1", "--seeds", "0,1"]
    assert cli.main([*words, "--out", "grid", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith(("vae  ", "beta-vae  "))]
    assert [(row[0], row[1], row[2], row[3:5]) for row in rows] == [
        (recipe, beta, "2", ["rate", "bound"]) for recipe in ("vae", "beta-vae") for beta in ("0.5", "1")
    ]
    assert all(row.count("+-") == 3 for row in rows)
    assert "means over the seeds, +- standard errors" in lines
    words[words.index("0,1")] = "0,1,2"
    assert cli.main([*words, "--out", "grid", *QUICK, "--evaluate", "--trim", "1"]) == 0
    report = capsys.readouterr().out
    assert "5-NN accuracy" in report
    assert "means over the seeds, without the 1 best and worst by -ELBO, +- standard errors" in report
    code, line = fail(capsys, *words, "--out", "grid", *QUICK, "--trim", "2")
    assert (code, "--trim must be less than half the number of seeds, which is 3 for 'vae'" in line) == (2, True)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[5],[20],[500]", [[5], [20], [500]]),
        ("[256,256]", [[256, 256]]),
        ("vae,mim", ["vae", "mim"]),
        ("0.5, 1", [0.5, 1]),
        ("""'a,b',"c,d" """, ["a,b", "c,d"]),
        ("{a: 1, b: [2, 3]},null", [{"a": 1, "b": [2, 3]}, None]),
        ("true", [True]),
    ],
)
def test_values_of_set_are_an_axis_of_the_grid(monkeypatch, text, values):
    def sweep(configurations, *_, **__):
        runs.extend(configurations)
        return Sweep(pd.DataFrame(), {}, [], pd.DataFrame(), [])

    runs = []
    monkeypatch.setattr("echo_ext.training.sweep", sweep)
    words = ["sweep", "--recipe", "mim", "a-mim", "--data", "digits", "--seeds", "0,1", "--out", "grid"]
    assert cli.main([*words, "--set", "prior=a,b", "--set", f"hidden={text}"]) == 0
    found = [(run.seed, run.recipe, run.model_settings["prior"], run.model_settings["hidden"]) for run in runs]
    assert found == list(itertools.product((0, 1), ("mim", "a-mim"), ("a", "b"), values))
    assert {run.beta for run in runs} == {1}


def test_sweep_prints_the_settings_that_differ(capsys):
    words = ["sweep", "--recipe", "mim", "--data", "digits", "--set", "objective=vae,mim"]
    assert cli.main([*words, "--out", "grid", *QUICK, "--evaluate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == [
        f"mim-beta1-seed0-objective{each}" for each in ("vae", "mim")
    ]
    labels = [line.split("  ")[0] for line in lines if line.startswith("mim, ")]
    assert labels == 2 * ["mim, objective=vae", "mim, objective=mim"]  # of the two tables


def test_interrupted_run_prints_how_to_continue(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("echo_ext.training.running.fit", interrupt)
        code, line = fail(capsys, *TRAIN, *QUICK, "--out", "run")
    assert code == 130
    assert line.endswith("no epoch was finished; continue by: echo-ext train --resume --out run\n")
    assert cli.main(["train", "--resume", "--out", "run"]) == 0


def test_killed_and_terminated_run_resumes_bit_equal(tmp_path, one_thread):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    echo = ("train", "--recipe", "echo", "--data", "digits", "--set", "num_terms=20", "--binarization", "dynamic")
    settings = ("--limit", "400", "--epochs", "60", "--latent-dim", "2")
    broken = tmp_path / "broken"

    def start(*words):
        command = [sys.executable, "-m", "echo_ext", *map(str, words)]
        return subprocess.Popen(
            command, env=environment, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def epochs():
        metrics = broken / "metrics.csv"
        return metrics.read_text().count("\n") - 1 if metrics.exists() else 0

    run = start(*echo, *settings, "--out", broken)
    for signum, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        before = epochs()
        while epochs() < before + 2 and run.poll() is None:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.1))
        run.send_signal(signum)
        errors = without_progress(run.communicate(timeout=100)[1])
        assert run.returncode == code, errors
        run = start("train", "--resume", "--out", broken)
    assert errors.endswith(f"continue by: echo-ext train --resume --out {broken}\n")
    assert errors.count("\n") == 1
    assert cli.main([*echo, *settings, "--out", str(tmp_path / "alone")]) == 0
    errors = without_progress(run.communicate(timeout=100)[1])
    assert (run.returncode, errors) == (0, "")
    left, right = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("alone", "broken"))
    assert left["epoch"] == right["epoch"] == 60
    assert left["state_dict"].keys() == right["state_dict"].keys()
    assert all(torch.equal(left["state_dict"][name], right["state_dict"][name]) for name in left["state_dict"])


@pytest.mark.parametrize(("terms", "verdict"), [((3.0, 2.0), "all layers help"), ((3.0, -1.0), "1 of 2 help")])
def test_evaluate_says_which_layers_help(terms, verdict, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "layer_terms", lambda *_: torch.tensor(terms))
    assert (
        cli.main(
            ["train", "--recipe", "stacked-corex", *TRAIN[3:], *QUICK, "--set", "layerwise_steps=0", "--out", "run"]
        )
        == 0
    )
    assert cli.main(["evaluate", "run"]) == 0
    assert f"3.00, {terms[1]:.2f}; {verdict}" in capsys.readouterr().out
    found = json.loads(Path("run", "evaluation.json").read_text())
    assert found["total_correlation_bound"] == sum(terms)
    assert found["useful_layers"] == sum(term > 0 for term in terms)
