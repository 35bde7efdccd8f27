"""The nearest-neighbour CUDA kernels' own source, on the CPU under ASan and UBSan: equal to the CPU's bit for bit."""

import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from emulated_device import CSRC, SANITIZERS, SHIM, WARNINGS, Shim
from knn_cases import KINDS, fresh, sample

from echo_ext.estimators import _neighbours

SOURCES = [*sorted(CSRC.glob("knn_*.cu")), SHIM / "cuda_shim.cpp", SHIM / "knn_driver.cpp"]
OPERATIONS = {"keys": 0, "search": 1, "count": 2, "boundary": 3, "max_neighbours": 4}
FIELDS = (
    *("operation", "single", "descending", "batch", "num_points", "num_queries", "dim", "k", "euclidean"),
    *("exclude_within", "has_rows", "has_indices", "num_radii", "num_groups", "inclusive", "sample_size"),
    "shared_bytes",
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the shim needs g++ with its sanitizers")
    folder = tmp_path_factory.mktemp("knn_cuda_shim")
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", *WARNINGS, *SANITIZERS, "-DECHO_EXT_WITH_CUDA"]
    flags += [f"-I{SHIM}", f"-I{CSRC}"]

    def compile_one(source):
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    program = folder / "knn_driver"
    subprocess.run([compiler, *SANITIZERS, *objects, "-o", program], check=True)
    shim = Shim(program)
    yield shim
    shim.close()


def call(shim, operation, arrays, results, points=None, **fields):
    fields = {"shared_bytes": 227 * 1024, **fields, "operation": OPERATIONS[operation]}
    if points is not None:
        fields |= {"single": points.dtype == torch.float32, "batch": points.shape[0], "num_points": points.shape[1]}
        fields["dim"] = points.shape[2]
    header = struct.pack(f"{len(FIELDS)}q", *(int(fields.get(name, 0)) for name in FIELDS))
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
    expected, expected_rows = _neighbours.search(points, k, queries=queries, rows=rows, indices=True, **options)
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
    assert torch.equal(counts, _neighbours.count(points, radii, groups=groups, rows=rows, **options))


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
    distances, indices = _neighbours.search(points, 6, indices=True)
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
        expected = _neighbours.boundary(points, radii, skip, width=width, exclude_within=window)
        assert torch.equal(found.sort(-1).values, expected.sort(-1).values)


def test_the_largest_k(shim):
    most = torch.empty(1, dtype=torch.int64)
    call(shim, "max_neighbours", [], [most], shared_bytes=64 * 1024)
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
