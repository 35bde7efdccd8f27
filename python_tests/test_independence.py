"""Tests of independence: level, power, p-values, and what the surrogates' estimates are."""

import numpy as np
import pytest
import torch
from knn_cases import fresh, related

from echo_ext import conditional_mutual_information, independence_test, mutual_information
from echo_ext._native import num_threads
from echo_ext.estimators import surrogates

F64 = torch.float64


def common_cause(n, *batch, columns=1, dtype=F64):
    """Return x, y, z, where x and y depend on each other through z alone."""
    z = torch.randn(*batch, n, columns, dtype=dtype)
    x, y = (z.sum(-1, keepdim=True) + 0.5 * torch.randn(*batch, n, 1, dtype=dtype) for _ in range(2))
    return x, y, z


def assert_uniform(p_values, n):
    """Check that p-values on the grid of 1 / (n + 1) are uniform, within five standard errors."""
    ranks = p_values * (n + 1)
    torch.testing.assert_close(ranks, ranks.round())
    many = len(p_values)
    assert abs(p_values.mean() - (n + 2) / (n + 1) / 2) < 5 * (1 / 12 / many) ** 0.5
    assert (p_values <= 0.1).double().mean() < 0.1 + 5 * (0.09 / many) ** 0.5


# ---- The null distribution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["ksg1", "ksg2"])
@pytest.mark.parametrize(
    ("n", "k", "window", "columns"),
    [(40, 3, 0, 1), (97, 20, 0, 3), (120, 90, 4, 2), (6, 5, 0, 1), (300, 150, 0, 1)],
)
def test_conditional_null_is_the_estimates_with_exchanged_rows(n, k, window, columns, method, dtype):
    x, y, z = common_cause(n, columns=columns, dtype=dtype)
    found = independence_test(x, y, z, k=k, method=method, n_resamples=20, exclude_within=window, seed=4)
    options = {"k": k, "method": method, "exclude_within": window}
    orders = surrogates.exchanged_locally(z, 5, 4)(0, 20)
    expected = torch.stack([conditional_mutual_information(x, y[order], z, **options) for order in orders])
    torch.testing.assert_close(found.null_distribution, expected, rtol=1e-12 if dtype == F64 else 1e-5, atol=1e-6)
    assert found.statistic == conditional_mutual_information(x, y, z, **options)
    assert found.pvalue.item() == pytest.approx((1 + (expected >= found.statistic - 1e-9).sum().item()) / 21)


@pytest.mark.parametrize("kind", ["rounded", "two columns of y", "batch"])
def test_conditional_null_of_awkward_data(kind):
    x, y, z = common_cause(60, *((2, 1) if kind == "batch" else ()), columns=2)
    if kind == "rounded":
        x, y, z = ((4 * v).round() for v in (x, y, z))
    if kind == "two columns of y":
        y = torch.cat([y, torch.randn_like(y)], -1)
    if kind == "batch":
        y = torch.randn(3, 60, 2, dtype=F64)[..., ::2]
        z = z.expand(2, 3, 60, 2)
    found = independence_test(x, y, z, k=4, n_resamples=10, seed=8)
    orders = surrogates.exchanged_locally(z, 5, 8)(0, 10)
    for order, value in zip(orders, found.null_distribution, strict=True):
        moved = torch.take_along_dim(y.expand(*z.shape[:-2], *y.shape[-2:]), order.unsqueeze(-1), -2)
        torch.testing.assert_close(value, conditional_mutual_information(x, moved, z, k=4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["ksg1", "ksg2", "bi-ksg", "mixed"])
def test_null_is_the_estimates_with_permuted_rows(method):
    x, y = torch.randn(50, 2, dtype=F64), torch.randn(50, 1, dtype=F64)
    found = independence_test(x, y, method=method, n_resamples=15, seed=2)
    expected = [mutual_information(x, y[order], method=method) for order in surrogates.shuffled(50, 2)(0, 15)]
    torch.testing.assert_close(found.null_distribution, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "orders"),
    [
        ({"surrogate": "circular", "exclude_within": 3}, lambda: surrogates.rotated(60, 3, 2)),
        ({"surrogate": "block"}, lambda: surrogates.permuted_in_blocks(60, 8, 2)),
        ({"surrogate": "block", "block_length": 30}, lambda: surrogates.permuted_in_blocks(60, 30, 2)),
        ({"surrogate": "shuffle"}, lambda: surrogates.shuffled(60, 2)),
    ],
)
def test_surrogates_by_name(options, orders):
    x, y, z = common_cause(60)
    window = options.get("exclude_within", 0)
    found = independence_test(x, y, z, n_resamples=6, seed=2, **options).null_distribution
    expected = [conditional_mutual_information(x, y[o], z, exclude_within=window) for o in orders()(0, 6)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-12)


