"""echo_ext.tigramite.CMIknn compared with tigramite's class of this name.

Run them where tigramite is installed: pip install tigramite numba 'numpy<2.4'
"""

import math
import re

import numpy as np
import pytest
from knn_cases import fresh
from scipy.signal import lfilter

pytest.importorskip("tigramite")
pytest.importorskip("numba")  # for the original
from tigramite.data_processing import DataFrame
from tigramite.independence_tests.cmiknn import CMIknn as Original
from tigramite.pcmci import PCMCI

from echo_ext import independence_test
from echo_ext.tigramite import CMIknn

# The original's block length calls np.corrcoef(ddof=), which NumPy 2.4 no longer takes.
SINGLE_ROWS = {"sig_blocklength": 1}


def triple(n, columns, *, dependence=0.0, rng=None):
    """x, y (n, 1) and z (n, columns), or None, on which both depend; y also on x if dependence is positive."""
    rng = rng or fresh()
    z = rng.standard_normal((n, columns))
    x = z.sum(1) + rng.standard_normal(n)
    y = np.sin(z.sum(1)) + rng.standard_normal(n) + dependence * np.abs(x)
    return x[:, None], y[:, None], z if columns > 0 else None


def nonlinear_series(n):
    """The process with squared dependences of tigramite's tutorial, and its links (from, to, lag)."""
    data = np.random.default_rng(42).standard_normal((n, 3))
    for t in range(1, n):
        data[t, 0] += 0.4 * data[t - 1, 1] ** 2
        data[t, 2] += 0.3 * data[t - 2, 1] ** 2
    return data, {(1, 0, 1), (1, 2, 2)}


def monte_carlo_error(p, num):
    """Five standard errors of an empirical p-value from so many surrogates."""
    return 5 * math.sqrt(max(p * (1 - p), 1 / num) / num)


@pytest.mark.parametrize("transform", ["ranks", "standardize", "uniform", False])
@pytest.mark.parametrize("knn", [0.2, 0.003, 5])
@pytest.mark.parametrize("columns", [0, 1, 3])
def test_estimates_are_the_originals(transform, knn, columns):
    # The original adds noise, which changes a few counts for other data.
    for n in (50, 211):
        x, y, z = triple(n, columns, dependence=0.5, rng=np.random.default_rng(1))
        options = dict(knn=knn, transform=transform, workers=1)
        expected = Original(**options).get_dependence_measure_raw(x, y, z)
        found = CMIknn(**options).get_dependence_measure_raw(x, y, z)
        assert found == pytest.approx(expected, abs=1e-9)


def test_variables_may_have_several_columns():
    rng = fresh()
    x, y, z = rng.standard_normal((3, 100, 2))
    y[:, 0] += x[:, 1]
    expected, p = Original(workers=1, sig_samples=99).run_test_raw(x, y, z)
    found, q = CMIknn(workers=1, sig_samples=999).run_test_raw(x, y, z)
    assert found == pytest.approx(expected, abs=1e-9)
    assert abs(p - q) < monte_carlo_error(q, 99)


@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("dependence", [0.0, 0.3])
@pytest.mark.parametrize("permute", ["X", "Y"])
def test_p_values_are_the_originals_within_monte_carlo_error(columns, dependence, permute):
    x, y, z = triple(120, columns, dependence=dependence)
    options = dict(workers=1, permute=permute, **SINGLE_ROWS)
    p = Original(sig_samples=199, **options).run_test_raw(x, y, z)[1]
    q = CMIknn(sig_samples=1999, **options).run_test_raw(x, y, z)[1]
    assert abs(p - q) < monte_carlo_error(q, 199)


def test_fitted_null_distributions_are_the_originals():
    x, y, z = triple(120, 1, dependence=0.2)
    for null_fit in ("normal", "gamma"):
        options = dict(workers=1, null_fit=null_fit)
        p = Original(sig_samples=199, **options).run_test_raw(x, y, z)[1]
        q = CMIknn(sig_samples=999, **options).run_test_raw(x, y, z)[1]
        assert abs(p - q) < monte_carlo_error(q, 199)


