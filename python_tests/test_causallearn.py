"""echo_ext.causallearn.CMIknn in causal-learn's searches.

Run them where causal-learn is installed: pip install causal-learn. With tigramite and numba its test is compared too.
"""

import json

import numpy as np
import pytest
from knn_cases import fresh

pytest.importorskip("causallearn")
from causallearn.search.ConstraintBased.FCI import fci
from causallearn.search.ConstraintBased.PC import pc
from causallearn.utils.cit import CIT, CIT_Base, register_ci_test

from echo_ext import independence_test
from echo_ext.causallearn import CMIknn


def linear_data(n):
    """Five variables of a linear model, and its edges."""
    data = np.random.default_rng(0).standard_normal((n, 5))
    edges = [(0, 1), (0, 3), (1, 2), (1, 3), (2, 4), (3, 4)]
    for cause, effect in edges:
        data[:, effect] += data[:, cause]
    return data, edges


def nonlinear_data(n):
    """Two causes of a variable, and its effect, and the edges."""
    data = np.random.default_rng(0).standard_normal((n, 4))
    data[:, 2] = np.sin(2 * data[:, 0]) + np.sin(2 * data[:, 1]) + 0.2 * data[:, 2]
    data[:, 3] = data[:, 2] ** 2 + 0.3 * data[:, 3]
    return data, [(0, 2), (1, 2), (2, 3)]


def adjacent(graph):
    return sorted({tuple(sorted(map(int, pair))) for pair in graph.find_adj()})


def search(data, **options):
    return pc(data, 0.01, "cmiknn", show_progress=False, **options)


def test_p_values_are_those_of_the_independence_test():
    data = fresh().standard_normal((150, 4))
    data[:, 1] += data[:, 0]
    test = CMIknn(data, sig_samples=300)
    for x, y, conditions in ((0, 1, None), (0, 1, []), (1, 0, [2]), (3, 2, (1, 0))):
        z = data[:, sorted(conditions)] if conditions else None
        expected = independence_test(data[:, x], data[:, y], z, k=0.2, n_resamples=2000, transform="rank").pvalue
        found = test(x, y, conditions)
        assert abs(found - expected) < 5 * np.sqrt(max(expected * (1 - expected), 1 / 300) / 300)


def test_a_p_value_depends_on_the_test_alone():
    data = fresh().standard_normal((100, 3))
    first, second = (CMIknn(data, sig_samples=200) for _ in range(2))
    p = first(0, 1, [2])
    first(0, 2)
    assert second(0, 2) == first(2, 0, [])
    assert second(1, 0, {2}) == p == first(np.int64(0), np.int64(1), np.array([2, 2]))


def test_p_values_are_kept(tmp_path, monkeypatch):
    data = fresh().standard_normal((60, 3))
    path = tmp_path / "cache" / "p.json"
    test = CMIknn(data, str(path), sig_samples=99)
    p = test(0, 1, [2])
    monkeypatch.setattr(test, "_test", None)
    assert test(1, 0, [2]) == p
    test.SAVE_CACHE_CYCLE_SECONDS = -1
    test.save_to_local_cache()
    assert p in json.loads(path.read_text()).values()
    again = CMIknn(data, str(path), sig_samples=99)
    monkeypatch.setattr(again, "_test", None)
    assert again(0, 1, [2]) == p


def test_searches_take_the_name_and_the_arguments():
    data, _ = linear_data(200)
    options = dict(knn=0.1, shuffle_neighbors=7, sig_samples=99, transform="standardize", early_stopping=0.01)
    assert CIT(data, "cmiknn", **options)(0, 1) == CMIknn(data, **options)(0, 1) < 0.05
    assert adjacent(search(data, **options)) == adjacent(search(data, **options))
    graph, _ = fci(data[:, :3], "cmiknn", 0.01, verbose=False, show_progress=False, **options)
    assert graph.get_num_edges() >= 2


def test_pc_finds_the_edges_of_a_nonlinear_model():
    data, edges = nonlinear_data(500)
    assert adjacent(search(data, knn=10, sig_samples=200)) == edges


def test_pc_finds_edges_of_a_linear_model():
    data, edges = linear_data(300)
    found = adjacent(search(data, sig_samples=200, early_stopping=0.01))
    assert {(0, 3), (2, 4), (3, 4)} <= set(found) <= set(edges)


def test_pc_decides_as_with_tigramites_test():
    pytest.importorskip("tigramite")
    pytest.importorskip("numba")
    from tigramite.independence_tests.cmiknn import CMIknn as Original

    class Wrapped(CIT_Base):
        def __init__(self, data):
            super().__init__(data)
            self.check_cache_method_consistent("tigramite", "")
            self.original = Original(knn=10, workers=1, sig_samples=200, sig_blocklength=1)

        def __call__(self, X, Y, condition_set=None):
            xs, ys, zs, key = self.get_formatted_XYZ_and_cachekey(X, Y, condition_set)
            if key not in self.pvalue_cache:
                z = self.data[:, zs] if zs else None
                self.pvalue_cache[key] = float(self.original.run_test_raw(self.data[:, xs], self.data[:, ys], z)[1])
            return self.pvalue_cache[key]

    register_ci_test("tigramite", Wrapped)
    data, edges = nonlinear_data(250)
    theirs = pc(data, 0.01, "tigramite", show_progress=False)
    ours = search(data, knn=10, sig_samples=200)
    assert adjacent(ours) == adjacent(theirs) == edges
    np.testing.assert_array_equal(ours.G.graph, theirs.G.graph)


def test_data_must_be_finite():
    data = np.ones((20, 2))
    data[3, 1] = np.nan
    with pytest.raises(AssertionError, match="Input data contains NaN"):
        CMIknn(data)


def test_bad_arguments_are_named():
    data = fresh().standard_normal((20, 2))
    with pytest.raises(ValueError, match=r"knn must be an int or a fraction in \(0, 1\), got 2.5"):
        CMIknn(data, knn=2.5)
    with pytest.raises(ValueError, match="sig_samples must be at least 1, got 0"):
        CMIknn(data, sig_samples=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'k'"):
        CIT(data, "cmiknn", k=5)
