"""The feature selector: its criteria compared with their definitions, and its manners as a scikit-learn estimator."""

import pickle

import numpy as np
import pytest
import torch
from knn_cases import fresh

pytest.importorskip("sklearn")
from scipy.sparse import csr_matrix
from sklearn import feature_selection
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from echo_ext import reference
from echo_ext.estimators.neighbors import PointSet
from echo_ext.reference.selection import Column, criterion_values, information
from echo_ext.sklearn import MutualInformationSelector
from echo_ext.sklearn.scores import separate

CRITERIA = ["mi", "mrmr", "jmi", "jmim", "cmim"]

# ---- Definitions


def data(rng, n, target):
    X = rng.standard_normal((n, 6))
    X[:, 1] = X[:, 0] + 0.3 * X[:, 1]
    X[:, 2] = 1e3 * (X[:, 2] - 5)
    X[:, 3] = rng.integers(0, 3, n)
    X[:, 4] = (X[:, 0] + X[:, 4] > 0) + 0.5  # codes need not be whole
    X[:, 5] = np.round(X[:, 5])  # repeated values, among them rare ones
    y = X[:, 0] + X[:, 3] * X[:, 4] + 0.3 * rng.standard_normal(n)
    return X, y if target == "continuous" else np.digitize(y, [-0.5, 1.0]) if target == "classes" else y > 0


