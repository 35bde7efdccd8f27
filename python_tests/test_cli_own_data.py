"""The commands train, sweep and evaluate on one's own data, and their errors for paths that are no data."""

import json

import numpy as np
import pytest
from test_cli_train import fail

from echo_ext import cli, training

for needed in ("lightning_fabric", "matplotlib", "yaml"):
    pytest.importorskip(needed)
Image = pytest.importorskip("PIL.Image")

QUICK = ("--epochs", "1", "--batch-size", "20", "--latent-dim", "2", "--set", "hidden=[8]")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def paint(folder, count, mode="RGB", size=(8, 6)):
    folder.mkdir(parents=True)
    levels = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], len(mode))).astype(np.uint8)
    for index, image in enumerate(levels):
        Image.fromarray(image).save(folder / f"{index:03}.png")


def test_run_on_a_folder_of_classes_is_evaluated(tmp_path, monkeypatch, capsys):
    for label in ("ant", "bee"):
        paint(tmp_path / "mine" / label, 40)
    assert cli.main(["train", "--recipe", "vae", "--data", "mine", *QUICK]) == 0
    assert "written to runs/vae-mine-beta1-seed0" in capsys.readouterr().out
    run = tmp_path / "runs" / "vae-mine-beta1-seed0"
    assert {"reconstructions.png", "samples.png"} <= {file.name for file in run.iterdir()}
    model, configuration, _ = training.load(run)
    assert (configuration.data, model.data_shape) == (str(tmp_path / "mine"), (3, 6, 8))
    monkeypatch.chdir("/")  # the run knows where its data are
    assert cli.main(["evaluate", str(run)]) == 0
    assert "knn_accuracy" in json.loads((run / "evaluation.json").read_text())


@pytest.mark.parametrize("shape", [(6, 6, 3), (5,)])
def test_sweep_of_an_npz_file_prints_its_table(tmp_path, capsys, shape):
    np.savez("my.v1.npz", x=np.random.default_rng(0).uniform(size=(60, *shape)))
    words = ["sweep", "--recipe", "vae", "--data", "my.v1.npz", "--beta", "0.5,1", "--out", "grid", *QUICK]
    assert cli.main(words) == 0
    assert sum(line.startswith("vae  ") for line in capsys.readouterr().out.splitlines()) == 2
    assert (tmp_path / "grid" / "rate_distortion.png").is_file()


def odd_image(folder, mode="RGB", size=(8, 6)):
    paint(folder, 20)
    Image.new(mode, size).save(folder / "odd.png")


@pytest.mark.parametrize(
    ("path", "prepare", "complaint"),
    [
        (
            "a.npz",
            lambda path: None,
            "--data must be a name that echo-ext data lists, an .npz file with an array x, or",
        ),
        ("a.csv", lambda path: path.write_text("1,2\n"), "or a folder of images, got "),
        ("a.npz", lambda path: path.write_bytes(b"text"), "a.npz is not a whole npz file"),
        ("a.npz", lambda path: np.savez(path, y=np.zeros(3)), "a.npz has no array 'x'; it has y"),
        ("a", lambda path: path.mkdir(), "a must have images, .png, .jpg, .jpeg, got a folder without any"),
        (
            "a",
            lambda path: odd_image(path, size=(8, 7)),
            "odd.png must be RGB of 8 x 6 pixels as 000.png, got RGB of 8 x",
        ),
        ("a", lambda path: odd_image(path, "RGBA"), "odd.png must have no alpha channel, got mode RGBA; save it as"),
        ("a", lambda path: paint(path, 9), "a must have at least 10 rows for its three parts, got 9"),
    ],
)
@pytest.mark.parametrize("command", [("train",), ("sweep", "--beta", "1")])
def test_path_without_data_is_one_line(tmp_path, capsys, command, path, prepare, complaint):
    prepare(tmp_path / path)
    code, line = fail(capsys, *command, "--recipe", "vae", "--data", path, "--out", "out", *QUICK)
    assert (code, complaint in line, str(tmp_path / path) in line) == (2, True, True), line
    assert not (tmp_path / "out").exists()
