"""What commands need of a machine: the folder of the data sets, a device, and permission to write."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path

import torch

from echo_ext._cuda import cuda_refusal

__all__ = ["add_data_dir", "add_device", "check_writable", "find_device", "torch_refusal"]


def add_data_dir(parser: argparse._ActionsContainer) -> None:
    """Add the argument ``--data-dir``."""
    what = "folder with the files of the data sets (default: ECHO_EXT_DATA)"
    parser.add_argument("--data-dir", metavar="DIR", help=what)


def add_device(parser: argparse._ActionsContainer) -> None:
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


def check_writable(name: str, folder: Path, files: Collection[str] = ()) -> None:
    """Refuse a folder in which these files could not be written, without creating anything.

    Args:
        name: The argument that gives the folder, for the error.
        folder: The folder, which need not exist.
        files: Names of files in it.
    """
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if nearest.is_dir():
            tempfile.TemporaryFile(dir=nearest).close()
    except OSError as refused:
        raise ValueError(f"{name} must be writable, got {folder}: {refused.strerror}") from refused
    if not nearest.is_dir():
        raise NotADirectoryError(f"{name} must be a folder, got {folder}, but {nearest} is a file")
    if taken := [file for file in files if (folder / file).is_dir()]:
        raise FileExistsError(f"{name} must have no folder {taken[0]}, which is the name of a result, got {folder}")


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
