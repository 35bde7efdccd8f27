"""The versions of the packages that results depend on."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import echo_ext

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Return the version of each package, which is saved with every result."""
    return {
        "echo-ext": echo_ext.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": metadata.version("numpy"),
    }
