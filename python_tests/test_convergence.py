"""Estimates from parts of the sample, compared with plain loops over mutual_information."""

import numpy as np
import pytest
import torch
from knn_cases import fresh, related

import echo_ext
from echo_ext import mutual_information, mutual_information_convergence


def in_loops(x, y, sizes, ks, orders, **options):
    """The means and standard errors of one estimate at a time, from the orders of the rows for each size."""
    means, spreads, weights = [], [], []
    for size, of_size in zip(sizes, orders, strict=True):
        parts = len(x) // size
        found = [
            [
                [mutual_information(x[rows], y[rows], k=k, **options) for k in ks]
                for rows in np.reshape(order[: parts * size], (parts, size))
            ]
            for order in of_size
        ]
        means.append(np.mean(found, (0, 1)))
        if parts > 1:
            spreads.append(np.var(found, 1, ddof=1).mean(0) * size)
            weights.append(parts - 1)
    variance = np.average(spreads, axis=0, weights=weights)
    return np.array(means), np.array([np.sqrt(variance / (size * (len(x) // size))) for size in sizes])


@pytest.mark.parametrize("method", ["ksg1", "ksg2", "bi-ksg", "mixed", "plug-in"])
def test_random_parts_are_those_of_loops(method):
    rng = fresh()
    x, y = related(rng, 211, 2, 1, "ties" if method == "plug-in" else "normal")
    sizes, ks = [30, 105, 140, 211], [2, 7]
    found = mutual_information_convergence(x, y, sizes=sizes, k=ks, method=method, unit="bits", repeats=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    orders = [[torch.randperm(211, generator=generator).numpy() for _ in range(2)] for _ in sizes[:3]]
    means, errors = in_loops(x, y, sizes, ks, [*orders, [np.arange(211)]], method=method, unit="bits")
    assert (found.sizes, found.k) == ((30, 105, 140, 211), (2, 7))
    np.testing.assert_allclose(found.estimates, means, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-9)
    np.testing.assert_array_equal(found.estimates[-1], mutual_information(x, y, k=ks, method=method, unit="bits"))


def test_parts_of_series_are_consecutive():
    x, y = related(fresh(), 203, 1, 2)
    found = mutual_information_convergence(x, y, sizes=[50, 203], k=[3, 4], exclude_within=5)
    means, errors = in_loops(x, y, [50, 203], [3, 4], [[np.arange(203)]] * 2, exclude_within=5)
    np.testing.assert_allclose(found.estimates, means, rtol=1e-12)
    np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-9)


def test_default_sizes_leave_enough_neighbors():
    x, y = related(fresh(), 170)
    assert mutual_information_convergence(x, y).sizes == (21, 42, 85, 170)
    assert mutual_information_convergence(x, y).k == (3, 5, 10, 20)
    assert mutual_information_convergence(x[:167], y[:167]).sizes == (41, 83, 167)
    assert mutual_information_convergence(x, y, k=3, exclude_within=20).sizes == (85, 170)
    alone = mutual_information_convergence(x[:21], y[:21])
    assert alone.sizes == (21,)
    assert np.isnan(alone.standard_errors).all()
    assert np.isfinite(alone.estimates).all()


def test_batches_keep_their_form():
    x, y = torch.randn(3, 1, 2, 90).transpose(-1, -2), torch.randn(2, 90, 1, requires_grad=True)
    found = mutual_information_convergence(x, y, k=4, seed=1)
    assert found.sizes == (11, 22, 45, 90)
    assert found.k == (4,)
    for values in found[2:]:
        assert values.shape == (4, 1, 3, 2)
        assert values.dtype == torch.float32
        assert not values.requires_grad
    alone = mutual_information_convergence(x[2, 0], y[1], k=4, seed=1)
    for several, single in zip(found[2:], alone[2:], strict=True):
        torch.testing.assert_close(several[..., 2, 1], single)
    arrays = mutual_information_convergence(x.numpy(), y.detach().numpy(), k=4, seed=1)
    for values, tensor in zip(arrays[2:], found[2:], strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, tensor.numpy())
    empty = mutual_information_convergence(x[:0], y, k=4)
    assert empty.estimates.shape == (4, 1, 0, 2)


def test_parts_of_trials_keep_them_together():
    x, y = related(fresh(), 120)
    trial = np.tile([0, 1, 2], 40)  # interleaved, so that the order of the rows is not that of the parts
    found = mutual_information_convergence(x, y, sizes=[30, 120], k=3, exclude_within=2, groups=trial)
    by_trial = np.argsort(trial, kind="stable")
    each = [
        mutual_information(x[rows], y[rows], exclude_within=2, groups=trial[rows]) for rows in by_trial.reshape(4, 30)
    ]
    assert found.estimates[0, 0] == pytest.approx(np.mean(each))
    assert found.standard_errors[0, 0] == pytest.approx(np.std(each, ddof=1) / 2)
    assert found.estimates[1, 0] == pytest.approx(mutual_information(x, y, exclude_within=2, groups=trial))
    without = mutual_information_convergence(x, y, k=3, seed=0)
    with_trials = mutual_information_convergence(x, y, k=3, seed=0, groups=trial)
    np.testing.assert_array_equal(with_trials.estimates, without.estimates)  # they matter to the window alone


def test_missing_rows_are_left_out():
    x, y = related(fresh(), 100, 2, 1)
    missing = np.zeros(100, bool)
    missing[[3, 50, 51, 99]] = True
    x[missing, 1] = np.nan
    options = {"k": [3, 4], "seed": 2}
    found = mutual_information_convergence(x, y, nan_policy="omit", **options)
    complete = mutual_information_convergence(x[~missing], y[~missing], **options)
    assert found.sizes == complete.sizes == (12, 24, 48, 96)
    for values, wanted in zip(found[2:], complete[2:], strict=True):
        np.testing.assert_array_equal(values, wanted)
    series = mutual_information_convergence(x, y, k=3, sizes=[50], nan_policy="omit", exclude_within=1)
    each = [mutual_information(x[i : i + 50], y[i : i + 50], nan_policy="omit", exclude_within=1) for i in (0, 50)]
    assert series.estimates[0, 0] == pytest.approx(np.mean(each))
    with pytest.raises(ValueError, match=r"k must be less than .* got 3 of 0 \(100 of 100 rows were left out\)"):
        mutual_information_convergence(x * np.nan, y, k=3, nan_policy="omit")
    with pytest.raises(ValueError, match="x must be finite, got 4 NaN"):
        mutual_information_convergence(x, y)


def test_columns_are_transformed_and_k_is_a_fraction_in_each_part():
    x, y = related(fresh(), 80)
    found = mutual_information_convergence(x, y, sizes=[40, 80], k=[0.1, 3], transform="rank", repeats=1, seed=1)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1)).numpy()
    each = [mutual_information(x[rows], y[rows], k=[4, 3], transform="rank") for rows in order.reshape(2, 40)]
    assert found.k == (0.1, 3)
    np.testing.assert_allclose(found.estimates[0], np.mean(each, 0))
    np.testing.assert_array_equal(found.estimates[1], mutual_information(x, y, k=[8, 3], transform="rank"))


def test_the_largest_size_warns_of_ties():
    x = np.random.default_rng(0).integers(0, 3, (2, 400))
    with pytest.warns(echo_ext.DegenerateDataWarning) as caught:
        mutual_information_convergence(*x, k=3)
    assert [each.filename for each in caught] == [__file__]


def test_labels_are_discrete_variables():
    rng = fresh()
    label = rng.integers(0, 2, 120)
    x, words = rng.standard_normal(120) + 2 * label, np.array(["no", "yes"])[label]
    options = {"method": "mixed", "k": [3, 5], "seed": 0}
    found = mutual_information_convergence(x, words, discrete_y=True, **options)
    coded = mutual_information_convergence(x, label.astype(float), discrete_y=[True], **options)
    np.testing.assert_array_equal(found.estimates, coded.estimates)
    assert found.estimates[-1, 0] == mutual_information(x, words, method="mixed", discrete_y=True)


def test_standard_errors_are_the_spread_of_estimates():
    x = torch.randn(60, 800, 1, dtype=torch.float64)
    y = 0.6 * x + 0.8 * torch.randn(60, 800, 1, dtype=torch.float64)
    found = mutual_information_convergence(x, y, k=3, repeats=1)
    ratio = found.standard_errors.mean(-1) / found.estimates.std(-1)
    assert ((ratio > 0.6) & (ratio < 1.6)).all(), ratio


def test_few_columns_converge_and_many_do_not():
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 4000, 10))
    flat = mutual_information_convergence(x[:, 0], x[:, 0] + noise[:, 0], seed=0)
    assert (abs(flat.estimates - np.log(2) / 2) < 4 * flat.standard_errors + 0.01).all()
    biased = mutual_information_convergence(x, x + noise, seed=0)
    assert (np.diff(biased.estimates, axis=0) > 3 * biased.standard_errors[1:]).all()  # rises with the size
    assert (np.diff(biased.estimates, axis=1) < -3 * biased.standard_errors[:, 1:]).all()  # falls with k
    assert biased.estimates.max() < 0.5 * 10 * np.log(2) / 2


def test_seeds_repeat():
    x, y = related(fresh(), 100)
    first, second, other = (mutual_information_convergence(x, y, k=3, seed=seed).estimates for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first[:-1] != other[:-1]).any()
    torch.manual_seed(5)
    before = mutual_information_convergence(x, y, k=3).estimates
    torch.manual_seed(5)
    np.testing.assert_array_equal(mutual_information_convergence(x, y, k=3).estimates, before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sizes": 20}, TypeError, "sizes must be a sequence of ints, got 20"),
        ({"sizes": []}, TypeError, r"sizes must be a sequence of ints, got \[\]"),
        ({"sizes": [20.0]}, TypeError, "sizes must be a sequence of ints, got 20.0"),
        ({"sizes": "20"}, TypeError, "sizes must be a sequence of ints, got '2'"),
        ({"sizes": [41]}, ValueError, "sizes must be at most 40, got 41"),
        ({"sizes": [0]}, ValueError, "sizes must be at least 1, got 0"),
        (
            {"sizes": [20, 40]},
            ValueError,
            "sizes must be large enough for k, got 20: k must be less than the number of",
        ),
        ({"k": 40}, ValueError, "k must be less than the number of samples, got 40 of 40"),
        ({"repeats": 0}, ValueError, "repeats must be at least 1, got 0"),
        ({"method": "ksg3"}, ValueError, "method must be one of 'ksg1'"),
        ({"discrete_x": True}, ValueError, "discrete_x needs method='mixed'"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got 0.5"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        mutual_information_convergence(np.arange(40.0), np.arange(40.0), **options)
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        echo_ext.mutual_information_convergence([1.0, float("nan")], [1.0, 2.0])
