"""The keyword ``groups``: trials whose rows are near in time only to rows of the same trial."""

import numpy as np
import pandas as pd
import pytest
import torch
from knn_cases import fresh

import echo_ext
from echo_ext import (
    conditional_mutual_information,
    entropy,
    mutual_information,
    reference,
    transfer_entropy,
    with_standard_error,
)

N = 70
METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed")


def labels_of(kind, rng, n=N):
    if kind == "contiguous":
        return np.repeat([3, 1, 2], [20, 17, n - 37])
    return rng.integers(0, 4, n)  # interleaved


@pytest.mark.parametrize("kind", ["contiguous", "interleaved"])
@pytest.mark.parametrize("method", METHODS)
def test_the_window_reaches_rows_of_the_same_group_alone(method, kind):
    rng = fresh()
    x, y, z = rng.standard_normal((3, N, 1))
    groups = labels_of(kind, rng)
    options = dict(exclude_within=3, groups=groups, local=True, k=[2, 4])
    found = mutual_information(x, y, method=method, **options)
    wanted = reference.mutual_information(x, y, method=method, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    tensors = mutual_information(torch.from_numpy(x), torch.from_numpy(y), method=method, **options)
    assert np.array_equal(tensors, found)
    if method.startswith("ksg"):
        np.testing.assert_allclose(
            conditional_mutual_information(x, y, z, method=method, **options),
            reference.conditional_mutual_information(x, y, z, method=method, **options),
            rtol=1e-12,
            atol=1e-12,
        )
    np.testing.assert_allclose(entropy(x, **options), reference.entropy(x, **options), rtol=1e-12, atol=1e-12)


def test_one_group_is_a_series():
    x, y = fresh().standard_normal((2, N))
    for window in (0, 3):
        whole = mutual_information(x, y, exclude_within=window, local=True)
        one = mutual_information(x, y, exclude_within=window, local=True, groups=["a"] * N)
        np.testing.assert_allclose(one, whole, rtol=1e-14)
    assert mutual_information(x, y, groups=np.arange(N)) == mutual_information(x, y)
    # Every row is a group of its own, so that the window excludes nothing.
    alone = mutual_information(x, y, groups=np.arange(N), exclude_within=5)
    assert alone == pytest.approx(mutual_information(x, y), rel=1e-14)


@pytest.mark.parametrize("kind", ["contiguous", "interleaved"])
@pytest.mark.parametrize("window", [0, 3])
def test_embeddings_do_not_cross_groups(kind, window):
    rng = fresh()
    source, target = rng.standard_normal((2, N))
    groups = labels_of(kind, rng)
    options = dict(history=2, source_history=2, lag=2)
    found = transfer_entropy(source, target, groups=groups, local=True, exclude_within=window, **options)
    wanted = reference.transfer_entropy(source, target, groups=groups, local=True, exclude_within=window, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    if window == 0:  # the embeddings of the groups, one after another
        parts = [embedded(source[groups == each], target[groups == each]) for each in np.unique(groups)]
        joined = [np.concatenate(each) for each in zip(*parts, strict=True)]
        by_hand = conditional_mutual_information(*joined, local=True)
        np.testing.assert_allclose(np.sort(found), np.sort(by_hand), rtol=1e-12, atol=1e-12)


def embedded(source, target):
    past = np.stack([source[1:-2], source[:-3]], 1)
    return target[3:], past, np.stack([target[2:-1], target[1:-2]], 1)


def test_the_order_of_the_groups_does_not_matter():
    rng = fresh()
    x, y = rng.standard_normal((2, N))
    groups = np.repeat([0, 1, 2], [20, 30, 20])
    # An order that interleaves the groups and keeps the time within each.
    order = np.argsort(np.argsort(rng.permutation(groups), kind="stable"))
    assert not np.array_equal(order, np.arange(N))
    for estimate in (mutual_information, transfer_entropy):
        options = dict(exclude_within=2, k=4)
        whole = estimate(x, y, groups=groups, **options)
        mixed = estimate(x[order], y[order], groups=groups[order], **options)
        assert mixed == pytest.approx(whole, rel=1e-12)
    local = mutual_information(x, y, groups=groups, exclude_within=2, local=True)
    np.testing.assert_allclose(
        mutual_information(x[order], y[order], groups=groups[order], exclude_within=2, local=True), local[order]
    )


@pytest.mark.parametrize(
    "form",
    [
        list,
        np.asarray,
        torch.from_numpy,
        lambda g: g.astype(str),
        lambda g: [f"trial {each}" for each in g],
        lambda g: pd.Series(g).astype("string"),
        lambda g: pd.Series(g).astype("category"),
        lambda g: pd.Series(pd.Timestamp("2020") + pd.to_timedelta(g, "D")),
        lambda g: np.array([(int(each), "x") for each in g] + [None], object)[:-1],
    ],
)
def test_labels_may_be_of_any_kind(form):
    rng = fresh()
    x, y = rng.standard_normal((2, N))
    groups = labels_of("interleaved", rng)
    found = transfer_entropy(x, y, groups=form(groups), exclude_within=2)
    assert found == transfer_entropy(x, y, groups=groups, exclude_within=2)


@pytest.mark.parametrize("kind", ["contiguous", "interleaved"])
def test_missing_rows_keep_the_times_of_their_group(kind):
    rng = fresh()
    x, y = rng.standard_normal((2, N))
    x[rng.random(N) < 0.1] = np.nan
    groups = labels_of(kind, rng)
    options = dict(groups=groups, exclude_within=2, nan_policy="omit", local=True, transform="rank")
    np.testing.assert_allclose(
        mutual_information(x, y, **options), reference.mutual_information(x, y, **options), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        transfer_entropy(x, y, **options), reference.transfer_entropy(x, y, **options), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("estimate", [mutual_information, entropy])
def test_gradients_do_not_depend_on_the_order_of_the_groups(estimate):
    rng = fresh()
    groups = np.repeat([0, 1], N // 2)
    order = np.argsort(np.arange(N) % (N // 2), kind="stable")
    values = [torch.from_numpy(rng.standard_normal((N, 2))) for _ in range(1 if estimate is entropy else 2)]
    gradients = []
    for rows in (np.arange(N), order):
        inputs = [v[rows].clone().requires_grad_() for v in values]
        estimate(*inputs, groups=groups[rows], exclude_within=2).backward()
        gradients.append([x.grad[np.argsort(rows)] for x in inputs])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_standard_error_takes_consecutive_parts_of_the_trials():
    rng = fresh()
    x, y = rng.standard_normal((2, 90))
    groups = np.repeat([0, 1], [40, 50])
    estimate, error = with_standard_error(mutual_information, x, y, groups=groups, exclude_within=2, parts=3)
    assert estimate == mutual_information(x, y, groups=groups, exclude_within=2)
    parts = [
        mutual_information(x[i : i + 30], y[i : i + 30], groups=groups[i : i + 30], exclude_within=2)
        for i in (0, 30, 60)
    ]
    assert error == pytest.approx(np.std(parts, ddof=1) / 3**0.5)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([1] * 9, ValueError, "groups must have one label for each of the 10 rows, got 9"),
        (np.ones((10, 1)), ValueError, r"groups must have one dimension, \(N,\), got shape \(10, 1\)"),
        (3, ValueError, "groups must have one dimension"),
        ([None] + [1] * 9, ValueError, r"groups must have no missing labels, got 1, the first at \[0\]"),
        (pd.Series([1.0] * 9 + [np.nan]), ValueError, r"groups must have no missing .* the first at \[9\]"),
        (np.array([{}] * 10), TypeError, "groups must be hashable, got {}"),
        (pd.DataFrame({"a": range(10)}), TypeError, "groups must be one column of labels, got a DataFrame"),
        (["a"] * 9 + ["b"], ValueError, "k must be at most [01], .* exclude_within=5 leaves"),
    ],
)
def test_bad_groups(groups, error, message):
    x = np.arange(10.0)
    for estimate in (mutual_information, transfer_entropy):
        with pytest.raises(error, match=message):
            estimate(x, x**2, groups=groups, exclude_within=5, k=2)


def test_too_short_groups_are_named():
    x = np.arange(10.0)
    with pytest.raises(
        ValueError, match="at least 4 rows in some group for history=2, source_history=1 and lag=1, got"
    ):
        transfer_entropy(x, x, groups=np.arange(10) // 2, history=2)


def test_groups_of_total_correlation_are_columns():
    with pytest.raises(TypeError, match="groups must be sequences of column numbers"):
        echo_ext.total_correlation(np.ones((10, 3)), groups=[0, 1, 2])
