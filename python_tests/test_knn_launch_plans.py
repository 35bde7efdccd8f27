"""How the nearest-neighbor kernels are launched on an H200, with the registers that ptxas gives them. Nothing runs."""

import pytest
import torch
from device_worker import BuiltTree, Native
from emulated_device import KNN_KERNELS, SOMEWHERE, Device, Worker, usage_of

from echo_ext._native import dtype_code

MULTIPROCESSORS = 132
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@pytest.fixture(scope="module")
def usage(tmp_path_factory):
    return usage_of(KNN_KERNELS, tmp_path_factory.mktemp("knn_usage"))


class Planner:
    """Plans the calls of the bindings on an H200."""

    def __init__(self, library, usage):
        self.device, self.usage = Device(Worker(library, usage), MULTIPROCESSORS), usage

    def plan(self, name, *addresses, **options):
        launches = self.device.plan(name, **dict.fromkeys(addresses, SOMEWHERE), **options, **self.device.place)
        assert launches
        assert {launch.kernel for launch in launches} <= set(self.usage)
        return launches

    def tree(self, num_points, dim, dtype):
        fields = {"dtype": dtype_code(dtype), "batch": 1, "num_points": num_points, "dim": dim}
        return BuiltTree({"points": SOMEWHERE, "order": SOMEWHERE, **fields}, self.device.place)

    def search(self, num_points, dim, k, dtype=torch.float64, indices=False, metric="chebyshev"):
        """The launches that build the tree, and the search."""
        options = {"queries": None, "start": 0, "rows": 0, "indices": SOMEWHERE if indices else 0}
        options |= {"k": k, "metric": metric, "exclude_within": 0}
        return self.plan("knn_cuda_search", "distances", points=self.tree(num_points, dim, dtype), **options)

    def count(self, num_points, dim, dtype=torch.float64):
        """The launch that counts, after those that build the tree."""
        options = {"rows": 0, "num_radii": 1, "num_groups": 1}
        options |= {"metric": "chebyshev", "inclusive": False, "exclude_within": 0}
        tree = self.tree(num_points, dim, dtype)
        return self.plan("knn_cuda_count", "radii", "groups", "counts", points=tree, **options)[-1]

    def pairs(self, num_points, count_x, count_y, k=3, batch=1, symmetric=False, dtype=torch.float64):
        addresses = dict.fromkeys(("values", "sorted", "order", "gaps"), SOMEWHERE)
        x, y = (Native("KnnColumns", (), {**addresses, "count": count}) for count in (count_x, count_y))
        options = {"num_points": num_points, "k": k, "batch": batch, "symmetric": symmetric}
        (launch,) = self.plan("knn_cuda_pairs", "psi", "estimates", dtype=dtype_code(dtype), x=x, y=y, **options)
        return launch


@pytest.fixture(scope="module")
def planner(sanitized_library, usage):
    planner = Planner(sanitized_library, usage)
    yield planner
    planner.device.worker.close()


def resident_warps(launch):
    """Of a multiprocessor."""
    return launch.resident_blocks * launch.threads // 32


def check_no_spills(usage):
    assert usage
    assert {name: one for name, one in usage.items() if one.spills or one.stack} == {}


def test_no_kernel_spills(usage):
    check_no_spills(usage)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {"sm_90"}))
def test_no_kernel_spills_elsewhere(architecture, tmp_path):
    check_no_spills(usage_of(KNN_KERNELS, tmp_path, architecture))


def test_a_search_among_a_million_points_of_two_columns(planner):
    *build, search = planner.search(1_000_000, 2, k=3)
    assert [launch.kernel for launch in build] == ["tiles_kernel<double>", *["level_kernel<double>"] * 3]
    assert search.num_blocks == -(-1_000_000 // 32 // 4)
    assert search.shared_bytes == 4 * 32 * 2 * 8  # a tile for each warp
    assert resident_warps(search) >= 24
    assert search.waves(MULTIPROCESSORS) > 4  # so that the last one costs little


def test_a_count_among_a_million_values(planner):
    count = planner.count(1_000_000, 1)
    assert count.kernel == "line_kernel<double>"
    assert count.num_blocks == -(-1_000_000 // 256)
    assert resident_warps(count) >= 32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kernels_of_many_columns_fill_the_device_once(planner, dtype):
    search = planner.search(100_000, 10, k=3, dtype=dtype)[-1]
    count = planner.count(100_000, 5, dtype)
    for launch, columns in ((search, 10), (count, 6)):  # an odd number of columns is filled up
        assert launch.num_blocks == 782
        assert launch.shared_bytes == 4 * 32 * columns * dtype.itemsize
        assert resident_warps(launch) >= 20
        assert launch.waves(MULTIPROCESSORS) < 1.2


def test_which_kernel_searches(planner):
    def kernel(*arguments, **options):
        return planner.search(1000, *arguments, **options)[-1]

    def template(metric, columns, slots, indices):
        return f"search_kernel<double, (Metric){metric}, {columns}, {slots}, {indices}, (Side)0>"

    assert kernel(4, k=4).kernel == template(0, 4, 4, "false")
    assert kernel(5, k=4, indices=True).kernel == template(0, 16, 4, "true")
    assert kernel(16, k=8, metric="euclidean").kernel == template(1, 16, 8, "false")
    assert kernel(17, k=3).kernel == template(0, 0, 8, "false")
    assert kernel(2, k=32).kernel == template(0, 0, 32, "false")
    longest = kernel(100, k=100)
    assert longest.kernel == template(0, 0, 0, "true")
    assert longest.shared_bytes == 100 * 32 * 12
    assert kernel(100, k=1).shared_bytes == 0  # tiles of many columns stay where they are


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_matrix_is_one_launch(planner, dtype):
    for p in (100, 1000):
        pairs = planner.pairs(2000, p, p, symmetric=True, dtype=dtype)
        assert pairs.blocks == (p, p, 1)
        assert pairs.shared_bytes == 2000 * (3 * dtype.itemsize + 2) + 288
        assert resident_warps(pairs) >= 36
    assert planner.pairs(2000, 1000, 10, batch=100, dtype=dtype).blocks == (10, 65535, 1)


def test_pairs_of_many_points_have_large_blocks(planner):
    pairs = planner.pairs(8900, 10, 10)
    assert (pairs.resident_blocks, pairs.threads) == (1, 1024)
    pairs = planner.pairs(100, 10, 10)
    assert pairs.threads == 128
    assert resident_warps(pairs) >= 36
    pairs = planner.pairs(2000, 10, 10, k=32)
    assert pairs.threads <= 256
    assert resident_warps(pairs) >= 16
