"""Recording of a training step as a CUDA graph, which the host launches as a whole instead of kernel by kernel."""

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
    """A recorded step: each call of ``replay`` runs it once and writes its losses into ``costs``."""

    costs: Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """The interface of a device that can record steps."""

    def stream(self) -> contextlib.AbstractContextManager[None]:
        """A context for all steps of an epoch, whether they are recorded or not."""

    def rehearse(self, step: Step) -> tuple[Tensor, str | None]:
        """Run a step without recording; return its losses, and the reason if it cannot be recorded."""

    def record(self, step: Step) -> RecordedStep:
        """Record a step without running it. It must have been rehearsed before."""


class CudaRecorder:
    """A recorder of steps on one GPU. It has its own stream, since the default stream cannot be captured.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Make the recorder's stream the current one, synchronized with the outer stream at both ends."""
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream), warnings.catch_warnings():
                # Rehearsals run an optimizer that is capturable, outside of a capture.
                warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
                yield
        finally:
            outer.wait_stream(self._stream)

    def rehearse(self, step: Step) -> tuple[Tensor, str | None]:
        """Run a step while torch reports where the host waits for the device, which a graph cannot contain."""
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
            elif "Synchronization debug mode" not in message:  # torch's own warning about this mode
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return costs, waits

    def record(self, step: Step) -> RecordedStep:
        """Capture a step. The graph owns the memory of its tensors."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            costs = step()
        return RecordedStep(costs, graph.replay)
