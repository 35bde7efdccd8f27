"""Matrices of information: conditions for all pairs, tests of all pairs, and false-discovery control."""

import numpy as np
import pytest
import torch
from knn_cases import fresh, related
from scipy import stats

from echo_ext import independence_test, mutual_information_matrix, reference
from echo_ext.estimators import DegenerateDataWarning, pairs

F64 = torch.float64
METHODS = ("ksg1", "ksg2", "mixed", "plug-in", "miller-madow")


def some_columns(n=47, p=4, q=3, c=2, method="ksg1", dtype=np.float64, batch=()):
    """Return x, y and conditions, of which each column is related to the others."""
    rng = fresh()
    common = rng.standard_normal((*batch, n, 1))
    x, y, z = (common + rng.standard_normal((*batch, n, d)) for d in (p, q, c))
    if method in ("plug-in", "miller-madow"):
        x, y, z = (np.round(v) for v in (x, y, z))
    return [v.astype(dtype) for v in (x, y, z)]


# ---- Conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("n", "options"), [(47, {}), (4, {}), (31, {"exclude_within": 2}), (29, {"transform": "rank"})]
)
def test_conditional_matrix_matches_the_definition(method, n, options):
    if "transform" in options and method in ("plug-in", "miller-madow"):
        options = {}
    x, y, z = some_columns(n, method=method)
    found = mutual_information_matrix(x, y, given=z, method=method, **options)
    expected = reference.mutual_information_matrix(x, y, given=z, method=method, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    own = mutual_information_matrix(torch.from_numpy(x), given=torch.from_numpy(z), k=[1, 3], method=method, **options)
    assert torch.equal(own, own.mT)
    expected = reference.mutual_information_matrix(x, given=z, k=[1, 3], method=method, **options)
    np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_batches_blocks_and_layouts(dtype, monkeypatch):
    x, y, z = some_columns(23, batch=(2, 1), dtype=dtype)
    y = y[:, 0]  # (2, 23, 3) broadcasts with (2, 1)
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    for other in (y, None):
        whole = mutual_information_matrix(x, other, given=z[0, 0])
        assert whole.dtype == dtype
        assert whole.shape == ((2, 2, 4, 3) if other is not None else (2, 1, 4, 4))
        expected = reference.mutual_information_matrix(
            np.broadcast_to(x, (*whole.shape[:2], 23, 4)), other, given=z[0, 0]
        )
        np.testing.assert_allclose(whole, expected, rtol=tolerance, atol=tolerance)
        with monkeypatch.context() as patch:
            patch.setattr(pairs, "BLOCK", 1)
            np.testing.assert_allclose(
                mutual_information_matrix(x, other, given=z[0, 0]), whole, rtol=tolerance, atol=tolerance
            )
    turned = np.asfortranarray(x[::-1, :, ::-1])[::-1, :, ::-1]
    np.testing.assert_array_equal(mutual_information_matrix(turned, given=z), mutual_information_matrix(x, given=z))
    assert mutual_information_matrix(x[:0], given=z[:0]).shape == (0, 1, 4, 4)


def test_conditions_explain_a_common_cause():
    z = fresh().standard_normal((2000, 1))
    x = z + 0.5 * fresh().standard_normal((2000, 3))
    above = np.triu_indices(3, 1)
    assert mutual_information_matrix(x)[above].min() > 0.4  # -log(1 - 0.8^2) / 2 = 0.51
    assert abs(mutual_information_matrix(x, given=z)[above]).max() < 0.12


@pytest.mark.parametrize("symmetric", [True, False])
def test_missing_values_with_conditions_are_omitted_pair_by_pair(symmetric):
    x, y, z = some_columns()
    x[3, 0] = y[5:8, 1] = z[11, 1] = np.nan
    y = x if symmetric else y
    found = mutual_information_matrix(x, None if symmetric else y, given=z, nan_policy="omit")
    for i in range(x.shape[1]):
        for j in range(y.shape[1]):
            expected = reference.conditional_mutual_information(x[:, i], y[:, j], z, nan_policy="omit")
            assert found[i, j] == pytest.approx(expected, abs=1e-12)


def test_categories_and_groups():
    x, y, z = some_columns(60)
    x[:, 1] = fresh().integers(0, 4, 60)
    z[:, 0] = fresh().integers(0, 2, 60)
    trials = np.arange(60) % 3
    flags = [False, True, False, False]
    options = {"method": "mixed", "exclude_within": 1, "groups": trials}
    found = mutual_information_matrix(x, y, given=z, discrete_x=flags, discrete_given=[True, False], **options)
    own = mutual_information_matrix(x, discrete_x=flags, **options)
    for i in range(4):
        for j in range(3):
            expected = reference.conditional_mutual_information(
                x[:, i], y[:, j], z, discrete_x=flags[i], discrete_z=[True, False], **options
            )
            assert found[i, j] == pytest.approx(expected, abs=1e-12)
            expected = reference.mutual_information(
                x[:, i], x[:, j], discrete_x=flags[i], discrete_y=flags[j], **options
            )
            assert own[i, j] == pytest.approx(expected, abs=1e-12)


# ---- Tests -----------------------------------------------------------------------------------------------------------


def pair_by_pair(x, y, given=None, **options):
    """Return the statistics and p-values of the tests of all pairs."""

    def test(i, j):
        return [np.asarray(value) for value in independence_test(x[..., [i]], y[..., [j]], given, **options)[:2]]

    found = [[test(i, j) for j in range(y.shape[-1])] for i in range(x.shape[-1])]
    return np.moveaxis(np.array(found, dtype=float), (0, 1, 2), (-2, -1, 0))


CASES = {
    "plain": {},
    "ksg2 in bits": {"method": "ksg2", "unit": "bits"},
    "mixed": {"method": "mixed"},
    "plug-in": {"method": "plug-in"},
    "bi-ksg": {"method": "bi-ksg", "k": 4},
    "window": {"exclude_within": 2},
    "ranks": {"transform": "rank", "k": 0.1},
    "missing": {"nan_policy": "omit"},
    "categories": {"method": "mixed", "discrete_x": True},
    "trials": {"groups": np.arange(47) // 10, "exclude_within": 1, "k": 1},
}


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_tests_are_those_of_each_pair(name, conditional):
    options = {"n_resamples": 19, "seed": 5, **CASES[name]}
    if conditional and name == "bi-ksg":
        options["method"] = "ksg2"
    x, y, z = some_columns(method="plug-in" if name in ("plug-in", "categories") else "ksg1")
    if name == "missing":
        x[3, 0] = y[5:8, 1] = z[11, 1] = np.nan
    given = z if conditional else None
    found = mutual_information_matrix(x, y, given=given, **options)
    statistic, p = pair_by_pair(x, y, given, **options)
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.pvalue, p, rtol=1e-12)
    if name != "categories":
        own = mutual_information_matrix(x, given=given, **options)
        statistic, p = pair_by_pair(x, x, given, **options)
        above = np.triu_indices(4, 1)
        np.testing.assert_allclose(own.pvalue[above], p[above], rtol=1e-12)
        np.testing.assert_array_equal(own.pvalue, own.pvalue.T)
        assert np.isnan(np.diag(own.pvalue)).all()
        plain = {key: value for key, value in options.items() if key not in ("n_resamples", "seed")}
        expected = mutual_information_matrix(x, given=given, **plain)
        np.testing.assert_allclose(own.statistic, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("conditional", [False, True])
def test_tensors_and_batches(dtype, conditional):
    x, y, z = (torch.from_numpy(v).to(dtype) for v in some_columns(25, batch=(2,)))
    options = {"n_resamples": 9, "seed": 1}
    found = mutual_information_matrix(x, y[0], given=z if conditional else None, **options)
    assert found.statistic.dtype == found.pvalue.dtype == dtype
    statistic, p = pair_by_pair(x, y[0], z if conditional else None, **options)
    tolerance = 1e-12 if dtype == F64 else 1e-6
    np.testing.assert_allclose(found.statistic, statistic, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.pvalue, p, rtol=tolerance)
    empty = mutual_information_matrix(x[:0], n_resamples=9)
    assert empty.statistic.shape == empty.pvalue.shape == (0, 4, 4)


def test_p_values_of_independent_columns_are_uniform():
    x = torch.randn(60, 30, 4, dtype=F64)
    p = mutual_information_matrix(x, n_resamples=19).pvalue
    of_pairs = p[:, torch.ones(4, 4, dtype=torch.bool).triu(1)]
    assert set((of_pairs * 20).round().int().flatten().tolist()) <= set(range(1, 21))
    for pair in of_pairs.T:  # pairs share surrogates, so only those of one pair are independent
        counts = np.bincount((pair * 5).ceil().int() - 1, minlength=5)
        assert stats.chisquare(counts).pvalue > 1e-5


def test_dependence_is_seen_and_progress_is_told():
    x, y = related(fresh(), 400)
    columns = np.concatenate([x, fresh().standard_normal((400, 2)), y], axis=1)
    for given in (None, fresh().standard_normal(400)):
        told = []
        found = mutual_information_matrix(columns, given=given, n_resamples=39, progress=told.append, fdr=True)
        assert (
            found.pvalue[0, 3] <= 6 / 40 + 1e-12
        )  # the smallest, 1 / 40, times six pairs; less if another is as small
        assert told == sorted(told)
        assert told[-1] == 39


@pytest.mark.parametrize("columns", [2, 21])
@pytest.mark.parametrize("case", ["complete", "missing", "given", "mixed"])
def test_progress_without_tests_ends_at_the_number_of_pairs(columns, case):
    x, y = fresh().standard_normal((2, 40, columns))
    options = {"complete": {}, "missing": {"nan_policy": "omit"}, "given": {"given": x[:, 0] + y[:, 0]}}.get(case)
    if case == "missing":
        x[0, 1] = np.nan
    if options is None:
        options = {"method": "mixed", "discrete_x": [True, *[False] * (columns - 1)], "discrete_y": False}
        x[:, 0] = x[:, 0] > 0
    for other, count in ((y, columns**2), (None, columns * (columns + 1) // 2)):
        told = []
        if other is None:
            options.pop("discrete_y", None)
        mutual_information_matrix(x, other, progress=told.append, **options)
        assert told == sorted(told)
        assert told[-1] == count


@pytest.mark.parametrize("symmetric", [True, False])
def test_false_discovery_control_is_that_of_scipy(symmetric):
    x, y, _ = some_columns(40, batch=(3,))
    options = {"n_resamples": 29, "seed": 3}
    other = None if symmetric else y
    raw = mutual_information_matrix(x, other, **options).pvalue
    adjusted = mutual_information_matrix(x, other, fdr=True, **options).pvalue
    which = np.triu_indices(4, 1) if symmetric else np.indices((4, 3)).reshape(2, -1)
    for before, after in zip(raw, adjusted, strict=True):
        expected = stats.false_discovery_control(before[tuple(which)])
        np.testing.assert_allclose(after[tuple(which)], expected, rtol=1e-12)
        np.testing.assert_array_equal(after, after.T if symmetric else after)
    single = mutual_information_matrix(x[0, :, 0], n_resamples=9, fdr=True)
    assert single.pvalue.shape == (1, 1)
    assert np.isnan(single.pvalue).all()


def test_labels():
    pandas = pytest.importorskip("pandas")
    x, y, z = some_columns(30)
    left, right = pandas.DataFrame(x, columns=list("abcd")), pandas.DataFrame(y, columns=list("efg"))
    found = mutual_information_matrix(left, right, given=pandas.DataFrame(z), n_resamples=9, seed=1, fdr=True)
    for matrix in found:
        assert list(matrix.index) == list("abcd")
        assert list(matrix.columns) == list("efg")
    expected = mutual_information_matrix(x, y, given=z, n_resamples=9, seed=1, fdr=True)
    np.testing.assert_array_equal(found.pvalue, expected.pvalue)
    np.testing.assert_array_equal(found.statistic, expected.statistic)
    assert isinstance(mutual_information_matrix(left, y, n_resamples=9).pvalue, np.ndarray)
    assert list(mutual_information_matrix(left, given=z).columns) == list("abcd")


def test_the_seed():
    x, _, _ = some_columns(20)
    first, second = (mutual_information_matrix(x, n_resamples=9, seed=4).pvalue for _ in range(2))
    np.testing.assert_array_equal(first, second)
    state = torch.random.get_rng_state()
    mutual_information_matrix(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    mutual_information_matrix(x, n_resamples=1)
    assert not torch.equal(torch.random.get_rng_state(), state)


# ---- Warnings and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"groups": np.zeros(200)}, {"n_resamples": 3}])
def test_ties_are_warned_of_once(options):
    x = fresh().integers(1, 4, (200, 3)).astype(float)
    z = fresh().integers(1, 3, 200)
    with pytest.warns(DegenerateDataWarning, match="for 6 of the 6 pairs of columns") as caught:
        mutual_information_matrix(x, given=z, **options)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_constant_conditions_are_ignored_by_tests():
    x, _, _ = some_columns(20)
    with pytest.warns(UserWarning, match="z is constant, .* for 6 of the 10 pairs of columns") as caught:
        found = mutual_information_matrix(x, given=np.ones(20), n_resamples=9, seed=1)
    assert len(caught) == 1
    np.testing.assert_array_equal(found.pvalue, mutual_information_matrix(x, n_resamples=9, seed=1).pvalue)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fdr": True}, ValueError, "fdr=True adjusts p-values, so n_resamples must be at least 1, got 0"),
        ({"n_resamples": -1}, ValueError, "n_resamples must be at least 0, got -1"),
        ({"n_resamples": 2.5}, TypeError, "n_resamples must be an int, got 2.5"),
        ({"n_resamples": 3, "k": [2, 3]}, TypeError, r"k must be one int or fraction for tests, got \(2, 3\)"),
        ({"n_resamples": 3, "seed": 2**64}, ValueError, "seed must be"),
        ({"given": np.ones(19)}, ValueError, "x and given must have the same number of samples, got 20 and 19"),
        ({"given": [np.nan] * 20}, ValueError, "given must be finite, got 20 NaN"),
        ({"given": np.array(["a"] * 20)}, TypeError, "given must be numeric, got strings"),
        ({"given": torch.ones(20)}, TypeError, "x and given must be both tensors or both arrays"),
        ({"given": np.ones(20), "method": "bi-ksg"}, ValueError, "method must be one of 'ksg1', 'ksg2', 'mixed'"),
        ({"discrete_x": True}, ValueError, "discrete_x needs method='mixed', got method='ksg1'"),
        ({"discrete_given": True}, ValueError, "discrete_given needs method='mixed'"),
        ({"method": "mixed", "discrete_x": [True]}, ValueError, "discrete_x must have one bool for each of 3 columns"),
        ({"groups": [1, 2]}, ValueError, "groups must have one label for each of the 20 rows, got 2"),
        (
            {"given": [np.nan] * 18 + [1, 2], "nan_policy": "omit"},
            ValueError,
            r"k must be less than .* \(18 of 20 rows were left out\), for columns 0 of x and 0 of x",
        ),
        ({"given": np.arange(20), "n_resamples": 3, "k": 20}, ValueError, "k must be less than"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        mutual_information_matrix(**{"x": fresh().standard_normal((20, 3)), **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")  # of the diagonal
def test_ranks_of_tied_columns_hold_the_level():
    columns = fresh().integers(0, 3, (100, 9)).astype(float)
    found = mutual_information_matrix(columns, k=5, n_resamples=39, transform="rank", seed=1)
    p = found.pvalue[np.triu_indices(9, 1)]
    assert np.mean(p <= 0.05) < 0.05 + 5 * (0.0475 / 36) ** 0.5
