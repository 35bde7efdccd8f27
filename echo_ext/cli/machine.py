"""What commands ask of the machine: packages and a device."""

from __future__ import annotations

import importlib.util
import warnings

import torch

from echo_ext._cuda import cuda_refusal

__all__ = ["check_installed", "find_device", "torch_refusal"]


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
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if (refusal := torch_refusal() or cuda_refusal()) is not None:
            raise ValueError(f"--device is {name!r}, but {refusal}")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device is {name!r}, but there are only {torch.cuda.device_count()} CUDA devices")
    return device


def torch_refusal() -> str | None:
    """Why torch cannot use CUDA on this machine, in one line; None where it can."""
    with warnings.catch_warnings(record=True) as caught:  # torch warns about drivers that it cannot use
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    reasons = [" ".join(str(warning.message).split()) for warning in caught]
    return f"torch finds no CUDA device{''.join(f': {reason}' for reason in reasons[:1])}"
