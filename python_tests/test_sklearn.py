import numpy as np
import pytest
import torch
from knn_cases import fresh

pytest.importorskip("sklearn")
from scipy.sparse import csc_matrix
from sklearn import feature_selection as theirs

from echo_ext import sklearn as ours

FEATURES = ["auto", False, True, [2, 4], np.array([False, False, True, False, True, False])]


def data(rng, n=250):
    X = rng.standard_normal((n, 6))
    X[:, 1] *= 1e4
    X[:, 2] = np.round(2 * X[:, 2])  # its outermost values are rare
    X[:, 3] = X[rng.integers(0, n, n), 3]
    X[:, 4] = rng.integers(0, 3, n)
    y = X[:, 0] + X[:, 2] + 0.3 * rng.standard_normal(n)
    return X, y, (y > 0).astype(int) + (X[:, 4] > 1)


@pytest.mark.parametrize("n_neighbors", [1, 3, 10])
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_values_are_scikit_learns(features, n_neighbors):
    rng = fresh()
    X, y, labels = data(rng)
    if features is True:
        X = np.round(np.clip(X, -3, 3))
    seed = int(rng.integers(2**31))
    options = dict(discrete_features=features, n_neighbors=n_neighbors, random_state=seed)
    expected = theirs.mutual_info_regression(X, y, **options)
    np.testing.assert_allclose(ours.mutual_info_regression(X, y, **options), expected, rtol=0, atol=1e-9)
    for target in (labels, np.array(["a", "b", "c"])[labels]):
        expected = theirs.mutual_info_classif(X, target, **options)
        np.testing.assert_allclose(ours.mutual_info_classif(X, target, **options), expected, rtol=0, atol=1e-9)


def test_rare_labels_and_many_ties():
    rng = fresh()
    X = rng.integers(0, 5, (120, 3)).astype(float)
    labels = rng.integers(0, 40, 120)
    for n_neighbors in (1, 3, 7):
        options = dict(n_neighbors=n_neighbors, random_state=int(rng.integers(2**31)))
        expected = theirs.mutual_info_classif(X, labels, **options)
        np.testing.assert_allclose(ours.mutual_info_classif(X, labels, **options), expected, rtol=0, atol=1e-9)
        expected = theirs.mutual_info_regression(X, X[:, 0], **options)
        np.testing.assert_allclose(ours.mutual_info_regression(X, X[:, 0], **options), expected, rtol=0, atol=1e-9)


def test_sparse_input_is_discrete():
    rng = fresh()
    dense = rng.integers(0, 3, (100, 4)).astype(float)
    labels, y = rng.integers(0, 2, 100), rng.standard_normal(100)
    sparse = csc_matrix(dense)
    np.testing.assert_allclose(ours.mutual_info_classif(sparse, labels), theirs.mutual_info_classif(sparse, labels))
    np.testing.assert_allclose(
        ours.mutual_info_regression(sparse, y, random_state=0),
        theirs.mutual_info_regression(sparse, y, random_state=0),
        rtol=0,
        atol=1e-9,
    )
    with pytest.raises(ValueError, match="Sparse matrix `X` can't have continuous features"):
        ours.mutual_info_classif(sparse, labels, discrete_features=False)


@pytest.mark.parametrize("n_jobs", [None, 1, 2, -1])
def test_jobs_and_generators(n_jobs):
    X, y, labels = data(fresh())
    threads = torch.get_num_threads()
    for name, target in (("mutual_info_regression", y), ("mutual_info_classif", labels)):
        expected = getattr(theirs, name)(X, target, random_state=np.random.RandomState(3))
        found = getattr(ours, name)(X, target, random_state=np.random.RandomState(3), n_jobs=n_jobs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert torch.get_num_threads() == threads


def test_copy_protects_the_input():
    X, y, _ = data(fresh())
    before = X.copy()
    ours.mutual_info_regression(X, y)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize(
    "options",
    [
        dict(n_neighbors=0),
        dict(n_neighbors=2.5),
        dict(discrete_features="no"),
        dict(n_neighbors=60),
        dict(X=np.full((60, 2), np.nan)),
        dict(y=np.ones(59)),
        dict(X=np.ones(60)),
        dict(discrete_features=[7]),
    ],
    ids=str,
)
def test_errors_are_of_the_same_kind(options):
    arguments = {"X": np.random.default_rng(0).standard_normal((60, 2)), "y": np.arange(60.0), **options}
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs.mutual_info_regression(**arguments)
    kind = next(k for k in (ValueError, TypeError, IndexError) if isinstance(expected.value, k))
    with pytest.raises(kind):
        ours.mutual_info_regression(**arguments)


def test_continuous_targets_are_not_classes():
    with pytest.raises(ValueError, match="Unknown label type"):
        ours.mutual_info_classif(np.ones((20, 1)), np.linspace(0, 1, 20))


def test_they_serve_in_a_pipeline():
    X, y, _ = data(fresh())
    chosen = theirs.SelectKBest(ours.mutual_info_regression, k=1).fit(X, y).get_support()
    assert chosen.tolist() == [False, False, True, False, False, False]
