"""The nearest-neighbor kernels of CUDA on the CPU under ASan and UBSan: equal to the CPU's bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from device_worker import BuiltTree, Native
from emulated_device import DeviceError
from knn_cases import KINDS, fresh, related, sample

import echo_ext
from echo_ext._native import dtype_code
from echo_ext.estimators.neighbors import PointSet

# Data of some kinds are tied, which the estimators warn of.
pytestmark = pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")


def shape_of(points):
    batch, num_points, dim = points.shape
    return {"dtype": dtype_code(points.dtype), "batch": batch, "num_points": num_points, "dim": dim}


def spatial_order(device, points, like=None):
    """Places by the kernel's keys; by value in one column."""
    if points.shape[-1] == 1:
        return points.squeeze(-1).argsort(-1)
    values = (points if like is None else like).transpose(1, 2).sort(-1).values[..., ::7].contiguous()
    (keys,) = device.call(
        "knn_cuda_keys",
        results={"keys": torch.empty(points.shape[:2], dtype=torch.int64)},
        points=points,
        sample=values,
        sample_size=values.shape[-1],
        **shape_of(points),
        **device.place,
    )
    assert (keys >= 0).all()
    return keys.argsort(-1)


def tree_of(device, points, like=None):
    order = spatial_order(device, points, like)
    return BuiltTree({"points": points, "order": order, **shape_of(points)}, device.place)


