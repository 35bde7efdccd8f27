"""The commands encode and sample: their files, what these mean, and errors in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_cli_train import fail

from echo_ext import cli, data, training

for needed in ("lightning_fabric", "matplotlib", "sklearn", "yaml"):
    pytest.importorskip(needed)

QUICK = ("--limit", "200", "--epochs", "2", "--batch-size", "50", "--latent-dim", "3", "--set", "hidden=[8]")


def train(folder, recipe, path, *words):
    assert cli.main(["train", "--recipe", recipe, "--data", str(path), "--out", str(folder), *QUICK, *words]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {recipe: train(folder / recipe, recipe, "digits") for recipe in ("echo", "vae", "iaf-prior")}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def encoded(run, source, *words):
    assert cli.main(["encode", str(run), str(source), "--out", "codes.npz", *map(str, words)]) == 0
    with np.load("codes.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("recipe", ["echo", "vae", "iaf-prior"])
def test_codes_are_those_of_the_model(runs, recipe, capsys):
    found = encoded(runs[recipe], "digits", "--part", "test", "--seed", 3)
    x, labels = data.load("digits")["test"][:]
    assert f"{len(x)} rows of 3 latents, z, mean, labels; written to codes.npz" in capsys.readouterr().out
    model = training.load(runs[recipe]).model
    with torch.no_grad():
        mean = model.encode_mean(x)
        spread = torch.stack([model.encode(x) for _ in range(100)]).std(0)
    assert found["z"].dtype == found["mean"].dtype == np.float32
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-5)
    assert (np.abs(found["z"] - found["mean"]) < 40 * spread.numpy() + 1e-3).all()
    assert found["z"].std() > 0
    again = encoded(runs[recipe], "digits", "--part", "test", "--seed", 3)
    other = encoded(runs[recipe], "digits", "--part", "test", "--seed", 4)
    np.testing.assert_array_equal(found["z"], again["z"])
    np.testing.assert_array_equal(found["mean"], other["mean"])
    assert (found["z"] != other["z"]).any()


def test_all_rows_of_a_data_set_are_its_parts_in_order(runs):
    found = encoded(runs["vae"], "digits")
    parts = data.load("digits")
    np.testing.assert_array_equal(found["labels"], torch.cat([part.labels for part in parts.values()]))
    test = encoded(runs["vae"], "digits", "--part", "test")
    np.testing.assert_allclose(found["mean"][-len(test["mean"]) :], test["mean"], rtol=1e-4, atol=1e-5)


def test_own_rows_keep_their_order(runs):
    x, labels = data.load("digits")["test"][:30]
    np.savez("mine.npz", x=x.numpy(), labels=labels.numpy())
    found = encoded(runs["echo"], "mine.npz")
    with torch.no_grad():
        mean = training.load(runs["echo"]).model.encode_mean(x)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["labels"], labels)
    assert len(encoded(runs["echo"], "mine.npz", "--part", "train")["z"]) == 24
    np.savez("mine.npz", x=x.numpy()[:1])  # one row is enough
    assert encoded(runs["echo"], "mine.npz").keys() == {"z", "mean"}


def test_folder_is_encoded_by_a_run_on_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for row, levels in enumerate(np.random.default_rng(0).integers(0, 256, (60, 6, 8, 3)).astype(np.uint8)):
        folder = tmp_path / "mine" / f"class {row % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(levels).save(folder / f"{row:03}.png")
    run = train(tmp_path / "run", "echo", tmp_path / "mine", "--batch-size", "20", "--binarization", "dynamic")
    found = encoded(run, tmp_path / "mine")
    assert (found["z"].shape, found["labels"].tolist()) == ((60, 3), [0] * 30 + [1] * 30)
    assert np.load("codes.npz")["mean"].std() > 0
    assert cli.main(["sample", str(run), "-n", "5", "--out", "drawn"]) == 0
    assert np.load("drawn/samples.npz")["x"].shape == (5, 3, 6, 8)


@pytest.mark.parametrize("recipe", ["echo", "vae"])
def test_samples_are_those_of_the_model(runs, recipe, capsys):
    assert cli.main(["sample", str(runs[recipe]), "-n", "130", "--out", "drawn"]) == 0
    assert "130 samples; written to drawn/samples.npz and drawn/samples.png" in capsys.readouterr().out
    assert {file.name for file in Path("drawn").iterdir()} == {"samples.npz", "samples.png"}
    x = np.load("drawn/samples.npz")["x"]
    assert (x.shape, x.dtype) == ((130, 1, 8, 8), np.float32)
    assert (len(np.unique(x, axis=0)), x.min() >= 0, x.max() <= 1) == (130, True, True)
    with torch.no_grad():
        many = training.load(runs[recipe]).model.sample(4000)
    errors = (torch.from_numpy(x).mean(0) - many.mean(0)) / (many.std(0) / 130**0.5 + 1e-4)
    assert errors.abs().max() < 6
    assert cli.main(["encode", str(runs[recipe]), "drawn/samples.npz", "--out", "codes.npz"]) == 0  # samples are data
    again = training.sample(runs[recipe], 130, "again")
    np.testing.assert_array_equal(x, again)
    assert (training.sample(runs[recipe], 130, "again", seed=1).numpy() != x).any()


def test_samples_replace_those_of_the_run(runs, tmp_path):
    run = shutil.copytree(runs["vae"], tmp_path / "run")
    before = (run / "samples.png").read_bytes()
    assert cli.main(["sample", str(run), "-n", "6"]) == 0
    assert np.load(run / "samples.npz")["x"].shape == (6, 1, 8, 8)
    assert (run / "samples.png").read_bytes() != before
    assert not [file for file in run.iterdir() if file.name.startswith(".")]


def old_checkpoint(run):
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    from echo_ext.training import checkpoints

    (run / "last.ckpt").write_bytes(checkpoints.dump({**checkpoint, "format": 1, "version": "0.0.1"}))


def old_configuration(run):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "model_settings": {"decoder_gain": 64}}))


@pytest.mark.parametrize("words", [("encode", "run", "digits", "--out", "codes.npz"), ("sample", "run", "--out", "o")])
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (shutil.rmtree, "there is no run in run: it has no config.yaml"),
        (lambda run: (run / "last.ckpt").unlink(), "no epoch of the run in run was finished: it has no last.ckpt"),
        (lambda run: (run / "last.ckpt").write_bytes(b"text"), "run/last.ckpt is damaged"),
        (
            old_checkpoint,
            "run/last.ckpt is a checkpoint of format 1, which echo-ext '0.0.1' has written, not of format 2 of",
        ),
        (old_checkpoint, "use that version, or train the run again"),
        (old_configuration, "run/config.yaml is not the configuration of a run of echo-ext 0.1"),
    ],
)
def test_unusable_run_is_one_line(runs, capsys, words, spoil, complaint):
    spoil(shutil.copytree(runs["vae"], Path("run")))
    code, line = fail(capsys, *words)
    assert (code, complaint in line) == (2, True), line
    assert {file.name for file in Path().iterdir()} <= {"run"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("encode", "gmm2d", "--out", "codes.npz"), "data must have rows of shape (1, 8, 8) for the model in "),
        (("encode", "gmm2d", "--out", "codes.npz"), "got (2,) in gmm2d"),
        (("encode", "wide.npz", "--out", "codes.npz"), "got (1, 8, 9) in wide.npz"),
        (("encode", "digit", "--out", "codes.npz"), "there is no data set 'digit'"),
        (("encode", "no.npz", "--out", "codes.npz"), "data must be a name that echo-ext data lists, an .npz file"),
        (("encode", "wide.npz", "--out", "wide.npz"), "--out must be another file than the data, got wide.npz"),
        (("encode", "digits", "--out", "codes"), "--out must be a file name that ends with .npz, got codes"),
        (("encode", "digits", "--out", "wide.npz/codes.npz"), "must be a folder, got wide.npz, but wide.npz is a file"),
        (("encode", "digits", "--out", "c.npz", "--part", "tset"), "--part must be one of 'all', 'train', 'valid', 't"),
        (("encode", "digits", "--out", "c.npz", "--seed", "-1"), "--seed must be at least 0, got -1"),
        (("encode", "digits", "--out", "c.npz", "--device", "abacus"), "--device must be cpu, cuda or cuda:N"),
        (("sample", "-n", "0"), "-n must be at least 1, got 0"),
        (("sample", "--out", "wide.npz"), "must be a folder, got wide.npz, but wide.npz is a file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_files(runs, capsys, words, complaint):
    np.savez("wide.npz", x=np.zeros((20, 8, 9)))
    code, line = fail(capsys, words[0], runs["vae"], *words[1:])
    assert (code, complaint in line) == (2, True), line
    assert [file.name for file in Path().iterdir()] == ["wide.npz"]


def test_missing_packages_are_named_with_their_extra(runs, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    for words in (("encode", "run", "digits", "--out", "codes.npz"), ("sample", "run")):
        code, line = fail(capsys, *words)
        assert (code, f"{words[0]} needs lightning_fabric and matplotlib" in line) == (1, True)
