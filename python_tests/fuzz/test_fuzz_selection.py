"""The feature selector compared with the definition of its criteria, along the path that it takes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from unittest import mock

import fuzzing
import hypothesis.strategies as st
import information_definitions as definitions
import numpy as np

from echo_ext.estimators.neighbors import PointSet
from echo_ext.reference import selection
from echo_ext.sklearn import MutualInformationSelector
from echo_ext.sklearn.scores import separate
from echo_ext.sklearn.selector import CRITERIA

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    numbers: int  # NumPy's seed
    criterion: str
    n: int
    discrete: tuple[bool, ...]
    target: str
    kind: str
    number: int
    k: int
    threads: int


@st.composite
def _cases(draw):
    n = draw(st.sampled_from([6, 7, 9, 12, 16, 17, 24, 33]))
    discrete = draw(st.lists(st.booleans(), min_size=1, max_size=5))
    return Case(
        numbers=draw(st.integers(0, 2**32 - 100)),
        criterion=draw(st.sampled_from(CRITERIA)),
        n=n,
        discrete=tuple(discrete),
        target=draw(st.sampled_from(["continuous", "classes", "strings"])),
        kind=draw(st.sampled_from(["normal", "ties", "lattice"])),
        number=draw(st.integers(1, min(len(discrete), 4))),
        k=draw(st.integers(1, n - 1)),
        threads=draw(st.integers(1, 3)),
    )


def check(case):
    rng = np.random.default_rng(case.numbers)
    discrete, continuous = np.array(case.discrete), case.target == "continuous"
    X = definitions.sample(rng, case.kind, (case.n, len(discrete)), np.float64)
    X[:, discrete] = rng.integers(0, 4, (case.n, discrete.sum()))
    y = X[:, 0] + rng.standard_normal(case.n)
    if not continuous:
        y = np.append(rng.integers(0, 3, case.n - 4), [0, 0, 1, 1])
        y = np.array(["a", "b", "c"])[y] if case.target == "strings" else y
    selector = MutualInformationSelector(
        case.number,
        criterion=case.criterion,
        discrete_features=discrete,
        n_neighbors=case.k,
        n_jobs=case.threads,
        random_state=case.numbers,
    )
    # Relevance has the rounding of scikit-learn where a label has few samples; here that of the definition is wanted.
    with (
        mock.patch("echo_ext.sklearn.scores._search_distances", lambda points, k: PointSet(points).search_distances(k)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        selector.fit(X, y)
    codes = y if continuous else np.unique(y, return_inverse=True)[1]
    values, target = separate(X, codes, discrete, not continuous, case.numbers)
    features = [selection.Column(*each) for each in zip(values.T, discrete.tolist(), strict=True)]
    target = selection.Column(np.asarray(target, np.float64), not continuous)
    for step, chosen in enumerate(selector.selected_):
        given = selector.selected_[:step].tolist()
        wanted = selection.criterion_values(case.criterion, features, target, given, k=case.k)
        assert wanted[chosen] >= np.nanmax(wanted) - TOLERANCE, (step, chosen, wanted)
        assert abs(selector.scores_[chosen] - wanted[chosen]) < TOLERANCE, (step, selector.scores_, wanted)
    others = ~selector.support_
    assert np.allclose(selector.scores_[others], wanted[others], rtol=0, atol=TOLERANCE), (selector.scores_, wanted)
    return case.number


cases = _cases()


test_short_run, test_long_run = fuzzing.tests_of(__file__)