def check_search(device, points, k, queries=None, rows=None, indices=True, metric="chebyshev", exclude_within=0):
    shape = (*(points if queries is None else queries).shape[:2], k)
    results = {"distances": torch.empty(shape, dtype=points.dtype)}
    if indices:
        results["indices"] = torch.empty(shape, dtype=torch.int64)
    options = {"rows": 0 if rows is None else rows, "queries": None, "start": 0} | ({} if indices else {"indices": 0})
    if queries is not None:
        tiles = -(-queries.shape[1] // 32)
        options["start"] = torch.randint(-(-points.shape[1] // 32), (points.shape[0], tiles))
        options["queries"] = tree_of(device, queries, points)
    criteria = {"metric": metric, "exclude_within": exclude_within}
    found = device.call(
        "knn_cuda_search", points=tree_of(device, points), k=k, results=results, **options, **criteria, **device.place
    )
    distances, rows_found = PointSet(points).search(k, queries=queries, rows=rows, **criteria)
    assert all(map(torch.equal, found, (distances, rows_found)))
    return distances


def check_count(device, points, radii, groups=None, rows=None, metric="chebyshev", inclusive=False, exclude_within=0):
    columns = groups or [0] * points.shape[-1]
    criteria = {"metric": metric, "inclusive": inclusive, "exclude_within": exclude_within}
    (counts,) = device.call(
        "knn_cuda_count",
        points=tree_of(device, points),
        results={"counts": torch.empty((radii.shape[0], *points.shape[:2]), dtype=torch.int64)},
        radii=radii,
        groups=torch.tensor(columns, dtype=torch.int32),
        rows=0 if rows is None else rows,
        num_radii=radii.shape[0],
        num_groups=max(columns) + 1,
        **criteria,
        **device.place,
    )
    assert torch.equal(counts, PointSet(points).count(radii, groups=groups, rows=rows, **criteria))


def draw(n, d, kind="normal", dtype=torch.float64, batch=1):
    rng = fresh()
    return torch.stack([torch.from_numpy(sample(rng, n, d, kind)).to(dtype) for _ in range(batch)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 11])
def test_search_and_count_are_the_cpus(device, dim, kind):
    for dtype, metric in ((torch.float64, "chebyshev"), (torch.float32, "euclidean"), (torch.float32, "chebyshev")):
        points = draw(211, dim, kind, dtype, 2)
        ordered = replace(device, descending=metric == "euclidean")
        distances = check_search(ordered, points, 3, metric=metric)
        check_search(device, points, 5, metric=metric, indices=False)
        radii = distances.permute(2, 0, 1).contiguous()
        for inclusive in (False, True):
            check_count(device, points, radii, metric=metric, inclusive=inclusive)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_infinite_distances_are_the_cpus(device, dim):
    for dtype, metric in ((torch.float64, "euclidean"), (torch.float32, "euclidean"), (torch.float32, "chebyshev")):
        precision = torch.empty(0, dtype=dtype).numpy().dtype
        rng = fresh()
        points = torch.stack([torch.from_numpy(sample(rng, 75, dim, "overflow", precision)) for _ in range(2)])
        distances = check_search(device, points, 40, metric=metric)
        assert distances.isinf().any() or metric != "euclidean"
        radii = distances.permute(2, 0, 1)[::13].contiguous()
        for inclusive in (False, True):
            check_count(device, points, radii, metric=metric, inclusive=inclusive)


@pytest.mark.parametrize("k", [1, 3, 4, 8, 9, 17, 32, 33, 100])
def test_every_k(device, k):
    for n in (k + 1, k + 40):
        points = draw(n, 2, "ties" if k % 2 else "normal")
        check_search(device, points, k)
        check_search(device, points, k, indices=False, metric="euclidean")


@pytest.mark.parametrize("n", [2, 31, 32, 33, 1025])
def test_sizes(device, n):
    points = draw(n, 3, dtype=torch.float32)
    distances = check_search(device, points, 1)
    descending = replace(device, descending=True)
    check_count(descending, points, distances.permute(2, 0, 1).contiguous(), inclusive=True)


def test_queries(device):
    for dim in (1, 4):
        check_search(device, draw(150, dim, batch=3), 5, draw(77, dim, batch=3))
        check_search(device, draw(50, dim, "ties"), 50, draw(3, dim, "ties"), metric="euclidean")


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_time_window_and_rows(device, dim, kind):
    points = draw(130, dim, kind)
    rows = torch.randperm(400)[:130].sort().values
    for numbers in (None, rows):
        distances = check_search(device, points, 4, rows=numbers, exclude_within=7)
        check_count(device, points, distances.permute(2, 0, 1).contiguous(), rows=numbers, exclude_within=7)


def test_groups_of_columns(device):
    for kind in ("normal", "ties", "constant"):
        points = draw(170, 4, kind)
        radii = torch.rand(2, 1, 3, 170, dtype=torch.float64) * 1.5
        for inclusive in (False, True):
            check_count(device, points, radii, groups=[0, 1, 1, 2], inclusive=inclusive, exclude_within=2)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_boundary_is_the_cpus(device, dim, kind):
    points = draw(140, dim, kind, batch=2)
    distances, indices = PointSet(points).search(6)
    radii, skip = distances[..., 5].contiguous(), indices[..., 5].contiguous()
    gaps = torch.randint(1, 4, (140,)).cumsum(0)
    for width, window, rows in ((10, 0, None), (3, 4, None), (1, 0, None), (3, 4, gaps)):
        (found,) = device.call(
            "knn_cuda_boundary",
            points=tree_of(device, points),
            results={"indices": torch.empty((*radii.shape, 2 * width + 1), dtype=torch.int64)},
            radii=radii,
            skip=skip,
            rows=0 if rows is None else rows,
            width=width,
            exclude_within=window,
            **device.place,
        )
        expected = PointSet(points).boundary(radii, skip, width=width, exclude_within=window, rows=rows)
        assert torch.equal(found.sort(-1).values, expected.sort(-1).values)


def test_the_largest_k(device):
    small = replace(device, shared_bytes=64 * 1024)
    assert small.ask("knn_cuda_max_neighbors", small.number) == 170
    points = draw(180, 2)
    with pytest.raises(DeviceError, match="invalid argument"):
        check_search(small, points, 171)


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_spatial(device, kind):
    points = draw(4096, 2, kind)
    order = spatial_order(device, points)
    assert torch.equal(order.sort(-1).values, torch.arange(4096).expand(1, -1))
    if kind in ("normal", "tiny", "large", "offset"):
        ordered = points[0, order[0]]
        step = (ordered[1:] - ordered[:-1]).abs().amax(-1).median()
        assert step < 0.1 * (points[0, 1:] - points[0, :-1]).abs().amax(-1).median()


def columns_of(values, gap=None):
    """Columns (B, p, N) with their sorted values, and gaps that are all the same or random."""
    gaps = torch.rand(values.shape) if gap is None else torch.full(values.shape, gap)
    ordered, order = values.sort(-1)
    fields = {"values": values, "sorted": ordered, "order": order, "gaps": gaps.to(values.dtype)}
    return Native("KnnColumns", (), {**fields, "count": values.shape[1]})


def estimate_pairs(device, x, y, k, symmetric=False, gaps=(None, None)):
    """The kernel's matrix for columns x (B, p, N) and y (B, q, N); by default some points look along either column."""
    batch, p, n = x.shape
    (estimates,) = device.call(
        "knn_cuda_pairs",
        results={"estimates": torch.empty(batch, p, y.shape[1], dtype=torch.float64)},
        dtype=dtype_code(x.dtype),
        x=columns_of(x, gaps[0]),
        y=columns_of(y, gaps[1]),
        symmetric=symmetric,
        batch=batch,
        num_points=n,
        k=k,
        psi=torch.digamma(torch.arange(1, n + 1, dtype=torch.float64)),
        **device.place,
    )
    return estimates


def draw_columns(n, kinds, dtype=torch.float64, batch=1):
    """(B, twice as many as kinds, N): two of each kind that depend on each other."""
    rng = fresh()
    kind_dtype = np.float32 if dtype == torch.float32 else np.float64
    items = [[v for kind in kinds for v in related(rng, n, kind=kind, dtype=kind_dtype)] for _ in range(batch)]
    return torch.from_numpy(np.stack([np.concatenate(item, 1).T for item in items]))


def check_pairs(device, x, y, k, **options):
    estimates = estimate_pairs(device, x, y, k, **options)
    expected = echo_ext.mutual_information_matrix(x.mT, y.mT, k=k)
    tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6  # the CPU's results are of the input's precision
    torch.testing.assert_close(estimates, expected.double(), rtol=tolerance, atol=tolerance)
    return estimates


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, 5, 8, 17, 32])
def test_pairs_of_columns_of_every_kind(device, k, dtype):
    columns = draw_columns(90, (*KINDS, "overflow"), dtype)
    check_pairs(replace(device, descending=k % 2 == 0), columns, columns[:, ::3], k)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 31, 32, 33, 257])
