"""The command `echo-ext mi`: its results against those of the estimators, its plots, and its errors."""

import json

import numpy as np
import pytest
from knn_cases import fresh

import echo_ext
from echo_ext.cli import main

pandas = pytest.importorskip("pandas")


@pytest.fixture
def mi(capsys):
    def call(*words):
        assert main(["--debug", "mi", *map(str, words)]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def frame():
    x, y, z = fresh().standard_normal((3, 200))
    return pandas.DataFrame({"x": x, "y": x + y, "z": z, "name": ["a"] * 200})


@pytest.fixture
def csv(frame, tmp_path):
    path = tmp_path / "data.csv"
    frame.to_csv(path, index=False)
    return path


def test_csv(mi, csv, frame):
    result = json.loads(mi(csv, "--x", "x", "--y", "y,2", "--k", 4, "--method", "ksg2", "--json"))
    expected = echo_ext.mutual_information(frame.x.to_numpy(), frame[["y", "z"]].to_numpy(), k=4, method="ksg2")
    assert result["estimate"] == pytest.approx(expected)
    assert result["y"] == ["y", "z"]
    assert result["n"] == 200
    assert result["standard_error"] > 0
    assert mi(csv, "--x", "x", "--y", "y").startswith("I(x; y) = ")


def test_given_and_permutations(mi, csv, frame):
    result = json.loads(mi(csv, "--x", "x", "--y", "y", "--given", "z", "--json"))
    columns = (frame[c].to_numpy() for c in "xyz")
    assert result["estimate"] == pytest.approx(echo_ext.conditional_mutual_information(*columns))
    first, second = (mi(csv, "--x", "x", "--y", "z", "--permutations", 19, "--json") for _ in range(2))
    assert first == second
    assert 0.05 <= json.loads(first)["p_value"] <= 1


def test_numpy_files(mi, frame, tmp_path):
    values = frame[["x", "y"]].to_numpy()
    expected = echo_ext.mutual_information(values[:, 0], values[:, 1])
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", first=values[:, 0], rest=values[:, 1:])
    assert json.loads(mi(tmp_path / "a.npy", "--x", 0, "--y", 1, "--json"))["estimate"] == pytest.approx(expected)
    assert json.loads(mi(tmp_path / "a.npz", "--x", "first", "--y", "rest", "--json"))["estimate"] == pytest.approx(
        expected
    )


def test_csv_without_names(mi, frame, tmp_path):
    frame[["x", "y"]].to_csv(tmp_path / "bare.csv", index=False, header=False)
    result = json.loads(mi(tmp_path / "bare.csv", "--x", 0, "--y", 1, "--json"))
    assert result["n"] == 200


def test_parquet(mi, frame, tmp_path):
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "a.parquet")
    assert json.loads(mi(tmp_path / "a.parquet", "--x", "x", "--y", "y", "--json"))["n"] == 200


def test_matrix(mi, csv, frame, tmp_path):
    pytest.importorskip("matplotlib")
    result = json.loads(mi(csv, "--matrix", "--json", "--plot", tmp_path / "m.png"))
    assert result["x"] == ["x", "y", "z"]
    expected = echo_ext.mutual_information_matrix(frame[["x", "y", "z"]].to_numpy())
    np.testing.assert_allclose(result["mi"], expected)
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert len(mi(csv, "--matrix", "--x", "x", "--y", "y,z").splitlines()) == 2


def test_lag(mi, tmp_path):
    pytest.importorskip("matplotlib")
    x, noise = fresh().standard_normal((2, 1000))
    np.save(tmp_path / "s.npy", np.stack([x, np.roll(x, 4) + 0.2 * noise], axis=1))
    out = tmp_path / "lags.png"
    result = json.loads(mi(tmp_path / "s.npy", "--x", 0, "--y", 1, "--lag", 8, "--json", "--plot", out))
    assert int(np.argmax(result["mi"])) == 4
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("a.csv", b"x,y\n1,2\n", ["--x", "x", "--y", "q"], "no column 'q'; it has x, y"),
        ("a.csv", b"x,y\n1,2\n2,oops\n", ["--x", "x", "--y", "y"], "'y' must be numeric, got 'oops' in line 3"),
        ("a.csv", b"x,y\n1,2\n2,\n", ["--x", "x", "--y", "y"], "'y' must have finite values, got 1 .* in line 3"),
        ("a.csv", b"", ["--x", "x", "--y", "y"], "is empty"),
        ("a.csv", b"x,y\n", ["--x", "x", "--y", "y"], "has no rows"),
        ("a.csv", b"\x93NUMPY\x01\x00\xff\xfe", ["--x", "x", "--y", "y"], "cannot be read as CSV"),
        ("a.npy", b"x,y\n1,2\n", ["--x", "0", "--y", "1"], "cannot be read as NPY"),
        ("a.npz", b"x,y\n1,2\n", ["--x", "0", "--y", "1"], "cannot be read as NPZ"),
        ("a.parquet", b"x,y\n1,2\n", ["--x", "0", "--y", "1"], "Parquet"),
        ("a.txt", b"x,y\n1,2\n", ["--x", "0", "--y", "1"], "must end in one of .csv, .npy, .npz, .parquet"),
        ("a.csv", b"x,y\n1,2\n3,4\n", ["--x", "x", "--y", "y"], "k must be less than the number of samples"),
        ("a.csv", b"x,y\n1,2\n", ["--x", "x"], "--x and --y must name the columns"),
        ("a.csv", b"x,y\n1,2\n", ["--x", "x", "--y", "y", "--plot", "p.png"], "--plot needs --matrix or --lag"),
    ],
)
def test_bad_input(mi, tmp_path, name, content, words, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        mi(tmp_path / name, *words)
    assert "\n" not in str(caught.value)


def test_no_file(mi, tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        mi(tmp_path / "none.csv", "--x", "x", "--y", "y")
