"""Steps of the optimizer: on the CPU one by one, on a GPU replayed from a recording where that is possible."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.training.capture import CudaRecorder, RecordedStep, Recorder
from echo_ext.training.configuration import Configuration

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["EpochCosts", "Objective", "Stepper", "make_recorder", "prepare_optimizer", "set_learning_rate"]

# Steps between two looks at the losses where a look waits for the device.
LOOK_EVERY = 50

_LOGGER = logging.getLogger(__name__)


class Objective(nn.Module):
    """The loss on rows of a data set.

    It is the rows that pass through Fabric's wrappers, for these would round x itself to half precision.
    """

    def __init__(self, model: Model, data: LabelledDataset, *, compile: bool = False) -> None:
        super().__init__()
        self.model = model
        self.data = data
        self.loss = torch.compile(model.loss) if compile else model.loss

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """``Model.loss`` of these rows, int64 (B,)."""
        return self.loss(self.data.values(rows))


@dataclasses.dataclass
class EpochCosts:
    """The loss and its terms in each step that an epoch has taken so far.

    Args:
        names: of the loss and its terms.
        values: for each step a float32 tensor (terms,), on the device, so that steps do not wait for it.
    """

    names: list[str] = dataclasses.field(default_factory=list)
    values: list[Tensor] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.values)

    def means(self, batches: Sequence[Tensor]) -> dict[str, float]:
        """The mean of each term over the rows of the epoch's batches."""
        weights = torch.tensor([float(len(rows)) for rows in batches], dtype=torch.float64, device="cpu")
        means = (torch.stack(self.values).cpu().double() * weights.unsqueeze(1)).sum(0) / weights.sum()
        return dict(zip(self.names, means.tolist(), strict=True))

    def as_mapping(self) -> dict[str, Any]:
        """What a checkpoint holds of an unfinished epoch."""
        return {"names": self.names, "values": torch.stack(self.values).cpu()}

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> EpochCosts:
        """The inverse of :meth:`as_mapping`."""
        return cls(list(content["names"]), list(content["values"]))


class Stepper:
    """Steps of the optimizer, and a look at what they cost.

    Args:
        objective: an :class:`Objective`, set up by Fabric.
        optimizer: likewise.
        configuration: of the run.
        fabric: launched.
        recorder: records the step of a full batch, to replay it from then on; None to take every step by itself.
    """

    # Steps taken by themselves before one is recorded: libraries choose algorithms and allocate in their first calls.
    REHEARSALS = 3

    def __init__(
        self,
        objective: Any,
        optimizer: Any,
        configuration: Configuration,
        fabric: Fabric,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.configuration = configuration
        self.fabric = fabric
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.recorder = recorder
        self._names: list[str] = []
        self._warm_up_weight: float | None = (
            None  # of the steps rehearsed or recorded: Python bakes it into a recording
        )
        self._rehearsed = 0
        self._recorded: RecordedStep | None = None
        self._rows = torch.empty(0)

    def epoch(
        self,
        batches: Sequence[Tensor],
        epoch: int,
        on_step: Callable[[], None],
        *,
        done: EpochCosts | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EpochCosts:
        """Take a step on each batch after those that are ``done``, until ``should_stop``; what every step cost."""
        self.objective.train()
        device = self.fabric.device
        every = 1 if device.type == "cpu" else LOOK_EVERY
        costs = EpochCosts() if done is None else EpochCosts(done.names, [value.to(device) for value in done.values])
        looked, last = len(costs), len(batches)
        # One copy for all batches.
        batches = torch.cat(list(batches)).to(device).split([len(rows) for rows in batches])
        with contextlib.nullcontext() if self.recorder is None else self.recorder.stream():
            for index in range(len(costs), last):
                costs.values.append(self._take(batches[index]))
                costs.names = self._names
                stopped = should_stop()
                if index + 1 - looked >= every or index + 1 == last or stopped:
                    _check_finite(torch.stack(costs.values[looked:]), costs.names, epoch, looked, epoch * last)
                    looked = index + 1
                on_step()
                if stopped:
                    break
        return costs

    def _take(self, rows: Tensor) -> Tensor:
        """One step on these rows, recorded or not; what it cost, (terms,)."""
        if self.recorder is None or len(rows) != self.configuration.batch_size:
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
                _LOGGER.warning(
                    "%s: steps are launched kernel by kernel, for a CUDA graph cannot hold them: %s",
                    self.configuration.recipe,
                    obstacle,
                )
                self.recorder = None
                return costs
            self._rows = rows.clone()
            self._recorded = self.recorder.record(lambda: self._step(self._rows))
            return costs
        self._rows.copy_(rows)
        self._recorded.replay()
        return self._recorded.costs.clone()

    def _step(self, rows: Tensor) -> Tensor:
        """One step on these rows; the loss and its terms, (terms,)."""
        terms: dict[str, Tensor] = self.objective(rows)
        self.optimizer.zero_grad()
        self.fabric.backward(terms["loss"])
        if self.configuration.normalize_gradients:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    # A gradient of 0 stays 0.
                    parameter.grad.div_(parameter.grad.norm().clamp_min(torch.finfo(parameter.grad.dtype).tiny))
        if self.configuration.gradient_clip is not None:
            self.fabric.clip_gradients(
                self.objective, self.optimizer, max_norm=self.configuration.gradient_clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self._names = list(terms)
        return torch.stack([value.detach().float() for value in terms.values()])


def make_recorder(fabric: Fabric, configuration: Configuration) -> Recorder | None:
    """What records steps where they can be recorded: not between processes, nor with a scale that steps may change."""
    if fabric.device.type != "cuda" or fabric.world_size > 1 or configuration.precision == "16-mixed":
        return None
    return CudaRecorder(fabric.device)


def prepare_optimizer(optimizer: torch.optim.Optimizer, device: torch.device, *, recorded: bool) -> None:
    """Make an optimizer fit to be recorded, with learning rates in tensors that a replay reads; or fit not to be.

    A checkpoint may come from a run of the other kind, so that nothing is taken from its groups.
    """
    for group in optimizer.param_groups:
        group["capturable"] = recorded
        group["lr"] = torch.tensor(float(group["lr"]), device=device) if recorded else float(group["lr"])


def set_learning_rate(group: dict[str, Any], rate: float) -> None:
    """Give a group of a prepared optimizer another learning rate."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _check_finite(costs: Tensor, names: Sequence[str], epoch: int, first: int, steps_before: int) -> None:
    """Refuse the first row of (steps, terms) with a value that is not finite; the parts of the loss before the loss."""
    finite = torch.isfinite(costs)
    if bool(finite.all()):
        return
    step = int((~finite).any(dim=1).nonzero()[0])
    broken = [(name, costs[step, index].item()) for index, name in enumerate(names) if not finite[step, index]]
    name, value = next((pair for pair in broken if pair[0] != "loss"), broken[0])
    raise FloatingPointError(f"in step {steps_before + first + step + 1} (epoch {epoch + 1}) {name!r} is {value}")
