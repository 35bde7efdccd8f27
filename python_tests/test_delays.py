"""Mutual information of delayed series."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from knn_cases import fresh, related

from echo_ext import DegenerateDataWarning, delayed_mutual_information, mutual_information, reference

N = 61
METHODS = ["ksg1", "ksg2", "bi-ksg", "mixed", "plug-in", "miller-madow"]


def shifted(x, y, lag):
    """Return x[t - lag] and y[t] at the times for which both exist."""
    n = len(x)
    return (x[: n - lag], y[lag:]) if lag >= 0 else (x[-lag:], y[: n + lag])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("options", [{}, {"exclude_within": 3}, {"k": [2, 5], "unit": "bits"}])
def test_is_mutual_information_of_shifted_series(method, dtype, options):
    x, y = (v.astype(dtype) for v in related(fresh(), N, 2, 1))
    lags = [3, 0, -4, 1, N - 16, 3]
    found = delayed_mutual_information(x, y, lags=lags, method=method, **options)
    each = [mutual_information(*shifted(x, y, lag), method=method, **options) for lag in lags]
    assert np.array_equal(found, np.stack(each, np.ndim(options.get("k", 3))))
    assert found.dtype == dtype
    oracle = reference.delayed_mutual_information(x, y, lags=lags, method=method, **options)
    np.testing.assert_allclose(found, oracle, rtol=1e-9 if dtype == np.float64 else 1e-5, atol=1e-5)
    tensors = delayed_mutual_information(torch.tensor(x), torch.tensor(y), lags=lags, method=method, **options)
    assert np.array_equal(tensors.numpy(), found)


@pytest.mark.parametrize("delay", [4, 0, -2])
def test_peaks_at_the_delay(delay):
    x, noise = fresh().standard_normal((2, 3000))
    y = 0.8 * np.roll(x, delay) + 0.6 * noise
    lags = range(-6, 7)
    found = delayed_mutual_information(x, y, lags=lags)
    assert found.shape == (13,)
    assert lags[int(found.argmax())] == delay
    assert found.max() == pytest.approx(-0.5 * math.log(0.36), abs=0.08)
    assert np.sort(found)[-2] < 0.08


def test_an_autoregressive_process_forgets_at_its_rate():
    noise = fresh().standard_normal(6100)
    x = np.zeros(6100)
    for t in range(1, 6100):
        x[t] = 0.8 * x[t - 1] + noise[t]
    found = delayed_mutual_information(x[100:], x[100:], lags=np.arange(1, 6), exclude_within=10)
    np.testing.assert_allclose(found, -0.5 * np.log(1 - 0.8 ** (2 * np.arange(1, 6))), atol=0.08)


def test_the_order_of_the_series_is_the_sign_of_the_lag():
    x, y = related(fresh(), N)
    lags = np.arange(-3, 4)
    forward, backward = delayed_mutual_information(x, y, lags=lags), delayed_mutual_information(y, x, lags=-lags)
    np.testing.assert_allclose(forward, backward, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("window", [0, 2])
def test_delays_do_not_cross_trials(interleaved, window):
    rng = fresh()
    x, y = related(rng, N)
    groups = rng.integers(0, 3, N) if interleaved else np.repeat([2, 0, 1], [20, 22, 19])
    options = dict(groups=groups, exclude_within=window, k=4)
    lags = [-3, 0, 2]
    found = delayed_mutual_information(x, y, lags=lags, **options)
    oracle = reference.delayed_mutual_information(x, y, lags=lags, **options)
    np.testing.assert_allclose(found, oracle, rtol=1e-12, atol=1e-12)
    for value, lag in zip(found, lags, strict=True):
        parts = [(*shifted(x[groups == g], y[groups == g], lag), g) for g in dict.fromkeys(groups.tolist())]
        label = np.concatenate([np.full(len(early), g) for early, _, g in parts])
        joined = [np.concatenate([part[i] for part in parts]) for i in (0, 1)]
        assert value == pytest.approx(mutual_information(*joined, groups=label, exclude_within=window, k=4), rel=1e-12)
    one = delayed_mutual_information(x, y, lags=lags, groups=[1] * N, exclude_within=window)
    np.testing.assert_allclose(one, delayed_mutual_information(x, y, lags=lags, exclude_within=window), rtol=1e-12)


def test_missing_rows_are_left_out_with_their_partner():
    x, y = (v[:, 0] for v in related(fresh(), N))
    x[10], y[[10, 30]] = np.nan, np.nan
    with pytest.raises(ValueError, match=r"x must be finite, got 1 NaN in 1 rows, the first at \[10\]"):
        delayed_mutual_information(x, y, lags=[1])
    options = dict(nan_policy="omit", transform="rank", exclude_within=2)
    found = delayed_mutual_information(x, y, lags=[0, 5, -1], **options)
    each = [mutual_information(*shifted(x, y, lag), **options) for lag in (0, 5, -1)]
    assert np.array_equal(found, each)
    # Where the missing rows are beyond the times of the lag, nothing is left out.
    x, y = (v[:, 0] for v in related(fresh(), N))
    x[-1] = y[0] = np.nan
    assert delayed_mutual_information(x, y, lags=[1], nan_policy="omit")[0] == mutual_information(x[:-1], y[1:])


def test_batches_broadcast():
    x, y = torch.randn(3, 1, 40, 1), torch.randn(2, 40, 2)
    found = delayed_mutual_information(x, y, lags=[1, -2], k=[3, 4, 5])
    assert found.shape == (3, 2, 3, 2)
    torch.testing.assert_close(found[1, 0, 2, 1], mutual_information(x[2, 0, :-1], y[1, 1:], k=4))
    assert delayed_mutual_information(x[:0], y, lags=[1]).shape == (1, 0, 2)


def test_tables_and_symbols():
    frame = pd.DataFrame({"a": np.arange(20) % 3, "b": np.arange(20) % 2 == 0})
    found = delayed_mutual_information(frame["a"], frame["a"], lags=[3, 1], method="plug-in")
    np.testing.assert_allclose(
        found, [mutual_information(frame["a"][:-lag], frame["a"][lag:], method="plug-in") for lag in (3, 1)]
    )
    words = np.array(["x", "y", "z"])[frame["a"]]
    assert np.array_equal(delayed_mutual_information(words, words, lags=[3, 1], method="plug-in"), found)


def test_has_the_gradient_of_mutual_information():
    x, y = (torch.from_numpy(v).requires_grad_() for v in related(fresh(), N))
    delayed_mutual_information(x, y, lags=[2, -1]).sum().backward()
    found = x.grad.clone(), y.grad.clone()
    x.grad = y.grad = None
    (mutual_information(x[:-2], y[2:]) + mutual_information(x[1:], y[:-1])).backward()
    torch.testing.assert_close(found, (x.grad, y.grad), rtol=1e-12, atol=1e-14)


def test_ties_are_named_once():
    x = np.arange(N) % 2
    with pytest.warns(DegenerateDataWarning, match=r"^up to 100 % of the samples") as caught:
        delayed_mutual_information(x, x[::-1], lags=range(5))
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("lags", "error", "message"),
    [
        ([], ValueError, "lags must be a sequence of at least one int, got none"),
        (1, TypeError, "lags must be a sequence of ints, got 1"),
        ([1.0], TypeError, "lags must be a sequence of ints, got 1.0"),
        (np.array([0.5]), TypeError, "lags must be a sequence of ints, got"),
        ([[1], [1, 2]], TypeError, r"lags must be a sequence of ints, got \[1\]"),
        ([0, 10], ValueError, "lags must leave at least 2 times, got lag 10, which leaves 0 of 10 rows"),
        ([-9], ValueError, "lags must leave at least 2 times, got lag -9, which leaves 1 of 10 rows"),
        ([0, -7], ValueError, r"k must be less than the number of samples, got 3 of 3 \(lag -7 leaves 3 of 10 rows\)"),
    ],
)
@pytest.mark.parametrize("groups", [None, np.zeros(10)])
def test_bad_lags(lags, error, message, groups):
    with pytest.raises(error, match=message):
        delayed_mutual_information(np.arange(10.0), np.arange(10.0), lags=lags, groups=groups)
