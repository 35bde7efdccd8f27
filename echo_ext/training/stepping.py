"""Steps of the optimizer, which a GPU replays from a CUDA graph if the step can be recorded.

A graph is launched as a whole instead of kernel by kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from echo_ext.data import LabeledDataset
from echo_ext.models import Model
from echo_ext.training.configuration import Configuration

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["EpochCosts", "Objective", "Stepper", "make_recorder", "prepare_optimizer", "set_learning_rate"]

# Number of steps between two checks that the losses are finite, on a device that the host must wait for.
CHECK_EVERY = 50

_LOGGER = logging.getLogger(__name__)

Step = Callable[[], Tensor]


class RecordedStep(NamedTuple):
    """A recorded step: each call of ``replay`` runs it once and writes its losses into ``costs``."""

    costs: Tensor
    replay: Callable[[], None]


class CudaRecorder:
    """A recorder of steps on one GPU. It has its own stream, since the default stream cannot be captured."""

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


class Objective(nn.Module):
    """The loss of a model on rows of a data set.

    Its input are the indices of the rows, because Fabric's wrappers would round x to half precision.
    """

    def __init__(self, model: Model, data: LabeledDataset, *, compile: bool = False) -> None:
        super().__init__()
        self.model = model
        self.data = data
        self.loss = torch.compile(model.loss) if compile else model.loss

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """Call ``Model.loss`` on these rows, int64 (B,)."""
        return self.loss(self.data.values(rows))


@dataclasses.dataclass
class EpochCosts:
    """The loss and its terms in all steps of an epoch so far."""

    names: list[str] = dataclasses.field(default_factory=list)
    # A tensor (terms,) for each step, on the device, so that steps do not wait for it.
    values: list[Tensor] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.values)

    def means(self, batches: Sequence[Tensor]) -> dict[str, float]:
        """The mean of each term over all rows of these batches."""
        weights = torch.tensor([float(len(rows)) for rows in batches], dtype=torch.float64, device="cpu")
        means = (torch.stack(self.values).cpu().double() * weights.unsqueeze(1)).sum(0) / weights.sum()
        return dict(zip(self.names, means.tolist(), strict=True))


@dataclasses.dataclass(eq=False)
class Stepper:
    """Runs steps of the optimizer and collects their losses.

    ``objective``, an :class:`Objective`, and ``optimizer`` have been set up by Fabric. A ``recorder`` records the step
    on a full batch once, to replay it from then on.
    """

    # Number of steps before one is recorded, because libraries choose algorithms and allocate memory in their first.
    REHEARSALS = 3

    objective: Any
    optimizer: Any
    settings: Configuration
    fabric: Fabric
    recorder: CudaRecorder | None

    def __post_init__(self) -> None:
        self._names: list[str] = []
        self._warm_up_weight: float | None = None  # of the rehearsed or recorded step, since a recording fixes it
        self._rehearsed = 0
        self._recorded: RecordedStep | None = None
        self._rows = torch.empty(0)

    def epoch(
        self,
        batches: Sequence[Tensor],
        epoch: int,
        on_step: Callable[[], object],
        *,
        done: EpochCosts | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EpochCosts:
        """Run a step on each batch after those that are ``done``, until ``should_stop``; return the losses of all."""
        self.objective.train()
        device = self.fabric.device
        every = 1 if device.type == "cpu" else CHECK_EVERY
        costs = EpochCosts() if done is None else EpochCosts(done.names, [value.to(device) for value in done.values])
        checked, last = len(costs), len(batches)
        # Copy the rows of all batches at once.
        batches = torch.cat(list(batches)).to(device).split([len(rows) for rows in batches])
        with contextlib.nullcontext() if self.recorder is None else self.recorder.stream():
            for index in range(len(costs), last):
                costs.values.append(self._step_or_replay(batches[index]))
                costs.names = self._names
                stopped = should_stop()
                if index + 1 - checked >= every or index + 1 == last or stopped:
                    _check_finite(torch.stack(costs.values[checked:]), costs.names, epoch, checked, epoch * last)
                    checked = index + 1
                on_step()
                if stopped:
                    break
        return costs

    def _step_or_replay(self, rows: Tensor) -> Tensor:
        """Run one step on these rows, from the recording if there is one; return the loss and its terms, (terms,)."""
        if self.recorder is None or len(rows) != self.settings.batch_size:
            return self._step(rows)
        warm_up_weight = self.objective.model.warm_up_weight
        if warm_up_weight != self._warm_up_weight:
            self._warm_up_weight, self._rehearsed, self._recorded = warm_up_weight, 0, None
        if self._recorded is None:
            self._rehearsed += 1
            if self._rehearsed < self.REHEARSALS:
                return self._step(rows)
            costs, obstacle = self.recorder.rehearse(lambda: self._step(rows))
            if obstacle is not None:
                message = "%s: steps are launched kernel by kernel, because a CUDA graph cannot contain them: %s"
                _LOGGER.warning(message, self.settings.recipe, obstacle)
                self.recorder = None
                return costs
            self._rows = rows.clone()
            self._recorded = self.recorder.record(lambda: self._step(self._rows))
            return costs
        self._rows.copy_(rows)
        self._recorded.replay()
        return self._recorded.costs.clone()

    def _step(self, rows: Tensor) -> Tensor:
        """Run one step on these rows; return the loss and its terms, (terms,)."""
        terms: dict[str, Tensor] = self.objective(rows)
        self.optimizer.zero_grad()
        self.fabric.backward(terms["loss"])
        if self.settings.normalize_gradients:
            for parameter in self.objective.parameters():
                if parameter.grad is not None:
                    # The minimum keeps a gradient of 0 at 0.
                    parameter.grad.div_(parameter.grad.norm().clamp_min(torch.finfo(parameter.grad.dtype).tiny))
        if (limit := self.settings.gradient_clip) is not None:
            self.fabric.clip_gradients(self.objective, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        self._names = list(terms)
        return torch.stack([value.detach().float() for value in terms.values()])


def make_recorder(fabric: Fabric, configuration: Configuration) -> CudaRecorder | None:
    """Return a recorder, or None where steps cannot be recorded: between processes, and with dynamic loss scaling."""
    if fabric.device.type != "cuda" or fabric.world_size > 1 or configuration.precision == "16-mixed":
        return None
    return CudaRecorder(fabric.device)


def prepare_optimizer(optimizer: torch.optim.Optimizer, device: torch.device, *, recorded: bool) -> None:
    """Set up an optimizer for recording, which needs learning rates in tensors that a replay reads, or undo that.

    A checkpoint may come from a run with the other setting, so nothing is kept from its parameter groups.
    """
    for group in optimizer.param_groups:
        group["capturable"] = recorded
        group["lr"] = torch.tensor(float(group["lr"]), device=device) if recorded else float(group["lr"])


def set_learning_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a parameter group of a prepared optimizer."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _check_finite(costs: Tensor, names: Sequence[str], epoch: int, first: int, steps_before: int) -> None:
    """Raise FloatingPointError for the first of (steps, terms) that is not finite; name a term rather than the loss."""
    finite = torch.isfinite(costs)
    if bool(finite.all()):
        return
    step = int((~finite).any(dim=1).nonzero()[0])
    broken = [(name, costs[step, index].item()) for index, name in enumerate(names) if not finite[step, index]]
    name, value = next((pair for pair in broken if pair[0] != "loss"), broken[0])
    raise FloatingPointError(f"in step {steps_before + first + step + 1} (epoch {epoch + 1}) {name!r} is {value}")