def test_pairs_of_few_points(device, n):
    columns = draw_columns(n, ("normal", "ties"), batch=2)
    for k in {1, min(n - 1, 3), min(n - 1, 32)}:
        check_pairs(device, columns, columns, k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairs_are_the_same_along_either_column(device, dtype):
    n = 150
    most_equal = torch.randn(1, 2, n, dtype=torch.float64).clamp(min=0.3)
    x = torch.cat([draw_columns(n, ("normal", "ties", "constant", "tiny", "large")), most_equal], 1).to(dtype)
    along_x, *others = (check_pairs(device, x, x, 3, gaps=gaps) for gaps in ((2.0, 1.0), (1.0, 2.0), (None, None)))
    for other in others:
        torch.testing.assert_close(along_x, other, rtol=1e-13, atol=1e-13)


def test_pairs_repeat_bit_for_bit(device):
    x, y = draw_columns(700, ("normal", "ties"), batch=2), draw_columns(700, ("normal",), batch=2)
    for gaps in ((1.0, 1.0), (1.0, 2.0)):
        first = estimate_pairs(device, x, y, 4, gaps=gaps)
        for descending in (False, True):
            again = estimate_pairs(replace(device, descending=descending), x, y, 4, gaps=gaps)
            assert torch.equal(first, again)


def test_pairs_of_columns_with_themselves(device):
    x = draw_columns(60, ("normal", "duplicates"), batch=3)
    upper = estimate_pairs(device, x, x, 3, symmetric=True, gaps=(1.0, 1.0))
    every = check_pairs(device, x, x, 3, gaps=(1.0, 1.0))
    ones = torch.ones(4, 4, dtype=torch.bool)
    assert torch.equal(upper[:, ones.triu()], every[:, ones.triu()])
    assert upper[:, ones.tril(-1)].isnan().all()  # nothing has written it


def test_pairs_fill_the_shared_memory(device):
    small = replace(device, shared_bytes=20 * 1024)
    for dtype in (torch.float64, torch.float32):
        n = small.ask("knn_cuda_pairs_max_points", dtype=dtype_code(dtype), device=small.number)
        assert 20 * 1024 - 512 < n * (3 * dtype.itemsize + 2) <= 20 * 1024
        x = draw_columns(n, ("normal",), dtype)
        check_pairs(small, x, x, 3)
        x = draw_columns(n + 1, ("normal",), dtype)
        with pytest.raises(DeviceError, match="invalid"):
            estimate_pairs(small, x, x, 3)


@pytest.mark.slow
def test_pairs_of_more_columns_than_a_grid_has_rows(device):
    x, y = torch.randn(1, 65_600, 2, dtype=torch.float64), torch.randn(1, 1, 2, dtype=torch.float64)
    estimates = estimate_pairs(device, x, y, 1, gaps=(1.0, 1.0))
    torch.testing.assert_close(estimates, estimates[:, :1].expand_as(estimates))
