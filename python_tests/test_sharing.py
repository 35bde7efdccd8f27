"""Sharing of runs: export, push and pull, and the model card."""

import json
import shlex
import shutil
import socket
import time

import numpy as np
import pytest
import torch
import yaml
from training_cases import same

from echo_ext import cli, models, training
from echo_ext.cli.train import settings
from echo_ext.training import Configuration
from echo_ext.training.sharing import training_command

pytest.importorskip("huggingface_hub")
for needed in ("lightning_fabric", "matplotlib", "safetensors", "sklearn", "yaml"):
    pytest.importorskip(needed)

import hub_server  # noqa: E402
from huggingface_hub import ModelCard, constants  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "limit": 230,
    "latent_dim": 3,
    "epochs": 4,
    "patience": 2,
    "model_settings": {"hidden": [16], "bank_size": 128},
}
FILES = {"README.md", "config.json", "config.yaml", "metrics.csv", "model.safetensors", "result.json"}
FIGURES = {"reconstructions.png", "samples.png", "curves.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, which was evaluated."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("runs") / "echo"
    training.train(Configuration.of("echo", "digits", beta=0.5, seed=2, learning_rate=0.05, **SMALL), path)
    training.evaluate(path)
    return path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "user" / "name"
    training.export(run, folder, license="mit")
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported run."""
    return shutil.copytree(exported, tmp_path / "shared")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.Hub() as server:
        server.point_to(monkeypatch, server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield server


def change(file, **entries):
    read, write = (yaml.safe_load, yaml.safe_dump) if file.suffix == ".yaml" else (json.loads, json.dumps)
    file.write_text(write({**read(file.read_text()), **entries}))


def section(folder, name):
    return (folder / "README.md").read_text().split(f"## {name}\n")[1].split("\n## ")[0]


# ---- Files and card --------------------------------------------------------------------------------------------------


def test_exported_files(run, exported):
    more = {"evaluation.json", "marginal_activations.png", "rate_against_activation.png"}
    assert {file.name for file in exported.iterdir()} == FILES | FIGURES | more
    for name in ("result.json", "evaluation.json"):
        assert json.loads((exported / name).read_text()) == json.loads((run / name).read_text())
    for name in ("config.yaml", "metrics.csv", *FIGURES):
        assert (exported / name).read_bytes() == (run / name).read_bytes()
    assert same(dict(models.Model.from_pretrained(exported).state_dict()), dict(training.load(run).model.state_dict()))


def test_card_has_all_measures_and_figures(run, exported):
    result, evaluation = (json.loads((run / f"{name}.json").read_text()) for name in ("result", "evaluation"))
    table = section(exported, "Measures")
    assert f"| exact rate | {result['rate']:.3f} " in table
    assert f"| distortion | {result['distortion']:.3f} +- {evaluation['distortion_error']:.3f} |" in table
    assert f"| -ELBO | {result['neg_elbo']:.3f} +- " in table
    assert f"| 5-NN accuracy | {evaluation['knn_accuracy']:.3f} |" in table
    assert "Of 300 test rows" in table
    for name in FIGURES:
        assert f"]({name})" in table
    trained = section(exported, "How it was trained")
    assert f"| torch | {torch.__version__} |" in trained
    assert f"{result['epochs']} epochs took" in trained


def test_card_has_metadata_that_the_hub_reads(exported, run, tmp_path):
    data = ModelCard.load(exported / "README.md").data
    assert (data.library_name, data.license) == ("echo-ext", "mit")
    assert {"echo-ext", "echo"} <= set(data.tags)
    training.export(run, tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.license is None


def test_code_of_the_card_loads_the_model(exported, run, monkeypatch):
    monkeypatch.chdir(exported.parents[1])
    names = {}
    code = section(exported, "How to load it").split("```python\n")[1].split("```")[0]
    exec(code, names)
    assert same(dict(names["model"].state_dict()), dict(training.load(run).model.state_dict()))
    assert names["samples"].shape == (16, 1, 8, 8)


def test_command_of_the_card_is_that_of_the_run(exported, run):
    command = section(exported, "How it was trained").split("```shell\n")[1].split("\n```")[0]
    words = shlex.split(command)
    assert words[0] == "echo-ext"
    assert Configuration.of(**settings(cli._parser().parse_args(words[1:]))) == training.load(run).configuration


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("echo", {}),
        ("vae", {"beta": 1e-5, "limit": 100, "valid": "none", "binarization": "dynamic"}),
        ("mim", {"patience": None, "schedule": "constant", "warm_up_epochs": 0}),
        ("convhvae-s-mim", {"normalize_gradients": False, "warm_up_from_zero": False}),
        ("mim", {"model_settings": {"hidden": [5, 6], "activation": "tanh", "reference_means": [[0.5, -1e-7]]}}),
        ("echo", {"model_settings": {"initial_std": 1e-5, "gain": "auto", "sync": True, "target_rate": None}}),
    ],
)
def test_command_gives_the_configuration_again(recipe, given):
    configuration = Configuration.of(recipe, "digits", **given)
    words = shlex.split(training_command(configuration, (1, 8, 8)))
    again = Configuration.of(**settings(cli._parser().parse_args(words[1:])))
    assert again == configuration
    assert again.as_mapping() == configuration.as_mapping()


def test_paths_of_this_machine_are_not_shared(tmp_path):
    data = tmp_path / "private folder" / "rows.npz"
    data.parent.mkdir()
    np.savez(data, x=np.random.default_rng(0).random((60, 5)).astype("f4"))
    common = {"latent_dim": 2, "epochs": 1, "batch_size": 16, "model_settings": {"hidden": [4]}}
    training.train(Configuration.of("vae", data, **common), tmp_path / "first")
    second = Configuration.of("vae", data, initial_run=tmp_path / "first", **common)
    training.train(second, tmp_path / "second")
    training.export(tmp_path / "second", tmp_path / "out")
    for file in tmp_path.glob("out/*"):
        assert b"private folder" not in file.read_bytes()
        assert str(tmp_path).encode() not in file.read_bytes()
    assert "--data rows.npz" in section(tmp_path / "out", "How it was trained")
    pulled = training.pull(tmp_path / "out", tmp_path / "pulled")
    assert pulled.model.data_shape == (5,)
    training.sample(tmp_path / "pulled", 4)


# ---- Pull ------------------------------------------------------------------------------------------------------------


def test_pulled_run_is_the_run(run, exported, tmp_path):
    pulled = training.pull(exported, tmp_path / "deep" / "pulled")
    original = training.load(run)
    assert same(dict(pulled.model.state_dict()), dict(original.model.state_dict()))
    assert pulled.configuration == original.configuration
    assert pulled.history == original.history
    path = tmp_path / "deep" / "pulled"
    assert [file.name for file in path.parent.iterdir()] == ["pulled"]
    found = training.evaluate(path)
    assert found["neg_elbo"] == json.loads((run / "evaluation.json").read_text())["neg_elbo"]
    assert training.train(original.configuration, path, resume=True)["rate"] == found["rate"]  # it is finished


def test_pull_does_not_replace_files(folder, tmp_path):
    training.pull(folder, tmp_path / "out")
    with pytest.raises(FileExistsError, match="contains this run already"):
        training.pull(folder, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    with pytest.raises(FileExistsError, match="out must be a new or an empty folder"):
        training.pull(folder, tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("config.yaml", {"recipe": "ecko"}, "there is no recipe 'ecko'"),
        ("config.yaml", {"recipe": "echo-tc"}, "it belongs to another run, with recipe 'echo', not 'echo-tc'"),
        ("config.yaml", {"latent_dim": 4}, "size mismatch"),
        ("config.yaml", {"epochs": -1}, "epochs must be at least 1"),
        ("config.json", {"batch_rows": None}, "batch_rows must be an int"),
        ("config.json", {"batch_rows": 1}, "at least 2 rows"),
        ("result.json", {"distortion": "low"}, "distortion must be of type int or float"),
    ],
)
def test_files_that_do_not_fit_are_one_line(file, entries, message, folder, tmp_path, capsys):
    change(folder / file, **entries)
    assert cli.main(["pull", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one epoch"),
        ("epoch,step\n1,2\n", "is missing in an entry of history"),
        ("epoch\nx\n", "only numbers, got 'x'"),
        ("epoch,step\n1\n", "only numbers, got None"),
        ("a" * (2**24 + 1), "more than 16777216 bytes"),
    ],
)
def test_damaged_metrics_are_one_line(content, message, folder, tmp_path):
    (folder / "metrics.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        training.pull(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saved_model_is_no_run(run, tmp_path):
    training.load(run).model.save_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"it has no config\.yaml"):
        training.pull(tmp_path / "model", tmp_path / "out")


# ---- The commands ----------------------------------------------------------------------------------------------------


def test_commands_share_a_run(run, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["push", str(run), "user/echo", "--private", "--license", "cc-by-4.0"]) == 0
    assert f"uploaded: {hub.endpoint}/user/echo/commit/" in capsys.readouterr().out
    assert hub.private == {"user/echo"}
    assert set(hub.repositories["user/echo"]) >= FILES | FIGURES
    assert b'from_pretrained("user/echo")' in hub.repositories["user/echo"]["README.md"]
    assert b'license: "cc-by-4.0"' in hub.repositories["user/echo"]["README.md"]
    assert cli.main(["pull", "user/echo"]) == 0
    assert "echo on digits; written to runs/echo" in capsys.readouterr().out
    for words in (["sample", "runs/echo"], ["encode", "runs/echo", "digits", "--out", "codes.npz"]):
        assert cli.main(words) == 0
    assert same(
        dict(training.load("runs/echo").model.state_dict()),
        dict(models.Model.from_pretrained("user/echo").state_dict()),
    )


def test_run_without_evaluation_is_pulled(run, hub, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "evaluation.json").unlink()
    training.push(copy, "user/plain")
    assert "evaluation.json" not in hub.repositories["user/plain"]
    training.pull("user/plain", tmp_path / "out")
    assert not (tmp_path / "out" / "evaluation.json").exists()


def one_line(capsys, words, code, message):
    assert cli.main(words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_errors_are_one_line(run, hub, tmp_path, monkeypatch, capsys):
    path, out = str(run), ["--out", str(tmp_path / "out")]
    one_line(capsys, ["push", path], 2, "give either USER/NAME, to upload the run, or --out DIR")
    one_line(capsys, ["push", path, "user/echo", *out], 2, "give either USER/NAME")
    one_line(capsys, ["push", path, "--out", path], 2, "--out must be another folder than that of the run")
    one_line(capsys, ["push", str(tmp_path), "user/echo"], 2, "is not finished")
    one_line(capsys, ["push", path, "a b"], 2, "repo_id must be a repository such as 'user/name', got 'a b'")
    one_line(capsys, ["push", path, "other/echo"], 2, "your token must be allowed to write to other/echo")
    one_line(capsys, ["pull", "user/none", *out], 2, "there is no model 'user/none' at http")
    hub.repositories["user/empty"] = {}
    one_line(capsys, ["pull", "user/empty", *out], 2, "user/empty has no config.json")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    one_line(
        capsys, ["push", path, "user/echo"], 2, "a token is needed to push to user/echo: log in by `hf auth login`"
    )
    assert not (tmp_path / "out").exists()


def test_unfinished_run_is_not_shared(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "result.json").unlink()
    with pytest.raises(FileNotFoundError, match="is not finished"):
        training.export(copy, tmp_path / "out")


def test_no_network_is_one_line(run, hub, tmp_path, monkeypatch, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub.point_to(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts of huggingface_hub
        one_line(capsys, ["pull", "user/echo"], 1, "cannot be reached to download user/echo: try again with a network")
        one_line(capsys, ["push", str(run), "user/echo"], 1, "cannot be reached to push user/echo")
