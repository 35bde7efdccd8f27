"""Counts of the points within a radius are those of all pairs."""

import numpy as np
import pandas as pd
import pytest
import torch
from knn_cases import KINDS, fresh, sample

import echo_ext
from echo_ext import count_within, reference

METRICS = ("chebyshev", "euclidean")


def radii_of(rng, points, sought):
    """Return the distance from each query to some point, half of it, or its double: on the boundary for many."""
    apart = np.abs(points[rng.integers(0, len(points), len(sought))] - sought).max(-1)
    return apart * rng.choice([1, 0.5, 2, -1], len(sought)).astype(points.dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_all_pairs(kind, inclusive, metric, dtype):
    rng = fresh()
    for trial in range(4):
        n, m, d = int(rng.integers(1, 90)), int(rng.integers(1, 40)), int(rng.integers(1, 5))
        points = sample(rng, n, d, kind, dtype)
        queries = None if trial % 2 else np.concatenate([sample(rng, m, d, kind, dtype), points[:3]])
        radii = radii_of(rng, points, points if queries is None else queries)
        options = dict(metric=metric, inclusive=inclusive, exclude_within=trial if queries is None else 0)
        found = count_within(points, radii, queries, **options)
        assert found.dtype == np.int64
        assert np.array_equal(found, reference.count_within(points, radii, queries, **options))
        tensors = [
            torch.from_numpy(each) for each in ([points, radii] if queries is None else [points, radii, queries])
        ]
        assert np.array_equal(count_within(*tensors, **options), found)


@pytest.mark.parametrize("with_queries", [False, True])
def test_batches_of_points_radii_and_queries_broadcast(with_queries):
    rng = fresh()
    points = rng.standard_normal((3, 1, 30, 2))
    queries = rng.standard_normal((4, 9, 2)) if with_queries else None
    m = 9 if with_queries else 30
    for radii in (0.7, rng.random(m), rng.random((4, m)), rng.random((2, 3, 4, m)), rng.random((3, 1, 1))):
        found = count_within(points, radii, queries)
        batch = np.broadcast_shapes((3, 4) if with_queries else (3, 1), np.shape(radii)[:-1])
        assert found.shape == (*batch, m)
        spread = np.broadcast_to(radii, (*batch, m))
        for item in np.ndindex(batch):
            one = reference.count_within(points[item[-2], 0], spread[item], queries[item[-1]] if with_queries else None)
            assert np.array_equal(found[item], one)


def test_the_counts_of_ksg_are_these():
    rng = fresh()
    x, y = rng.standard_normal((2, 200, 1))
    distances, _ = echo_ext.knn(np.concatenate([x, y], 1), k=3)
    psi = [torch.digamma(torch.from_numpy(count_within(v, distances[:, -1]) + 1.0)) for v in (x, y)]
    constant = torch.digamma(torch.tensor([3.0, 200.0], dtype=torch.float64)).sum()
    assert echo_ext.mutual_information(x, y) == pytest.approx(float(constant - sum(psi).mean()))


def test_extreme_radii():
    points = fresh().standard_normal((20, 2))
    for metric in METRICS:
        assert (count_within(points, np.inf, metric=metric) == 19).all()
        assert (count_within(points, np.inf, points[:4], metric=metric) == 20).all()
        assert (count_within(points, -np.inf, metric=metric) == 0).all()
        assert (count_within(points, 0, points, metric=metric, inclusive=True) == 1).all()
        assert (count_within(points, -0.0, points, metric=metric) == 0).all()
    assert count_within(points, 1.0, points[:0]).shape == (0,)
    assert count_within(points[:0], 1.0, points).tolist() == [0] * 20
    assert count_within(torch.randn(0, 5, 1), 1.0).shape == (0, 5)
    assert count_within([3.0], 1.0).tolist() == [0]


def test_numbers_of_any_kind():
    points = np.arange(10)
    wanted = [2, 3, 4, 4, 4, 4, 4, 4, 3, 2]
    assert count_within(points, 3).tolist() == wanted
    assert count_within(pd.Series(points), pd.Series([3] * 10)).tolist() == wanted
    assert count_within(torch.arange(10), torch.full((10,), 3)).tolist() == wanted
    assert count_within(points.astype(np.float32), np.float32(3)).tolist() == wanted
    # A radius of one number has the precision of the points, others are promoted with them.
    narrow = np.float32([0, 0.1])
    assert count_within(narrow, 0.1, inclusive=True).tolist() == [1, 1]
    assert count_within(narrow, np.full(2, 0.1), inclusive=True).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(radii=np.nan), ValueError, "radii must not be NaN, got 1 NaN"),
        (
            dict(radii=np.ones(9)),
            ValueError,
            r"radii must be one number or .* for each of the 10 points, got shape \(9,",
        ),
        (dict(radii="a"), TypeError, "radii must be numeric, got strings"),
        (dict(radii=np.ones(10, np.float16)), TypeError, "radii must be float64 or float32, got float16"),
        (dict(radii=torch.ones(10)), TypeError, "points and radii must be both tensors or both arrays"),
        (dict(queries=torch.ones(10, 2)), TypeError, "points and queries must be both tensors or both arrays"),
        (dict(queries=np.ones((3, 3))), ValueError, "the same number of columns, got 2 and 3"),
        (
            dict(queries=np.ones((3, 2)), exclude_within=1),
            ValueError,
            "exclude_within must be 0 where there are queries",
        ),
        (dict(queries=np.ones((3, 2)), radii=[1, 2]), ValueError, "for each of the 3 queries, got shape"),
        (dict(metric="l1"), ValueError, "metric must be one of"),
        (dict(points=np.full((10, 2), np.inf)), ValueError, "points must be finite, got 20"),
        (
            dict(points=np.ones((2, 10, 2)), radii=np.ones((3, 10))),
            ValueError,
            r"must broadcast, got points \(2,\), radii",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        count_within(**{"points": np.ones((10, 2)), "radii": 1.0, **arguments})