# ---- Level and power -------------------------------------------------------------------------------------------------


def test_p_values_of_independent_variables_are_uniform():
    x, y = torch.randn(2, 200, 40, 1, dtype=F64)
    found = independence_test(x, y, n_resamples=49)
    assert found.null_distribution.shape == (49, 200)
    assert_uniform(found.pvalue, 49)


def test_local_exchange_keeps_the_level_that_shuffling_loses():
    x, y, z = common_cause(200, 150)
    options = {"k": 0.2, "n_resamples": 39}
    local = independence_test(x, y, z, **options).pvalue
    assert (local <= 0.05).double().mean() < 0.05 + 5 * (0.0475 / 150) ** 0.5
    assert local.mean() > 0.4
    # Without exchange among neighbors, the surrogates lose what y has in common with z.
    shuffled = independence_test(x, y, z, surrogate="shuffle", **options).pvalue
    assert abs(shuffled.mean() - local.mean()) > 0.2


def test_dependence_is_seen():
    x, y = related(fresh(), 1000)
    found = independence_test(x, y, n_resamples=99)
    assert isinstance(found.pvalue, float)
    assert found.pvalue == 0.01
    assert found.null_distribution.shape == (99,)
    assert found.null_distribution.max() < found.statistic == mutual_information(x, y)


def test_conditional_dependence_is_seen():
    x, y, z = common_cause(500)
    y = y + 2 * (x - z).square()
    found = independence_test(x, y, z, k=0.05, n_resamples=99)
    assert found.pvalue.item() == pytest.approx(0.01)


def test_rotations_respect_autocorrelation():
    """Two independent slow series: permutations call them dependent far too often, rotations do not."""
    noise = torch.randn(2, 100, 400, dtype=F64)
    series = torch.zeros_like(noise)
    for t in range(1, 400):
        series[..., t] = 0.95 * series[..., t - 1] + noise[..., t]
    x, y = series.unsqueeze(-1)
    options = {"k": 10, "n_resamples": 39}
    shuffled, rotated, blocks = (
        (independence_test(x, y, surrogate=kind, **options).pvalue <= 0.05).double().mean()
        for kind in ("shuffle", "circular", "block")
    )
    assert shuffled > 0.3
    assert rotated < 0.05 + 5 * (0.0475 / 100) ** 0.5
    assert blocks < shuffled - 0.1


# ---- p-values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("null", ["normal", "gamma"])
def test_fitted_p_values_agree_with_many_resamples(null):
    x, y, z = common_cause(150, 40)
    many = independence_test(x, y, z, n_resamples=800, k=10, seed=1).pvalue
    few = independence_test(x, y, z, n_resamples=100, k=10, seed=2, null=null).pvalue
    assert (few - many).abs().max() < 0.2
    assert (few - many).abs().mean() < 0.05


def test_fitted_p_values_are_those_of_the_distributions():
    stats = pytest.importorskip("scipy.stats")
    x, y = (torch.from_numpy(v) for v in related(fresh(), 60))
    for null in ("normal", "gamma"):
        found = independence_test(x, y, n_resamples=200, null=null, seed=1)
        values, mean, std = found.null_distribution, found.null_distribution.mean(), found.null_distribution.std()
        if null == "normal":
            expected = stats.norm.sf(found.statistic, mean, std)
        else:
            expected = stats.pearson3.sf(found.statistic, stats.skew(values), mean, std)
        assert found.pvalue.item() == pytest.approx(expected, rel=1e-6)


def test_fitted_p_values_of_one_estimate():
    x = torch.arange(6, dtype=F64)
    found = independence_test(x, torch.zeros(6, dtype=F64), k=5, n_resamples=10, null="normal", method="mixed")
    assert found.pvalue == 1


