"""How tensors reach the native core: dtype codes, addresses of contiguous memory, devices, streams and threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor

from echo_ext._cuda import cuda_refusal

# The native core knows a dtype by its place here.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}


def dtype_code(dtype: torch.dtype) -> int:
    """Return the native core's number for a dtype."""
    return _DTYPE_CODES[dtype]


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor with its values contiguous in memory, as a kernel reads them from its address.

    A tensor with the negative bit holds the negatives of its values, and a zero tensor has no memory at all.
    """
    if tensor.is_neg() or tensor._is_zerotensor():
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()


def address(tensor: Tensor | None) -> int:
    """Return where a dense tensor lies in memory; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def constants(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a few numbers on a device, which fills them in itself: nothing is copied from the host."""
    runs = [torch.full((len(list(run)),), value, dtype=dtype, device=device) for value, run in groupby(values)]
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def workspace(size: int, device: torch.device) -> Tensor:
    """Allocate scratch memory of so many bytes through PyTorch, which knows the stream that uses it."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def device_and_stream(name: str, device: torch.device) -> dict[str, int]:
    """Return the number of a CUDA device and the address of its current stream, as the native core's keywords.

    Args:
        name: The argument whose tensor is on the device, for the error.

    Raises:
        RuntimeError: This build has no CUDA, or the driver of this machine is too old for it.
    """
    if (refusal := cuda_refusal()) is not None:
        raise RuntimeError(f"{name} is a CUDA tensor, but {refusal}")
    index = torch.cuda.current_device() if device.index is None else device.index
    return {"device": index, "stream": torch.cuda.current_stream(index).cuda_stream}


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run on so many threads, those of PyTorch and of the kernels; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
