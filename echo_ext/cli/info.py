"""``echo-ext info``: what this installation is and can do."""

from __future__ import annotations

import argparse
import platform

import torch

import echo_ext
from echo_ext import _C
from echo_ext._cuda import REBUILD, cuda_name, cuda_refusal, driver_version
from echo_ext._versions import versions
from echo_ext.cli.machine import torch_refusal

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show versions, what the native core was built for, and what this machine can run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


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
        return f"{version}, but its library libcuda.so.1 is not found"  # as in a container started without GPUs
    return version or "none found"


def _cuda_built() -> str:
    if _C.cuda_version is None:
        return f"no; where nvcc is found, rebuild with {REBUILD}"
    return f"yes, by nvcc {_C.cuda_version} for architectures {_C.cuda_archs}"


def _cuda_usable() -> str:
    if (refusal := torch_refusal() or cuda_refusal()) is not None:
        return f"no; {refusal}"
    devices = [f"cuda:{index} {_device_state(index)}" for index in range(torch.cuda.device_count())]
    return "; ".join(devices)


def _device_state(index: int) -> str:
    """The device's name, and whether our kernels run on it: the only sure way to know is to run one."""
    name = torch.cuda.get_device_name(index)
    try:
        echo_ext.echo_indices(2, seed=0, device=f"cuda:{index}").cpu()
    except RuntimeError as error:
        return f"({name}): no, {' '.join(str(error).split())}"
    return f"({name}): yes"