@pytest.mark.parametrize("columns", [0, 2])
def test_p_values_of_independent_variables_are_uniform(columns):
    p = []
    for seed in range(100):
        x, y, z = triple(80, columns)
        p.append(CMIknn(knn=0.1, workers=1, sig_samples=99, seed=seed).run_test_raw(x, y, z)[1])
    for level in (0.1, 0.3, 0.5):
        assert abs(np.mean(np.array(p) <= level) - level) < 5 * math.sqrt(level * (1 - level) / 100)


def test_tied_values_are_separated_at_random():
    """With ties in the order of the rows, every pair of tied variables would be dependent."""
    rng = fresh()
    rejected = 0
    for seed in range(60):
        x, y = rng.integers(0, 3, (2, 150, 1)).astype(float)
        rejected += CMIknn(knn=10, workers=1, sig_samples=99, seed=seed).run_test_raw(x, y)[1] <= 0.05
    assert rejected <= 10
    y = np.where(rng.random((150, 1)) < 0.2, y, x)
    expected = Original(knn=30, workers=1).get_dependence_measure_raw(x, y)
    assert CMIknn(knn=30, workers=1).get_dependence_measure_raw(x, y) == pytest.approx(expected, abs=0.1)


def test_autocorrelated_series_are_permuted_in_blocks():
    rng = fresh()
    rejected = {None: 0, 1: 0}
    for seed in range(60):
        x, y = lfilter([1], [1, -0.95], rng.standard_normal((2, 200)))[..., None]
        for length in rejected:
            test = CMIknn(knn=5, workers=1, sig_samples=99, sig_blocklength=length, seed=seed)
            rejected[length] += test.run_test_raw(x, y)[1] <= 0.05
    assert rejected[1] > 30
    assert rejected[None] <= 20


def test_a_run_repeats_with_its_seed():
    array, xyz = fresh().standard_normal((3, 100)), np.array([0, 1, 2])
    runs = []
    for seed in (1, 1, 2):
        test = CMIknn(seed=seed, sig_samples=50)
        runs.append([test.get_shuffle_significance(array, xyz, 0.0, return_null_dist=True)[1] for _ in range(2)])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert not np.array_equal(*runs[0])


def test_the_null_distribution_is_returned():
    x, y, z = triple(100, 2)
    array, xyz = np.hstack([x, y, z]).T, np.array([0, 1, 2, 2])
    test = CMIknn(sig_samples=50)
    value = test.get_dependence_measure(array, xyz)
    p, null = test.get_shuffle_significance(array, xyz, value, return_null_dist=True)
    assert null.shape == (50,)
    assert p == pytest.approx((1 + np.sum(null >= value - 1e-9)) / 51, abs=1e-12)
    seed = int(np.random.default_rng(42).integers(2**63 - 1))
    expected = independence_test(x, y, z, k=0.2, n_resamples=50, transform="rank", seed=seed)
    assert (value, p) == pytest.approx((expected.statistic, expected.pvalue))


def test_early_stopping_keeps_the_decision():
    for dependence in (0.0, 1.0):
        x, y, z = triple(200, 1, dependence=dependence)
        p = [CMIknn(sig_samples=500, early_stopping=alpha).run_test_raw(x, y, z)[1] for alpha in (None, 0.05)]
        assert (p[0] <= 0.05) == (p[1] <= 0.05) >= (dependence == 1)


def test_masks_and_missing_values_are_those_of_tigramite():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((200, 3))
    data[1:, 1] += data[:-1, 0]
    data[rng.integers(0, 200, 5), rng.integers(0, 3, 5)] = 999.0
    mask = rng.random((200, 3)) < 0.2
    for options in ({}, {"mask_type": "y"}, {"mask_type": "xz"}):
        found = []
        for kind in (CMIknn, Original):
            test = kind(workers=1, **options)
            test.set_dataframe(DataFrame(data, mask=mask, missing_flag=999.0))
            found.append(test.get_measure([(0, -1)], [(1, 0)], [(2, -1)], tau_max=2))
        assert found[0] == pytest.approx(found[1], abs=1e-9)


