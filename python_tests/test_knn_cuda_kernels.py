"""The nearest-neighbor CUDA kernels' own source, on the CPU under ASan and UBSan: equal to the CPU's bit for bit."""

import numpy as np
import pytest
import torch
from emulated_device import KnnProblem, Shim, ShimError
from knn_cases import KINDS, fresh, related, sample

import echo_ext
from echo_ext.estimators.neighbors import PointSet


@pytest.fixture(scope="module")
def shim(knn_emulator_program):
    shim = Shim(knn_emulator_program)
    yield shim
    shim.close()


def call(shim, operation, arrays, results, points=None, **fields):
    if points is not None:
        fields |= {"single": points.dtype == torch.float32, "batch": points.shape[0], "num_points": points.shape[1]}
        fields["dim"] = points.shape[2]
    header = KnnProblem(**fields).header(operation)
    shim.call(header, [array for array in arrays if array is not None], results)


def spatial_order(shim, points, like=None):
    """Places by the kernel's keys; by value in one column."""
    if points.shape[-1] == 1:
        return points.squeeze(-1).argsort(-1)
    values = (points if like is None else like).transpose(1, 2).sort(-1).values[..., ::7].contiguous()
    keys = torch.empty(points.shape[:2], dtype=torch.int64)
    call(shim, "keys", [points, values], [keys], points, sample_size=values.shape[-1])
    assert (keys >= 0).all()
    return keys.argsort(-1)


