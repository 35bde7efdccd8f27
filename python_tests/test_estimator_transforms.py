"""The keyword ``transform``: what it makes of each column, and that estimates are those of the transformed columns."""

from functools import partial

import numpy as np
import pytest
import torch
from knn_cases import fresh
from scipy import stats

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
from echo_ext.estimators.transforms import transform_columns

TRANSFORMS = ("standardize", "rank", "normal")
N = 61


def defined(points, transform):
    """Transform each column of (N, d) by the definition."""
    if transform == "standardize":
        return (points - points.mean(0)) / points.std(0)
    ranks = stats.rankdata(points, "ordinal", axis=0).astype(int) - 1  # SciPy 1.18 returns floats
    scores = stats.norm.ppf((ranks + 0.5) / len(points))
    # Differences that are equal by the symmetry of the distribution have to be equal after rounding, too.
    return (
        ranks
        if transform == "rank"
        else np.where(
            2 * ranks < len(points), scores, -np.sort(scores, 0)[len(points) - 1 - ranks, np.arange(points.shape[1])]
        )
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_each_column_is_transformed(transform, dtype):
    rng = fresh()
    points = (10 + 3 * rng.standard_normal((2, 1, N, 3))).astype(dtype)
    points[..., 1] = points[..., 1].round()  # ties rank in the order of the rows
    found = transform_columns(torch.from_numpy(points), transform)
    assert found.numpy().dtype == dtype
    for i in range(2):
        wanted = defined(points[i, 0].astype(np.float64), transform)
        np.testing.assert_allclose(found[i, 0].numpy(), wanted, rtol=1e-12 if dtype == np.float64 else 2e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1.0, 1e170, 1e307])
def test_standardizing_does_not_depend_on_the_scale(scale):
    x = torch.from_numpy(fresh().standard_normal((N, 1)))
    found = transform_columns(x * scale, "standardize")
    torch.testing.assert_close(found, transform_columns(x, "standardize"))


def test_a_constant_column_becomes_zero():
    x = torch.full((N, 2), 0.1, dtype=torch.float64)  # whose mean is not exactly 0.1
    x[:, 1] = torch.arange(N)
    x.requires_grad_()
    found = transform_columns(x, "standardize")
    assert not found[:, 0].any()
    found.sum().backward()
    assert x.grad.isfinite().all()


CALLS = {
    "information": (mutual_information, (1, 2), dict(k=[2, 5], method="ksg2")),
    "conditional": (conditional_mutual_information, (1, 2, 1), dict(exclude_within=2)),
    "total": (total_correlation, (3,), {}),
    "entropy": (entropy, (2,), {}),
    "matrix": (mutual_information_matrix, (2, 3), dict(exclude_within=1)),
    "error": (partial(with_standard_error, mutual_information), (1, 1), dict(parts=3, seed=1)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("call", CALLS)
def test_estimates_are_those_of_transformed_columns(call, transform):
    estimate, dims, options = CALLS[call]
    rng = fresh()
    x = [np.exp(2 * rng.standard_normal((N, d))) for d in dims]
    found = estimate(*x, transform=transform, **options)
    wanted = estimate(*(defined(v, transform) for v in x), **options)
    if call == "error":
        np.testing.assert_allclose(found.estimate, wanted.estimate, rtol=1e-12)
        assert found.standard_error > 0
        return
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)
    batch = [torch.from_numpy(np.stack([v, v[::-1] + 1])) for v in x]  # ranks and windows are symmetric in time
    each = estimate(*batch, transform=transform, **options)
    if call != "matrix":
        each = each.movedim(-1, 0)
    np.testing.assert_allclose(each[0], wanted, rtol=1e-10, atol=1e-10)
    if call != "information":  # of which the method takes the earlier of equally near neighbors
        np.testing.assert_allclose(each[1], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_omission_comes_first(transform):
    rng = fresh()
    x, y, z = rng.standard_normal((3, N, 1))
    x[[3, 30]], z[50] = np.nan, np.nan
    kept = ~np.isnan(x + z)[:, 0]
    options = dict(transform=transform)
    for estimate, variables in (
        (mutual_information, (x, z)),
        (conditional_mutual_information, (x, y, z)),
        (partial(with_standard_error, mutual_information, seed=0), (x, z)),
    ):
        found = estimate(*variables, nan_policy="omit", **options)
        wanted = estimate(*(v[kept] for v in variables), **options)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    columns = np.concatenate([x, y, z], 1)
    matrix = mutual_information_matrix(columns, nan_policy="omit", **options)
    pair = mutual_information(x[kept], z[kept], **options)
    np.testing.assert_allclose([matrix[0, 2], matrix[2, 0]], pair, rtol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_an_embedding_is_transformed_column_by_column(transform):
    source, target = np.exp(fresh().standard_normal((2, N)))
    found = transfer_entropy(source, target, history=2, transform=transform)
    past = np.stack([target[1:-1], target[:-2]], 1)
    assert found == conditional_mutual_information(target[2:], source[1:-1], past, transform=transform)
    assert found == pytest.approx(reference.transfer_entropy(source, target, history=2, transform=transform))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_labels_are_not_transformed(transform):
    rng = fresh()
    labels = rng.choice([7, 5, 100], N)
    x = np.exp(rng.standard_normal((N, 2)) + labels[:, None] / 50)
    found = mutual_information_discrete(x, labels, transform=transform)
    assert found == pytest.approx(mutual_information_discrete(defined(x, transform), labels), rel=1e-9)


def test_the_gradient_of_standardizing_is_exact():
    x = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: transform_columns(v, "standardize"), x)
    estimate = entropy(x, transform="standardize")
    estimate.backward()
    # The entropy of standardized values does not change with their scale or their offset.
    torch.testing.assert_close((x.grad * x.detach()).sum(0), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(x.grad.sum(0), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("transform", ["rank", "normal"])
def test_ranks_have_no_gradient(transform):
    x, y = torch.randn(2, N, 1)
    estimate = mutual_information(x.requires_grad_(), y, transform=transform)
    message = f"transform='{transform}' has no gradient; these have one: transform=None and transform='standardize'"
    with pytest.raises(NotImplementedError, match=message):
        estimate.backward()


def test_normal_scores_help_with_heavy_tails():
    """Two variables with one degree of freedom, in the mean of 20 samples of 1000."""
    truth = 0.2242  # by integration of the density
    rng = fresh()
    normal = rng.multivariate_normal([0, 0], [[1, 0], [0, 1]], (20, 1000))
    student = normal / np.sqrt(rng.chisquare(1, (20, 1000, 1)))
    x, y = student[..., :1], student[..., 1:]
    plain, scored = (mutual_information(x, y, transform=each).mean() for each in (None, "normal"))
    assert plain < 0.75 * truth
    assert scored == pytest.approx(truth, abs=0.03)
