"""Plain samples skip the reading of input: the estimates are the same bit for bit, and nothing else skips it."""

import numpy as np
import pytest
import torch

import echo_ext
from echo_ext.estimators import plain

RNG = np.random.default_rng(0)

ESTIMATORS = {
    "mutual_information": 2,
    "conditional_mutual_information": 3,
    "total_correlation": 1,
    "entropy": 1,
    "transfer_entropy": 2,
}


def samples(name, n, dim):
    return [RNG.standard_normal((n, dim)) for _ in range(ESTIMATORS[name])]


def estimates(monkeypatch, name, *given, **keywords):
    """Return the estimate, and whether it was made without the reading of input."""
    found = []
    attempt = plain._estimate
    with monkeypatch.context() as patch:
        patch.setattr(plain, "_estimate", lambda *args: found.append(attempt(*args)) or found[-1])
        estimate = getattr(echo_ext, name)(*given, **keywords)
    return estimate, bool(found) and found[-1] is not None


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("n", "dim", "k"), [(4, 2, 1), (5, 3, 3), (101, 2, 3), (1009, 4, 1), (200, 3, 180)])
def test_same_estimate(monkeypatch, name, n, dim, k):
    given = samples(name, n, dim)
    estimate, is_plain = estimates(monkeypatch, name, *given, k=k)
    assert is_plain
    assert type(estimate) is float
    assert estimate == getattr(echo_ext, name).__wrapped__(*given, k=k)
    assert estimate == float(getattr(echo_ext, name)(*map(torch.from_numpy, given), k=k))


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "total_correlation"])
def test_one_column(monkeypatch, name):
    given = [each[:, 0].copy() for each in samples(name, 300, 1)]
    estimate, is_plain = estimates(monkeypatch, name, *given, unit="nats", nan_policy="raise", exclude_within=0)
    assert is_plain
    assert estimate == getattr(echo_ext, name).__wrapped__(*given)


@pytest.mark.parametrize(
    "change",
    [
        np.ndarray.tolist,
        torch.from_numpy,
        lambda x: x.astype(np.float32),
        lambda x: x.astype(">f8"),
        lambda x: x[::2],
        lambda x: np.asfortranarray(np.stack([x, x + 1], -1)),
        lambda x: x.reshape(2, -1, 1),
        np.ma.masked_array,
    ],
    ids=["list", "tensor", "float32", "byte order", "strides", "columns", "batch", "masked array"],
)
def test_other_samples_are_read(monkeypatch, change):
    x, y = (change(RNG.standard_normal(60)) for _ in range(2))
    estimate, is_plain = estimates(monkeypatch, "mutual_information", x, y)
    assert not is_plain
    np.testing.assert_array_equal(estimate, echo_ext.mutual_information.__wrapped__(x, y))


@pytest.mark.parametrize(
    "keywords",
    [
        {"k": [3]},
        {"k": 0.1},
        {"k": np.int64(3)},
        {"method": "ksg2"},
        {"unit": "bits"},
        {"local": True},
        {"exclude_within": 2},
        {"groups": np.arange(50) % 2},
        {"nan_policy": "omit"},
        {"transform": "rank"},
    ],
    ids=str,
)
def test_other_keywords_are_read(monkeypatch, keywords):
    x, y = RNG.standard_normal((2, 50))
    estimate, is_plain = estimates(monkeypatch, "mutual_information", x, y, **keywords)
    assert not is_plain
    np.testing.assert_array_equal(estimate, echo_ext.mutual_information.__wrapped__(x, y, **keywords))


def test_errors_and_warnings_are_those_of_the_estimator():
    x, y = RNG.standard_normal((2, 50))
    missing = np.where(x > 1, np.nan, x)
    for given, keywords, match in [
        ((missing, y), {}, "x must be finite"),
        ((x, y[:-1]), {}, "same number of samples"),
        ((x, y), {"k": 50}, "k must be less than the number of samples, got 50 of 50"),
        ((x, y), {"k": 0}, "k must be at least 1"),
        ((np.empty((50, 0)), y), {}, "at least one column"),
        ((np.float64(1), y), {}, "single number"),
    ]:
        with pytest.raises(ValueError, match=match):
            echo_ext.mutual_information(*given, **keywords)
    with pytest.raises(ValueError, match="two or more"):
        echo_ext.total_correlation(x)
    with pytest.raises(ValueError, match="k must be less than the number of samples, got 49 of 49"):
        echo_ext.transfer_entropy(x, y, k=49)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        echo_ext.mutual_information(x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'K'"):
        echo_ext.mutual_information(x, y, K=...)
    with pytest.warns(echo_ext.DegenerateDataWarning):
        echo_ext.mutual_information(np.round(x), np.round(y))
    with pytest.warns(UserWarning, match="rows are samples"):
        echo_ext.mutual_information(RNG.standard_normal((4, 9)), RNG.standard_normal((4, 2)), k=1)
