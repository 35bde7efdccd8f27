import math

import numpy as np
import pandas as pd
import pytest
import torch
from knn_cases import KINDS, fresh, sample
from scipy.special import digamma

import echo_ext
from echo_ext import mutual_information_discrete, reference


@pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_meets_the_oracle(kind, dtype):
    rng = fresh()
    for w in (0, 2):
        n = int(rng.integers(40, 150))
        x = sample(rng, n, int(rng.integers(1, 4)), kind, dtype)
        labels = rng.integers(0, 3, n)
        if w == 0:
            labels[0] = 99  # its only one
            labels[1:3] = 50  # fewer than k + 1
        options = dict(k=[1, 3, 5], local=True, exclude_within=w)
        tolerance = 1e-12 if dtype == np.float64 else 2e-6
        np.testing.assert_allclose(
            mutual_information_discrete(x, labels, **options),
            reference.mutual_information_discrete(x, labels, **options),
            rtol=tolerance,
            atol=tolerance,
        )


def test_labels_that_decide_everything_or_nothing():
    rng = fresh()
    label = rng.integers(0, 4, 4000)
    apart = label + 0.1 * rng.random(4000)
    assert mutual_information_discrete(apart, label) == pytest.approx(math.log(4), abs=0.02)
    assert mutual_information_discrete(rng.random(4000), label) == pytest.approx(0.0, abs=0.06)
    assert mutual_information_discrete(apart, np.zeros(4000)) == pytest.approx(0.0, abs=1e-12)


def test_forms_of_labels_are_one():
    rng = fresh()
    label = rng.integers(0, 2, 200)
    x = label + rng.standard_normal(200)
    value = mutual_information_discrete(x, label)
    for form in (
        label.astype(bool),
        label.astype(np.uint8),
        label.astype(float),
        np.array(["no", "yes"])[label],
        np.array(["no", "yes"], object)[label],
        np.array([("no", 1), None, "yes"], object)[2 * label],
        label.astype(object),
        ["no" if each else 3 for each in label],
        list(map(int, label)),
        np.array(["2020-01-01", "2021-01-01"], "M8[D]")[label],
        pd.to_datetime(["2020-01-01", "2021-01-01"])[label],
        torch.from_numpy(label),
    ):
        assert mutual_information_discrete(x, form) == value
        if isinstance(form, np.ndarray):
            form.flags.writeable = False
            assert mutual_information_discrete(x, form) == value
    tensor = mutual_information_discrete(torch.from_numpy(x), label)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.item() == value


def test_columns_of_a_table_are_labels():
    pandas = pytest.importorskip("pandas")
    rng = fresh()
    label = rng.integers(0, 2, 60)
    x = label + rng.standard_normal(60)
    value = mutual_information_discrete(x, label)
    words = pandas.Series(np.array(["no", "yes"])[label])
    for form in (words, words.astype(object), words.astype("string"), words.astype("category")):
        assert mutual_information_discrete(x, form) == value
    assert mutual_information_discrete(x, pandas.Series(label).astype("category")) == value
    assert mutual_information_discrete(x, pandas.Series(label, dtype="Int64")) == value
    words[4] = None
    for form in (words, words.astype("string"), words.astype("category")):
        with pytest.raises(ValueError, match=r"labels must have no missing values, got 1 .* the first at \[4\]"):
            mutual_information_discrete(x, form)


# ---- Conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_conditions_meet_the_oracle(kind, dtype):
    rng = fresh()
    for w in (0, 1):
        n = int(rng.integers(90, 150))
        x, labels = sample(rng, n, int(rng.integers(1, 4)), kind, dtype), rng.integers(0, 2, n)
        given = rng.integers(0, 3, n)
        if w == 0:
            given[:2], labels[:2] = 7, [0, 1]  # a stratum without a label that repeats
        options = dict(k=[1, 3], local=True, exclude_within=w)
        values = mutual_information_discrete(x, labels, given, **options)
        expected = reference.mutual_information_discrete(x, labels, given, **options)
        tolerance = 1e-12 if dtype == np.float64 else 2e-6
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
        assert np.isnan(values[:, :2]).all() == (w == 0)


