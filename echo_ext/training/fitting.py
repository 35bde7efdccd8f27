"""The loop: epochs of steps on Lightning Fabric, a checkpoint after each."""

from __future__ import annotations

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
from echo_ext.training.configuration import Configuration
from echo_ext.training.run_directory import RunDirectory
from echo_ext.training.schedules import Stream, derive_seed

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["fit", "make_fabric", "take"]

# Rows that Model.prepare and Model.refresh get, at most: enough for any bank or set of pseudo-inputs.
PREPARED_ROWS = 8192
# Rows encoded at once where no gradient is wanted: few enough that a convolution's output stays in cache.
MEASURED_ROWS = 100
# Steps between two looks at the losses where a look waits for the device.
LOOK_EVERY = 50


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
        on_step: called after each step.
        on_epoch: called after each epoch with its row of the history.

    Raises:
        FloatingPointError: the loss or a term of it is not finite; names the step and the term.
        OSError: a checkpoint could not be written.
    """
    history: list[dict[str, float]] = list(checkpoint["history"]) if checkpoint else []
    train, valid = (parts[name].to(fabric.device) for name in ("train", "valid"))
    optimizer = torch.optim.Adam(model.parameter_groups(configuration.learning_rate), fused=True)
    if checkpoint is None:
        torch.manual_seed(derive_seed(configuration.seed, Stream.WEIGHTS, 1))
        model.prepare(take(train, PREPARED_ROWS, seed=derive_seed(configuration.seed, Stream.ROWS)))
    else:
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        fabric.strategy.precision.load_state_dict(checkpoint["precision"])
    objective = Objective(model, train, compile=compile)
    wrapped, wrapped_optimizer = fabric.setup(objective, optimizer)
    stepper = Stepper(wrapped, wrapped_optimizer, configuration, fabric)
    rates = [group["lr"] for group in model.parameter_groups(configuration.learning_rate)]
    patience, warm_up = configuration.patience, configuration.warm_up_epochs

    for epoch in range(len(history), configuration.epochs):
        if schedules.has_run_out(history, patience, warm_up):
            break
        start = time.perf_counter()
        torch.manual_seed(derive_seed(configuration.seed, Stream.NOISE, epoch, fabric.global_rank))
        factor = schedules.learning_rate_factor(configuration.schedule, epoch, configuration.epochs)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
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
        trained = _reduced(stepper.epoch(batches, epoch, on_step), fabric)
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
        if fabric.is_global_zero:
            directory.save_checkpoint(
                {
                    "recipe": configuration.recipe,
                    "epoch": epoch + 1,
                    "finished": False,
                    "data_shape": list(model.data_shape),
                    "state_dict": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "precision": fabric.strategy.precision.state_dict(),
                    "history": history,
                }
            )
            directory.write_metrics(history)
        fabric.log_dict(history[-1], step=int(history[-1]["step"]))
        on_epoch(history[-1])
    return history


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


class Stepper:
    """Steps of the optimiser, and a look at what they cost."""

    def __init__(self, objective: Any, optimizer: Any, configuration: Configuration, fabric: Fabric) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.configuration = configuration
        self.fabric = fabric
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def epoch(self, batches: Sequence[Tensor], epoch: int, on_step: Callable[[], None]) -> dict[str, float]:
        """Take a step on each batch; the means of the loss and its terms over them."""
        self.objective.train()
        every = 1 if self.fabric.device.type == "cpu" else LOOK_EVERY
        costs: list[Tensor] = []  # on the device: steps do not wait for them
        names: list[str] = []
        looked = 0
        for index, rows in enumerate(batches):
            terms = self.step(rows.to(self.fabric.device, non_blocking=True))
            names = list(terms)
            costs.append(torch.stack([value.detach().float() for value in terms.values()]))
            if index + 1 - looked >= every or index + 1 == len(batches):
                _check_finite(torch.stack(costs[looked:]), names, epoch, looked, epoch * len(batches))
                looked = index + 1
            on_step()
        weights = torch.tensor([float(len(rows)) for rows in batches], dtype=torch.float64)
        means = (torch.stack(costs).cpu().double() * weights.unsqueeze(1)).sum(0) / weights.sum()
        return dict(zip(names, means.tolist(), strict=True))

    def step(self, rows: Tensor) -> dict[str, Tensor]:
        """One step on these rows; the loss and its terms, 0-d."""
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
        return terms


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
    totals: dict[str, float] = {}
    for rows in own.split(MEASURED_ROWS):
        with fabric.autocast():
            terms = model.loss(data.values(rows))
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + value.item() * len(rows)
    return {name: total / len(own) for name, total in totals.items()}


def _reduced(means: Mapping[str, float], fabric: Fabric) -> dict[str, float]:
    """The mean over processes, which have equal shares."""
    if fabric.world_size == 1:
        return dict(means)
    values = torch.tensor(list(means.values()), dtype=torch.float64, device=fabric.device)
    reduced = fabric.all_reduce(values, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(means, reduced.tolist(), strict=True))
