"""What commands ask of the machine: packages and a device."""

from __future__ import annotations

import importlib.util

import torch

from echo_ext import _C
from echo_ext.cli.info import REBUILD

__all__ = ["check_installed", "find_device"]


def check_installed(*packages: str, command: str, extra: str) -> None:
    """ModuleNotFoundError that names the packages which are missing and the extra that brings them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(f"{command} needs {' and '.join(missing)}: pip install 'echo-ext[{extra}]'")


def find_device(name: str) -> torch.device:
    """The device of this name; ValueError where it cannot be used."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, but is {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device is {name!r}, but torch finds no CUDA device; echo-ext info says why")
        if _C.cuda_version is None:
            raise ValueError(f"--device is {name!r}, but echo-ext was built without CUDA; rebuild with {REBUILD}")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device is {name!r}, but there are only {torch.cuda.device_count()} CUDA devices")
    return device
