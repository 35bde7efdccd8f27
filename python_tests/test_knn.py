import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from knn_cases import KINDS, fresh, sample

import echo_ext
from echo_ext import _C, reference
from echo_ext._native import num_threads
from echo_ext.estimators._metric import rules_of
from echo_ext.estimators.neighbors import PointSet

# Where child processes run: at the root they would import the sources, not what is installed.
HERE = Path(__file__).parent


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_neighbors_are_those_of_all_pairs(kind, metric, dtype):
    rng = fresh()
    for _ in range(6):
        n, d = int(rng.integers(2, 250)), int(rng.integers(1, 12))
        k = int(rng.integers(1, min(n, 40)))
        points = sample(rng, n, d, kind, dtype)
        distances, indices = echo_ext.knn(points, k=k, metric=metric)
        expected, nearest = reference.knn(points, k=k, metric=metric)
        assert distances.dtype == dtype
        # Roots may be rounded differently; what was compared are squares.
        np.testing.assert_allclose(distances, expected, rtol=0 if metric == "chebyshev" else 2 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(indices, nearest)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_neighbors_are_those_of_all_pairs(kind, metric, dtype):
    rng = fresh()
    for _ in range(3):
        n, d, window = int(rng.integers(60, 500)), int(rng.integers(1, 14)), int(rng.integers(0, 4))
        points = sample(rng, n, d, kind, dtype)
        ks = [int(k) for k in rng.integers(1, n - 2 * window, 3)]
        all_distances, nearest = reference.knn(points, k=max(ks), metric=metric, exclude_within=window)
        kth = rules_of(metric).distances(
            PointSet(torch.from_numpy(points)).search_kth(ks, metric=metric, exclude_within=window)
        )
        distances, indices = echo_ext.knn(points, k=max(ks), metric=metric, exclude_within=window)
        np.testing.assert_array_equal(indices, nearest)
        np.testing.assert_allclose(distances, all_distances, rtol=2 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(kth, np.stack([distances[:, k - 1] for k in ks]))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_reaches_are_those_of_the_nearest(kind, dtype):
    rng = fresh()
    for largest in (5, 150):
        n, d, window = int(rng.integers(170, 300)), int(rng.integers(2, 6)), int(rng.integers(0, 4))
        points = sample(rng, n, d, kind, dtype)
        ks, groups = [int(k) for k in rng.integers(1, largest, 3)], [0, *rng.integers(0, 2, d - 2).tolist(), 1]
        _, nearest = reference.knn(points, k=max(ks), exclude_within=window)
        apart = np.abs(points[nearest] - points[:, None])
        _, reaches = PointSet(torch.from_numpy(points)).search_reaches(ks, groups, exclude_within=window)
        for k, reaches_of_k in zip(ks, reaches.numpy(), strict=True):
            for group, reach in enumerate(reaches_of_k):
                np.testing.assert_array_equal(reach, apart[:, :k, np.equal(groups, group)].max((1, 2)))


@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
def test_neighbors_where_density_changes_from_place_to_place(metric):
    rng = fresh()
    sizes = 10.0 ** rng.uniform(-6, 6, 12)
    clusters = [size * (rng.standard_normal((150, 3)) + 5) for size in sizes]
    points = rng.permutation(np.concatenate([*clusters, np.zeros((150, 3))]))
    distances, indices = echo_ext.knn(points, k=100, metric=metric)
    expected, nearest = reference.knn(points, k=100, metric=metric)
    np.testing.assert_array_equal(indices, nearest)
    np.testing.assert_allclose(distances, expected, rtol=4e-16)


@pytest.mark.parametrize("kind", KINDS)
def test_few_queries_in_many_columns(kind):
    rng = fresh()
    for d, num, metric in ((2, 3, "chebyshev"), (13, 40, "euclidean"), (20, 5, "chebyshev")):
        points, queries = sample(rng, 700, d, kind), sample(rng, num, d, kind)
        for k in (1, 10, 300, 700):
            distances, indices = echo_ext.knn(points, queries, k, metric=metric)
            expected, nearest = reference.knn(points, queries, k, metric=metric)
            np.testing.assert_array_equal(indices, nearest)
            np.testing.assert_allclose(distances, expected, rtol=4e-16)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_their_own(kind):
    rng = fresh()
    for _ in range(4):
        n, m, d = int(rng.integers(1, 200)), int(rng.integers(1, 60)), int(rng.integers(1, 5))
        k = int(rng.integers(1, n + 1))
        points = sample(rng, n, d, kind)
        queries = np.concatenate([sample(rng, m, d, kind), points[:3], 100 + points[:1]])
        distances, indices = echo_ext.knn(points, queries, k)
        expected, nearest = reference.knn(points, queries, k)
        np.testing.assert_array_equal(distances, expected)
        np.testing.assert_array_equal(indices, nearest)


def test_window_excludes_rows_that_are_near_in_time():
    rng = fresh()
    for w in (1, 3, 10):
        points = np.cumsum(sample(rng, 150, 2), axis=0)
        distances, indices = echo_ext.knn(points, k=4, exclude_within=w)
        expected, nearest = reference.knn(points, k=4, exclude_within=w)
        np.testing.assert_array_equal(distances, expected)
        np.testing.assert_array_equal(indices, nearest)
        assert (np.abs(indices - np.arange(150)[:, None]) > w).all()


def test_batches_broadcast():
    points, queries = torch.randn(2, 1, 40, 3), torch.randn(3, 10, 3)
    distances, indices = echo_ext.knn(points, queries, 2)
    assert distances.shape == indices.shape == (2, 3, 10, 2)
    for i in range(2):
        for j in range(3):
            alone = echo_ext.knn(points[i, 0], queries[j], 2)
            assert torch.equal(distances[i, j], alone[0])
            assert torch.equal(indices[i, j], alone[1])


def test_any_strides_and_one_column():
    points = torch.randn(3, 100).T
    assert torch.equal(echo_ext.knn(points)[0], echo_ext.knn(points.contiguous())[0])
    assert torch.equal(echo_ext.knn(points[:, 0])[0], echo_ext.knn(points[:, :1].contiguous())[0])


def test_many_points_in_few_dimensions():
    scipy_spatial = pytest.importorskip("scipy.spatial")
    points = sample(fresh(), 20_000, 2)
    distances, _ = echo_ext.knn(points, k=3)
    expected, _ = scipy_spatial.cKDTree(points).query(points, k=4, p=np.inf)
    np.testing.assert_array_equal(distances, expected[:, 1:])


def test_threads_do_not_change_results():
    x = torch.randn(5000, 2, dtype=torch.float64)
    many = torch.randn(7, 300, 2)
    results = []
    for threads in (1, 2, 5):
        with num_threads(threads):
            results.append((*echo_ext.knn(x), echo_ext.mutual_information(x, x.flip(0)), *echo_ext.knn(many)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def counts_of_all_pairs(points, radii, groups, inclusive, metric):
    """By definition, in the points' own precision, where an infinite distance is within an infinite radius."""
    counts = []
    for i in range(len(points)):
        with np.errstate(over="ignore"):
            apart = points - points[i]
            columns = np.add.accumulate(apart * apart, axis=1)[:, -1:] if metric == "euclidean" else np.abs(apart)
        limits = np.array([radii[g, i] for g in groups])
        near = (columns <= limits if inclusive else columns < limits).all(1)
        near[i] = False
        counts.append(near.sum())
    return np.array(counts)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [2, 15, 16, 17, 40, 79])
def test_counts_at_infinite_distances_are_those_of_all_pairs(n, dtype):
    rng = fresh()
    cases = ((1, "chebyshev", False), (2, "euclidean", False), (5, "chebyshev", False), (3, "chebyshev", True))
    for d, metric, grouped in cases:
        points = torch.from_numpy(sample(rng, n, d, "overflow", dtype))
        groups = [c % 2 for c in range(d)] if grouped else None
        distances = PointSet(points).search_distances(n - 1, metric=metric)
        radii = distances[:, rng.integers(n - 1, size=2 if grouped else 1)].T[None].contiguous()
        radii[..., rng.integers(n)] = torch.inf
        for inclusive in (False, True):
            found = PointSet(points).count(
                radii if grouped else radii[:, 0],
                groups=groups,
                inclusive=inclusive,
                metric=metric,
            )
            expected = counts_of_all_pairs(points.numpy(), radii[0].numpy(), groups or [0] * d, inclusive, metric)
            np.testing.assert_array_equal(found[0].numpy(), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
def test_neighbors_at_infinite_distances_are_points(metric, dtype):
    rng = fresh()
    for n in (2, 15, 17, 33, 100):
        for d in (1, 2, 4):
            points = sample(rng, n, d, "overflow", dtype)
            k = int(rng.integers(1, n))
            with np.errstate(over="ignore"):
                expected, nearest = reference.knn(points, k=k, metric=metric)
            distances, indices = echo_ext.knn(points, k=k, metric=metric)
            np.testing.assert_allclose(distances, expected, rtol=2 * np.finfo(dtype).eps)
            np.testing.assert_array_equal(indices, nearest)


def boundary_of_all_pairs(points, radius, skip, i, width, window, rows):
    """By definition: sorted by distance, then by row, on either side of the radius."""
    distance = np.abs(points - points[i]).max(-1)
    usable = [j for j in range(len(points)) if abs(rows[i] - rows[j]) > window and j not in (i, skip)]
    inside = sorted((-distance[j], j) for j in usable if distance[j] < radius)[:width]
    outside = sorted((distance[j], j) for j in usable if distance[j] >= radius)[: width + 1]
    return {j for _, j in inside + outside}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 6])
@pytest.mark.parametrize("gaps", [False, True])
def test_boundaries_are_those_of_all_pairs(dim, kind, gaps):
    rng = fresh()
    for dtype in (np.float64, np.float32):
        n, width, window = int(rng.integers(2, 150)), int(rng.integers(1, 15)), int(rng.integers(0, 4))
        points = sample(rng, n, dim, kind, dtype)
        neighbor = rng.integers(0, n, n)  # on the boundary, as a joint neighbor is not: a harder case
        radii = np.abs(points - points[neighbor]).max(-1) * rng.choice([1, 0.5, 2], n).astype(dtype)
        rows = np.cumsum(rng.integers(1, 4, n)) if gaps else np.arange(n)
        found = PointSet(torch.from_numpy(points)).boundary(
            torch.from_numpy(radii),
            torch.from_numpy(neighbor),
            width=width,
            exclude_within=window,
            rows=torch.from_numpy(rows) if gaps else None,
        )
        assert found.shape == (n, 2 * width + 1)
        for i, row in enumerate(found.tolist()):
            expected = boundary_of_all_pairs(points, radii[i], neighbor[i], i, width, window, rows)
            assert set(row) - {-1} == expected
            assert row.count(-1) == 2 * width + 1 - len(expected)


def test_queries_may_be_none_at_all():
    for metric in ("chebyshev", "euclidean"):
        distances, indices = echo_ext.knn(torch.randn(4, 10, 2), torch.randn(0, 2), 3, metric=metric)
        assert distances.shape == indices.shape == (4, 0, 3)


ON_ONE_ISA = """
import hashlib, sys
import numpy as np
import torch
import echo_ext
rng = np.random.default_rng(int(sys.argv[1]))
digest = hashlib.sha256()
for d in (1, 2, 3, 9):
    for dtype in (np.float32, np.float64):
        x, y = rng.standard_normal((2, 400, d)).astype(dtype)
        y += x
        for metric in ("chebyshev", "euclidean"):
            for k in (4, 60):
                for part in echo_ext.knn(x, k=k, metric=metric):
                    digest.update(part.tobytes())
        x, y = (torch.from_numpy(v).requires_grad_() for v in (x, y))
        for part in torch.autograd.grad(echo_ext.mutual_information(x, y), (x, y)):
            digest.update(part.numpy().tobytes())
        x, y = (v.detach().numpy() for v in (x, y))
        for method in ("ksg1", "ksg2", "bi-ksg"):
            digest.update(echo_ext.mutual_information(x, y, k=[1, 3, 7], method=method).tobytes())
            digest.update(echo_ext.mutual_information(x, y, k=[40, 150], method=method).tobytes())
print(digest.hexdigest())
"""


def test_instruction_sets_agree_bit_for_bit():
    seed = str(int(torch.randint(2**31, ())))
    results = set()
    for isa in _C.supported_isas():
        run = subprocess.run(
            [sys.executable, "-c", ON_ONE_ISA, seed],
            env={**os.environ, "ECHO_EXT_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
            cwd=HERE,
        )
        results.add(run.stdout)
    assert len(results) == 1, f"seed {seed}"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(points=np.ones((5, 2)), k=5), ValueError, "k must be less than the number of samples, got 5 of 5"),
        (dict(points=np.ones((5, 2)), k=0), ValueError, "k must be at least 1, got 0"),
        (dict(points=np.ones((5, 2)), k=1.5), TypeError, "k must be an int"),
        (dict(points=np.ones((5, 2)), metric="l1"), ValueError, "metric must be one of 'chebyshev', 'euclidean'"),
        (dict(points=np.ones((5, 2)), queries=np.ones((5, 3))), ValueError, "the same number of columns, got 2 and 3"),
        (dict(points=np.ones((5, 2)), queries=np.ones((5, 2)), k=6), ValueError, "at most the number of points, 5"),
        (dict(points=np.ones((5, 2)), queries=torch.ones(5, 2)), TypeError, "both tensors or both arrays"),
        (
            dict(points=np.ones((5, 2)), exclude_within=2, k=1),
            ValueError,
            "k must be at most 0, the number of neighbors that exclude_within=2 leaves to some of",
        ),
        (dict(points=np.ones((5, 0))), ValueError, "points must have at least one column"),
        (dict(points=np.ones((0, 2))), ValueError, "less than the number of samples, got 3 of 0"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        echo_ext.knn(**arguments)


def test_a_backward_pass_names_what_has_a_gradient():
    points = torch.randn(20, 2, requires_grad=True)
    distances, _ = echo_ext.knn(points)
    with pytest.raises(NotImplementedError, match="knn has no gradient; these have one: entropy"):
        distances.sum().backward()
