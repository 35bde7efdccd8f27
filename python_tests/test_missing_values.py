"""With nan_policy="omit", an estimate is that of the rows that no variable misses."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from knn_cases import fresh
from scipy.special import digamma

import echo_ext
from echo_ext import (
    conditional_mutual_information,
    entropy,
    mutual_information,
    mutual_information_discrete,
    mutual_information_matrix,
    reference,
    total_correlation,
    transfer_entropy,
    with_standard_error,
)

N = 67
OMIT = dict(nan_policy="omit")


def with_nan(rng, *shape, dtype=np.float64, share=0.1):
    """Return normal values, about a share of them NaN, but not all of a row's."""
    values = rng.standard_normal(shape).astype(dtype)
    values[rng.random(shape) < share] = np.nan
    return values


def complete(*variables):
    """Return the rows without NaN."""
    return ~np.any([np.isnan(v).reshape(len(v), -1).any(1) for v in variables], axis=0)


CALLS = {
    "ksg1": (mutual_information, 2, {}),
    "ksg2": (mutual_information, 2, dict(method="ksg2")),
    "bi-ksg": (mutual_information, 2, dict(method="bi-ksg", k=[2, 4])),
    "mixed": (mutual_information, 2, dict(method="mixed")),
    "conditional": (conditional_mutual_information, 3, dict(method="ksg2", k=0.1)),
    "total": (total_correlation, 1, {}),
    "entropy": (entropy, 1, dict(metric="euclidean", unit="bits")),
    "error": (partial(with_standard_error, mutual_information), 2, dict(seed=3, parts=4)),
}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("call", CALLS)
def test_omitting_is_dropping_rows_by_hand(call, dtype, as_tensor):
    estimate, count, options = CALLS[call]
    rng = fresh()
    variables = [with_nan(rng, N, 2, dtype=dtype) for _ in range(count)]
    kept = complete(*variables)
    assert 4 < kept.sum() < N
    form = torch.from_numpy if as_tensor else np.asarray
    found = estimate(*map(form, variables), **OMIT, **options)
    wanted = estimate(*[form(v[kept]) for v in variables], **options)
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-12 if dtype == np.float64 else 1e-6)
    if call != "error":
        local = np.asarray(estimate(*map(form, variables), **OMIT, **options, local=True))
        assert np.array_equal(np.isnan(local).any(tuple(range(local.ndim - 1))), ~kept)
        wanted = estimate(*[form(v[kept]) for v in variables], **options, local=True)
        assert np.array_equal(local[..., kept], np.asarray(wanted))


@pytest.mark.parametrize("method", ["ksg1", "ksg2", "bi-ksg", "mixed"])
def test_rows_keep_their_times(method):
    """The definition by brute force: neighbors are more than w rows away in the table as it was given."""
    rng = fresh()
    x, y = with_nan(rng, N, 1), with_nan(rng, N, 1)
    k, w = 3, 4
    found = mutual_information(x, y, k=k, exclude_within=w, method=method, local=True, **OMIT)
    oracle = reference.mutual_information(x, y, k=k, exclude_within=w, method=method, local=True, **OMIT)
    np.testing.assert_allclose(found, oracle, rtol=1e-12, atol=1e-12)
    if method != "ksg1":
        return
    rows = np.flatnonzero(complete(x, y))
    for i in range(N):
        if i not in rows:
            assert np.isnan(found[i])
            continue
        others = rows[np.abs(rows - i) > w]
        in_x, in_y = np.abs(x[others, 0] - x[i, 0]), np.abs(y[others, 0] - y[i, 0])
        radius = np.sort(np.maximum(in_x, in_y))[k - 1]
        near = digamma(np.sum(in_x < radius) + 1) + digamma(np.sum(in_y < radius) + 1)
        assert found[i] == pytest.approx(digamma(k) + digamma(len(others) + 1) - near, rel=1e-12, abs=1e-12)


def test_batches_are_omitted_item_by_item():
    rng = fresh()
    x, y = with_nan(rng, 3, 1, N, 2), with_nan(rng, 4, N, 1, share=0.05)
    x[1] = rng.standard_normal((1, N, 2))
    y[:2] = rng.standard_normal((2, N, 1))  # two items without NaN
    for form in (np.asarray, torch.from_numpy):
        found = mutual_information(form(x), form(y), k=[2, 3], local=True, **OMIT)
        assert found.shape == (2, 3, 4, N)
        means = mutual_information(form(x), form(y), k=[2, 3], **OMIT)
        for i in range(3):
            for j in range(4):
                one = mutual_information(x[i, 0], y[j], k=[2, 3], local=True, **OMIT)
                np.testing.assert_array_equal(found[:, i, j], one)
                np.testing.assert_allclose(means[:, i, j], np.nanmean(one, -1))
    estimate, error = with_standard_error(mutual_information, x, y, parts=3, seed=0, **OMIT)
    assert estimate.shape == error.shape == (3, 4)
    assert np.isfinite(error).all()
    assert mutual_information(np.ones((0, N, 1)), with_nan(rng, N, 1), **OMIT).shape == (0,)


