"""The device that gpu_check.py measures, a GPU or the CPU in its place, and how its cases are run."""

import subprocess
import time
import traceback

import torch
from timing import recorded

import echo_ext


class DeviceLost(Exception):
    """A CUDA error that stays until the process ends: nothing that follows in this process can succeed."""


def first_line(error):
    return next(iter(str(error).splitlines()), "")


class CudaDevice:
    """A GPU. Short calls are timed as replays of CUDA graphs, so that launching costs nothing."""

    type = "cuda"

    def refusal(self):
        """Why nothing can run here, in one line; None where it can."""
        if echo_ext._C.cuda_version is None:
            return f"{echo_ext.__path__[0]} was built without CUDA: benchmarks/gpu_build.sh builds it with CUDA"
        try:
            torch.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as error:  # no device, an old driver, no memory; a torch without CUDA
            return f"torch {torch.__version__} cannot use a CUDA device: {first_line(error)}"
        try:
            echo_ext.echo_indices(2, seed=0, device="cuda").cpu()
        except RuntimeError as error:
            return f"echo_ext, built by nvcc {echo_ext._C.cuda_version}, cannot use the device: {first_line(error)}"
        return None

    def description(self):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            driver = f"unknown: {first_line(error)}"
        return {"device": torch.cuda.get_device_name(), "driver": driver}

    def synchronize(self):
        torch.cuda.synchronize()

    def recover(self):
        """Give memory back after a failed case; raises DeviceLost where the failure has broken the context."""
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLost(first_line(error)) from error

    def repeatable(self, prepare):
        """A function that runs again what ``prepare()`` returns, which is a function without arguments."""
        return recorded(prepare)

    def seconds(self, call, repeats):
        # By events on the device, where some milliseconds suffice: a Timer waits for the device around each block of
        # calls, and makes blocks of at least 10,000 such waits.
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


class CpuStandIn:
    """The CPU behind the same methods, for a dry run: every case does its real work, timed by the clock."""

    type = "cpu"

    def refusal(self):
        return None

    def description(self):
        return {"device": "CPU in place of a GPU", "driver": None}

    def synchronize(self):
        pass

    def recover(self):
        pass

    def repeatable(self, prepare):
        return prepare()

    def seconds(self, call, repeats):
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - begin


class Cases:
    """Runs cases one by one, counts those that fail, and goes on unless the device is lost."""

    def __init__(self, device):
        self.device = device
        self.count = self.failed = 0

    def run(self, name, case):
        """What ``case()`` returns, or None where it failed."""
        self.count += 1
        try:
            value = case()
            self.device.synchronize()  # so that a fault in a kernel is this case's
            return value
        except DeviceLost:  # in a case within this one
            raise
        except Exception as error:
            print(f"FAILED {name}: {type(error).__name__}: {first_line(error)}")
            traceback.print_exc()
        self.failed += 1
        self.device.recover()
        return None
