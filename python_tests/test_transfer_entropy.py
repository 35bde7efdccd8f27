import math

import numpy as np
import pytest
import torch
from knn_cases import fresh, sample

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
        (dict(history=16, k=4), ValueError, "k must be less than the number of samples, got 4 of 4"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        transfer_entropy(np.arange(20.0), np.arange(20.0), **options)


def test_a_backward_pass_is_refused():
    x = torch.randn(30, requires_grad=True)
    with pytest.raises(NotImplementedError, match="transfer_entropy has no gradient"):
        transfer_entropy(x, torch.randn(30)).backward()