@pytest.mark.parametrize("method", ["ksg1", "ksg2"])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_matrices_are_omitted_pair_by_pair(symmetric, window, method):
    rng = fresh()
    x, y = with_nan(rng, 2, N, 4), with_nan(rng, N, 3)
    x[0, :, 1] = rng.standard_normal(N)
    x[:, :, 3] = np.where(np.isnan(x[:, :, 2]), np.nan, rng.standard_normal((2, N)))
    options = dict(k=[2, 3], method=method, exclude_within=window, **OMIT)
    found = mutual_information_matrix(x, None if symmetric else y, **options)
    right = x if symmetric else np.broadcast_to(y, (2, N, 3))
    assert found.shape == (2, 2, 4, right.shape[-1])
    for item in range(2):
        for i in range(4):
            for j in range(right.shape[-1]):
                one = mutual_information(x[item, :, i], right[item, :, j], **options)
                np.testing.assert_allclose(found[:, item, i, j], one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [0, 3])
def test_an_embedding_misses_the_times_with_a_missing_term(window):
    rng = fresh()
    source, target = rng.standard_normal((2, N))
    source[[5, 40, 41]] = np.nan
    target[[20, N - 1]] = np.nan
    options = dict(history=2, source_history=2, lag=2, exclude_within=window)
    found = transfer_entropy(source, target, local=True, **options, **OMIT)
    terms = np.stack([target[3:], source[1:-2], source[:-3], target[2:-1], target[1:-2]], 1)
    kept = complete(terms)
    assert kept.sum() == N - 3 - 2 - 3 - 4
    assert np.array_equal(np.isnan(found), ~kept)
    by_hand = [columns[kept] for columns in (terms[:, :1], terms[:, 1:3], terms[:, 3:])]
    if window == 0:
        assert np.array_equal(found[kept], conditional_mutual_information(*by_hand, local=True))
    oracle = reference.transfer_entropy(source, target, local=True, **options, **OMIT)
    np.testing.assert_allclose(found, oracle, rtol=1e-12, atol=1e-12)
    assert transfer_entropy(source, target, **options, **OMIT) == pytest.approx(np.nanmean(oracle))


@pytest.mark.parametrize(
    "missing_in",
    [
        lambda labels: np.where(labels < 0, np.nan, labels),
        lambda labels: torch.from_numpy(np.where(labels < 0, np.nan, labels)),
        lambda labels: np.array([None if label < 0 else "abc"[label] for label in labels], object),
        lambda labels: tuples(labels),
        lambda labels: pd.Series([None if label < 0 else "abc"[label] for label in labels]),
        lambda labels: pd.Series([None if label < 0 else "abc"[label] for label in labels], dtype="string"),
        lambda labels: pd.Series([None if label < 0 else "abc"[label] for label in labels], dtype="category"),
        lambda labels: pd.Series([pd.NA if label < 0 else label for label in labels], dtype="Int64"),
        lambda labels: np.array([pd.NA if label < 0 else label for label in labels], object),
        lambda labels: pd.Series(np.where(labels < 0, np.nan, labels)),
    ],
)
@pytest.mark.parametrize("window", [0, 2])
def test_missing_labels_are_omitted(missing_in, window):
    rng = fresh()
    x, labels = with_nan(rng, N, 2), rng.integers(-1, 3, N)
    options = dict(exclude_within=window, local=True)
    found = mutual_information_discrete(x, missing_in(labels), **options, **OMIT)
    kept = complete(x) & (labels >= 0)
    assert np.array_equal(np.isnan(found), ~kept)
    oracle = reference.mutual_information_discrete(x, np.where(labels < 0, np.nan, labels), **options, **OMIT)
    np.testing.assert_allclose(found, oracle, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"labels must .*the first at \[\d+\]; nan_policy='omit' leaves"):
        mutual_information_discrete(np.ones(N), missing_in(labels))


