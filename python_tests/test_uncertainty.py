import numpy as np
import pytest
import torch
from knn_cases import fresh, related

from echo_ext import mutual_information, mutual_information_error, permutation_test


def test_standard_error_is_the_spread_of_estimates():
    many, n = 60, 600
    x = torch.randn(many, n, 1, dtype=torch.float64)
    y = 0.6 * x + 0.8 * torch.randn(many, n, 1, dtype=torch.float64)
    estimates, errors = mutual_information_error(x, y)
    assert torch.equal(estimates, mutual_information(x, y))
    assert errors.shape == (many,)
    assert 0.6 < errors.mean() / estimates.std() < 1.6


def test_standard_error_of_series_takes_consecutive_parts():
    x, y = related(fresh(), 400)
    estimate, error = mutual_information_error(x, y, exclude_within=3, parts=5)
    parts = [mutual_information(x[i : i + 80], y[i : i + 80], exclude_within=3) for i in range(0, 400, 80)]
    assert estimate == mutual_information(x, y, exclude_within=3)
    assert error == pytest.approx(np.std(parts, ddof=1) / 5**0.5)


def test_p_values_of_independent_variables_are_uniform():
    x, y = torch.randn(2, 200, 40, 1, dtype=torch.float64)
    result = permutation_test(x, y, 49)
    assert result.null.shape == (49, 200)
    ranks = result.p_value * 50
    torch.testing.assert_close(ranks, ranks.round())
    # 200 p-values from a uniform distribution: the mean is within 5 standard errors.
    assert abs(result.p_value.mean() - 0.51) < 5 * (1 / 12 / 200) ** 0.5
    assert (result.p_value <= 0.1).double().mean() < 0.1 + 5 * (0.09 / 200) ** 0.5


def test_dependence_is_seen():
    x, y = related(fresh(), 1000)
    result = permutation_test(x, y, 99)
    assert isinstance(result.p_value, float)
    assert result.p_value == 0.01
    assert result.null.shape == (99,)
    assert result.null.max() < result.estimate == mutual_information(x, y)


def test_seeds_repeat():
    x, y = (torch.from_numpy(v) for v in related(fresh(), 100, 2, 1))
    first, second, other = (permutation_test(x, y, 20, seed=seed).null for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    one, two = (mutual_information_error(x, y, seed=3).standard_error for _ in range(2))
    assert torch.equal(one, two)
    torch.manual_seed(5)
    before = permutation_test(x, y, 5).null
    torch.manual_seed(5)
    assert torch.equal(permutation_test(x, y, 5).null, before)


def test_batches_broadcast():
    x, y = torch.randn(3, 1, 60, 1), torch.randn(60, 2)
    assert permutation_test(x, y, 7).null.shape == (7, 3, 1)
    assert mutual_information_error(x, y, parts=4).standard_error.shape == (3, 1)


def test_bad_input():
    x, y = np.arange(40.0), np.arange(40.0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        permutation_test(x, y, 0)
    with pytest.raises(ValueError, match="parts=20 leaves 2 samples in a part: k must be less than"):
        mutual_information_error(x, y, parts=20)
    with pytest.raises(ValueError, match="parts must be at least 2, got 1"):
        mutual_information_error(x, y, parts=1)
