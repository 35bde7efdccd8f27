"""How the benchmarks measure memory: what a call adds to what is in use before it, its results included."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch


def peak_bytes(call, device="cpu"):
    """Bytes that a call adds at its peak: to torch's CUDA memory, or to the process by the operating system's account.

    The latter is that of Linux, and exact to some pages where the process does nothing else: see `in_new_process`.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident_bytes("VmRSS")
    call()
    return max(0, resident_bytes("VmHWM") - before)


def resident_bytes(field):
    """VmRSS, what is resident now, or VmHWM, the maximum since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def in_new_process(function, *arguments, **environment):
    """What a function of a benchmark's module returns in a process of its own, with these environment variables."""
    context = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, environment), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
