# The native core: tensors are addresses of contiguous memory, streams are addresses of cudaStream_t, 0 stands for none.

cuda_version: str | None
cuda_archs: str

def isa() -> str: ...

class EchoProblem:
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

def echo_cpu_forward_workspace_bytes(problem: EchoProblem, num_threads: int, /) -> int: ...
def echo_cpu_backward_workspace_bytes(problem: EchoProblem, num_threads: int, /) -> int: ...
def echo_cpu_forward(
    problem: EchoProblem,
    seed: int,
    bank_f: int,
    bank_s: int,
    f: int,
    s: int,
    out: int,
    workspace: int,
    num_threads: int,
    /,
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
    workspace: int,
    num_threads: int,
    /,
) -> None: ...
def echo_cpu_indices(problem: EchoProblem, seed: int, indices: int, num_threads: int, /) -> None: ...

# Only in a build with CUDA (cuda_version is not None):
def echo_cuda_forward_workspace_bytes(problem: EchoProblem, device: int, /) -> int: ...
def echo_cuda_backward_workspace_bytes(problem: EchoProblem, deterministic: bool, device: int, /) -> int: ...
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
    /,
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
    /,
) -> None: ...
def echo_cuda_indices(problem: EchoProblem, seed: int, indices: int, device: int, stream: int, /) -> None: ...