def check_search(shim, points, k, queries=None, rows=None, indices=True, **options):
    sought = points if queries is None else queries
    shape = (*sought.shape[:2], k)
    distances = torch.empty(shape, dtype=points.dtype)
    found = [torch.empty(shape, dtype=torch.int64)] if indices else []
    arrays = [points, spatial_order(shim, points), rows]
    if queries is not None:
        tiles = -(-queries.shape[1] // 32)
        start = torch.randint(-(-points.shape[1] // 32), (points.shape[0], tiles))
        arrays += [queries, spatial_order(shim, queries, points), start]
    call(
        shim,
        "search",
        arrays,
        [distances, *found],
        points,
        k=k,
        num_queries=0 if queries is None else queries.shape[1],
        has_rows=rows is not None,
        has_indices=indices,
        **options,
    )
    options.pop("descending", None)
    options["euclidean"] = bool(options.get("euclidean"))
    expected, expected_rows = PointSet(points).search(k, queries=queries, rows=rows, **options)
    assert torch.equal(distances, expected)
    if indices:
        assert torch.equal(found[0], expected_rows)
    return expected


def check_count(shim, points, radii, groups=None, rows=None, **options):
    counts = torch.empty((radii.shape[0], *points.shape[:2]), dtype=torch.int64)
    columns = torch.tensor(groups or [0] * points.shape[-1], dtype=torch.int32)
    call(
        shim,
        "count",
        [points, spatial_order(shim, points), rows, radii, columns],
        [counts],
        points,
        num_radii=radii.shape[0],
        num_groups=1 if groups is None else max(groups) + 1,
        has_rows=rows is not None,
        **options,
    )
    options.pop("descending", None)
    assert torch.equal(counts, PointSet(points).count(radii, groups=groups, rows=rows, **options))


def draw(n, d, kind="normal", dtype=torch.float64, batch=1):
    rng = fresh()
    return torch.stack([torch.from_numpy(sample(rng, n, d, kind)).to(dtype) for _ in range(batch)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 11])
def test_search_and_count_are_the_cpus(shim, dim, kind):
    for dtype, euclidean in ((torch.float64, False), (torch.float32, True), (torch.float32, False)):
        points = draw(211, dim, kind, dtype, 2)
        distances = check_search(shim, points, 3, euclidean=euclidean, descending=euclidean)
        check_search(shim, points, 5, euclidean=euclidean, indices=False)
        radii = distances.permute(2, 0, 1).contiguous()
        for inclusive in (False, True):
            check_count(shim, points, radii, euclidean=euclidean, inclusive=inclusive)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_infinite_distances_are_the_cpus(shim, dim):
    for dtype, euclidean in ((torch.float64, True), (torch.float32, True), (torch.float32, False)):
        precision = torch.empty(0, dtype=dtype).numpy().dtype
        rng = fresh()
        points = torch.stack([torch.from_numpy(sample(rng, 75, dim, "overflow", precision)) for _ in range(2)])
        distances = check_search(shim, points, 40, euclidean=euclidean)
        assert distances.isinf().any() or not euclidean
        radii = distances.permute(2, 0, 1)[::13].contiguous()
        for inclusive in (False, True):
            check_count(shim, points, radii, euclidean=euclidean, inclusive=inclusive)


@pytest.mark.parametrize("k", [1, 3, 4, 8, 9, 17, 32, 33, 100])
def test_every_k(shim, k):
    for n in (k + 1, k + 40):
        points = draw(n, 2, "ties" if k % 2 else "normal")
        check_search(shim, points, k)
        check_search(shim, points, k, indices=False, euclidean=True)


@pytest.mark.parametrize("n", [2, 31, 32, 33, 1025])
def test_sizes(shim, n):
    points = draw(n, 3, dtype=torch.float32)
    distances = check_search(shim, points, 1)
    check_count(shim, points, distances.permute(2, 0, 1).contiguous(), inclusive=True, descending=True)


def test_queries(shim):
    for dim in (1, 4):
        check_search(shim, draw(150, dim, batch=3), 5, draw(77, dim, batch=3))
        check_search(shim, draw(50, dim, "ties"), 50, draw(3, dim, "ties"), euclidean=True)


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_time_window_and_rows(shim, dim, kind):
    points = draw(130, dim, kind)
    rows = torch.randperm(400)[:130].sort().values
    for numbers in (None, rows):
        distances = check_search(shim, points, 4, rows=numbers, exclude_within=7)
        check_count(shim, points, distances.permute(2, 0, 1).contiguous(), rows=numbers, exclude_within=7)


def test_groups_of_columns(shim):
    for kind in ("normal", "ties", "constant"):
        points = draw(170, 4, kind)
        radii = torch.rand(2, 1, 3, 170, dtype=torch.float64) * 1.5
        for inclusive in (False, True):
            check_count(shim, points, radii, groups=[0, 1, 1, 2], inclusive=inclusive, exclude_within=2)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_boundary_is_the_cpus(shim, dim, kind):
    points = draw(140, dim, kind, batch=2)
    distances, indices = PointSet(points).search(6)
    radii, skip = distances[..., 5].contiguous(), indices[..., 5].contiguous()
    for width, window in ((10, 0), (3, 4), (1, 0)):
        found = torch.empty((*radii.shape, 2 * width + 1), dtype=torch.int64)
        call(
            shim,
            "boundary",
            [points, spatial_order(shim, points), radii, skip],
            [found],
            points,
            k=width,
            exclude_within=window,
        )
        expected = PointSet(points).boundary(radii, skip, width=width, exclude_within=window)
        assert torch.equal(found.sort(-1).values, expected.sort(-1).values)


def test_the_largest_k(shim):
    most = torch.empty(1, dtype=torch.int64)
    call(shim, "max_neighbors", [], [most], shared_bytes=64 * 1024)
    assert most.item() == 170
    points = draw(180, 2)
    with pytest.raises(Exception, match="invalid argument"):
        check_search(shim, points, 171, shared_bytes=64 * 1024)


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_spatial(shim, kind):
    points = draw(4096, 2, kind)
    order = spatial_order(shim, points)
    assert torch.equal(order.sort(-1).values, torch.arange(4096).expand(1, -1))
    if kind in ("normal", "tiny", "large", "offset"):
        ordered = points[0, order[0]]
        step = (ordered[1:] - ordered[:-1]).abs().amax(-1).median()
        assert step < 0.1 * (points[0, 1:] - points[0, :-1]).abs().amax(-1).median()


def estimate_pairs(shim, x, y, k, symmetric=False, gaps=None, **options):
    """The kernel's matrix for columns x (B, p, N) and y (B, q, N); by default some points look along either column."""
    batch, p, n = x.shape
    arrays = []
    for columns, given in zip((x, y), gaps or (None, None), strict=True):
        each = torch.rand(columns.shape) if given is None else torch.full(columns.shape, given)
        arrays += [columns, *columns.sort(-1), each.to(x.dtype)]
    psi = torch.digamma(torch.arange(1, n + 1, dtype=torch.float64))
    estimates = torch.empty(batch, p, y.shape[1], dtype=torch.float64)
    sizes = dict(batch=batch, num_points=n, count_x=p, count_y=y.shape[1], single=x.dtype == torch.float32)
    call(shim, "pairs", [*arrays, psi], [estimates], k=k, symmetric=symmetric, **sizes, **options)
    return estimates


def draw_columns(n, kinds, dtype=torch.float64, batch=1):
    """(B, twice as many as kinds, N): two of each kind that depend on each other."""
    rng = fresh()
    kind_dtype = np.float32 if dtype == torch.float32 else np.float64
    items = [[v for kind in kinds for v in related(rng, n, kind=kind, dtype=kind_dtype)] for _ in range(batch)]
    return torch.from_numpy(np.stack([np.concatenate(item, 1).T for item in items]))


def check_pairs(shim, x, y, k, **options):
    estimates = estimate_pairs(shim, x, y, k, **options)
    expected = echo_ext.mutual_information_matrix(x.mT, y.mT, k=k)
    tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6  # the CPU's results are of the input's precision
    torch.testing.assert_close(estimates, expected.double(), rtol=tolerance, atol=tolerance)
    return estimates


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, 5, 8, 17, 32])
def test_pairs_of_columns_of_every_kind(shim, k, dtype):
    columns = draw_columns(90, (*KINDS, "overflow"), dtype)
    check_pairs(shim, columns, columns[:, ::3], k, descending=k % 2 == 0)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 31, 32, 33, 257])