def test_early_stopping_takes_the_same_decisions():
    x, y = torch.randn(2, 60, 50, 1, dtype=F64)
    y[:20] += x[:20]
    options = {"n_resamples": 199, "seed": 3}
    full = independence_test(x, y, **options)
    early = independence_test(x, y, early_stopping=0.1, **options)
    assert torch.equal(early.pvalue <= 0.1, full.pvalue <= 0.1)
    assert torch.equal(early.pvalue[full.pvalue <= 0.1], full.pvalue[full.pvalue <= 0.1])
    assert len(early.null_distribution) <= 199
    torch.testing.assert_close(early.null_distribution, full.null_distribution[: len(early.null_distribution)])


def test_early_stopping_is_that_of_besag_and_clifford():
    x, y = torch.randn(2, 50, 1, dtype=F64)
    full = independence_test(x, y, n_resamples=400, seed=3)
    enough = 21  # of 400 at the level 0.05
    reached = (full.null_distribution >= full.statistic - 1e-9).cumsum(0)
    found = independence_test(x, y, n_resamples=400, seed=3, early_stopping=0.05)
    if reached[-1] < enough:
        assert found.pvalue == full.pvalue
    else:
        used = int((reached < enough).sum()) + 1
        assert len(found.null_distribution) == used
        assert found.pvalue.item() == pytest.approx(enough / used)


# ---- Input and output ------------------------------------------------------------------------------------------------


def test_seeds_repeat():
    x, y, z = common_cause(80)
    for given in ((x, y), (x, y, z)):
        first, second, other = (independence_test(*given, n_resamples=20, seed=s).null_distribution for s in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        with num_threads(3):
            assert torch.equal(independence_test(*given, n_resamples=20, seed=1).null_distribution, first)
    torch.manual_seed(5)
    before = independence_test(x, y, n_resamples=5).null_distribution
    torch.manual_seed(5)
    assert torch.equal(independence_test(x, y, n_resamples=5).null_distribution, before)


def test_batches_are_their_items():
    x, y, z = common_cause(50, 2, 1, columns=2)
    y = torch.randn(3, 50, 1, dtype=F64)
    options = {"n_resamples": 12, "seed": 5, "k": 4}
    for given in ((x, y), (x, y, z)):
        found = independence_test(*given, **options)
        assert found.null_distribution.shape == (12, 2, 3)
        item = independence_test(*(v.expand(2, 3, *v.shape[-2:])[1, 2] for v in given), **options)
        for whole, one in zip(found, item, strict=True):
            torch.testing.assert_close(whole[..., 1, 2], one, rtol=0, atol=1e-12)
    assert independence_test(x[:0], y, **options).pvalue.shape == (0, 3)


def test_arrays_give_arrays():
    x, y, z = (v.numpy() for v in common_cause(40, 2))
    found = independence_test(x, y, z, n_resamples=5)
    assert isinstance(found.pvalue, np.ndarray)
    assert isinstance(independence_test(x[0], y[0], n_resamples=5).statistic, float)
    assert independence_test(x.astype(np.float32), y.astype(np.float32), n_resamples=5).pvalue.dtype == np.float32


def test_unit_scales_estimates():
    x, y, z = common_cause(50)
    nats, bits = (independence_test(x, y, z, n_resamples=5, seed=1, unit=unit) for unit in ("nats", "bits"))
    assert nats.pvalue == bits.pvalue
    torch.testing.assert_close(bits.null_distribution * np.log(2), nats.null_distribution)
    torch.testing.assert_close(bits.statistic * np.log(2), nats.statistic)


def test_progress_ends_at_the_number_of_resamples():
    steps = []
    x, y, _ = common_cause(50)
    independence_test(x, y, n_resamples=31, progress=steps.append)
    assert steps[-1] == 31
    assert steps == sorted(steps)


def test_missing_rows_are_those_left_out():
    x, y, z = common_cause(70)
    gaps = x.clone()
    gaps[[3, 50]] = torch.nan
    kept = torch.arange(70)[~gaps.isnan()[:, 0]]
    found = independence_test(gaps, y, z, n_resamples=9, seed=1, nan_policy="omit")
    expected = independence_test(x[kept], y[kept], z[kept], n_resamples=9, seed=1)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="x must be finite"):
        independence_test(gaps, y, z)