@pytest.mark.parametrize("target", ["continuous", "classes", "binary"])
@pytest.mark.parametrize("discrete", [[], [3, 4], [3, 4, 5], [0, 1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_selection_is_by_definition(criterion, discrete, target, monkeypatch):
    # Where labels are rare, relevance has the rounding of scikit-learn.
    monkeypatch.setattr(
        "echo_ext.sklearn.scores._search_distances", lambda points, k: PointSet(points).search_distances(k)
    )
    rng = fresh()
    n, k = (61, 3) if criterion in ("jmi", "cmim") else (47, 2)
    X, y = data(rng, n, target)
    mask = np.isin(np.arange(6), discrete)
    X[:, mask] = np.round(X[:, mask] / X[:, mask].std(0), 0) + 0.5
    seed = int(rng.integers(2**31))
    selector = MutualInformationSelector(
        4, criterion=criterion, discrete_features=mask, n_neighbors=k, random_state=seed
    ).fit(X, y)
    values, target_values = separate(X, y, mask, target != "continuous", seed)
    features = [Column(*each) for each in zip(values.T, mask.tolist(), strict=True)]
    target_column = Column(np.float64(target_values), target != "continuous")
    for step, chosen in enumerate(selector.selected_):
        expected = criterion_values(criterion, features, target_column, selector.selected_[:step].tolist(), k=k)
        assert expected[chosen] >= np.nanmax(expected) - 1e-9
        np.testing.assert_allclose(selector.scores_[chosen], expected[chosen], rtol=0, atol=1e-9)
    others = ~selector.support_
    np.testing.assert_allclose(selector.scores_[others], expected[others], rtol=0, atol=1e-9)
    assert selector.discrete_target_ == (target != "continuous")


@pytest.mark.parametrize("target", ["continuous", "classes", "binary"])
@pytest.mark.parametrize("discrete", [[], [3, 4], [3, 4, 5]], ids=str)
def test_relevance_is_scikit_learns(discrete, target):
    rng = fresh()
    X, y = data(rng, 80, target)
    X[:, 4] -= 0.5  # fractions among discrete values make scikit-learn warn
    options = {"discrete_features": np.isin(np.arange(6), discrete), "random_state": int(rng.integers(2**31))}
    theirs = {"continuous": feature_selection.mutual_info_regression}.get(target, feature_selection.mutual_info_classif)
    found = MutualInformationSelector(1, **options).fit(X, y).relevance_
    np.testing.assert_allclose(found, theirs(X, y, **options), rtol=0, atol=1e-9)


def test_definition_is_the_reference_where_both_apply():
    numbers = fresh().standard_normal((3, 40))
    (x, y, z), labels = (Column(each, False) for each in numbers), Column(np.round(numbers[2]), True)
    both = numbers[[0, 2]].T
    assert np.isclose(information([x], [y]), reference.mutual_information(x.values, y.values))
    assert np.isclose(information([x, z], [y]), reference.mutual_information(both, y.values))
    conditional = reference.conditional_mutual_information(x.values, y.values, z.values, k=4)
    assert np.isclose(information([x], [y], [z], k=4), conditional)
    ross = reference.mutual_information_discrete(both, labels.values)
    assert np.isclose(information([x, z], [labels]), ross)
    rounded = Column(np.round(x.values), True)
    assert np.isclose(information([labels], [rounded]), mutual_info_score(labels.values, rounded.values))


def test_a_pair_that_never_repeats_tells_nothing():
    rows = np.arange(36)
    X = np.stack([rows // 6, rows % 6], 1).astype(float)
    selector = MutualInformationSelector(2, criterion="jmi", discrete_features=True, random_state=0)
    assert selector.fit(X, rows + 0.5).scores_[selector.selected_[1]] == 0


# ---- Known answers


@pytest.mark.parametrize("discrete_target", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_copy_of_the_best_feature_comes_second_by_relevance_alone(criterion, discrete_target):
    rng = fresh()
    X = rng.standard_normal((1000, 4))
    X[:, 1] = X[:, 0]
    y = X[:, 0] + 0.6 * X[:, 2] + 0.1 * rng.standard_normal(1000)
    selector = MutualInformationSelector(2, criterion=criterion, random_state=0)
    selector.fit(X, y > 0 if discrete_target else y)
    assert set(selector.selected_) == ({0, 1} if criterion == "mi" else {selector.selected_[0], 2})
    assert selector.selected_[0] in (0, 1)


@pytest.mark.parametrize("kind", ["discrete", "classes", "continuous"])
@pytest.mark.parametrize("criterion", ["mi", "mrmr", "jmi", "jmim", "cmim"])
def test_a_feature_that_tells_only_with_another(criterion, kind):
    """The second of an exclusive or tells nothing alone; the first does, because the second is biased."""
    rng = fresh()
    n = 2000
    first, second = rng.choice([-1, 1], n), rng.choice([-1, 1], n, p=[0.15, 0.85])
    y = first * second
    X = np.stack([rng.choice([-1, 1], n), y * rng.choice([-1, 1], n, p=[0.25, 0.75]), first, second], 1).astype(float)
    if kind != "discrete":
        X *= rng.uniform(0, 1, X.shape)
    if kind == "continuous":
        y = y + 0.3 * rng.standard_normal(n)
    selector = MutualInformationSelector(
        2, criterion=criterion, discrete_features=kind == "discrete", n_neighbors=5, random_state=0
    ).fit(X, y)
    assert selector.selected_.tolist() == [2, 1 if criterion in ("mi", "mrmr") else 3]


# ---- scikit-learn's manners


@pytest.mark.filterwarnings("ignore:n_features_to_select")
@parametrize_with_checks(
    [MutualInformationSelector()]
    + [MutualInformationSelector(n_features_to_select=2, criterion=criterion) for criterion in CRITERIA]
    + [MutualInformationSelector(n_features_to_select=2, criterion="jmi", discrete_features=[0])]
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_pipelines_and_searches():
    rng = fresh()
    X = rng.standard_normal((200, 8))
    labels = np.array(["no", "yes"])[(X[:, 3] * 2 + X[:, 5] > 0).astype(int)]
    selector = MutualInformationSelector(2, random_state=0)
    pipeline = make_pipeline(selector, LogisticRegression())
    search = GridSearchCV(pipeline, {"mutualinformationselector__criterion": CRITERIA}, cv=3).fit(X, labels)
    assert search.best_score_ > 0.8
    assert set(search.best_estimator_[0].selected_) == {3, 5}
    assert clone(search.best_estimator_[0]).get_params() == search.best_estimator_[0].get_params()


def test_names_and_tables():
    pandas = pytest.importorskip("pandas")
    X, y = data(fresh(), 100, "continuous")
    table = pandas.DataFrame(X, columns=list("abcdef"))
    selector = MutualInformationSelector(2, random_state=0).set_output(transform="pandas").fit(table, y)
    names = [name for name, selected in zip("abcdef", selector.support_, strict=True) if selected]
    assert selector.get_feature_names_out().tolist() == names
    assert selector.feature_names_in_.tolist() == list("abcdef")
    pandas.testing.assert_frame_equal(selector.transform(table), table[names])


def test_attributes_agree():
    X, y = data(fresh(), 120, "classes")
    selector = MutualInformationSelector(3, criterion="jmi", random_state=0).fit(X, y)
    assert selector.ranking_[selector.selected_].tolist() == [1, 2, 3]
    assert sorted(selector.ranking_) == [1, 2, 3, 4, 5, 6]
    others = np.argsort(selector.ranking_)[3:]
    assert (np.diff(selector.scores_[others]) <= 0).all()
    assert selector.scores_[selector.selected_[0]] == selector.relevance_.max()
    assert np.flatnonzero(selector.get_support()).tolist() == sorted(selector.selected_)
    np.testing.assert_array_equal(selector.transform(X), X[:, selector.support_])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(selector)).transform(X), selector.transform(X))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_results_depend_on_the_seed_alone(criterion):
    X, y = data(fresh(), 150, "continuous")
    threads, before = torch.get_num_threads(), X.copy()
    found = [
        MutualInformationSelector(4, criterion=criterion, random_state=state, n_jobs=jobs).fit(X, y)
        for state, jobs in ((5, None), (5, 2), (np.random.RandomState(5), -1))
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.selected_, found[0].selected_)
        np.testing.assert_array_equal(other.scores_, found[0].scores_)
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_blocks_change_nothing(criterion, monkeypatch):
    X, y = data(fresh(), 80, "classes")
    selector = MutualInformationSelector(4, criterion=criterion, discrete_features=[3, 4], random_state=0)
    whole = selector.fit(X, y).scores_
    monkeypatch.setattr("echo_ext.sklearn.information.BLOCK", 1)
    np.testing.assert_array_equal(selector.fit(X, y).scores_, whole)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_single_and_constant_columns(criterion):
    rng = fresh()
    y = rng.standard_normal(100)
    one = MutualInformationSelector(1, criterion=criterion).fit(y[:, None] ** 2, y)
    assert (one.selected_.tolist(), one.ranking_.tolist()) == ([0], [1])
    X = np.stack([np.zeros(100), y**2, np.full(100, 7.0)], 1)
    every = MutualInformationSelector(3, criterion=criterion, random_state=0).fit(X, y)
    assert every.selected_[0] == 1
    assert sorted(every.selected_) == [0, 1, 2]
    assert np.isfinite(every.scores_).all()
    assert every.transform(X).shape == X.shape


def test_more_features_than_there_are_is_a_warning():
    X, y = data(fresh(), 50, "continuous")
    with pytest.warns(UserWarning, match="n_features_to_select=10 is greater than n_features=6. All the features will"):
        selector = MutualInformationSelector().fit(X, y)
    assert selector.support_.all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"n_features_to_select": 0},
            r"'n_features_to_select' .* an int in the range \[1, inf\). Got 0 instead",
        ),
        ({"n_features_to_select": 0.5}, "must be an int in the range"),
        ({"n_features_to_select": True}, "must be an int in the range"),
        ({"n_neighbors": 0}, "'n_neighbors' parameter of MutualInformationSelector must be an int"),
        (
            {"criterion": "mrmd"},
            "'criterion' .* one of 'mi', 'mrmr', 'jmi', 'jmim', 'cmim'. Got 'mrmd' instead",
        ),
        ({"discrete_features": "some"}, "Invalid string value for discrete_features"),
        ({"n_neighbors": 50}, "Expected n_neighbors < n_samples_fit"),
        ({"X": csr_matrix(np.ones((50, 6)))}, "Sparse data was passed"),
        ({"X": np.full((50, 6), np.nan)}, "Input X contains NaN"),
        ({"y": np.full(50, np.nan)}, "Input y contains NaN"),
        ({"y": None}, "requires y to be passed"),
        ({"y": np.ones(49)}, "inconsistent numbers of samples"),
    ],
    ids=str,
)
def test_errors_name_what_is_wrong(parameters, message):
    X, y = data(fresh(), 50, "continuous")
    given = {"X": X, "y": y}
    given.update({name: parameters[name] for name in ("X", "y") if name in parameters})
    selector = MutualInformationSelector(2).set_params(**{k: v for k, v in parameters.items() if k not in given})
    with pytest.raises((ValueError, TypeError), match=message):
        selector.fit(**given)
