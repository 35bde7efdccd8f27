"""Discrete and mixed variables: frequencies, ties, and columns of categories."""

import math

import numpy as np
import pytest
import torch
from knn_cases import fresh, related, sample
from scipy.special import digamma

import echo_ext
from echo_ext import conditional_mutual_information, entropy, mutual_information, reference, transfer_entropy

CELLS = ("plug-in", "miller-madow")
DTYPES = (np.float64, np.float32)


def symbols(rng, n, d=1, most=4, dtype=np.float64):
    return rng.integers(0, most, (n, d)).astype(dtype)


def close(found, expected, dtype=np.float64):
    tolerance = 1e-12 if dtype == np.float64 else 2e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# ---- Frequencies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", CELLS)
def test_entropy_is_that_of_the_frequencies(method, dtype):
    rng = fresh()
    for n in (1, 2, 4, 97, 500):
        x = symbols(rng, n, 2, dtype=dtype)
        counts = np.unique(x, axis=0, return_counts=True)[1]
        shares = counts / n
        expected = -np.sum(shares * np.log(shares))
        if method == "miller-madow":
            expected += (len(counts) - 1) / (2 * n)
        close(entropy(x, method=method), expected, dtype)
        close(entropy(x, method=method, local=True), reference.entropy(x, method=method, local=True), dtype)
    signs = np.array([0.0, -0.0, 1.0, 1.0], dtype)
    close(entropy(signs, method="plug-in"), math.log(2), dtype)


@pytest.mark.parametrize("method", CELLS)
def test_estimates_are_sums_of_entropies(method):
    rng = fresh()
    x, y, z = (symbols(rng, 211, d, 3) for d in (1, 2, 2))

    def h(*variables):
        return entropy(np.hstack(variables), method=method)

    close(mutual_information(x, y, method=method), h(x) + h(y) - h(x, y))
    close(conditional_mutual_information(x, y, z, method=method), h(x, z) + h(y, z) - h(z) - h(x, y, z))
    total = echo_ext.total_correlation(np.hstack([x, y, z]), groups=[[0], [1, 2], [3, 4]], method=method)
    close(total, h(x) + h(y) + h(z) - h(x, y, z))
    future, driver, past = x[2:], y[1:-1], np.hstack([x[1:-1], x[:-2]])
    entropies = h(future, past) + h(driver, past) - h(past, future, driver) - h(past)
    close(transfer_entropy(y, x, history=2, method=method), entropies)
    # The chain rule: I(x; y, z) = I(x; z) + I(x; y | z).
    chain = mutual_information(x, z, method=method) + conditional_mutual_information(x, y, z, method=method)
    close(mutual_information(x, np.hstack([y, z]), method=method), chain)


@pytest.mark.parametrize("method", CELLS)
def test_codes_and_order_do_not_matter(method):
    rng = fresh()
    x, y, z = (symbols(rng, 120) for _ in range(3))
    code = rng.permutation(4).astype(float) * 1e3
    order = rng.permutation(120)
    value = conditional_mutual_information(x, y, z, method=method)
    close(conditional_mutual_information(code[x.astype(int)], y, z, method=method), value)
    close(conditional_mutual_information(x[order], y[order], z[order], method=method), value)
    words = np.array(["a", "b", "c", "d"])[y.astype(int)]
    close(conditional_mutual_information(x, words, z, method=method), value)
    close(conditional_mutual_information(torch.from_numpy(x), words, torch.from_numpy(z), method=method), value)
    close(mutual_information(words, words, method=method), entropy(words, method=method))
    assert mutual_information(x.astype(np.float32), words, method=method, local=True).dtype == np.float32


@pytest.mark.parametrize("method", CELLS)
def test_neighbors_do_not_change_frequencies(method):
    x, y = symbols(fresh(), 9), symbols(fresh(), 9)
    value = mutual_information(x, y, method=method)
    assert mutual_information(x, y, method=method, k=50, exclude_within=30) == value
    assert mutual_information(x, y, method=method, k=[3, 70]).tolist() == [value, value]
    assert entropy(x, method=method, metric="euclidean") == entropy(x, method=method)
    assert mutual_information(x[:1], y[:1], method=method) == 0
    with pytest.raises(ValueError, match="methods that count symbols need at least 1 sample, got 0"):
        mutual_information(x[:0], y[:0], method=method)