def test_pairs_of_few_points(shim, n):
    columns = draw_columns(n, ("normal", "ties"), batch=2)
    for k in {1, min(n - 1, 3), min(n - 1, 32)}:
        check_pairs(shim, columns, columns, k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairs_are_the_same_whichever_columns_are_looked_along(shim, dtype):
    n = 150
    most_equal = torch.randn(1, 2, n, dtype=torch.float64).clamp(min=0.3)
    x = torch.cat([draw_columns(n, ("normal", "ties", "constant", "tiny", "large")), most_equal], 1).to(dtype)
    along_x, *others = (check_pairs(shim, x, x, 3, gaps=gaps) for gaps in ((2.0, 1.0), (1.0, 2.0), None))
    for other in others:
        torch.testing.assert_close(along_x, other, rtol=1e-13, atol=1e-13)


def test_pairs_repeat_bit_for_bit(shim):
    x, y = draw_columns(700, ("normal", "ties"), batch=2), draw_columns(700, ("normal",), batch=2)
    for gaps in ((1.0, 1.0), (1.0, 2.0)):
        first = estimate_pairs(shim, x, y, 4, gaps=gaps)
        for descending in (False, True):
            assert torch.equal(first, estimate_pairs(shim, x, y, 4, gaps=gaps, descending=descending))


def test_pairs_of_columns_with_themselves(shim):
    x = draw_columns(60, ("normal", "duplicates"), batch=3)
    upper = estimate_pairs(shim, x, x, 3, symmetric=True, gaps=(1.0, 1.0))
    every = check_pairs(shim, x, x, 3, gaps=(1.0, 1.0))
    ones = torch.ones(4, 4, dtype=torch.bool)
    assert torch.equal(upper[:, ones.triu()], every[:, ones.triu()])
    assert upper[:, ones.tril(-1)].isnan().all()  # as the driver has made it


def test_pairs_fill_the_shared_memory(shim):
    for dtype in (torch.float64, torch.float32):
        most = torch.empty(1, dtype=torch.int64)
        options = dict(shared_bytes=20 * 1024, single=dtype == torch.float32)
        call(shim, "max_pair_points", [], [most], **options)
        n = most.item()
        assert 20 * 1024 - 512 < n * (3 * dtype.itemsize + 2) <= 20 * 1024
        x = draw_columns(n, ("normal",), dtype)
        check_pairs(shim, x, x, 3, shared_bytes=20 * 1024)
        x = draw_columns(n + 1, ("normal",), dtype)
        with pytest.raises(ShimError, match="invalid"):
            estimate_pairs(shim, x, x, 3, shared_bytes=20 * 1024)


@pytest.mark.slow
def test_pairs_of_more_columns_than_a_grid_has_rows(shim):
    x, y = torch.randn(1, 65_600, 2, dtype=torch.float64), torch.randn(1, 1, 2, dtype=torch.float64)
    estimates = estimate_pairs(shim, x, y, 1, gaps=(1.0, 1.0))
    torch.testing.assert_close(estimates, estimates[:, :1].expand_as(estimates))
