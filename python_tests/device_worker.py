"""Calls the CUDA bindings on the emulated device, in a process of its own that a fault in a kernel may end.

Requests arrive on standard input and answers leave on standard output, both pickled. Nothing here needs torch, which
would take long to import.
"""

import ctypes
import importlib.util
import pickle
import sys
from types import ModuleType
from typing import Any, NamedTuple

# Under AddressSanitizer this is its malloc, which guards both ends of the memory.
LIBC = ctypes.CDLL(None)
LIBC.malloc.argtypes, LIBC.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
LIBC.free.argtypes = [ctypes.c_void_p]


class Unwritten(NamedTuple):
    """An argument: the address of so many bytes, which hold NaN until the call writes them.

    Bytes as an argument are the address of memory that holds them.
    """

    size: int


class Native(NamedTuple):
    """An argument: an object of the native module, made for one call."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class BuiltTree(NamedTuple):
    """An argument: a KnnTree with its memory, built by knn_cuda_build."""

    options: dict[str, Any]
    place: dict[str, int]


class Request(NamedTuple):
    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    results: tuple[str, ...] = ()  # the options whose memory is wanted
    descending: bool = False
    runs_kernels: bool = True


class Answer(NamedTuple):
    error: str | None
    value: Any
    results: list[bytes]
    launches: list[tuple[Any, ...]]


class Call:
    """The memory that the arguments of one call lie in."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.addresses: list[int] = []
        self.copies: dict[int, int] = {}  # the same bytes in two arguments are the same memory

    def __call__(self, request: Request) -> tuple[Any, list[bytes]]:
        options = self.resolve_all(request.options)
        value = getattr(self.module, request.name)(*map(self.resolve, request.arguments), **options)
        sizes = {name: request.options[name].size for name in request.results}
        return value, [ctypes.string_at(options[name], size) for name, size in sizes.items()]

    def resolve_all(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: self.resolve(argument) for name, argument in options.items()}

    def resolve(self, argument: Any) -> Any:
        if isinstance(argument, Native):
            arguments, options = map(self.resolve, argument.arguments), self.resolve_all(argument.options)
            return getattr(self.module, argument.name)(*arguments, **options)
        if isinstance(argument, BuiltTree):
            tree = self.module.KnnTree(**self.resolve_all(argument.options))
            memory = self.resolve(Unwritten(tree.bytes()))
            self.module.knn_cuda_build(tree=tree, memory=memory, **argument.place)
            return tree
        if isinstance(argument, Unwritten):
            address = self.allocate(argument.size)
            ctypes.memset(address, 0xFF, argument.size)
            return address
        if isinstance(argument, bytes):
            if id(argument) not in self.copies:
                self.copies[id(argument)] = address = self.allocate(len(argument))
                ctypes.memmove(address, argument, len(argument))
            return self.copies[id(argument)]
        return argument

    def allocate(self, size: int) -> int:
        self.addresses.append(LIBC.malloc(size))
        return self.addresses[-1]

    def free(self) -> None:
        for address in self.addresses:
            LIBC.free(address)


def load(library: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_on_shim", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(module: ModuleType, request: Request) -> Answer:
    module.begin_call(descending=request.descending, runs_kernels=request.runs_kernels)
    call = Call(module)
    try:
        value, results = call(request)
        return Answer(None, value, results, module.launches())
    except Exception as error:
        return Answer(f"{type(error).__name__}: {error}", None, [], [])
    finally:
        call.free()


def main(library: str) -> None:
    module = load(library)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(module, request), sys.stdout.buffer)
        sys.stdout.buffer.flush()
