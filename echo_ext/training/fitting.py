"""The loop: epochs of steps on Lightning Fabric, a checkpoint after each."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.training import schedules
from echo_ext.training.capture import CudaRecorder, RecordedStep, Recorder
from echo_ext.training.configuration import Configuration
from echo_ext.training.deadline import TimeLimitReached
from echo_ext.training.run_directory import RunDirectory
from echo_ext.training.schedules import Stream, derive_seed

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["MEASURED_ROWS", "PREPARED_ROWS", "fit", "make_fabric", "take"]

# Rows that Model.prepare and Model.refresh get, at most: enough for any bank or set of pseudo-inputs.
PREPARED_ROWS = 8192
# Rows encoded at once where no gradient is wanted: few enough that a convolution's output stays in a processor's cache,
# and enough to keep a GPU busy.
MEASURED_ROWS = {"cpu": 100, "cuda": 1000}
# Steps between two looks at the losses where a look waits for the device.
LOOK_EVERY = 50

_LOGGER = logging.getLogger(__name__)


def take(data: LabelledDataset, rows: int, *, seed: int) -> Tensor:
    """The x of at most so many rows, drawn at random without replacement."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.values(order[:rows].to(data.labels.device))


def make_fabric(device: torch.device, precision: str, loggers: Sequence[Any] = ()) -> Fabric:
    """Lightning Fabric on one device, or on all processes that ``torchrun`` started.

    Raises:
        ModuleNotFoundError: Lightning is not installed.
        ValueError: a precision that the device does not have.
    """
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("precision '16-mixed' needs a GPU; on the CPU take 'bf16-mixed' or '32-true'")
    try:
        from lightning.fabric import Fabric
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("training needs Lightning: pip install 'echo-ext[train]'") from missing
    # Set after the import, which sets it: keep what Lightning tells about itself off the console; its warnings stay.
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator=device.type,
        devices=here if processes > 1 or device.type == "cpu" else [device.index or 0],
        num_nodes=max(1, processes // here),
        strategy="ddp" if processes > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        loggers=list(loggers),
    )
    fabric.launch()
    return fabric


def fit(
    model: Model,
    parts: Mapping[str, LabelledDataset],
    configuration: Configuration,
    directory: RunDirectory,
    fabric: Fabric,
    *,
    checkpoint: Mapping[str, Any] | None = None,
    compile: bool = False,
    cuda_graph: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[Mapping[str, float]], None] = lambda row: None,
) -> list[dict[str, float]]:
    """Train to the end, and return what was measured after each epoch; the first process writes the checkpoints.

    Args:
        model: as :meth:`Configuration.build` makes it.
        parts: "train" and "valid".
        configuration: of the run.
        directory: where checkpoints and ``metrics.csv`` go.
        fabric: launched.
        checkpoint: what to resume from.
        compile: run the loss through ``torch.compile``.
        cuda_graph: on a GPU, record the step as a CUDA graph where that is possible.
        should_stop: asked after each step; once it is true, the run is saved as it is in the middle of the epoch.
        on_step: called after each step.
        on_epoch: called after each epoch with its row of the history.

    Raises:
        FloatingPointError: the loss or a term of it is not finite; names the step and the term.
        OSError: a checkpoint could not be written.
        TimeLimitReached: ``should_stop`` was true; resuming the checkpoint continues with the next step.
    """
    history: list[dict[str, float]] = list(checkpoint["history"]) if checkpoint else []
    train, valid = (parts[name].to(fabric.device) for name in ("train", "valid"))
    optimizer = torch.optim.Adam(model.parameter_groups(configuration.learning_rate), fused=True)
    if checkpoint is None:
        torch.manual_seed(derive_seed(configuration.seed, Stream.WEIGHTS, 1))
        model.prepare(take(train, PREPARED_ROWS, seed=derive_seed(configuration.seed, Stream.ROWS)))
    else:
        model.load_state_dict(checkpoint["state_dict"])
        fabric.strategy.precision.load_state_dict(checkpoint["precision"])
    recorder = make_recorder(fabric, configuration) if cuda_graph else None
    objective = Objective(model, train, compile=compile)
    wrapped, wrapped_optimizer = fabric.setup(objective, optimizer)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])  # onto the device that the weights are on by now
    let_the_device_hold_what_changes(optimizer, fabric.device)
    stepper = Stepper(wrapped, wrapped_optimizer, configuration, fabric, recorder=recorder)
    rates = [group["lr"] for group in model.parameter_groups(configuration.learning_rate)]
    patience, warm_up = configuration.patience, configuration.warm_up_epochs
    unfinished: Mapping[str, Any] | None = checkpoint.get("unfinished_epoch") if checkpoint else None

    def save(epoch: int, **more: Any) -> None:
        if fabric.is_global_zero:
            directory.save_checkpoint(
                {
                    "recipe": configuration.recipe,
                    "epoch": epoch,
                    "finished": False,
                    "data_shape": list(model.data_shape),
                    "state_dict": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "precision": fabric.strategy.precision.state_dict(),
                    "history": history,
                    **more,
                }
            )

    for epoch in range(len(history), configuration.epochs):
        if schedules.has_run_out(history, patience, warm_up):
            break
        start = time.perf_counter()
        torch.manual_seed(derive_seed(configuration.seed, Stream.NOISE, epoch, fabric.global_rank))
        factor = schedules.learning_rate_factor(configuration.schedule, epoch, configuration.epochs)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            _set_learning_rate(group, rate * factor)
        model.warmth = schedules.warmth(epoch, warm_up)
        train.set_epoch(epoch)
        batches = schedules.epoch_rows(
            len(train),
            configuration.batch_size,
            seed=configuration.seed,
            epoch=epoch,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        done = None
        if unfinished is not None:
            done = EpochCosts.from_mapping(unfinished["costs"])
            start -= unfinished["seconds"]
            _restore_random_state(unfinished)
            unfinished = None
        costs = stepper.epoch(batches, epoch, on_step, done=done, should_stop=should_stop)
        if len(costs) < len(batches):
            seconds = time.perf_counter() - start
            random_state = _random_state(fabric.device)
            save(epoch, unfinished_epoch={"costs": costs.as_mapping(), "seconds": seconds, **random_state})
            raise TimeLimitReached(f"the time limit was reached in step {len(costs) + 1} of epoch {epoch + 1}")
        trained = _reduced(costs.means(batches), fabric)
        model.warmth = 1.0
        validated = _reduced(_validate(model, valid, fabric), fabric)
        for name, value in validated.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"in the validation after epoch {epoch + 1} {name!r} is {value}")
        history.append(
            {
                "epoch": epoch + 1,
                "step": (epoch + 1) * len(batches),
                "seconds": round(time.perf_counter() - start, 3),
                "learning_rate": rates[0] * factor,
                **{f"train_{name}": value for name, value in trained.items()},
                **{f"valid_{name}": value for name, value in validated.items()},
            }
        )
        save(epoch + 1)
        if fabric.is_global_zero:
            directory.write_metrics(history)
        fabric.log_dict(history[-1], step=int(history[-1]["step"]))
        on_epoch(history[-1])
    return history