@pytest.mark.parametrize("method", CELLS)
def test_batches_of_frequencies(method):
    x = torch.randint(0, 3, (3, 1, 40, 2)).double()
    y = torch.randint(0, 3, (2, 40, 1)).double()
    values = mutual_information(x, y, method=method)
    assert values.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            close(values[i, j], mutual_information(x[i, 0], y[j], method=method))
    given = conditional_mutual_information(x, y, x[:, :, :, :1], method=method, local=True)
    assert given.shape == (3, 2, 40)
    close(given[2, 1], conditional_mutual_information(x[2, 0], y[1], x[2, 0, :, :1], method=method, local=True))
    assert mutual_information(x[:0], y[:1], method=method).shape == (0, 1)
    assert entropy(x.mT.contiguous().mT, method=method).equal(entropy(x, method=method))


def test_correction_removes_most_of_the_bias():
    x, y = torch.randint(0, 5, (2, 400, 300, 1)).double()
    biased, corrected = (mutual_information(x, y, method=method).mean() for method in CELLS)
    assert biased == pytest.approx(16 / 600, abs=0.004)
    assert abs(corrected) < 0.002


# ---- Ties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mixed", *CELLS])
def test_independent_symbols_have_no_information(method):
    x, y, z = torch.randint(0, 2, (3, 2000)).double()
    estimates = (
        mutual_information(x, y, method=method),
        conditional_mutual_information(x, y, z, method=method),
        transfer_entropy(x, y, method=method),
        echo_ext.total_correlation(torch.stack([x, y, z], -1), method=method),
    )
    assert max(map(abs, estimates)) < 0.02
    with pytest.warns(echo_ext.DegenerateDataWarning, match="use method='mixed'"):
        assert mutual_information(x, y) > 1.5  # by neighbors that are strictly nearer
    with pytest.warns(echo_ext.DegenerateDataWarning, match="use method='mixed'"):
        assert conditional_mutual_information(x, y, z) == pytest.approx(1.5, abs=1e-12)


def test_mixed_method_is_the_plug_in_estimate_of_many_symbols():
    rng = fresh()
    x, y, z = (symbols(rng, 5000, most=3) for _ in range(3))
    y = np.where(rng.random((5000, 1)) < 0.5, (x + z) % 3, y)
    for mixed, frequencies in zip(
        *(
            (
                mutual_information(np.hstack([x, z]), y, method=method),
                conditional_mutual_information(x, y, z, method=method),
                transfer_entropy(x, y, method=method),
                echo_ext.total_correlation(np.hstack([x, y, z]), method=method),
            )
            for method in ("mixed", "plug-in")
        ),
        strict=True,
    ):
        assert mixed == pytest.approx(frequencies, abs=0.01)


def test_mixed_method_counts_the_ties_at_every_distance():
    rng = fresh()
    x, y, z = (rng.integers(-3, 4, (80, 1)).astype(float) for _ in range(3))
    for k in (1, 4, 20):
        values = conditional_mutual_information(x, y, z, method="mixed", k=k, local=True)
        for i in range(80):
            apart = [np.delete(np.abs(v[:, 0] - v[i, 0]), i) for v in (x, y, z)]
            radius = np.sort(np.max(apart, 0))[k - 1]
            inside = [each <= radius for each in apart]
            xz, yz = inside[0] & inside[2], inside[1] & inside[2]
            counts = [np.sum(each) for each in (xz & yz, inside[2], xz, yz)]
            assert values[i] == pytest.approx(np.dot(digamma(counts), [1, 1, -1, -1]), abs=1e-12)


def test_mixed_conditional_information_of_continuous_variables():
    rng = fresh()
    z = rng.standard_normal((8000, 1))
    x, y = z + rng.standard_normal((2, 8000, 1))
    y = y + 0.75 * (x - z)
    value = conditional_mutual_information(x, y, z, method="mixed")
    assert value == pytest.approx(0.5 * math.log(1 + 0.75**2), abs=0.06)
    assert value == pytest.approx(conditional_mutual_information(x, y, z), abs=0.05)


def test_a_mixture_of_a_point_and_a_density():
    # x is 0 for half of the samples, else normal; y is x with noise where x is not 0, and fair coins decide elsewhere.
    rng = fresh()
    n = 6000
    x = np.where(rng.random(n) < 0.5, 0.0, 10 + rng.standard_normal(n))
    y = np.where(x == 0, rng.integers(0, 2, n), x + rng.standard_normal(n))
    truth = math.log(2) + 0.5 * 0.5 * math.log(2)
    bit = rng.integers(0, 2, n).astype(float)
    assert mutual_information(x, y, method="mixed") == pytest.approx(truth, abs=0.08)
    assert conditional_mutual_information(x, y, bit, method="mixed") == pytest.approx(truth, abs=0.08)


