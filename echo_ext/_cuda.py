"""What calls into the native CUDA core share."""

from __future__ import annotations

import torch

from echo_ext import _C


def device_and_stream(name: str, device: torch.device) -> tuple[int, int]:
    """The number of a CUDA device and its current stream's address; ``name`` is the argument that lies there.

    Raises:
        RuntimeError: this build has no CUDA.
    """
    if _C.cuda_version is None:
        raise RuntimeError(
            f"{name} is a CUDA tensor, but this echo_ext was built without CUDA: rebuild it where nvcc is found, with "
            "ECHO_EXT_CUDA=1 pip install --force-reinstall --no-deps . (echo-ext info shows what a build has)"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(index).cuda_stream