def make_recorder(fabric: Fabric, configuration: Configuration) -> Recorder | None:
    """What records steps where they can be recorded: not between processes, nor with a scale that steps may change."""
    if fabric.device.type != "cuda" or fabric.world_size > 1 or configuration.precision == "16-mixed":
        return None
    return CudaRecorder(fabric.device)


def let_the_device_hold_what_changes(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """On a GPU, keep learning rates in tensors there: a recorded step reads them when it is replayed.

    A checkpoint may come from another kind of device, so that nothing is taken from its groups.
    """
    on_gpu = device.type == "cuda"
    for group in optimizer.param_groups:
        group["capturable"] = on_gpu
        group["lr"] = torch.tensor(float(group["lr"]), device=device) if on_gpu else float(group["lr"])


def _set_learning_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that a step draws from."""
    state = {"cpu_random_state": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda_random_state"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu_random_state"])
    if "cuda_random_state" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_random_state"])


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
        weights = torch.tensor([float(len(rows)) for rows in batches], dtype=torch.float64)
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
        self._warmth: float | None = None  # of the steps rehearsed or recorded: Python bakes it into a recording
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
        warmth = self.objective.model.warmth
        if warmth != self._warmth:
            self._warmth, self._rehearsed, self._recorded = warmth, 0, None
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
            self._recorded = self.recorder.record(lambda: self._step(self._rows), costs)
            return costs
        self._rows.copy_(rows)
        self._recorded.replay()
        return self._recorded.costs.clone()

    def _step(self, rows: Tensor) -> Tensor:
        """One step on these rows; the loss and its terms, (terms,)."""
        terms: dict[str, Tensor] = self.objective(rows)
        self.optimizer.zero_grad()
        self.fabric.backward(terms["loss"])
        if self.configuration.normalise_gradients:
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


def _check_finite(costs: Tensor, names: Sequence[str], epoch: int, first: int, steps_before: int) -> None:
    """Refuse the first row of (steps, terms) with a value that is not finite; the parts of the loss before the loss."""
    finite = torch.isfinite(costs)
    if bool(finite.all()):
        return
    step = int((~finite).any(dim=1).nonzero()[0])
    broken = [(name, costs[step, index].item()) for index, name in enumerate(names) if not finite[step, index]]
    name, value = next((pair for pair in broken if pair[0] != "loss"), broken[0])
    raise FloatingPointError(f"in step {steps_before + first + step + 1} (epoch {epoch + 1}) {name!r} is {value}")


@torch.no_grad()
def _validate(model: Model, data: LabelledDataset, fabric: Fabric) -> dict[str, float]:
    """The means of the loss and its terms over this process's share of the rows."""
    model.eval()
    own = torch.arange(len(data) - len(data) % fabric.world_size, device=fabric.device)[
        fabric.global_rank :: fabric.world_size
    ]
    totals: dict[str, Tensor] = {}  # on the device: batches do not wait for them
    for rows in own.split(MEASURED_ROWS[fabric.device.type]):
        with fabric.autocast():
            terms = model.loss(data.values(rows))
        for name, value in terms.items():
            total = value.double() * len(rows)
            totals[name] = totals[name] + total if name in totals else total
    return {name: total.item() / len(own) for name, total in totals.items()}


def _reduced(means: Mapping[str, float], fabric: Fabric) -> dict[str, float]:
    """The mean over processes, which have equal shares."""
    if fabric.world_size == 1:
        return dict(means)
    values = torch.tensor(list(means.values()), dtype=torch.float64, device=fabric.device)
    reduced = fabric.all_reduce(values, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(means, reduced.tolist(), strict=True))
