import numpy as np
import pytest
import torch
from knn_cases import fresh, related

import echo_ext
from echo_ext import mutual_information, with_standard_error


def test_standard_error_is_the_spread_of_estimates():
    many, n = 60, 600
    x = torch.randn(many, n, 1, dtype=torch.float64)
    y = 0.6 * x + 0.8 * torch.randn(many, n, 1, dtype=torch.float64)
    estimates, errors = with_standard_error(mutual_information, x, y)
    assert torch.equal(estimates, mutual_information(x, y))
    assert errors.shape == (many,)
    assert 0.6 < errors.mean() / estimates.std() < 1.6


def parts_of(n, parts):
    return [slice(i, i + n // parts) for i in range(0, n // parts * parts, n // parts)]


def test_standard_error_of_series_takes_consecutive_parts():
    x, y = related(fresh(), 403)
    estimate, error = with_standard_error(mutual_information, x, y, exclude_within=3, parts=5)
    each = [mutual_information(x[rows], y[rows], exclude_within=3) for rows in parts_of(403, 5)]
    assert estimate == mutual_information(x, y, exclude_within=3)
    assert error == pytest.approx(np.std(each, ddof=1) / 5**0.5)
    options = dict(history=2, method="mixed", unit="bits")
    estimate, error = with_standard_error(echo_ext.transfer_entropy, x[:, 0], y, parts=4, **options)
    each = [echo_ext.transfer_entropy(x[rows, 0], y[rows], **options) for rows in parts_of(403, 4)]
    assert estimate == echo_ext.transfer_entropy(x, y, **options)
    assert error == pytest.approx(np.std(each, ddof=1) / 4**0.5)
    z = fresh().standard_normal((403, 2))
    estimate, error = with_standard_error(echo_ext.transfer_entropy, x, y, given=z, given_history=2, parts=4)
    each = [echo_ext.transfer_entropy(x[rows], y[rows], given=z[rows], given_history=2) for rows in parts_of(403, 4)]
    assert estimate == echo_ext.transfer_entropy(x, y, given=z, given_history=2)
    assert error == pytest.approx(np.std(each, ddof=1) / 4**0.5)


def cases():
    """Yield an estimator, its variables of 300 samples, and options."""
    rng = fresh()
    x, y, z = rng.standard_normal((3, 300, 2))
    label, given = rng.integers(0, 2, (2, 300))
    words = np.array(["no", "yes"])[label]
    yield mutual_information, [x, x[:, 0] + y[:, 0]], {"k": 5, "unit": "bits"}
    yield mutual_information, [x, words], {"method": "mixed", "discrete_y": True}
    yield mutual_information, [given, words.tolist()], {"method": "plug-in"}
    yield echo_ext.conditional_mutual_information, [x, x + y, z], {"method": "ksg2"}
    yield echo_ext.total_correlation, [np.hstack([x, y])], {"groups": [[0, 1], [2, 3]]}
    yield echo_ext.entropy, [x[:, 0].astype(np.float32)], {"metric": "euclidean"}
    yield echo_ext.mutual_information_discrete, [x + label[:, None], words], {}
    yield echo_ext.mutual_information_discrete, [x, label, given], {"k": 2}
    yield echo_ext.mutual_information_discrete, [x, words.astype(object), np.stack([given, label], -1)], {}


@pytest.mark.parametrize("which", range(9))
def test_standard_errors_are_those_of_a_random_partition(which):
    estimator, variables, options = list(cases())[which]
    estimate, error = with_standard_error(estimator, *variables, parts=3, repeats=2, seed=4, **options)
    assert estimate == estimator(*variables, **options)
    assert isinstance(error, float)
    generator = torch.Generator().manual_seed(4)
    variances = []
    for _ in range(2):
        order = torch.randperm(300, generator=generator).numpy()
        each = [estimator(*(np.asarray(v)[order[rows]] for v in variables), **options) for rows in parts_of(300, 3)]
        variances.append(np.var(each, ddof=1) / 3)
    assert error == pytest.approx(np.mean(variances) ** 0.5, rel=1e-4)


def test_standard_errors_of_a_batch():
    x, y = torch.randn(3, 1, 90, 2), torch.randn(2, 90, 1)
    labels, given = torch.randint(0, 2, (2, 2, 90))
    for estimator, variables in (
        (mutual_information, (x, y)),
        (echo_ext.mutual_information_discrete, (x, labels)),
        (echo_ext.mutual_information_discrete, (x, labels, given)),
    ):
        estimates, errors = with_standard_error(estimator, *variables, parts=3, seed=5)
        assert estimates.shape == errors.shape == (3, 2)
        alone = with_standard_error(estimator, x[2, 0], *(each[1] for each in variables[1:]), parts=3, seed=5)
        torch.testing.assert_close((estimates[2, 1], errors[2, 1]), tuple(alone), rtol=1e-5, atol=1e-6)
    assert with_standard_error(echo_ext.entropy, x.numpy(), parts=3).standard_error.dtype == np.float32


def test_standard_errors_have_no_gradient():
    x = torch.randn(60, 1, requires_grad=True)
    estimate, error = with_standard_error(mutual_information, x, x.detach(), parts=3)
    assert not estimate.requires_grad
    assert not error.requires_grad
    assert error.dtype == torch.float32


def test_conditional_standard_error_is_the_spread_of_estimates():
    many, n = 60, 600
    z = torch.randn(many, n, 1, dtype=torch.float64)
    x, y = z + torch.randn(2, many, n, 1, dtype=torch.float64)
    estimates, errors = with_standard_error(echo_ext.conditional_mutual_information, x, x + y, z)
    assert 0.6 < errors.mean() / estimates.std() < 1.6


def test_seeds_repeat():
    x, y = (torch.from_numpy(v) for v in related(fresh(), 100, 2, 1))
    one, two = (with_standard_error(mutual_information, x, y, seed=3).standard_error for _ in range(2))
    assert torch.equal(one, two)


def test_batches_broadcast():
    x, y = torch.randn(3, 1, 60, 1), torch.randn(60, 2)
    assert with_standard_error(mutual_information, x, y, parts=4).standard_error.shape == (3, 1)


def test_bad_input():
    x, y = np.arange(40.0), np.arange(40.0)
    with pytest.raises(ValueError, match="parts=20 leaves 2 samples in a part: k must be less than"):
        with_standard_error(mutual_information, x, y, parts=20)
    with pytest.raises(ValueError, match="parts must be at most the number of samples, 40, got 1180591620717411303424"):
        with_standard_error(mutual_information, x, y, parts=2**70)
    with pytest.raises(ValueError, match="parts must be at least 2, got 1"):
        with_standard_error(mutual_information, x, y, parts=1)
    with pytest.raises(ValueError, match=r"estimator must be one of mutual_information, .* got <function knn"):
        with_standard_error(echo_ext.knn, x)
    with pytest.raises(ValueError, match="estimator must be one of"):
        with_standard_error([], x)
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        with_standard_error(mutual_information, x)
    with pytest.raises(ValueError, match="local must be False for a standard error, got True"):
        with_standard_error(mutual_information, x, y, local=True)
