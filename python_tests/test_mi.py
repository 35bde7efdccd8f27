"""The command `echo-ext mi`: its results against those of the estimators, its plots, and its errors."""

import json
import sys

import numpy as np
import pytest
from knn_cases import fresh

import echo_ext
from echo_ext.cli import main

pandas = pytest.importorskip("pandas")


XY = ["--x", "x", "--y", "y"]
TESTS = ["--permutations", "9"]


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
    columns = [frame[c].to_numpy() for c in "xyz"]
    assert result["estimate"] == pytest.approx(echo_ext.conditional_mutual_information(*columns))
    error = echo_ext.with_standard_error(echo_ext.conditional_mutual_information, *columns, seed=0).standard_error
    assert result["standard_error"] == pytest.approx(error)
    first, second = (mi(csv, "--x", "x", "--y", "z", "--permutations", 19, "--json") for _ in range(2))
    assert first == second
    assert 0.05 <= json.loads(first)["p_value"] <= 1
    words = [csv, "--x", "x", "--y", "z", "--given", "y", "--permutations", 19, "--seed", 3, "--k", 0.2]
    test = echo_ext.independence_test(columns[0], columns[2], columns[1], k=0.2, n_resamples=19, seed=3)
    result = json.loads(mi(*words, "--json"))
    assert (result["estimate"], result["p_value"]) == (pytest.approx(test.statistic), test.pvalue)
    assert f"p = {test.pvalue:.4g} (19 permutations)" in mi(*words)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--surrogate", "block", "--block-length", 7], {"surrogate": "block", "block_length": 7}),
        (["--null", "gamma", "--transform", "rank"], {"null": "gamma", "transform": "rank"}),
        (["--early-stopping", 0.1, "--method", "ksg2"], {"early_stopping": 0.1, "method": "ksg2"}),
    ],
)
def test_kinds_of_tests(mi, csv, frame, words, options):
    result = json.loads(mi(csv, "--x", "x", "--y", "z", "--permutations", 39, *words, "--json"))
    test = echo_ext.independence_test(frame.x.to_numpy(), frame.z.to_numpy(), n_resamples=39, seed=0, **options)
    assert result["p_value"] == pytest.approx(test.pvalue)
    assert result["permutations"] == len(test.null_distribution)
    assert {key: result[key] for key in options} == options


