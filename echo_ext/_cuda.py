"""What calls into the native CUDA core share."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch

from echo_ext import _C

REBUILD = "ECHO_EXT_CUDA=1 pip install --force-reinstall --no-deps ."

_DRIVER_FILE = Path("/proc/driver/nvidia/version")

# The oldest driver for each major version of CUDA. What is built with one of its minor versions runs with all of them.
_OLDEST_DRIVER = {12: 525, 13: 580}


def driver_version() -> str | None:
    """The version of the NVIDIA driver, such as 580.159.04; None where the system does not tell it."""
    try:
        text = _DRIVER_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b\d{3,}(\.\d+)+", text)
    return found and found[0]


def driver_refusal(supported: int, built: str, version: str | None) -> str | None:
    """Why a driver cannot run a build, in one line that says what to do; None where it can.

    Args:
        supported: the newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0 without a driver.
        built: the CUDA version of the build, such as 13.0.88.
        version: the driver's own version, where it is known.
    """
    major, minor = (int(part) for part in built.split(".")[:2])
    if supported // 1000 >= major:
        return None
    oldest = f"driver {_OLDEST_DRIVER[major]}" if major in _OLDEST_DRIVER else f"a driver for CUDA {major}.0"
    needs = f"echo-ext was built with CUDA {major}.{minor}, which needs {oldest} or newer"
    if not supported:
        return f"no NVIDIA driver was found; {needs}: install one"
    driver = f"the NVIDIA driver{f' {version}' if version else ''} ({cuda_name(supported)})"
    rebuild = f"CUDACXX=/usr/local/cuda-12/bin/nvcc {REBUILD}"
    remedy = f", or rebuild with a system CUDA 12 toolkit (driver 525 or newer): {rebuild}" if major > 12 else ""
    return f"{driver} is too old; {needs}: update the driver{remedy}"


def cuda_name(version: int) -> str:
    """``CUDA 12.8`` for 12080."""
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


@functools.cache  # every call into the native CUDA core asks
def cuda_refusal() -> str | None:
    """Why the native core cannot use CUDA on this machine, in one line that says what to do; None where it can."""
    if _C.cuda_version is None:
        return f"echo-ext was built without CUDA; rebuild it where nvcc is found: {REBUILD}"
    return driver_refusal(_C.cuda_driver_version(), _C.cuda_version, driver_version())


def device_and_stream(name: str, device: torch.device) -> tuple[int, int]:
    """The number of a CUDA device and its current stream's address; ``name`` is the argument that lies there.

    Raises:
        RuntimeError: this build has no CUDA, or the machine's driver is too old for it.
    """
    if (refusal := cuda_refusal()) is not None:
        raise RuntimeError(f"{name} is a CUDA tensor, but {refusal}")
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(index).cuda_stream