def tuples(labels):
    """Return labels that are tuples, or None."""
    found = np.empty(len(labels), object)
    for i, label in enumerate(labels):
        found[i] = None if label < 0 else (int(label), "x")
    return found


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("estimate", [mutual_information, entropy])
def test_gradient_is_that_of_the_rows_that_are_left(estimate, window):
    rng = fresh()
    values = [with_nan(rng, N, 2) for _ in range(1 if estimate is entropy else 2)]
    rows = np.flatnonzero(complete(*values))
    inputs = [torch.from_numpy(v).requires_grad_() for v in values]
    estimate(*inputs, exclude_within=window, **OMIT).backward()
    # The rows that are left, as a series without gaps that their window does not reach across differently.
    left = [torch.from_numpy(v[rows]).requires_grad_() for v in values]
    if window == 0:
        estimate(*left).backward()
        for whole, part in zip(inputs, left, strict=True):
            torch.testing.assert_close(whole.grad[rows], part.grad)
    for whole in inputs:
        missing = np.setdiff1d(np.arange(N), rows)
        assert not whole.grad[missing].any()
        assert whole.grad[rows].isfinite().all()
        assert whole.grad[rows].any()


def test_entropy_gradient_with_gaps_is_exact():
    rng = fresh()
    x = torch.from_numpy(with_nan(rng, 30, 1)).requires_grad_()

    def estimate(values):
        gaps = torch.where(x.detach().isnan(), torch.nan, values)
        return entropy(gaps, exclude_within=1, **OMIT)

    plain = torch.nan_to_num(x.detach(), nan=0.0).requires_grad_()
    assert torch.autograd.gradcheck(estimate, plain, eps=1e-9, atol=1e-4)


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_the_default_says_where_and_what_to_do():
    x = np.arange(20.0).reshape(10, 2) ** 2
    x[[3, 3, 7], [0, 1, 1]] = np.nan
    with pytest.raises(
        ValueError, match=r"x must be finite, got 3 NaN in 2 rows, the first at \[3, 0\]; nan_policy='om"
    ):
        entropy(x)
    with pytest.raises(ValueError, match=r"points must be finite, got 3 NaN or infinite values, .*\[3, 0\]$"):
        echo_ext.knn(x)  # which has no nan_policy


@pytest.mark.parametrize("estimate", [entropy, total_correlation, mutual_information_matrix])
def test_infinity_always_raises(estimate):
    x = fresh().standard_normal((10, 2))
    x[2, 1], x[4, 0] = np.nan, -np.inf
    with pytest.raises(ValueError, match=r"x must not be infinite, got 1 infinite values, the first at \[4, 0\]"):
        estimate(x, **OMIT)
    with pytest.raises(ValueError, match=r"x must be finite, got 2 NaN or infinite values, the first at \[2, 1\]$"):
        estimate(x)


def test_too_few_rows_say_how_many_were_left_out():
    x, y = np.full(50, np.nan), np.arange(50.0)
    with pytest.raises(ValueError, match=r"k must be .* got 3 of 0 \(50 of 50 rows were left out\)"):
        mutual_information(x, y, **OMIT)
    x[:3] = 1, 2, 4
    with pytest.raises(ValueError, match=r"k must be .* got 3 of 3 \(47 of 50 rows were left out\)"):
        mutual_information(x, y, **OMIT)
    with pytest.raises(ValueError, match=r"k must be .* got 3 of 3 \(47 of 50 rows were left out\)"):
        mutual_information_discrete(x, np.zeros(50), **OMIT)
    with pytest.raises(ValueError, match=r"got 3 of 3 \(47 of 50 rows were left out for columns 0 of x and 1 of x"):
        mutual_information_matrix(np.stack([y, x], 1), **OMIT)
    x[:8] = np.arange(8) ** 2
    with pytest.raises(ValueError, match=r"k must be at most 1, .*exclude_within=3 .* 8 samples, .* \(42 of 50 rows"):
        mutual_information(x, y, exclude_within=3, **OMIT)
    with pytest.raises(ValueError, match="parts=4 leaves 2 samples in a part: k must be less"):
        with_standard_error(mutual_information, x, y, parts=4, **OMIT)


def test_masked_values_are_missing():
    rng = fresh()
    x, y = rng.standard_normal((2, N))
    masked = np.ma.masked_array(x, x > 1)
    assert entropy(masked, **OMIT) == pytest.approx(entropy(x[x <= 1]))
    assert mutual_information(masked, y, **OMIT) == pytest.approx(mutual_information(x[x <= 1], y[x <= 1]))
    with pytest.raises(ValueError, match="x must have no masked values"):
        entropy(masked)
