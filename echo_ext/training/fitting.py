"""The training loop with Lightning Fabric, which saves a checkpoint after each epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echo_ext import __version__, _checks
from echo_ext.data import LabeledDataset
from echo_ext.models import Model
from echo_ext.models.base import load_weights
from echo_ext.training import checkpoints, schedules
from echo_ext.training.configuration import Configuration
from echo_ext.training.run_directory import Run, RunDirectory, load_initial
from echo_ext.training.schedules import Stream, derive_seed
from echo_ext.training.stepping import (
    EpochCosts,
    Objective,
    Stepper,
    make_recorder,
    prepare_optimizer,
    set_learning_rate,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Deadline", "TimeLimitReached", "evaluation_batch_size", "fit", "initial_model", "make_fabric", "refresh"]

# Maximum number of values in the rows for Model.prepare, once for each run, and of rows for Model.refresh.
PREPARED_VALUES = 40_000_000
REFRESHED_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A point in time at which training saves a checkpoint and stops.

    Attributes:
        at: The time in seconds of ``time.monotonic``, a clock that all processes of a machine share.

    Example:
        >>> deadline = echo_ext.training.Deadline.after(3600)
        >>> deadline.has_passed
        False
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline this many seconds from now, which must be a positive number."""
        return cls(time.monotonic() + _checks.number("time_limit", seconds, above=0))

    @property
    def has_passed(self) -> bool:
        """Whether training must stop."""
        return time.monotonic() >= self.at


class TimeLimitReached(Exception):
    """Training stopped at its deadline. A checkpoint is saved, from which resuming continues with the next step.

    Example:
        >>> from echo_ext.training import Configuration, Deadline, TimeLimitReached, train
        >>> configuration = Configuration.of("echo", "digits", epochs=100_000)
        >>> try:
        ...     train(configuration, "runs/long", deadline=Deadline.after(1), show_progress=False)
        ... except TimeLimitReached:
        ...     print("train again with resume=True")
        train again with resume=True
    """


def evaluation_batch_size(device: torch.device) -> int:
    """The number of rows to encode at a time without gradients.

    It is small enough that the output of a convolution fits in the cache of a CPU, and large enough to keep a GPU busy.
    """
    return 100 if device.type == "cpu" else 1000


def make_fabric(device: torch.device, precision: str, loggers: Sequence[Any] = ()) -> Fabric:
    """Launch Lightning Fabric on one device, or in all processes that ``torchrun`` started.

    Raises:
        ModuleNotFoundError: Lightning is not installed.
        ValueError: The device does not support the precision.
    """
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("precision must be 'bf16-mixed' or '32-true' on the CPU, got '16-mixed', which needs a GPU")
    _checks.installed("lightning_fabric", purpose="training")
    from lightning_fabric import Fabric

    # The import sets the level to INFO. Lightning's messages about itself are not for the console, its warnings are.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator=device.type,
        devices=local_processes if processes > 1 or device.type == "cpu" else [device.index or 0],
        num_nodes=max(1, processes // local_processes),
        strategy="ddp" if processes > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        loggers=list(loggers),
    )
    fabric.launch()
    return fabric


def initial_model(configuration: Configuration, train: LabeledDataset, processes: int = 1) -> Model:
    """Build the untrained model of a configuration, whose seed determines the weights, for these training rows."""
    torch.manual_seed(derive_seed(configuration.seed, Stream.WEIGHTS))
    return configuration.build(train.data_shape, batch_rows(configuration, train, processes))


