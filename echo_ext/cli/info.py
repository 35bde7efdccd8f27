"""``echo-ext info``: what this installation is and can do."""

from __future__ import annotations

import argparse
import platform
import warnings

import torch

import echo_ext
from echo_ext import _C
from echo_ext._versions import versions

__all__ = ["HELP", "REBUILD", "add_arguments", "run"]

HELP = "show versions, what the native core was built for, and what this machine can run"

REBUILD = "ECHO_EXT_CUDA=1 pip install --force-reinstall --no-deps ."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(arguments: argparse.Namespace) -> None:
    """Print one fact per line."""
    facts = {
        **versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "CPU": f"{_C.isa()} kernels, {torch.get_num_threads()} threads",
        "CUDA built": _cuda_built(),
        "CUDA usable": _cuda_usable(),
    }
    for name, fact in facts.items():
        print(f"{name:<12}  {fact}")


def _cuda_built() -> str:
    if _C.cuda_version is None:
        return f"no; where nvcc is found, rebuild with {REBUILD}"
    return f"yes, by nvcc {_C.cuda_version} for architectures {_C.cuda_archs}"


def _cuda_usable() -> str:
    if torch.version.cuda is None:
        return f"no; torch {torch.__version__} is a build without CUDA"
    with warnings.catch_warnings(record=True) as caught:  # torch warns about drivers that it cannot use
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if not there:
        reasons = [" ".join(str(warning.message).split()) for warning in caught]
        return f"no; torch finds no device{''.join(f': {reason}' for reason in reasons[:1])}"
    devices = [f"cuda:{index} {_device_state(index)}" for index in range(torch.cuda.device_count())]
    return "; ".join(devices)


def _device_state(index: int) -> str:
    """The device's name, and whether our kernels run on it: the only sure way to know is to run one."""
    name = torch.cuda.get_device_name(index)
    if _C.cuda_version is None:
        return f"({name}): no, the native core has no CUDA"
    try:
        echo_ext.echo_indices(2, seed=0, device=f"cuda:{index}").cpu()
    except RuntimeError as error:
        return f"({name}): no, {' '.join(str(error).split())}"
    return f"({name}): yes"