# ---- Columns of categories -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_categories_meet_the_oracle(dtype):
    rng = fresh()
    for most in (1, 2, 5, 9):
        x, y = related(rng, 90, 2, 1, "ties", dtype)
        z = np.hstack([symbols(rng, 90, 1, most, dtype) * 7, sample(rng, 90, 1, "normal", dtype)])
        y = y + 3 * symbols(rng, 90, 1, most, dtype)
        options = dict(k=[1, 4], method="mixed", local=True)
        flags = dict(discrete_x=[True, False], discrete_y=np.array([True]))
        close(
            mutual_information(x, y, **options, **flags), reference.mutual_information(x, y, **options, **flags), dtype
        )
        flags["discrete_z"] = (True, False)
        close(
            conditional_mutual_information(x, y, z, **options, **flags),
            reference.conditional_mutual_information(x, y, z, **options, **flags),
            dtype,
        )


def test_codes_of_categories_do_not_matter():
    rng = fresh()
    code = symbols(rng, 300, 1, 6)
    x = code % 2 + rng.standard_normal((300, 1))
    z = sample(rng, 300, 1)
    options = dict(method="mixed", discrete_y=True)
    value = mutual_information(x, code, **options)
    conditional = conditional_mutual_information(x, code, z, **options)
    forms = [
        (rng.permutation(6).astype(float) * 100)[code.astype(int)],
        np.array(list("abcdef"))[code.astype(int)],
        np.array(list("abcdef"), object)[code.astype(int)],
        np.array(list("abcdef"))[code[:, 0].astype(int)].tolist(),
    ]
    for form in forms:
        assert mutual_information(x, form, **options) == value
        assert conditional_mutual_information(x, form, z, **options) == conditional
    assert mutual_information(torch.from_numpy(x), forms[1], **options).item() == value
    batch = torch.from_numpy(np.stack([code, forms[0]]))
    assert mutual_information(torch.from_numpy(x), batch, **options).tolist() == [value, value]


def test_categories_tell_what_labels_tell():
    rng = fresh()
    code = rng.integers(0, 8, 4000)
    x = (code % 2) + 0.1 * rng.standard_normal(4000)
    value = mutual_information(x, code * 1e-3, method="mixed", discrete_y=True)
    assert value == pytest.approx(math.log(2), abs=0.04)
    assert value == pytest.approx(echo_ext.mutual_information_discrete(x, code), abs=0.04)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(discrete_x=True), ValueError, "discrete_x needs method='mixed', got method='ksg1'"),
        (
            dict(discrete_y=[False], method="plug-in"),
            ValueError,
            "discrete_y needs method='mixed', got method='plug-in'",
        ),
        (dict(discrete_x=1, method="mixed"), TypeError, "discrete_x must be a bool or a sequence of bools, got 1"),
        (dict(discrete_x=[1, 0], method="mixed"), TypeError, r"discrete_x must be a bool or a .* got \[1, 0\]"),
        (
            dict(discrete_x=[True], method="mixed"),
            ValueError,
            "discrete_x must have one bool for each of 2 columns of x",
        ),
        (dict(discrete_y="y", method="mixed"), TypeError, "discrete_y must be a bool or a sequence of bools, got 'y'"),
        (dict(y=["a"] * 9 + [None], method="plug-in"), ValueError, "y must have no missing values, got 1 None or NaN"),
        (dict(y=["a"] * 10, method="mixed"), TypeError, "y must be numeric"),
    ],
)
def test_bad_input(options, error, message):
    arguments = {"x": np.ones((10, 2)), "y": np.ones(10), **options}
    with pytest.raises(error, match=message):
        mutual_information(**arguments)


def test_bad_methods():
    x = np.ones((10, 3))
    with pytest.raises(ValueError, match="method must be one of 'knn', 'plug-in', 'miller-madow', got 'ksg1'"):
        entropy(x, method="ksg1")
    for estimate in (
        lambda method: conditional_mutual_information(x, x, x, method=method),
        lambda method: echo_ext.total_correlation(x, method=method),
        lambda method: transfer_entropy(x, x, method=method),
    ):
        with pytest.raises(ValueError, match=r"method must be one of 'ksg1', 'ksg2', 'mixed', .* got 'bi-ksg'"):
            estimate("bi-ksg")