def batch_rows(configuration: Configuration, train: LabeledDataset, processes: int) -> int:
    """The number of rows of a full batch whose noise is made of each other's rows."""
    rows = min(configuration.batch_size, len(train) // processes)
    return rows * processes if configuration.model_settings.get("sync") else rows


def fit(
    model: Model,
    parts: Mapping[str, LabeledDataset],
    configuration: Configuration,
    fabric: Fabric,
    directory: RunDirectory | None = None,
    *,
    checkpoint: Mapping[str, Any] | None = None,
    compile: bool = False,
    cuda_graph: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[], object] = lambda: None,
    on_epoch: Callable[[Mapping[str, float]], object] = lambda row: None,
) -> Run:
    """Train until the last epoch; return the run with the losses, the learning rate and the seconds of each epoch.

    The weights of the returned model are those of the last epoch, also with early stopping.

    Args:
        model: The :func:`initial_model` of the configuration.
        parts: The data sets "train" and, unless nothing is held out, "valid".
        configuration: The configuration of the run.
        fabric: A Fabric that has been launched.
        directory: The folder in which the first process saves a checkpoint after each epoch, and the best one so far;
            None saves nothing.
        checkpoint: The checkpoint to resume from; None to start from the beginning.
        compile: Whether to compile the loss with ``torch.compile``.
        cuda_graph: Whether to record the step as a CUDA graph, if the device and the model allow it.
        should_stop: Called after each step. Once it returns True, a checkpoint is saved in the middle of the epoch.
        on_step: Called after each step.
        on_epoch: Called after each epoch with its row of the history.

    Raises:
        FileNotFoundError: The ``initial_run`` of the configuration is no finished run.
        FloatingPointError: The loss or one of its terms is not finite; the message names the step and the term.
        OSError: A checkpoint could not be written.
        TimeLimitReached: ``should_stop`` returned True; resuming the checkpoint continues with the next step.
        ValueError: The checkpoint or the ``initial_run`` belongs to another model.
    """
    history: list[dict[str, float]] = list(checkpoint["history"]) if checkpoint else []
    train, valid = (parts[name].to(fabric.device) if name in parts else None for name in ("train", "valid"))
    assert train is not None
    optimizer = torch.optim.Adam(model.parameter_groups(configuration.learning_rate), fused=True)
    if checkpoint is None and configuration.initial_run is not None:
        load_initial(model, configuration)
    elif checkpoint is None:
        torch.manual_seed(derive_seed(configuration.seed, Stream.WEIGHTS, 1))
        model.prepare(_sample_rows(train, configuration, max(1, PREPARED_VALUES // math.prod(train.data_shape))))
    else:
        load_weights(model, checkpoint["state_dict"])
        with _restoring("precision"):
            fabric.strategy.precision.load_state_dict(checkpoint["precision"])
    recorder = make_recorder(fabric, configuration) if cuda_graph else None
    wrapped, wrapped_optimizer = fabric.setup(Objective(model, train, compile=compile), optimizer)
    if checkpoint is not None and not checkpoint["finished"]:
        _restore_optimizer(optimizer, checkpoint)
    prepare_optimizer(optimizer, fabric.device, recorded=recorder is not None)
    stepper = Stepper(wrapped, wrapped_optimizer, configuration, fabric, recorder)
    rows = batch_rows(configuration, train, fabric.world_size)
    warm_up = configuration.warm_up_epochs
    unfinished: Mapping[str, Any] | None = checkpoint.get("unfinished_epoch") if checkpoint else None

    def save(epoch: int, *, is_best: bool = False, **more: Any) -> None:
        if directory is not None and fabric.is_global_zero:
            identity = checkpoints.model_identity(configuration)
            shapes = {"data_shape": list(model.data_shape), "batch_rows": rows}
            content = {**identity, **shapes, "epoch": epoch, "history": history, **more}
            states = {
                "state_dict": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "precision": fabric.strategy.precision.state_dict(),
            }
            versions = {"format": checkpoints.FORMAT, "version": __version__}
            directory.save_checkpoint({**versions, **content, **states, "finished": False}, is_best=is_best)

    for epoch in range(len(history), configuration.epochs):
        if schedules.should_stop_early(history, configuration.patience, warm_up):
            break
        start = time.perf_counter()
        torch.manual_seed(derive_seed(configuration.seed, Stream.NOISE, epoch, fabric.global_rank))
        factor = schedules.learning_rate_factor(configuration.schedule, epoch, configuration.epochs, warm_up)
        learning_rate = configuration.learning_rate * factor
        # The first group; those of parts with settings of their own, such as a discriminator, keep their rates.
        set_learning_rate(optimizer.param_groups[0], learning_rate)
        from_zero = configuration.warm_up_from_zero
        model.warm_up_weight = schedules.warm_up_weight(epoch, warm_up, from_zero=from_zero)
        train.set_epoch(epoch)
        place = {"epoch": epoch, "rank": fabric.global_rank, "world_size": fabric.world_size}
        batches = schedules.epoch_rows(len(train), configuration.batch_size, seed=configuration.seed, **place)
        done = None
        if unfinished is not None:
            done = EpochCosts(list(unfinished["costs"]["names"]), list(unfinished["costs"]["values"]))
            start -= unfinished["seconds"]
            with _restoring("random state"):
                torch.set_rng_state(unfinished["cpu_random_state"])
                if "cuda_random_state" in unfinished and torch.cuda.is_available():
                    torch.cuda.set_rng_state(unfinished["cuda_random_state"])
            unfinished = None
        costs = stepper.epoch(batches, epoch, on_step, done=done, should_stop=should_stop)
        if len(costs) < len(batches):
            saved = {"names": costs.names, "values": torch.stack(costs.values).cpu()}
            seconds = time.perf_counter() - start
            state = {"cpu_random_state": torch.get_rng_state()}
            if fabric.device.type == "cuda":
                state["cuda_random_state"] = torch.cuda.get_rng_state(fabric.device)
            save(epoch, unfinished_epoch={"costs": saved, "seconds": seconds, **state})
            raise TimeLimitReached(f"the time limit was reached in step {len(costs) + 1} of epoch {epoch + 1}")
        trained = _reduced(costs.means(batches), fabric)
        model.warm_up_weight = 1.0
        model.eval()
        validated = {}
        if valid is not None:
            refresh(model, train, configuration)
            validated = _reduced(_validate(model, valid, fabric), fabric)
        for name, value in validated.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"in the validation after epoch {epoch + 1} {name!r} is {value}")
        row = {
            **{"epoch": epoch + 1, "step": (epoch + 1) * len(batches)},
            **{"seconds": round(time.perf_counter() - start, 3), "learning_rate": learning_rate},
            **{f"train_{name}": value for name, value in trained.items()},
            **{f"valid_{name}": value for name, value in validated.items()},
        }
        history.append(row)
        save(epoch + 1, is_best=valid is not None and schedules.best_epoch(history, warm_up) == epoch + 1)
        if directory is not None and fabric.is_global_zero:
            directory.write_metrics(history)
        fabric.log_dict(row, step=int(row["step"]))
        on_epoch(row)
    return Run(model, configuration, history)


def refresh(model: Model, train: LabeledDataset, configuration: Configuration) -> None:
    """Let a model in eval mode update its stored statistics of the training rows to its current weights."""
    torch.manual_seed(derive_seed(configuration.seed, Stream.REFRESH))
    model.refresh(_sample_rows(train, configuration, REFRESHED_ROWS).to(next(model.parameters()).device))


def _sample_rows(data: LabeledDataset, configuration: Configuration, maximum: int) -> Tensor:
    """The x of up to so many random rows, drawn without replacement."""
    generator = torch.Generator().manual_seed(derive_seed(configuration.seed, Stream.ROWS))
    order = torch.randperm(len(data), generator=generator, device="cpu")
    return data.values(order[:maximum].to(data.labels.device))


@contextlib.contextmanager
def _restoring(what: str) -> Iterator[None]:
    """Report any error that torch raises about a damaged state in one line."""
    try:
        yield
    except Exception as wrong:
        raise ValueError(f"the {what} of the checkpoint cannot be restored: {wrong!s:.100}") from wrong


def _restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Mapping[str, Any]) -> None:
    """Load the moments of the checkpoint to the device of the weights; settings come from the configuration."""
    with _restoring("optimizer"):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": checkpoint["optimizer"]["state"], "param_groups": groups})
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if not isinstance(value, Tensor) or value.shape not in (parameter.shape, torch.Size()):
                    raise ValueError(f"{name} does not have its parameter's shape {tuple(parameter.shape)}")


@torch.no_grad()
def _validate(model: Model, data: LabeledDataset, fabric: Fabric) -> dict[str, float]:
    """The means of the loss and its terms over the rows of this process."""
    shared = torch.arange(len(data) - len(data) % fabric.world_size, device=fabric.device)
    batches = shared[fabric.global_rank :: fabric.world_size].split(evaluation_batch_size(fabric.device))
    costs = EpochCosts()
    for rows in batches:
        with fabric.autocast():
            terms = model.loss(data.values(rows))
        costs.names = list(terms)
        costs.values.append(torch.stack([value.double() for value in terms.values()]))
    return costs.means(batches)


def _reduced(means: Mapping[str, float], fabric: Fabric) -> dict[str, float]:
    """The mean over all processes, which have equally many rows."""
    values = torch.tensor(list(means.values()), dtype=torch.float64, device=fabric.device)
    reduced = fabric.all_reduce(values, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(means, reduced.tolist(), strict=True))
