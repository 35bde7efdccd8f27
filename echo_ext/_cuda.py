"""Whether this machine can run the CUDA kernels of this build, and what to do where it cannot."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from echo_ext import _C

REBUILD = "ECHO_EXT_CUDA=1 pip install --force-reinstall --no-deps ."

_DRIVER_FILE = Path("/proc/driver/nvidia/version")

# The oldest driver for each major version of CUDA. What is built with one of its minor versions runs with all of them.
_OLDEST_DRIVER = {12: 525, 13: 580}


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, such as 580.159.04, or None where the system does not say."""
    try:
        text = _DRIVER_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b\d{3,}(\.\d+)+", text)
    return found and found[0]


def driver_refusal(supported: int, built: str, version: str | None) -> str | None:
    """Return why a driver cannot run a build, in one line that says what to do, or None where it can.

    Args:
        supported: The newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0 without a driver.
        built: The CUDA version of the build, such as 13.0.88.
        version: The driver's own version, where it is known.
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
    """Return the name of a CUDA version: ``CUDA 12.8`` for 12080."""
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


@functools.cache  # every call into the native CUDA core asks
def cuda_refusal() -> str | None:
    """Return why the native core cannot use CUDA here, in one line that says what to do, or None where it can."""
    if _C.cuda_version is None:
        return f"echo-ext was built without CUDA; rebuild it where nvcc is found: {REBUILD}"
    return driver_refusal(_C.cuda_driver_version(), _C.cuda_version, driver_version())
