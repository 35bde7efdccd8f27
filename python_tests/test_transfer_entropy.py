import math

import numpy as np
import pytest
import torch
from knn_cases import fresh, sample
from scipy.linalg import solve_discrete_lyapunov

from echo_ext import conditional_mutual_information, mutual_information, reference, transfer_entropy


def coupled(rng, n, own=0.5, coupling=0.7, lag=1):
    """White noise x that drives an autoregressive y: the transfer entropy is log(1 + coupling^2) / 2."""
    x, noise = rng.standard_normal((2, n + 100))
    y = np.zeros(n + 100)
    for t in range(lag, n + 100):
        y[t] = own * y[t - 1] + coupling * x[t - lag] + noise[t]
    return x[100:], y[100:]


@pytest.mark.parametrize("method", ["ksg1", "ksg2", "mixed", "plug-in", "miller-madow"])
@pytest.mark.parametrize("options", [{}, {"history": 3}, {"source_history": 2, "k": [2, 4]}, {"lag": 2, "history": 2}])
def test_meets_the_oracle(options, method):
    rng = fresh()
    for kind in ("normal", "ties"):
        source, target = sample(rng, 90, 2, kind), sample(rng, 90, 1, kind)
        options = dict(options, method=method, local=True, exclude_within=2)
        np.testing.assert_allclose(
            transfer_entropy(source, target, **options),
            reference.transfer_entropy(source, target, **options),
            rtol=1e-12,
            atol=1e-12,
        )


def test_coupled_process():
    x, y = coupled(fresh(), 8000)
    assert transfer_entropy(x, y) == pytest.approx(0.5 * math.log(1.49), abs=0.05)
    assert transfer_entropy(y, x) == pytest.approx(0.0, abs=0.05)


def test_the_lag_is_found():
    x, y = coupled(fresh(), 4000, lag=3)
    values = [transfer_entropy(x, y, lag=lag) for lag in range(1, 6)]
    assert int(np.argmax(values)) == 2
    assert values[2] == pytest.approx(0.5 * math.log(1.49), abs=0.08)


def test_window_takes_out_what_time_alone_explains():
    # Two slow series that know nothing of each other: rows that are near in time are near in both.
    steps = fresh().standard_normal((2, 1500))
    kernel = np.exp(-np.arange(60) / 10)
    x, y = (np.convolve(s, kernel, "valid") for s in steps)
    plain, windowed = (mutual_information(x, y, exclude_within=w) for w in (0, 60))
    assert windowed < plain
    slow = torch.from_numpy(np.stack([x, y]))
    assert conditional_mutual_information(slow[0], slow[1], slow[0].roll(1), exclude_within=60).isfinite()


def chain(rng, n):
    """White noise that drives a series, which drives another: each has the variance 1."""
    first, *noise = rng.standard_normal((3, n))
    middle = 0.8 * np.roll(first, 1) + 0.6 * noise[0]
    return first, middle, 0.8 * np.roll(middle, 1) + 0.6 * noise[1]


def test_a_chain_is_explained_by_its_middle():
    first, middle, last = chain(fresh(), 4000)
    assert transfer_entropy(first, last, lag=2) == pytest.approx(-0.5 * math.log(1 - 0.64**2), abs=0.06)
    assert transfer_entropy(first, last, lag=2, given=middle) == pytest.approx(0.0, abs=0.04)
    direct = transfer_entropy(middle, last, given=first, given_history=2)
    assert direct == pytest.approx(0.5 * math.log(1.64), abs=0.08)


def test_a_common_driver_is_explained_only_by_the_rows_that_act():
    rng = fresh()
    driver, *noise = rng.standard_normal((3, 4000))
    early, late = np.roll(driver, 1) + noise[0], np.roll(driver, 3) + noise[1]
    assert transfer_entropy(early, late, lag=2) > 0.1
    assert transfer_entropy(early, late, lag=2, given=driver, given_history=2) > 0.1
    assert transfer_entropy(early, late, lag=2, given=driver, given_history=3) == pytest.approx(0.0, abs=0.04)


def test_a_linear_gaussian_process_has_its_conditional_transfer_entropy():
    coefficients = np.array([[0.5, 0.0, 0.3], [0.6, 0.4, -0.4], [0.0, 0.2, 0.6]])  # of source, target and given
    x = fresh().standard_normal((8200, 3))
    for t in range(1, len(x)):
        x[t] += coefficients @ x[t - 1]
    source, target, given = x[200:].T
    now = solve_discrete_lyapunov(coefficients, np.eye(3))
    both = np.block([[now, coefficients @ now], [now @ coefficients.T, now]])  # the rows t and t - 1

    def log_variance(past):
        """The logarithm of the variance of the target at t, given series at t - 1."""
        at = [3 + i for i in past]
        return math.log(both[1, 1] - both[1, at] @ np.linalg.solve(both[np.ix_(at, at)], both[at, 1]))

    exact = 0.5 * (log_variance([1, 2]) - log_variance([0, 1, 2]))
    assert log_variance([0, 1, 2]) == pytest.approx(0.0, abs=1e-12)  # what remains is noise of variance 1
    assert transfer_entropy(source, target, given=given) == pytest.approx(exact, abs=0.05)
    alone = 0.5 * (log_variance([1]) - log_variance([0, 1]))
    assert abs(alone - exact) > 0.05
    assert transfer_entropy(source, target) == pytest.approx(alone, abs=0.05)


