"""What commands need of a machine: the folder of the data sets, and a device."""

from __future__ import annotations

import argparse
import warnings

import torch

from echo_ext._cuda import cuda_refusal

__all__ = ["add_data_dir", "add_device", "find_device", "torch_refusal"]


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``--data-dir``."""
    what = "folder with the files of the data sets (default: ECHO_EXT_DATA)"
    parser.add_argument("--data-dir", metavar="DIR", help=what)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``--device``, whose value :func:`find_device` checks."""
    parser.add_argument("--device", default="cpu", help="device such as cpu, cuda or cuda:1")


def find_device(name: str) -> torch.device:
    """Return the device of this name, or raise a ValueError if it cannot be used."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if (refusal := torch_refusal() or cuda_refusal()) is not None:
            raise ValueError(f"--device must be a device that can be used, got {name!r}: {refusal}")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device must be one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return device


def torch_refusal() -> str | None:
    """The reason why torch cannot use CUDA on this machine, in one line, or None if it can."""
    with warnings.catch_warnings(record=True) as caught:  # torch warns about drivers that it cannot use
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    reasons = [" ".join(str(warning.message).split()) for warning in caught]
    return f"torch finds no CUDA device{''.join(f': {reason}' for reason in reasons[:1])}"
