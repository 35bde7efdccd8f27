"""Estimators read tables, lists and numbers of any kind as float64, and say what they cannot read."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from knn_cases import fresh

import echo_ext
from echo_ext import conditional_mutual_information, entropy, knn, mutual_information, transfer_entropy

N = 60


@pytest.fixture
def counts():
    """Whole numbers without ties, and an order of them that depends on them."""
    rng = fresh()
    x = rng.permutation(N)
    return x, np.argsort(np.argsort(x + rng.standard_normal(N) * 10))


@pytest.mark.parametrize(
    "convert",
    [
        np.int8,
        np.uint16,
        np.int64,
        np.float32,
        lambda v: v.tolist(),
        lambda v: pd.Series(v, name="v"),
        lambda v: pd.Series(v, dtype="Int64"),
        lambda v: pd.Series(v, dtype="Float32"),
        lambda v: pd.Series(v, dtype="Float64", index=np.arange(N)[::-1]),
        lambda v: pd.DataFrame({"v": v}),
        lambda v: pd.Index(v),
        lambda v: pd.Series(v, dtype="int64[pyarrow]"),
        lambda v: v.astype(">f8"),
    ],
)
def test_numbers_of_any_kind_are_float64(convert, counts):
    x, y = counts
    expected = mutual_information(x.astype(float), y.astype(float))
    assert mutual_information(convert(x), y.astype(float)) == expected
    assert mutual_information(y.astype(float), convert(x)) == mutual_information(y.astype(float), x.astype(float))
    assert isinstance(mutual_information(convert(x), convert(y)), float)


def test_booleans_are_numbers():
    x = fresh().standard_normal(N)
    high = x > 0
    expected = mutual_information(x, high.astype(float), method="mixed")
    for flags in (high, high.tolist(), pd.Series(high), pd.Series(high, dtype="boolean")):
        assert mutual_information(x, flags, method="mixed") == expected
    tensors = torch.from_numpy(x), torch.from_numpy(high)
    assert mutual_information(*tensors, method="mixed").item() == expected


def test_mixed_precisions_compute_in_float64(counts):
    x, y = (v / 7 for v in counts)
    x = x.astype(np.float32)
    expected = mutual_information(x.astype(np.float64), y, local=True)
    assert np.array_equal(mutual_information(x, y, local=True), expected)
    found = mutual_information(torch.from_numpy(x), torch.from_numpy(y), local=True)
    assert found.dtype == torch.float64
    assert np.array_equal(found, expected)
    assert mutual_information(torch.from_numpy(x), torch.arange(N)).dtype == torch.float64
    distances, _ = knn(x, y, 2)
    assert distances.dtype == np.float64
    assert np.array_equal(distances, knn(x.astype(np.float64), y, 2)[0])


def test_gradient_flows_through_the_cast():
    x, y = torch.randn(2, N, 1)
    x.requires_grad_()
    mutual_information(x, y.double()).backward()
    wide = x.detach().double().requires_grad_()
    mutual_information(wide, y.double()).backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, wide.grad.float())


def test_integer_tensors_are_float64(counts):
    x, y = (torch.from_numpy(v) for v in counts)
    expected = mutual_information(x.double(), y.double())
    assert torch.equal(mutual_information(x, y), expected)
    assert torch.equal(mutual_information(x.to(torch.uint8), y.to(torch.int16)), expected)
    with pytest.raises(ValueError, match=r"x must hold integers of at most 2\*\*53"):
        mutual_information(x + 2**60, y)


def test_frames_of_many_kinds_of_columns():
    rng = fresh()
    frame = pd.DataFrame(
        {
            "age": pd.array(rng.permutation(N), dtype="Int64"),
            "weight": rng.standard_normal(N).astype(np.float32),
            "smokes": rng.random(N) < 0.5,
        }
    )
    values = frame.to_numpy(np.float64)
    y = rng.standard_normal(N)
    assert mutual_information(frame, y) == mutual_information(values, y)
    assert conditional_mutual_information(frame["age"], y, frame[["weight", "smokes"]]) == (
        conditional_mutual_information(values[:, 0], y, values[:, 1:])
    )
    assert entropy(frame[["age", "weight"]]) == entropy(values[:, :2])
    assert entropy(frame[["weight"]]) == entropy(frame["weight"].to_numpy())  # float32 stays
    assert transfer_entropy(frame["age"], frame["weight"]) == transfer_entropy(values[:, 0], values[:, 1])


def test_matrix_of_frames_is_a_frame():
    rng = fresh()
    x = pd.DataFrame(rng.standard_normal((N, 3)), columns=["a", ("b", 1), 3])
    y = pd.DataFrame(rng.standard_normal((N, 2)), columns=["a", "a"])
    found = echo_ext.mutual_information_matrix(x)
    assert isinstance(found, pd.DataFrame)
    assert found.index.tolist() == found.columns.tolist() == ["a", ("b", 1), 3]
    assert np.array_equal(found, echo_ext.mutual_information_matrix(x.to_numpy()))
    between = echo_ext.mutual_information_matrix(x, y)
    assert (between.index.tolist(), between.columns.tolist()) == (["a", ("b", 1), 3], ["a", "a"])
    assert isinstance(echo_ext.mutual_information_matrix(x, y.to_numpy()), np.ndarray)
    assert echo_ext.mutual_information_matrix(x, k=[3, 5]).shape == (2, 3, 3)


DATES = pd.date_range("2020-01-01", periods=N)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["Oslo"] * N, "x: column 'c' must be numeric, got strings; encode them as numbers"),
        (pd.Series(["Oslo"] * N, dtype=object), "x: column 'c' must be numeric, got strings;"),
        (pd.Series(["Oslo", None] * (N // 2), dtype=object), "x: column 'c' must be numeric, got strings;"),
        (pd.Series(["Oslo"] * N, dtype="string"), "x: column 'c' must be numeric, got strings;"),
        (pd.Series(["Oslo"] * N, dtype="category"), "x: column 'c' must be numeric, got categories;"),
        (pd.Series([1] * N, dtype="category"), "x: column 'c' must be numeric, got categories;"),
        (DATES, "x: column 'c' must be numeric, got dates; convert them to numbers, such as seconds"),
        (DATES.tz_localize("UTC"), "x: column 'c' must be numeric, got dates;"),
        (DATES - DATES[0], "x: column 'c' must be numeric, got durations;"),
        (pd.Series([1, 2.5] * (N // 2), dtype=object), r"x: column 'c' must be numeric, got objects; .* astype\(float"),
        (np.ones(N, complex), "x: column 'c' must be numeric, got complex numbers;"),
        (np.ones(N, np.float16), "x: column 'c' must be float64 or float32, got float16"),
    ],
)
def test_other_columns_are_named(column, message):
    frame = pd.DataFrame({"a": np.arange(N), "c": column})
    for x in (frame, frame["c"]):
        with pytest.raises(TypeError, match=message) as caught:
            mutual_information(x, np.arange(N))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (["a"] * N, "x must be numeric, got strings; encode"),
        (["a", 1] * (N // 2), "x must be numeric, got strings; encode"),
        ([1, None] * (N // 2), r"x must be numeric, got objects; .* astype\(float\)"),
        (np.array(DATES), "x must be numeric, got dates; convert"),
        (np.ones(N, np.longdouble), "x must be float64 or float32, got "),
        (np.ones(N, np.float16), "x must be float64 or float32, got float16"),
    ],
)
def test_other_arrays_are_refused(x, message):
    with pytest.raises(TypeError, match=message):
        entropy(x)


def test_large_integers_of_a_frame_name_the_column():
    frame = pd.DataFrame({"a": np.arange(N), "id": pd.array([2**60, None] * (N // 2), dtype="Int64")})
    with pytest.raises(ValueError, match=r"x: column 'id' must hold integers of at most 2\*\*53"):
        entropy(frame, nan_policy="omit")


def test_read_only_input_does_not_warn():
    rng = fresh()
    x, labels = rng.standard_normal(N), rng.integers(0, 2, N)
    x.flags.writeable = labels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mutual_information(x, pd.Series(x))
        for each in (labels, labels.astype(float), labels.astype(str), pd.Series(labels)):
            echo_ext.mutual_information_discrete(x, each)


def test_pandas_is_not_imported():
    code = "import sys, echo_ext; echo_ext.entropy([1.0, 2, 4, 8, 16]); print('pandas' in sys.modules)"
    # From a folder without the package's source, which has no native core where the package is installed.
    options = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parent}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stdout == "False\n"


def test_a_wide_array_is_hinted_at():
    rng = fresh()
    trials = rng.standard_normal((5, 40))
    text = r"source has shape \(5, 40\) and is read as 5 samples of 40 columns: rows are samples; transpose it"
    with pytest.warns(UserWarning, match=text) as caught:
        transfer_entropy(trials, rng.standard_normal(5), k=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        knn(trials)
        echo_ext.mutual_information_matrix(trials)
        mutual_information(rng.standard_normal((3, 5, 2)), rng.standard_normal((5, 1)))
    with pytest.warns(UserWarning, match=r"x has shape \(5, 40\)"):
        echo_ext.with_standard_error(echo_ext.mutual_information, trials, rng.standard_normal(5), k=1, parts=2, seed=0)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_fraction_of_the_samples_as_k(as_tensor):
    rng = fresh()
    x, y = rng.standard_normal((2, 101))
    x, y = (torch.from_numpy(x), torch.from_numpy(y)) if as_tensor else (x, y)
    found = mutual_information(x, y, k=[0.1, 3, 0.001, np.float32(0.5)])
    assert np.array_equal(found, mutual_information(x, y, k=[10, 3, 1, 50]))
    assert transfer_entropy(x, y, k=0.1, history=2) == transfer_entropy(x, y, k=9, history=2)
    assert echo_ext.with_standard_error(echo_ext.mutual_information, x, y, k=0.2, seed=1)[0] == mutual_information(
        x, y, k=20
    )
    for k in (0.0, 1.0, -0.1, 2.5, float("nan")):
        with pytest.raises(ValueError, match=r"k must be an int or a fraction in \(0, 1\), got"):
            mutual_information(x, y, k=k)