@pytest.mark.parametrize("method", ["ksg1", "ksg2", "mixed", "miller-madow"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("trials", [False, True])
def test_given_joins_the_past_of_the_target(method, dtype, window, trials):
    rng = fresh()
    n = 61
    source, target, given = (sample(rng, n, d, "ties").astype(dtype) for d in (1, 1, 2))
    groups = rng.integers(0, 2, n) if trials else None
    options = dict(method=method, k=[2, 4], exclude_within=window, local=True)
    shape = dict(given=given, history=2, source_history=2, lag=2, given_history=4, groups=groups)
    found = transfer_entropy(source, target, **shape, **options)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    oracle = reference.transfer_entropy(source, target, **shape, **options)
    np.testing.assert_allclose(found, oracle, rtol=tolerance, atol=tolerance)
    if not trials:
        past = np.concatenate([target[3:-1], target[2:-2], *(given[4 - i : n - i] for i in (1, 2, 3, 4))], 1)
        by_hand = [target[4:], np.concatenate([source[2:-2], source[1:-3]], 1), past]
        assert np.array_equal(found, conditional_mutual_information(*by_hand, **options))
    tensors = {"given": torch.from_numpy(given)}
    as_tensors = transfer_entropy(torch.from_numpy(source), torch.from_numpy(target), **{**shape, **tensors}, **options)
    assert np.array_equal(as_tensors.numpy(), found)


def test_batches_of_given_broadcast():
    x, y, z = (torch.randn(*batch, 60, 1, dtype=torch.float64) for batch in ((3, 1), (2,), (4, 1, 1)))
    values = transfer_entropy(x, y, given=z)
    assert values.shape == (4, 3, 2)
    torch.testing.assert_close(values[3, 2, 1], transfer_entropy(x[2, 0], y[1], given=z[3, 0, 0]))
    assert transfer_entropy(x, y, given=z[:0]).shape == (0, 3, 2)


def test_missing_rows_of_given_take_out_their_times():
    x, y, z = fresh().standard_normal((3, 50))
    z[20] = np.nan
    with pytest.raises(ValueError, match=r"given must be finite, got 1 NaN in 1 rows, the first at \[20\]"):
        transfer_entropy(x, y, given=z)
    options = dict(given=z, given_history=2, nan_policy="omit", local=True, exclude_within=1)
    found = transfer_entropy(x, y, **options)
    assert np.flatnonzero(np.isnan(found)).tolist() == [19, 20]  # the times 21 and 22, of those from 2 on
    np.testing.assert_allclose(found, reference.transfer_entropy(x, y, **options), rtol=1e-12, atol=1e-12)


def test_batches_and_local_values():
    x, y = torch.randn(3, 1, 100, 1, dtype=torch.float64), torch.randn(2, 100, 2, dtype=torch.float64)
    values = transfer_entropy(x, y, history=2)
    assert values.shape == (3, 2)
    torch.testing.assert_close(values[1, 1], transfer_entropy(x[1, 0], y[1], history=2))
    assert transfer_entropy(x, y, history=4, source_history=2, lag=5, local=True).shape == (3, 2, 94)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(history=0), ValueError, "history must be at least 1, got 0"),
        (dict(lag=1.0), TypeError, "lag must be an int, got 1.0"),
        (
            dict(source_history=19),
            ValueError,
            "source and target must have at least 21 rows for history=1, source_history=19 and lag=1, got 20",
        ),
        (dict(history=16, k=4), ValueError, "number of samples, got 4 of 4 .4 of 20 rows have 16 rows before them"),
        (dict(given_history=0), ValueError, "given_history must be at least 1, got 0"),
        (dict(given=np.arange(19.0)), ValueError, "source and given must have the same number of samples, got 20 and"),
        (dict(given=torch.arange(20.0)), TypeError, "source and given must be both tensors or both arrays"),
        (
            dict(given=np.arange(20.0), given_history=19),
            ValueError,
            "source, target and given must have at least 21 rows for history=1, source_history=1, lag=1 and "
            "given_history=19, got 20",
        ),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        transfer_entropy(np.arange(20.0), np.arange(20.0), **options)


def test_a_backward_pass_is_refused():
    x = torch.randn(30, requires_grad=True)
    with pytest.raises(NotImplementedError, match="transfer_entropy has no gradient"):
        transfer_entropy(x, torch.randn(30)).backward()
