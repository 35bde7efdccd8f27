"""A training step recorded as a CUDA graph, which the host then launches as a whole instead of kernel by kernel."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["CudaRecorder", "RecordedStep", "Recorder"]

Step = Callable[[], Tensor]


class RecordedStep(NamedTuple):
    """A step that can be repeated: each call of ``replay`` takes it once and writes its costs into ``costs``."""

    costs: Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """What the training loop asks of a device that can record steps."""

    def stream(self) -> contextlib.AbstractContextManager[None]:
        """Entered around all steps of an epoch, recorded or not."""

    def rehearse(self, step: Step) -> tuple[Tensor, str | None]:
        """Take a step in the ordinary way; returns its costs, and the reason if it cannot be recorded."""

    def record(self, step: Step) -> RecordedStep:
        """Record a step, which was rehearsed, without taking it."""


class CudaRecorder:
    """Records steps on one GPU, on a stream of its own, since the default stream cannot be captured.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Make the recorder's stream current, in order with the work before and after."""
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream), warnings.catch_warnings():
                # Rehearsals take steps of an optimizer that is made to be captured.
                warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
                yield
        finally:
            outer.wait_stream(self._stream)

    def rehearse(self, step: Step) -> tuple[Tensor, str | None]:
        """Take a step and let torch report where the host waits for the device, which no graph can hold."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                costs = step()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = None
        for warning in caught:
            message = str(warning.message)
            if "synchronizing CUDA operation" in message:
                waits = waits or f"{' '.join(message.split())} ({warning.filename}:{warning.lineno})"
            elif "Synchronization debug mode" not in message:  # torch's remark on the mode itself
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return costs, waits

    def record(self, step: Step) -> RecordedStep:
        """Capture a step; the memory of its tensors belongs to the graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            costs = step()
        return RecordedStep(costs, graph.replay)