def test_missing_values(mi, frame, tmp_path, capsys):
    frame.loc[[4, 9], "x"] = np.nan
    frame.loc[7, "z"] = np.nan
    path = tmp_path / "gaps.csv"
    frame.to_csv(path, index=False)
    words = [path, "--x", "x", "--y", "y", "--given", "z"]
    assert main(["mi", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "column 'x' must have finite values, got 2 missing or infinite ones, the first in line 6" in error
    assert error.endswith("--nan-policy omit leaves such rows out\n")
    assert error.count("\n") == 1
    expected = echo_ext.conditional_mutual_information(*(frame[c] for c in "xyz"), nan_policy="omit")
    result = json.loads(mi(*words, "--nan-policy", "omit", "--json"))
    assert (result["estimate"], result["rows"], result["n"]) == (pytest.approx(expected), 197, 200)
    assert "197 of 200 rows" in mi(*words, "--nan-policy", "omit")
    matrix = json.loads(mi(path, "--matrix", "--nan-policy", "omit", "--json"))["mi"]
    np.testing.assert_allclose(matrix, echo_ext.mutual_information_matrix(frame[["x", "y", "z"]], nan_policy="omit"))


@pytest.fixture
def mixed(tmp_path):
    """A table with categories: the path, and its columns."""
    rng = fresh()
    group = rng.integers(0, 3, 150)
    table = pandas.DataFrame(
        {
            "group": np.array(["red", "green", "blue"])[group],
            "sex": np.array(["f", "m"])[rng.integers(0, 2, 150)],
            "x": group + 0.3 * rng.standard_normal(150),
            "y": rng.standard_normal(150),
        }
    )
    table.loc[3, "sex"] = None
    path = tmp_path / "mixed.csv"
    table.to_csv(path, index=False)
    return path, table


def test_categories(mi, mixed):
    path, table = mixed
    result = json.loads(mi(path, "--x", "x,group", "--y", "y", "--json"))
    codes = table.group.astype("category").cat.codes.to_numpy(float)
    x = np.stack([table.x, codes], axis=1)
    options = {"method": "mixed", "transform": "standardize"}
    expected = echo_ext.mutual_information(x, table.y.to_numpy(), discrete_x=[False, True], **options)
    assert (result["estimate"], result["method"]) == (pytest.approx(expected), "mixed")
    assert result["categories"] == ["group"]
    words = [path, "--x", "x", "--y", "group", "--given", "sex", "--nan-policy", "omit", "--json"]
    result = json.loads(mi(*words, "--permutations", 19))
    kept = table.dropna()
    test = echo_ext.independence_test(
        kept.x, kept.group, kept.sex, discrete_y=True, discrete_z=True, n_resamples=19, seed=0, **options
    )
    assert (result["estimate"], result["p_value"]) == (pytest.approx(test.statistic), test.pvalue)
    assert "(mixed, standardize, k = 3, 150 rows)" in mi(path, "--x", "x", "--y", "group")
    result = json.loads(mi(path, "--x", "x", "--y", "group", "--transform", "none", "--json"))
    expected = echo_ext.mutual_information(table.x, table.group, method="mixed", discrete_y=True)
    assert (result["estimate"], result["transform"]) == (pytest.approx(expected), None)
    for method in ("plug-in", "miller-madow"):
        result = json.loads(mi(path, "--x", "group", "--y", "group", "--method", method, "--json"))
        assert result["estimate"] == pytest.approx(echo_ext.mutual_information(table.group, table.group, method=method))
    result = json.loads(mi(path, "--matrix", "--x", "x,y,group", "--json", "--permutations", 9))
    flags = [False, False, True]
    expected = echo_ext.mutual_information_matrix(
        np.stack([table.x, table.y, codes], axis=1), discrete_x=flags, n_resamples=9, seed=0, **options
    )
    np.testing.assert_allclose(result["mi"], expected.statistic)
    assert result["p_values"][0][2] == expected.pvalue[0, 2]
    assert result["p_values"][0][0] is None


def test_trials_and_conditional_lags(mi, tmp_path):
    rng = fresh()
    trial = np.repeat(["a", "b", "c"], 40)[rng.permutation(120)]
    x, noise, z = rng.standard_normal((3, 120))
    table = pandas.DataFrame({"x": x, "y": noise, "z": z, "trial": trial})
    for _, rows in table.groupby("trial").groups.items():
        table.loc[rows, "y"] += 2 * np.roll(table.loc[rows, "x"], 2)
    path = tmp_path / "trials.csv"
    table.to_csv(path, index=False)
    words = [path, "--x", "x", "--y", "y", "--groups", "trial", "--exclude-within", 1, "--json"]
    assert json.loads(mi(*words))["estimate"] == pytest.approx(
        echo_ext.mutual_information(table.x, table.y, groups=trial, exclude_within=1)
    )
    found = json.loads(mi(*words, "--lag", 3, "--given", "z"))["mi"]
    for lag in range(4):
        earlier = table.groupby("trial").x.shift(lag)
        kept = earlier.notna()
        # Within each trial, the rows without a partner are its first ones, so that time stays in order.
        expected = echo_ext.conditional_mutual_information(
            earlier[kept], table.y[kept], table.z[kept], groups=trial[kept], exclude_within=1
        )
        assert found[lag] == pytest.approx(expected)
    assert np.argmax(found) == 2


def test_several_files(mi, frame, tmp_path):
    frame[["x", "y"]].to_csv(tmp_path / "left.csv", index=False)
    np.savez(tmp_path / "right.npz", x=frame.z.to_numpy(), w=frame.x.to_numpy())
    files = [tmp_path / "left.csv", tmp_path / "right.npz"]
    result = json.loads(mi(*files, "--x", "left.x", "--y", "right.x", "--given", "y", "--json"))
    expected = echo_ext.conditional_mutual_information(frame.x, frame.z, frame.y)
    assert result["estimate"] == pytest.approx(expected)
    assert result["file"] == [str(path) for path in files]
    assert result["header_line"] == [1, None]
    assert json.loads(mi(*files, "--matrix", "--json"))["x"] == ["left.x", "y", "right.x", "w"]
    np.save(tmp_path / "short.npy", np.ones(7))
    message = r"left.csv and .*short.npy must have the same number of rows, got 200 and 7"
    with pytest.raises(ValueError, match=message) as caught:
        mi(files[0], tmp_path / "short.npy", "--x", "x", "--y", "y")
    assert "\n" not in str(caught.value)
    frame.assign(x="oops").iloc[:, :1].to_csv(tmp_path / "left2.csv", index=False)
    (tmp_path / "sub").mkdir()
    frame[["x"]].to_csv(tmp_path / "sub" / "left.csv", index=False)
    with pytest.raises(ValueError, match=r"must have distinct column names, got two columns 'left\.x'"):
        mi(files[0], tmp_path / "sub" / "left.csv", "--x", "y", "--y", "y")


def test_an_error_names_the_file_and_column_of_several(mi, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x,y\n1,2\n3,4\n")
    (tmp_path / "b.csv").write_bytes(b"x,z\n1,2\n,4\n")
    with pytest.raises(ValueError, match=r"b\.csv: column 'x' must have finite values, .* in line 3"):
        mi(tmp_path / "a.csv", tmp_path / "b.csv", "--x", "b.x", "--y", "y")


def test_warnings_are_one_line(tmp_path, capsys):
    np.save(tmp_path / "answers.npy", fresh().integers(1, 3, (300, 2)))
    assert main(["mi", str(tmp_path / "answers.npy"), "--x", "0", "--y", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("echo-ext mi: warning: 100 % of the samples have their k-th neighbor at distance 0")
    assert main(["mi", str(tmp_path / "answers.npy"), "--x", "0", "--y", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [lines[0].removeprefix("echo-ext mi: warning: ")]


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


def test_matrix_of_tests(mi, csv, frame, tmp_path):
    pytest.importorskip("matplotlib")
    words = [csv, "--matrix", "--x", "x,y", "--given", "z", "--permutations", 19, "--fdr", "--seed", 2]
    result = json.loads(mi(*words, "--json", "--plot", tmp_path / "m.png"))
    expected = echo_ext.mutual_information_matrix(
        frame[["x", "y"]].to_numpy(), given=frame.z, n_resamples=19, fdr=True, seed=2
    )
    np.testing.assert_allclose(result["mi"], expected.statistic)
    assert result["p_values"] == [[None, expected.pvalue[0, 1]], [expected.pvalue[1, 0], None]]
    assert result["fdr"] is True
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    lines = mi(*words).splitlines()
    assert lines[0].split() == ["x", "y"]
    assert lines[4] == "p-values (19 permutations, adjusted for the number of pairs):"
    assert lines[6].split() == ["x", "-", f"{expected.pvalue[0, 1]:.4f}"]


def test_matrix_without_pandas(mi, frame, tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **{name: frame[name].to_numpy() for name in "xyz"})
    words = [tmp_path / "a.npz", "--matrix", "--permutations", 9]
    with_pandas = mi(*words)
    monkeypatch.setitem(sys.modules, "pandas", None)
    without = mi(*words)
    assert [line.split() for line in without.splitlines()] == [line.split() for line in with_pandas.splitlines()]


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
        ("a.csv", b"x,y\n1,2\n", ["--x", "x", "--y", "q"], "no column 'q'; it has 'x', 'y'; numbers"),
        ("a.csv", b"weight,height\n1,2\n", ["--x", "hight", "--y", "0"], "'hight'; the most similar are 'height', 'w"),
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
        (
            "a.csv",
            b"x,y\n1,a\n2,b\n",
            [*XY, "--method", "ksg1"],
            "ksg1 is for numbers, but column 'y' holds",
        ),
        (
            "a.csv",
            b"x,y\n1,a\n2,\n3,b\n",
            XY,
            "'y' must have no missing values, got 1, the first in line 3; --nan",
        ),
        ("a.csv", b"x,y\n1,2\n2,inf\n", [*XY, "--nan-policy", "omit"], "'y' must have finite values, got 1 infinite"),
        ("a.csv", b"x,y\n1,2020-01-02\n2,2020-01-03\n", XY, "'y' must be numeric, got '2020-01-02' in line 2"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--fdr"], "--fdr needs --matrix and --permutations"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--surrogate", "local"], "--surrogate needs --permutations"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--early-stopping", "0.1"], "--early-stopping needs --permutations"),
        (
            "a.csv",
            b"x,y\n1,2\n",
            [*XY, *TESTS, "--early-stopping", "0.1", "--null", "gamma"],
            "--early-stopping needs --null empirical, got --null gamma",
        ),
        ("a.csv", b"x,y\n1,2\n", ["--matrix", *TESTS, "--null", "gamma"], "--null cannot be combined with --matrix"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--lag", "1", *TESTS], "--lag cannot be combined with --permutations"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--lag", "1"], "k must be less than|--lag must be less than the number of rows"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--groups", "x,y"], "--groups must be one column, got x, y"),
        ("a.csv", b"x,y,g\n1,2,a\n3,4,\n", [*XY, "--k", "1", "--groups", "g"], "groups must have no missing labels"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--given", "x", "--method", "bi-ksg"], "bi-ksg cannot be combined with --given"),
        ("a.csv", b"x,y\n1,2\n", [*XY, "--k", "1.5"], r"k must be an int or a fraction in \(0, 1\), got 1.5"),
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
