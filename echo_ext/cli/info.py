"""The command ``echo-ext info``, which describes the installation."""

from __future__ import annotations

import argparse
import platform

import torch

import echo_ext
from echo_ext import _C
from echo_ext._cuda import REBUILD, cuda_name, cuda_refusal, driver_version
from echo_ext._versions import versions
from echo_ext.cli.machine import torch_refusal

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "show versions, the build options of the native core, and whether this machine can run its CUDA kernels"
EXAMPLES = ("echo-ext info",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(arguments: argparse.Namespace) -> None:
    """Print one fact per line."""
    facts = {
        **versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "CPU": f"{_C.isa()} kernels, {torch.get_num_threads()} threads",
        "driver": _driver(),
        "CUDA built": _cuda_built(),
        "CUDA usable": _cuda_usable(),
    }
    for name, fact in facts.items():
        print(f"{name:<12}  {fact}")


def _driver() -> str:
    version = driver_version()
    if supported := _C.cuda_driver_version():
        return cuda_refusal() or f"{version or 'version unknown'}, supports {cuda_name(supported)}"
    if version is not None and _C.cuda_version is not None:
        return f"{version}, but its library libcuda.so.1 is not found"  # e.g. in a container started without GPUs
    return version or "none found"


def _cuda_built() -> str:
    if _C.cuda_version is None:
        return f"no; rebuild with nvcc installed: {REBUILD}"
    return f"yes, by nvcc {_C.cuda_version} for architectures {_C.cuda_archs}"


def _cuda_usable() -> str:
    if (refusal := torch_refusal() or cuda_refusal()) is not None:
        return f"no; {refusal}"
    return "; ".join(f"cuda:{index} {_device_state(index)}" for index in range(torch.cuda.device_count()))


def _device_state(index: int) -> str:
    """The name of a device and whether the kernels run on it, which only running one can tell."""
    name = torch.cuda.get_device_name(index)
    try:
        echo_ext.echo_indices(2, seed=0, device=f"cuda:{index}").cpu()
    except RuntimeError as error:
        return f"({name}): no, {' '.join(str(error).split())}"
    return f"({name}): yes"
