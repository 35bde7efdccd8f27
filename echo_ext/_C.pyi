# The native core. Tensors are the addresses of contiguous memory, streams those of a cudaStream_t; 0 stands for None.
# `dtype` is the index of a dtype in echo_ext._native.DTYPES.

from collections.abc import Sequence

cuda_version: str | None
cuda_archs: str

def isa() -> str: ...
def supported_isas() -> list[str]: ...

# The newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0 where there is no driver, and in a
# build without CUDA.
def cuda_driver_version() -> int: ...

class EchoProblem:
    @property
    def rows(self) -> int: ...
    @property
    def bank_rows(self) -> int: ...
    @property
    def exclude_self(self) -> bool: ...
    def __init__(
        self,
        rows: int,
        bank_rows: int,
        width: int,
        num_terms: int,
        exclude_self: bool,
        sampling: int,
        dtype: int,
    ) -> None: ...

def echo_cpu_forward(
    problem: EchoProblem, seed: int, bank_f: int, bank_s: int, f: int, s: int, out: int, num_threads: int
) -> None: ...
def echo_cpu_backward(
    problem: EchoProblem,
    seed: int,
    bank_f: int,
    bank_s: int,
    s: int,
    grad: int,
    grad_s: int,
    grad_bank_f: int,
    grad_bank_s: int,
    num_threads: int,
) -> None: ...
def echo_cpu_indices(problem: EchoProblem, *, seed: int, indices: int, num_threads: int) -> None: ...