@pytest.mark.parametrize("knn", [0.2, 5])
@pytest.mark.parametrize("parents", [[(1, -2)], [(1, -2), (0, -1)]])
def test_model_selection_criterion_is_the_originals(knn, parents):
    data, _ = nonlinear_series(200)
    scores = []
    for kind in (CMIknn, Original):
        test = kind(knn=knn, workers=1)
        test.set_dataframe(DataFrame(data))
        scores.append(test.get_model_selection_criterion(2, parents, tau_max=2))
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)


def test_without_parents_the_mean_predicts():
    data, _ = nonlinear_series(100)
    test = CMIknn(model_selection_folds=2)
    test.set_dataframe(DataFrame(data))
    y = data[:, 2]
    scores = []
    for half, other in ((y[:50], y[50:]), (y[50:], y[:50])):
        scores.append(1 - np.square(half - other.mean()).sum() / np.square(half - half.mean()).sum())
    assert test.get_model_selection_criterion(2, []) == pytest.approx(-np.mean(scores))


def test_constant_conditions_are_ignored():
    x, y, _ = triple(100, 0)
    test = CMIknn()
    array = np.hstack([x, y, np.ones((100, 1))]).T
    expected = test.get_dependence_measure(array[:2], np.array([0, 1]))
    assert test.get_dependence_measure(array, np.array([0, 1, 2])) == expected
    assert test.get_shuffle_significance(array, np.array([0, 2, 1]), 0.0) == 1.0
    assert test.get_dependence_measure(array, np.array([0, 2, 1])) == 0.0


def test_discrete_data_are_refused():
    data = fresh().standard_normal((100, 2))
    test = CMIknn()
    test.set_dataframe(DataFrame(data, data_type=np.array([[0, 1]] * 100)))
    with pytest.raises(NotImplementedError, match="data_type must be 0 everywhere"):
        test.run_test([(0, -1)], [(1, 0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knn": 0}, "knn must be a finite number above 0, got 0"),
        ({"knn": 2.5}, "knn must be an int or a fraction in (0, 1), got 2.5"),
        ({"shuffle_neighbors": 1}, "shuffle_neighbors must be at least 2, got 1"),
        ({"transform": "rank"}, "transform must be one of 'ranks', 'standardize', 'uniform', False, got 'rank'"),
        ({"workers": 0}, "workers must be a number of threads, or -1, got 0"),
        ({"model_selection_folds": 1}, "model_selection_folds must be at least 2, got 1"),
        ({"null_fit": "beta"}, "null_fit must be one of None, 'normal', 'gamma', got 'beta'"),
        ({"null_fit": "gamma", "sig_samples": 5}, "sig_samples must be at least 10, got 5"),
        ({"permute": "Z"}, "permute must be one of 'X', 'Y', got 'Z'"),
        ({"null_fit": "gamma", "early_stopping": 0.05}, "early_stopping needs null_fit=None, got 'gamma'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        CMIknn(**options)


@pytest.mark.slow
def test_pcmci_decides_as_with_the_original():
    data, links = nonlinear_series(400)
    p = {}
    for kind, surrogates in ((CMIknn, 500), (Original, 100)):
        test = kind(workers=1, sig_samples=surrogates, **SINGLE_ROWS)
        p[kind] = PCMCI(DataFrame(data), test, verbosity=0).run_pcmci(tau_min=1, tau_max=2, pc_alpha=0.05)["p_matrix"]
    for found in p.values():
        assert {tuple(map(int, link)) for link in np.argwhere(found < 0.02)} == links
    for ours, theirs in zip(p[CMIknn].ravel(), p[Original].ravel(), strict=True):
        assert abs(ours - theirs) < monte_carlo_error(ours, 100)


def test_pcmci_chooses_its_level():
    data, _ = nonlinear_series(300)
    test = CMIknn(sig_samples=100, early_stopping=0.2)
    found = PCMCI(DataFrame(data), test, verbosity=0).run_pcmci(tau_min=1, tau_max=2, pc_alpha=[0.05, 0.2])
    assert found["p_matrix"][1, 0, 1] < 0.05