def test_transform_comes_first():
    x, y, z = common_cause(70)
    ranks = [v.argsort(0).argsort(0).double() for v in (x, y, z)]
    found = independence_test(x.exp(), y.pow(3), z, n_resamples=9, seed=1, transform="rank")
    expected = independence_test(*ranks, n_resamples=9, seed=1)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("transform", ["rank", "normal"])
def test_ranks_of_tied_values_do_not_depend_on_each_other(transform):
    x, y = torch.randint(3, (2, 80, 100, 1)).double()
    found = independence_test(x, y, n_resamples=39, k=5, transform=transform)
    assert (found.pvalue <= 0.05).double().mean() < 0.05 + 5 * (0.0475 / 80) ** 0.5
    assert found.statistic.abs().max() < 0.5
    with pytest.warns(UserWarning, match="z is constant"):
        independence_test(x[0], y[0], torch.ones(100, 1, dtype=F64), n_resamples=9, transform=transform)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("surrogate", [None, "circular", "block"])
def test_surrogates_do_not_cross_groups(surrogate, conditional):
    """With a level of y for each group, a surrogate within groups keeps all of what y has of the group."""
    groups = torch.randint(3, (90,))
    x, y, z = common_cause(90)
    x, y = x + 100 * groups.unsqueeze(-1), y + 100 * groups.unsqueeze(-1)
    options = {"n_resamples": 9, "surrogate": surrogate, "k": 3}
    given = (x, y, z) if conditional else (x, y)
    found = independence_test(*given, groups=groups, **options).null_distribution
    if not conditional:
        assert found.min() > 0.5
        assert independence_test(*given, **options).null_distribution.mean() < 0.3
    assert torch.isfinite(found).all()


def test_constant_z_is_ignored_with_a_warning():
    x, y, z = common_cause(60)
    with pytest.warns(UserWarning, match="z is constant, so independence_test ignores it"):
        found = independence_test(x, y, torch.ones_like(z), n_resamples=9, seed=1)
    expected = independence_test(x, y, n_resamples=9, seed=1)
    assert torch.equal(found.null_distribution, expected.null_distribution)


X, Y, Z = np.random.default_rng(0).standard_normal((3, 30))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_resamples": 0}, ValueError, "n_resamples must be at least 1, got 0"),
        ({"n_resamples": 5, "null": "gamma"}, ValueError, "n_resamples must be at least 10, got 5"),
        ({"null": "beta"}, ValueError, "null must be one of 'empirical', 'gamma', 'normal', got 'beta'"),
        ({"surrogate": "wild"}, ValueError, "surrogate must be one of None, 'shuffle', 'local', 'circular', 'block'"),
        ({"surrogate": "local"}, ValueError, "surrogate='local' needs z"),
        ({"z": Z, "shuffle_neighbors": 30}, ValueError, "shuffle_neighbors must be at most N - 1, got 30 of 30 rows"),
        ({"z": Z, "shuffle_neighbors": 1}, ValueError, "shuffle_neighbors must be at least 2, got 1"),
        ({"surrogate": "block", "block_length": 31}, ValueError, "block_length must be at most half the number"),
        ({"block_length": 3}, ValueError, "block_length=3 needs surrogate='block', got None"),
        ({"early_stopping": 1.5}, ValueError, "early_stopping must be a significance level below 1, got 1.5"),
        ({"early_stopping": 0.1, "null": "normal"}, ValueError, "early_stopping needs null='empirical', got 'normal'"),
        ({"k": [3, 5]}, TypeError, r"k must be one int or fraction, got \(3, 5\)"),
        ({"k": 1.5}, ValueError, r"k must be an int or a fraction in \(0, 1\), got 1.5"),
        ({"k": 30}, ValueError, "k must be less than the number of samples, got 30 of 30"),
        ({"z": Z[:29]}, ValueError, "x and z must have the same number of samples, got 30 and 29"),
        ({"z": Z, "method": "bi-ksg"}, ValueError, "method must be one of"),
        ({"groups": np.zeros(29, int)}, ValueError, "groups must have"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
        (
            {"surrogate": "circular", "exclude_within": 5, "groups": np.arange(30) // 10},
            ValueError,
            "surrogate='circular' needs groups of more than 11 rows, for rotations beyond the window, got one of 10",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        independence_test(X, Y, **arguments)