# Only in a build with CUDA (cuda_version is not None):
def echo_cuda_forward_workspace_bytes(problem: EchoProblem, *, device: int) -> int: ...
def echo_cuda_backward_workspace_bytes(problem: EchoProblem, *, deterministic: bool, device: int) -> int: ...
def echo_cuda_forward(
    problem: EchoProblem,
    seed: int,
    bank_f: int,
    bank_s: int,
    f: int,
    s: int,
    out: int,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def echo_cuda_backward(
    problem: EchoProblem,
    seed: int,
    bank_f: int,
    bank_s: int,
    s: int,
    grad: int,
    grad_s: int,
    grad_bank_f: int,
    grad_bank_s: int,
    workspace: int,
    deterministic: bool,
    device: int,
    stream: int,
) -> None: ...
def echo_cuda_indices(problem: EchoProblem, *, seed: int, indices: int, device: int, stream: int) -> None: ...

class EchoMatrixProblem:
    def __init__(self, rows: int, dim: int, dtype: int) -> None: ...

def echo_matrix_cpu_scan(
    problem: EchoMatrixProblem, *, order: int, source: int, matrices: int, values: int, backward: bool, num_threads: int
) -> None: ...
def echo_matrix_cpu_outer(
    problem: EchoMatrixProblem, *, order: int, values: int, z: int, grad_matrices: int, num_threads: int
) -> None: ...

# Only in a build with CUDA:
def echo_matrix_cuda_workspace_bytes(problem: EchoMatrixProblem) -> int: ...
def echo_matrix_cuda_scan(
    problem: EchoMatrixProblem,
    order: int,
    source: int,
    matrices: int,
    values: int,
    backward: bool,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def echo_matrix_cuda_outer(
    problem: EchoMatrixProblem, *, order: int, values: int, z: int, grad_matrices: int, device: int, stream: int
) -> None: ...

class EchoScanProblem:
    def __init__(self, rows: int, width: int, dtype: int, chunk_rows: int) -> None: ...
    @property
    def num_chunks(self) -> int: ...

def echo_scan_cpu_compose(
    problem: EchoScanProblem,
    *,
    order: int,
    source: int,
    s: int,
    constants: int,
    scales: int,
    backward: bool,
    num_threads: int,
) -> None: ...
def echo_scan_cpu_forward(
    problem: EchoScanProblem, *, order: int, f: int, s: int, entries: int, z: int, num_threads: int
) -> None: ...
def echo_scan_cpu_backward(
    problem: EchoScanProblem,
    *,
    order: int,
    s: int,
    grad: int,
    z: int,
    entry: int,
    entries_back: int,
    grad_f: int,
    grad_s: int,
    num_threads: int,
) -> None: ...

# Only in a build with CUDA:
def echo_scan_cuda_compose(
    problem: EchoScanProblem,
    *,
    order: int,
    source: int,
    s: int,
    constants: int,
    scales: int,
    backward: bool,
    device: int,
    stream: int,
) -> None: ...
def echo_scan_cuda_forward(
    problem: EchoScanProblem, *, order: int, f: int, s: int, entries: int, z: int, device: int, stream: int
) -> None: ...
def echo_scan_cuda_backward(
    problem: EchoScanProblem,
    *,
    order: int,
    s: int,
    grad: int,
    z: int,
    entry: int,
    entries_back: int,
    grad_f: int,
    grad_s: int,
    device: int,
    stream: int,
) -> None: ...
def knn_search(
    *,
    dtype: int,
    points: int,
    queries: int,
    rows: int,
    batch: int,
    num_points: int,
    num_queries: int,
    dim: int,
    k: int,
    metric: str,
    exclude_within: int,
    ks: Sequence[int],
    groups: Sequence[int],
    num_groups: int,
    distances: int,
    indices: int,
    reaches: int,
    num_threads: int,
) -> None: ...
def knn_count(
    *,
    dtype: int,
    points: int,
    radii: int,
    groups: Sequence[int],
    rows: int,
    batch: int,
    num_points: int,
    num_radii: int,
    num_groups: int,
    dim: int,
    metric: str,
    inclusive: bool,
    exclude_within: int,
    counts: int,
    num_threads: int,
) -> None: ...
def knn_add_digamma(*, counts: int, values: int, size: int, shift: int, factor: float, num_threads: int) -> None: ...
def knn_add_margins(
    *,
    dtype: int,
    variables: Sequence[tuple[int, int]],
    margins: Sequence[tuple[Sequence[int], float]],
    ks: Sequence[int],
    rows: int,
    batch: int,
    num_points: int,
    exclude_within: int,
    values: int,
    tied_shares: int,
    num_threads: int,
) -> None: ...
def knn_boundary(
    *,
    dtype: int,
    points: int,
    radii: int,
    skip: int,
    rows: int,
    batch: int,
    num_points: int,
    dim: int,
    width: int,
    exclude_within: int,
    indices: int,
    num_threads: int,
) -> None: ...
def knn_resample(
    *,
    dtype: int,
    fixed: int,
    given: int,
    moved: int,
    orders: int,
    rows: int,
    batch: int,
    num_points: int,
    num_surrogates: int,
    fixed_dim: int,
    given_dim: int,
    moved_dim: int,
    k: int,
    exclude_within: int,
    estimates: int,
    num_threads: int,
) -> None: ...
def knn_permutations(
    *, seed: int, stream: int, first: int, num: int, size: int, length: int, orders: int, num_threads: int
) -> None: ...
def knn_local_permutations(
    *,
    seed: int,
    stream: int,
    first: int,
    num: int,
    neighbors: int,
    batch: int,
    num_points: int,
    num_neighbors: int,
    orders: int,
    num_threads: int,
) -> None: ...

# Only in a build with CUDA:
class KnnTree:
    def __init__(self, *, dtype: int, points: int, order: int, batch: int, num_points: int, dim: int) -> None: ...
    def part(self, first: int, count: int) -> KnnTree: ...
    def bytes(self) -> int: ...

def knn_cuda_max_neighbors(device: int) -> int: ...
def knn_cuda_keys(
    *,
    dtype: int,
    points: int,
    sample: int,
    batch: int,
    num_points: int,
    sample_size: int,
    dim: int,
    keys: int,
    device: int,
    stream: int,
) -> None: ...
def knn_cuda_build(*, tree: KnnTree, memory: int, device: int, stream: int) -> None: ...
def knn_cuda_search(
    *,
    points: KnnTree,
    queries: KnnTree | None,
    rows: int,
    start: int,
    k: int,
    metric: str,
    exclude_within: int,
    distances: int,
    indices: int,
    device: int,
    stream: int,
) -> None: ...
def knn_cuda_count(
    *,
    points: KnnTree,
    radii: int,
    groups: int,
    rows: int,
    num_radii: int,
    num_groups: int,
    metric: str,
    inclusive: bool,
    exclude_within: int,
    counts: int,
    device: int,
    stream: int,
) -> None: ...
def knn_cuda_boundary(
    *,
    points: KnnTree,
    radii: int,
    skip: int,
    rows: int,
    width: int,
    exclude_within: int,
    indices: int,
    device: int,
    stream: int,
) -> None: ...

class KnnColumns:
    def __init__(self, *, values: int, sorted: int, order: int, gaps: int, count: int) -> None: ...

knn_cuda_pairs_max_neighbors: int

def knn_cuda_pairs_max_points(*, dtype: int, device: int) -> int: ...
def knn_cuda_pairs(
    *,
    dtype: int,
    x: KnnColumns,
    y: KnnColumns,
    symmetric: bool,
    batch: int,
    num_points: int,
    k: int,
    psi: int,
    estimates: int,
    device: int,
    stream: int,
) -> None: ...
