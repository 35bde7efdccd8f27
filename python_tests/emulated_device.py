"""The emulated device: the CUDA kernels' own source as a program that runs on the CPU (see cuda_shim/)."""

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest
import torch

SHIM = Path(__file__).parent / "cuda_shim"
CSRC = Path(__file__).parent.parent / "csrc"
KNN_KERNELS = sorted(CSRC.glob("knn/*.cu"))
KERNELS = [source for source in sorted(CSRC.glob("*/*.cu")) if source not in KNN_KERNELS]
PROGRAM = "driver"
SOURCES = [*KERNELS, SHIM / "cuda_shim.cpp", SHIM / "driver.cpp"]
KNN_SOURCES = [*KNN_KERNELS, SHIM / "cuda_shim.cpp", SHIM / "knn_driver.cpp"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unknown-pragmas"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_CODES = {name: code for code, name in enumerate(DTYPES)}
SAMPLINGS = {"permutation": 0, "replacement": 1, "ring": 2}
OPERATIONS = {
    "forward": 0,
    "backward": 1,
    "indices": 2,
    "host_indices": 3,
    "self_test": 4,
    "matrix_scan": 5,
    "matrix_outer": 6,
    "scan": 7,
    "launches": 8,
    "plan_forward": 9,
    "plan_backward": 10,
    "plan_indices": 11,
    "plan_matrix_scan": 12,
}
KNN_OPERATIONS = {
    "keys": 0,
    "search": 1,
    "count": 2,
    "boundary": 3,
    "max_neighbors": 4,
    "pairs": 5,
    "max_pair_points": 6,
}


class ShimError(Exception):
    pass


class Shim:
    """One process that answers requests until it fails, then another."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.process: subprocess.Popen | None = None
        self.environment: dict[str, str] | None = None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def read(self, size: int) -> bytes:
        data = self.process.stdout.read(size)
        if len(data) < size:
            _, errors = self.process.communicate()
            self.process = None
            raise ShimError(errors.decode(errors="replace"))
        return data

    def call(self, header: bytes, arrays: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        if self.process is None:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen([self.program], stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment)
        try:
            self.process.stdin.write(header + b"".join(as_bytes(array) for array in arrays))
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what follows tells why
        (length,) = struct.unpack("q", self.read(8))
        if length:
            raise ShimError(self.read(length).decode())
        for result in results:
            data = bytearray(self.read(result.numel() * result.element_size()))
            if data:
                result.view(-1).view(torch.uint8).copy_(torch.frombuffer(data, dtype=torch.uint8))


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def compile_sources(compiler: str, sources: list[Path], folder: Path, flags: Sequence[str]) -> list[Path]:
    """The objects of CUDA or C++ sources, two at a time."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def build(folder: Path, sources: list[Path] = SOURCES, flags: tuple[str, ...] = ()) -> Path:
    """The program, made anew."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the emulated device needs g++ with its sanitizers")
    flags = (
        "-std=c++17",
        "-O1",
        "-g1",
        *flags,
        *WARNINGS,
        *SANITIZERS,
        "-DECHO_EXT_WITH_CUDA",
        f"-I{SHIM}",
        f"-I{CSRC}",
    )
    objects = compile_sources(compiler, sources, folder, flags)
    program = folder / PROGRAM
    subprocess.run([compiler, *SANITIZERS, *objects, "-o", program], check=True)
    return program


def demangled(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [line.replace("echo_ext::", "").replace("(anonymous namespace)::", "") for line in text.splitlines()]


def short_name(name: str) -> str:
    """`void kernel<float, 8, true>(...)` without what it returns and takes."""
    return re.sub(r"^void ", "", name).rpartition("(")[0] or name


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel."""

    registers: int
    stack: int
    spills: int


def usage_of(source: Path, folder: Path, architecture: str = "sm_90") -> dict[str, Usage]:
    """Of each kernel of a file."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is needed to know the kernels' registers")
    command = [nvcc, "-std=c++17", "-cubin", f"-arch={architecture}", "-Xptxas=-v", "-DECHO_EXT_WITH_CUDA", f"-I{CSRC}"]
    command += ["-fmad=false"] if source.parent.name == "knn" else []
    text = subprocess.run([*command, source, "-o", folder / source.stem], capture_output=True, text=True, check=True)
    pattern = r"function '(\S+)' for.*\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores.*\n.*Used (\d+) reg"
    found = re.findall(pattern, text.stderr + text.stdout)
    names = [short_name(name) for name in demangled([entry[0] for entry in found])]
    return {
        name: Usage(int(registers), int(stack), int(spills))
        for name, (_, stack, spills, registers) in zip(names, found, strict=True)
    }


@dataclass(frozen=True)
class Launch:
    kernel: str
    blocks: tuple[int, int, int]
    threads: int
    shared_bytes: int
    resident_blocks: int  # of a multiprocessor
    meetings: int  # of threads at barriers and warp intrinsics: a measure of the steps taken

    @property
    def num_blocks(self) -> int:
        return self.blocks[0] * self.blocks[1] * self.blocks[2]

    def waves(self, multiprocessors: int) -> float:
        """How many times over the blocks fill the device."""
        return self.num_blocks / (self.resident_blocks * multiprocessors)


class Emulator(Shim):
    """Also knows the kernels' names, and their registers where it is told."""

    MOST_LAUNCHES = 64

    def __init__(self, program: Path, usage: dict[str, Usage] | None = None) -> None:
        super().__init__(program)
        lines = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout.splitlines()
        symbols = [(int(line.split()[0], 16), line.split()[2]) for line in lines if len(line.split()) == 3]
        anchor = next(address for address, name in symbols if name == "cuda_shim_anchor")
        names = demangled([name for _, name in symbols])
        self.kernels = {
            address - anchor: short_name(name)
            for (address, _), name in zip(symbols, names, strict=True)
            if name[:1] != "_"
        }
        if usage is not None:
            known = ((at, usage[name].registers) for at, name in self.kernels.items() if name in usage)
            table = program.with_name("registers")
            table.write_text("".join(f"{at} {registers}\n" for at, registers in known))
            self.environment = {**os.environ, "CUDA_SHIM_REGISTERS": str(table)}

    def launches(self, problem: "Problem | KnnProblem", operation: str = "launches") -> tuple[list[Launch], int]:
        """Those of the call before, or those that an operation named "plan_..." would make, with the bytes of its
        workspace."""
        fields = 8
        record = torch.empty(1 + self.MOST_LAUNCHES * fields, dtype=torch.int64)
        self.call(problem.header(operation), [], [record])
        rows = record[1:].view(-1, fields).tolist()
        return [Launch(self.kernels[row[0]], tuple(row[1:4]), *row[4:]) for row in rows if row[4]], int(record[0])


@dataclass(frozen=True)
class Problem:
    rows: int
    width: int
    num_terms: int
    bank_rows: int = 0  # 0: the batch is its own bank
    sampling: str = "permutation"
    dtype: str = "float32"
    seed: int = 1
    sample: bool = True  # f + s * eps, instead of eps
    deterministic: bool = False
    multiprocessors: int = 4
    shared_bytes: int = 227 * 1024
    descending: bool = False

    @property
    def exclude_self(self) -> bool:
        return self.bank_rows == 0

    def header(self, operation: str) -> bytes:
        return struct.pack(
            "14q",
            OPERATIONS[operation],
            self.multiprocessors,
            self.shared_bytes,
            self.descending,
            self.rows,
            self.bank_rows or self.rows,
            self.width,
            self.num_terms,
            self.exclude_self,
            SAMPLINGS[self.sampling],
            DTYPE_CODES[self.dtype],
            self.seed,
            self.deterministic,
            self.sample,
        )


@dataclass(frozen=True)
class KnnProblem:
    """A request of the nearest-neighbor kernels."""

    single: bool = False
    descending: bool = False
    batch: int = 1
    num_points: int = 0
    num_queries: int = 0
    dim: int = 0
    k: int = 0
    euclidean: bool = False
    exclude_within: int = 0
    has_rows: bool = False
    has_indices: bool = False
    num_radii: int = 0
    num_groups: int = 0
    inclusive: bool = False
    sample_size: int = 0
    shared_bytes: int = 227 * 1024
    multiprocessors: int = 4
    count_x: int = 0
    count_y: int = 0
    symmetric: bool = False
    plan: bool = False

    def header(self, operation: str) -> bytes:
        fields = astuple(self)
        return struct.pack(f"{1 + len(fields)}q", KNN_OPERATIONS[operation], *map(int, fields))
