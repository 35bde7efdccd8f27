"""How the nearest-neighbour kernels are laid over an H200, with the registers that ptxas gives them. Nothing runs."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulated_device import KNN_KERNELS, Emulator, KnnProblem, usage_of

MULTIPROCESSORS = 132
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


def usage_on(architecture, folder):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is needed to know the kernels' registers")
    with ThreadPoolExecutor(2) as pool:
        every = pool.map(lambda source: usage_of(source, folder, architecture), KNN_KERNELS)
        return {name: one for found in every for name, one in found.items()}


@pytest.fixture(scope="module")
def usage(tmp_path_factory):
    return usage_on("sm_90", tmp_path_factory.mktemp("knn_usage"))


@pytest.fixture(scope="module")
def plan(knn_emulator_program, usage):
    emulator = Emulator(knn_emulator_program, usage)

    def launches(operation, **fields):
        found, _ = emulator.launches(KnnProblem(plan=True, multiprocessors=MULTIPROCESSORS, **fields), operation)
        assert found
        assert {launch.kernel for launch in found} <= set(usage)
        return found

    yield launches
    emulator.close()


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
    check_no_spills(usage_on(architecture, tmp_path))


def test_a_search_among_a_million_points_of_two_columns(plan):
    *build, search = plan("search", num_points=1_000_000, dim=2, k=3)
    assert [launch.kernel for launch in build] == ["tiles_kernel<double>", *["level_kernel<double>"] * 3]
    assert search.num_blocks == -(-1_000_000 // 32 // 4)
    assert search.shared_bytes == 4 * 32 * 2 * 8  # a tile for each warp
    assert resident_warps(search) >= 24
    assert search.waves(MULTIPROCESSORS) > 4  # so that the last one costs little


def test_a_count_among_a_million_values(plan):
    count = plan("count", num_points=1_000_000, dim=1, num_radii=1, num_groups=1)[-1]
    assert count.kernel == "line_kernel<double>"
    assert count.num_blocks == -(-1_000_000 // 256)
    assert resident_warps(count) >= 32


@pytest.mark.parametrize("single", [False, True])
def test_searches_and_counts_of_many_columns_fill_the_device_once(plan, single):
    search = plan("search", num_points=100_000, dim=10, k=3, single=single)[-1]
    count = plan("count", num_points=100_000, dim=5, num_radii=1, num_groups=1, single=single)[-1]
    for launch, columns in ((search, 10), (count, 6)):  # an odd number of columns is filled up
        assert launch.num_blocks == 782
        assert launch.shared_bytes == 4 * 32 * columns * (4 if single else 8)
        assert resident_warps(launch) >= 20
        assert launch.waves(MULTIPROCESSORS) < 1.2


def test_which_kernel_searches(plan):
    def kernel(**fields):
        return plan("search", num_points=1000, **fields)[-1]

    def template(metric, columns, slots, indices):
        return f"search_kernel<double, (Metric){metric}, {columns}, {slots}, {indices}, (Side)0>"

    assert kernel(dim=4, k=4).kernel == template(0, 4, 4, "false")
    assert kernel(dim=5, k=4, has_indices=True).kernel == template(0, 16, 4, "true")
    assert kernel(dim=16, k=8, euclidean=True).kernel == template(1, 16, 8, "false")
    assert kernel(dim=17, k=3).kernel == template(0, 0, 8, "false")
    assert kernel(dim=2, k=32).kernel == template(0, 0, 32, "false")
    longest = kernel(dim=100, k=100)
    assert longest.kernel == template(0, 0, 0, "true")
    assert longest.shared_bytes == 100 * 32 * 12
    assert kernel(dim=100, k=1).shared_bytes == 0  # tiles of many columns stay where they are


@pytest.mark.parametrize("single", [False, True])
def test_a_matrix_is_one_launch(plan, single):
    for p in (100, 1000):
        (pairs,) = plan("pairs", num_points=2000, k=3, count_x=p, count_y=p, symmetric=True, single=single)
        assert pairs.blocks == (p, p, 1)
        assert pairs.shared_bytes == 2000 * (3 * (4 if single else 8) + 2) + 288
        assert resident_warps(pairs) >= 36
    (pairs,) = plan("pairs", num_points=2000, k=3, count_x=1000, count_y=10, batch=100, single=single)
    assert pairs.blocks == (10, 65535, 1)


def test_pairs_of_many_points_have_large_blocks(plan):
    (pairs,) = plan("pairs", num_points=8900, k=3, count_x=10, count_y=10)
    assert (pairs.resident_blocks, pairs.threads) == (1, 1024)
    (pairs,) = plan("pairs", num_points=100, k=3, count_x=10, count_y=10)
    assert pairs.threads == 128
    assert resident_warps(pairs) >= 36
    (pairs,) = plan("pairs", num_points=2000, k=32, count_x=10, count_y=10)
    assert pairs.threads <= 256
    assert resident_warps(pairs) >= 16
