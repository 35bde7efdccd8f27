"""The emulated device: the package's CUDA bindings and kernels, built to run on the CPU (see cuda_shim/)."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from device_worker import Answer, BuiltTree, Native, Request, Unwritten

TESTS = Path(__file__).parent
SHIM, CSRC = TESTS / "cuda_shim", TESTS.parent / "csrc"
ECHO_KERNELS, KNN_KERNELS = sorted(CSRC.glob("echo/*.cu")), sorted(CSRC.glob("knn/*.cu"))
# Nothing that a sanitizer could find: both builds have them in common, because they take long to compile.
BINDINGS = [*(CSRC / "bindings" / f"{name}.cpp" for name in ("problems", "echo_cuda", "knn_cuda")), SHIM / "module.cpp"]
SOURCES = [*sorted(CSRC.glob("*/*.cu")), SHIM / "cuda_shim.cpp", SHIM / "self_test.cpp"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unknown-pragmas"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


# ---- Building --------------------------------------------------------------------------------------------------------


def build(folder: Path, *, sanitized: bool) -> Path:
    """The Python module, with or without sanitizers, from the objects in the folder and those that it lacks."""
    compiler, python = shutil.which("g++"), sysconfig.get_path("include")
    pybind11 = pytest.importorskip("pybind11")
    if compiler is None or not Path(python, "Python.h").exists():
        pytest.skip("the emulated device needs g++ and the headers of Python")
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DECHO_EXT_WITH_CUDA", *WARNINGS]
    flags += [f"-I{SHIM}", f"-I{CSRC}", "-isystem", pybind11.get_include(), "-isystem", python]
    options = ["-Og", "-g1", *SANITIZERS] if sanitized else ["-O0"]
    variant = folder / ("sanitized" if sanitized else "plain")
    variant.mkdir(exist_ok=True)
    library = variant / "cuda_on_shim.so"
    if not library.exists():
        objects = compile_missing(variant, SOURCES, [compiler, *flags, *options])
        objects += compile_missing(folder, BINDINGS, [compiler, *flags, "-O0"])
        subprocess.run([compiler, "-shared", *(SANITIZERS if sanitized else []), *objects, "-o", library], check=True)
    return library


def compile_missing(folder: Path, sources: Iterable[Path], command: Sequence[str | Path]) -> list[Path]:
    """The objects of CUDA or C++ sources, two at a time."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        if not target.exists():
            subprocess.run([*command, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


class Usage(NamedTuple):
    """What ptxas reports of a kernel."""

    registers: int
    stack: int
    spills: int


def usage_of(sources: Iterable[Path], folder: Path, architecture: str = "sm_90") -> dict[str, Usage]:
    """The usage of each kernel, by its name."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is needed to know the kernels' registers")
    command = [nvcc, "-std=c++17", "-cubin", f"-arch={architecture}", "-Xptxas=-v", "-DECHO_EXT_WITH_CUDA", f"-I{CSRC}"]
    pattern = r"function '(.+)' for.*\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores.*\n.*Used (\d+) reg"

    def usage_in(source: Path) -> dict[str, Usage]:
        options = ["-fmad=false"] if source.parent.name == "knn" else []
        ran = subprocess.run(
            [*command, *options, source, "-o", folder / source.stem], capture_output=True, text=True, check=True
        )
        found = re.findall(pattern, demangled(ran.stderr + ran.stdout))
        return {short_name(name): Usage(*map(int, (count, stack, spills))) for name, stack, spills, count in found}

    with ThreadPoolExecutor(2) as pool:
        return {name: usage for found in pool.map(usage_in, sources) for name, usage in found.items()}


def demangled(text: str) -> str:
    plain = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout
    return plain.replace("echo_ext::", "").replace("(anonymous namespace)::", "")


def short_name(name: str) -> str:
    """`void kernel<float, 8, true>(...)` without what it returns and takes."""
    return re.sub(r"^void ", "", name).rpartition("(")[0] or name


def names_of_functions(library: Path) -> dict[int, str]:
    """By how far the code of each lies from the anchor."""
    symbols = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]+) [tTwW] (.+)$", demangled(symbols), re.MULTILINE)
    anchor = next(int(address, 16) for address, name in found if name == "cuda_shim_anchor")
    return {int(address, 16) - anchor: short_name(name) for address, name in found}


# ---- Calling ---------------------------------------------------------------------------------------------------------


SOMEWHERE = 16  # the address of memory that a plan neither reads nor writes


class DeviceError(Exception):
    """What a call raised, or the report of the fault that ended its process."""


class Launch(NamedTuple):
    kernel: str
    blocks: tuple[int, int, int]
    threads: int
    shared_bytes: int
    resident_blocks: int  # of a multiprocessor
    meetings: int  # of threads at barriers and warp intrinsics: a measure of the steps taken

    @property
    def name(self) -> str:
        """The kernel's, without template arguments."""
        return self.kernel.split("<")[0]

    @property
    def num_blocks(self) -> int:
        return self.blocks[0] * self.blocks[1] * self.blocks[2]

    def waves(self, multiprocessors: int) -> float:
        """How many times over the blocks fill the device."""
        return self.num_blocks / (self.resident_blocks * multiprocessors)


class Worker:
    """A process that answers requests until a fault ends it; the next request starts another.

    Args:
        library: The sanitized module.
        usage: What ptxas reports of the kernels; without it, all have the same number of registers.
    """

    def __init__(self, library: Path, usage: dict[str, Usage] | None = None) -> None:
        self.library = library
        self.names = names_of_functions(library)
        usage = usage or {}
        self.registers = {number: usage[name].registers for number, name in self.names.items() if name in usage}
        self.launches: list[Launch] = []  # by the last call
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        def path_of(runtime: str) -> str:
            command = ["g++", f"-print-file-name={runtime}.so"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        environment = os.environ | {
            # As in .ci/sanitize.
            "LD_PRELOAD": " ".join(map(path_of, ("libasan", "libubsan", "libstdc++"))),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        command = [sys.executable, "-c", "import sys, device_worker; device_worker.main(sys.argv[1])", self.library]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=TESTS, env=environment)
        self.exchange(Request("set_registers", (self.registers,), {}))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def exchange(self, request: Request) -> Answer:
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            _, errors = self.process.communicate()
            status, self.process = self.process.returncode, None
            raise DeviceError(f"{errors.decode(errors='replace')}(exit status {status})") from None

    def answer(self, request: Request) -> Answer:
        if self.process is None:
            self.start()
        answer = self.exchange(request)
        if answer.error is not None:
            raise DeviceError(answer.error)
        self.launches = [Launch(self.names[number], *rest) for number, *rest in answer.launches]
        return answer


@dataclass(frozen=True)
class Device:
    """One kind of device, as a worker emulates it.

    Args:
        descending: Whether the threads run in descending order between two meeting points.
    """

    worker: Worker
    multiprocessors: int = 4
    shared_bytes: int = 227 * 1024
    descending: bool = False

    @property
    def number(self) -> int:
        return self.shared_bytes // 1024 * 1000 + self.multiprocessors

    @property
    def place(self) -> dict[str, int]:
        return {"device": self.number, "stream": 0}

    @property
    def launches(self) -> list[Launch]:
        """Those of the last call."""
        return self.worker.launches

    def ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a binding for the value that it returns."""
        return self._answer(name, arguments, options).value

    def call(
        self, name: str, *arguments: Any, results: dict[str, torch.Tensor], **options: Any
    ) -> tuple[torch.Tensor, ...]:
        """Call a binding for what it writes.

        Args:
            results: For each keyword that takes the address of a result, a tensor of the shape and dtype of the result.
        """
        options |= {keyword: Unwritten(like.numel() * like.element_size()) for keyword, like in results.items()}
        contents = self._answer(name, arguments, options, tuple(results)).results
        return tuple(as_tensor(content, like) for content, like in zip(contents, results.values(), strict=True))

    def plan(self, name: str, *arguments: Any, **options: Any) -> list[Launch]:
        """The launches that a call of a binding would make, whose tensors need not exist: nothing runs."""
        self._answer(name, arguments, options, runs_kernels=False)
        return self.launches

    def _answer(self, name: str, arguments: tuple, options: dict, results: tuple = (), **settings: bool) -> Answer:
        known: dict[int, bytes] = {}
        options = {keyword: to_worker(value, known) for keyword, value in options.items()}
        arguments = tuple(to_worker(value, known) for value in arguments)
        return self.worker.answer(Request(name, arguments, options, results, self.descending, **settings))


def to_worker(argument: Any, known: dict[int, bytes]) -> Any:
    """An argument with bytes for tensors; the same for a tensor that is known already."""
    if isinstance(argument, torch.Tensor):
        if id(argument) not in known:
            known[id(argument)] = argument.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return known[id(argument)]
    if isinstance(argument, dict):
        return {keyword: to_worker(value, known) for keyword, value in argument.items()}
    if isinstance(argument, (Native, BuiltTree)):
        return type(argument)(*(to_worker(part, known) for part in argument))
    return argument


def as_tensor(content: bytes, like: torch.Tensor) -> torch.Tensor:
    if not content:
        return torch.empty_like(like)
    return torch.frombuffer(bytearray(content), dtype=like.dtype).view(like.shape)