def test_strata_have_estimates_of_their_own():
    rng = fresh()
    given, labels = rng.integers(0, 3, 200), rng.integers(0, 2, 200)
    x = labels * (given - 1) + rng.standard_normal(200)
    given[0] = 9  # alone in its stratum, and left out
    strata = [given == each for each in range(3)]
    alone = [mutual_information_discrete(x[rows], labels[rows]) for rows in strata]
    shares = [rows.sum() / 199 for rows in strata]
    value = mutual_information_discrete(x, labels, given)
    assert value == pytest.approx(np.dot(alone, shares), abs=1e-12)
    local = mutual_information_discrete(x, labels, given, local=True)
    assert np.isnan(local[0])
    assert np.nanmean(local) == pytest.approx(value, abs=1e-12)
    assert mutual_information_discrete(x, labels, np.zeros(200)) == mutual_information_discrete(x, labels)
    columns = np.stack([given // 2, given % 2], -1)  # which tell the condition together
    for form in (columns, columns.astype(str), list(map(list, columns.astype(str)))):
        assert mutual_information_discrete(x, labels, form) == value
    tensors = [torch.from_numpy(each) for each in (x, labels, given)]
    assert mutual_information_discrete(*tensors).item() == value
    batch = mutual_information_discrete(x, labels, np.stack([given, np.zeros(200, int)]))
    assert batch.tolist() == [value, mutual_information_discrete(x, labels)]


def test_conditions_explain_a_common_cause():
    rng = fresh()
    given = rng.integers(0, 2, 4000)
    labels = np.where(rng.random(4000) < 0.9, given, 1 - given)
    x = 3 * given + rng.standard_normal(4000)
    assert mutual_information_discrete(x, labels) > 0.2
    assert mutual_information_discrete(x, labels, given) == pytest.approx(0.0, abs=0.06)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.linspace(0, 1, 10), "given must be discrete, .* conditional_mutual_information.method='mixed', discrete_y"),
        (np.zeros(9), "x and given must have the same number of samples, got 10 and 9"),
        (np.arange(10), "labels must repeat where given is equal, but every one of them occurs once"),
        (["a"] * 9 + [None], r"given must have no missing values, got 1 None or NaN, the first at \[9\]"),
    ],
)
def test_bad_conditions(given, message):
    with pytest.raises(ValueError, match=message):
        mutual_information_discrete(np.arange(10.0), np.arange(10) % 2, given)


# ---- Batches, errors, windows ----------------------------------------------------------------------------------------


def test_batches_broadcast():
    x = torch.randn(2, 1, 80, 2, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 80))
    values = mutual_information_discrete(x, labels, k=[2, 3])
    assert values.shape == (2, 2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(values[1, i, j], mutual_information_discrete(x[i, 0], labels[j], k=3))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.arange(10), ValueError, "labels must repeat, but every one of them occurs once"),
        (np.linspace(0, 1, 10), ValueError, "labels must be discrete, but 8 are not whole numbers, the first 0.111111"),
        (np.array([0.0] * 9 + [np.nan]), ValueError, r"labels must be finite, .* first at \[9\]"),
        (np.zeros(9), ValueError, "x and labels must have the same number of samples, got 10 and 9"),
        (np.zeros(10, "V4"), TypeError, r"labels must be integers, booleans, strings or dates, got dtype \|V4"),
        (np.array([{}] * 10), TypeError, "labels must be hashable, got {}"),
        (pd.Series([{}] * 10), TypeError, "labels must be hashable, got a Series with an unhashable type: 'dict'"),
        (["a"] * 8 + [None, math.nan], ValueError, r"labels must have no missing values, got 2 .* the first at \[8\]"),
        (np.array(1), ValueError, "labels must have shape"),
    ],
)
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=message):
        mutual_information_discrete(np.arange(10.0), labels)


def test_a_window_that_leaves_a_label_without_neighbors():
    with pytest.raises(ValueError, match="exclude_within=3 leaves a sample without a neighbor of its own label"):
        mutual_information_discrete(np.arange(20.0), [0, 0] + [1] * 18, exclude_within=3)


def test_a_backward_pass_is_refused():
    x = torch.randn(30, requires_grad=True)
    with pytest.raises(NotImplementedError, match="mutual_information_discrete has no gradient"):
        echo_ext.mutual_information_discrete(x, torch.arange(30) % 2).backward()


def windowed_definition(x, labels, k, w):
    """The docstring, sample by sample: neighbors are more than w rows away, and k_i is at most those left to i."""
    shared = [i for i in range(len(x)) if np.sum(labels == labels[i]) > 1]
    terms = []
    for i in shared:
        others = [j for j in shared if abs(i - j) > w]
        apart = {j: np.abs(x[j] - x[i]).max() for j in others}
        same = sorted(apart[j] for j in others if labels[j] == labels[i])
        own_k = min(k, len(same))
        near = sum(distance < same[own_k - 1] for distance in apart.values())
        terms.append(digamma(len(others) + 1) + digamma(own_k) - digamma(len(same) + 1) - digamma(near + 1))
    return np.mean(terms)


def test_each_sample_has_as_many_neighbors_as_its_window_leaves():
    rng = fresh()
    for trial in range(40):
        n, k, w = (40, 8, 3) if trial == 0 else (int(rng.integers(30, 70)), int(rng.integers(1, 12)), trial % 5)
        labels = np.repeat([0, 1], [10, 30]) if trial == 0 else rng.integers(0, 2, n)
        rng.shuffle(labels)
        x = rng.standard_normal((n, int(rng.integers(1, 4)))) + labels[:, None]
        ks = sorted({1, k // 2 + 1, k})
        try:
            values = mutual_information_discrete(x, labels, k=ks, exclude_within=w)
        except ValueError:
            continue  # a sample without neighbors of its own label
        expected = [windowed_definition(x, labels, each, w) for each in ks]
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            reference.mutual_information_discrete(x, labels, k=ks, exclude_within=w), expected, rtol=1e-12, atol=1e-12
        )
