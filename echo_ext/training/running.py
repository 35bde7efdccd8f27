"""Training of a run from its configuration to its result."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from echo_ext import _checks
from echo_ext._progress import progress, silenced
from echo_ext.data import LabeledDataset
from echo_ext.metrics.likelihood import rate_name_in
from echo_ext.models.base import load_weights
from echo_ext.training import evaluation
from echo_ext.training.configuration import Configuration
from echo_ext.training.fitting import Deadline, TimeLimitReached, fit, initial_model, make_fabric, refresh
from echo_ext.training.processes import picklable, sigterm_interrupts
from echo_ext.training.run_directory import RESULT_FILE, Run, RunDirectory
from echo_ext.training.schedules import epoch_rows

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["LOGGERS", "check_loggers", "train"]

LOGGERS = ("csv", "tensorboard", "wandb")

# Every call trains at least this long, so that repeated calls with a short time limit finish the run.
MINIMUM_SECONDS = 1.0

T = TypeVar("T")


def train(
    configuration: Configuration,
    out: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    compile: bool = False,
    cuda_graph: bool = True,
    loggers: Sequence[str] = (),
    show_progress: bool = True,
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """Train a recipe, evaluate it on the test rows, write everything into a folder and return ``result.json``.

    With early stopping (``patience``), the model is that of the epoch with the lowest validation loss, which the result
    names as ``best_epoch``. On the CPU, a run that was killed and resumed ends with the same weights, bit for bit, as
    an uninterrupted one.

    Under ``torchrun`` all processes train one model. The first process evaluates and writes it, and the others return
    an empty dictionary. The folder is locked during the whole call, so that a second call for it fails and changes
    nothing.

    Args:
        configuration: The settings of the run.
        out: The folder of the run. It must not contain a run, unless ``resume`` is True.
        data_dir: The folder of the data, as ``root`` of :func:`echo_ext.data.load`.
        resume: Whether to continue the run in ``out`` after its last finished epoch. If the run is finished, its result
            is returned; if ``result.json`` is damaged or belongs to another run, the model is evaluated again.
        device: The device to train on.
        compile: Whether to compile the loss with ``torch.compile``.
        cuda_graph: Whether to record the step as a CUDA graph on a GPU, unless the step must wait for the device.
        loggers: Where to log the epochs and the measures of the test rows besides ``metrics.csv``: "tensorboard", to
            ``out/tensorboard``, and "wandb", to Weights & Biases, in the project ``echo-ext`` or that of
            ``WANDB_PROJECT``. "csv" is ``metrics.csv`` itself, which is always written.
        show_progress: Whether to show the progress on stderr: as a bar on a terminal, else as a line every minute.
        deadline: The time at which to save a checkpoint and stop, even in the middle of an epoch, but not before one
            second of training. An evaluation that has started is finished.

    Raises:
        FileExistsError: ``out`` contains a run, or another process owns it.
        FileNotFoundError: There is no run to resume, no finished ``initial_run``, or the files of the data are missing.
        FloatingPointError: The loss or one of its terms is not finite. The last good checkpoint is kept.
        KeyboardInterrupt: Training was interrupted or terminated. The run can be resumed.
        OSError: A file cannot be written. The previous checkpoint is kept.
        TimeLimitReached: The deadline has passed. Resuming the run continues with the next step.
        ValueError: A value is out of range, the data or the ``initial_run`` do not fit, or the checkpoint is damaged.

    Example:
        >>> from echo_ext.training import Configuration, train
        >>> configuration = Configuration.of("echo", "digits", latent_dim=4, epochs=1, limit=200)
        >>> result = train(configuration, "runs/echo", show_progress=False)
        >>> sorted(name for name, value in result.items() if isinstance(value, float))
        ['beta', 'distortion', 'min_rate', 'neg_elbo', 'rate', 'seconds']
    """
    directory, processes = RunDirectory(out), int(os.environ.get("WORLD_SIZE", 1))
    if deadline is not None and processes > 1:
        raise ValueError("deadline must be None for several processes, which might stop after different steps")
    made = _make_loggers(check_loggers(loggers), directory, configuration)
    # Several processes need Fabric first, because only one of them checks the folder and tells the others.
    fabric = make_fabric(torch.device(device), configuration.precision, made) if processes > 1 else None
    try:
        with contextlib.ExitStack() as ownership, silenced(not show_progress):
            finished = _in_first_process(fabric, lambda: _claim(directory, configuration, resume, ownership))
            if finished is not None:
                return finished
            parts = configuration.load_data(data_dir)
            _check_rows(parts, configuration, processes)
            model = initial_model(configuration, parts["train"], processes)
            fabric = fabric or make_fabric(torch.device(device), configuration.precision, made)
            if not resume:
                _in_first_process(fabric, lambda: ownership.enter_context(directory.begun(configuration)))
            checkpoint = directory.load_checkpoint(configuration) if resume and directory.has_checkpoint else None
            ends_with_best = configuration.patience is not None
            if ends_with_best and checkpoint and checkpoint["history"]:
                directory.load_best(configuration, checkpoint["history"])  # fails now rather than after training
            history = checkpoint["history"] if checkpoint else []
            ownership.enter_context(_logging(made, history, resume))
            start = time.monotonic()

            def should_stop() -> bool:
                return deadline is not None and deadline.has_passed and time.monotonic() - start > MINIMUM_SECONDS

            with (
                _interruptible(directory),
                silenced(not fabric.is_global_zero),
                _progress_bar(configuration, parts, fabric, checkpoint) as bar,
            ):
                run = fit(
                    *(model, parts, configuration, fabric, directory),
                    checkpoint=checkpoint,
                    compile=compile,
                    cuda_graph=cuda_graph,
                    should_stop=should_stop,
                    on_step=bar.update,
                    on_epoch=lambda row: _show_epoch(bar, row, configuration.epochs),
                )
            _leave_group()
            if not fabric.is_global_zero:
                return {}
            if should_stop():
                raise TimeLimitReached("the time limit was reached after training, before the model was evaluated")
            with _interruptible(directory, "all epochs are saved"):
                return _finish(run, parts, directory, fabric)
    finally:
        _leave_group()


def check_loggers(names: Sequence[str]) -> list[str]:
    """The names of the loggers besides ``metrics.csv``; raises an error for one that is unknown or not installed."""
    for name in names:
        _checks.choice("loggers", name, LOGGERS)
    found = [name for name in names if name != "csv"]
    for name in found:
        _checks.installed(name, purpose=f"the logger {name!r}", install=name)
    return found


def _make_loggers(names: Sequence[str], directory: RunDirectory, configuration: Configuration) -> list[Any]:
    if not names:
        return []
    _checks.installed("lightning_fabric", purpose="training")
    from echo_ext.training.loggers import make_loggers

    return make_loggers(names, directory.path, configuration)


def _logging(
    loggers: Sequence[Any], history: Sequence[Mapping[str, float]], resume: bool
) -> contextlib.AbstractContextManager[None]:
    """A context in which the loggers are started."""
    if not loggers:
        return contextlib.nullcontext()
    from echo_ext.training.loggers import started

    return started(loggers, history, resume=resume)


def _claim(
    directory: RunDirectory, configuration: Configuration, resume: bool, ownership: contextlib.ExitStack
) -> dict[str, Any] | None:
    """Check that this run may use the folder, and lock it to resume the run; return the result of a finished run."""
    if not resume:
        directory.refuse_owned()
        directory.refuse_run(configuration)
        return None
    if not directory.holds_run:
        raise FileNotFoundError(f"there is nothing to resume in {directory}: it contains no run")
    directory.refuse_other_run(configuration)
    if not directory.is_finished:
        ownership.enter_context(directory.owned())
    if directory.is_finished:  # already before, or since another process has finished it
        directory.remove_leftovers()
        return directory.result()
    return None


def _in_first_process(fabric: Fabric | None, action: Callable[[], T]) -> T:
    """Run the action in the first process; return or raise its outcome in all processes."""
    if fabric is None or fabric.world_size == 1:
        return action()
    outcome: Any = None
    if fabric.is_global_zero:
        try:
            outcome = action()
        except Exception as error:
            outcome = picklable(error)
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return cast(T, outcome)


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_rows(parts: Mapping[str, LabeledDataset], configuration: Configuration, processes: int) -> None:
    """Refuse data that have too few rows for training, validation or test."""
    for name, minimum in (("train", processes), ("valid", processes), ("test", 1)):
        if name in parts and len(parts[name]) < minimum:
            each = ", one for each process" if minimum > 1 else ""
            raise ValueError(
                f"data {configuration.data!r} must have at least {minimum} {name} rows{each}, got {len(parts[name])}"
            )


def _finish(run: Run, parts: Mapping[str, LabeledDataset], directory: RunDirectory, fabric: Fabric) -> dict[str, Any]:
    """Save the model of a trained run, evaluate it, log and write its figures and its result, which is returned."""
    model, configuration = run.model, run.configuration
    checkpoint = directory.load_checkpoint(configuration)
    if not checkpoint["finished"]:
        refresh(model, parts["train"], configuration)
        directory.save_checkpoint({**checkpoint, "finished": True, "state_dict": model.state_dict()})
    best_epoch = {}
    if configuration.patience is not None:
        checkpoint = directory.load_best(configuration, run.history)
        load_weights(model, checkpoint["state_dict"])
        best_epoch = {"best_epoch": checkpoint["epoch"]}
    result = {**evaluation.measure(run, parts["test"]), **best_epoch}
    measures = (rate_name_in(result), "distortion", "neg_elbo")
    fabric.log_dict({f"test_{name}": result[name] for name in measures}, step=int(run.history[-1]["step"]) + 1)
    evaluation.write_figures(run, parts["test"], result, directory)
    directory.write_json(RESULT_FILE, result)  # written last, it marks the run as complete
    return result


def _progress_bar(
    configuration: Configuration,
    parts: Mapping[str, LabeledDataset],
    fabric: Fabric,
    checkpoint: Mapping[str, Any] | None,
) -> contextlib.AbstractContextManager[Any]:
    """A bar over all steps of a run, with the number of the epoch."""
    rows, batch_size, epochs = len(parts["train"]), configuration.batch_size, configuration.epochs
    steps = len(epoch_rows(rows, batch_size, seed=0, epoch=0, world_size=fabric.world_size))
    epoch = done = 0
    if checkpoint is not None:
        unfinished = checkpoint.get("unfinished_epoch")
        epoch = checkpoint["epoch"]
        done = steps * epoch + (len(unfinished["costs"]["values"]) if unfinished else 0)
    name = f"{configuration.recipe} on {configuration.data}"
    return progress(_epoch_label(epoch, epochs), steps * epochs, "step", of=name, done=done, leave=None)


def _epoch_label(finished: int, epochs: int) -> str:
    return f"epoch {min(finished + 1, epochs)}/{epochs}"


def _show_epoch(bar: Any, row: Mapping[str, float], epochs: int) -> None:
    """Show the number of the next epoch, and the last loss."""
    part = "validation" if "valid_loss" in row else "training"
    loss = row["valid_loss" if "valid_loss" in row else "train_loss"]
    bar.set_postfix_str(f"{part} loss {loss:.2f} nats", refresh=False)
    bar.set_description_str(_epoch_label(int(row["epoch"]), epochs), refresh=False)


@contextlib.contextmanager
def _interruptible(directory: RunDirectory, saved: str = "the last finished epoch is saved") -> Iterator[None]:
    """Let SIGTERM stop training, as Ctrl-C does; errors that stop it say what is ``saved``."""
    try:
        with sigterm_interrupts():
            yield
    except (KeyboardInterrupt, FloatingPointError) as stop:
        kept = saved if directory.has_checkpoint else "no epoch was finished"
        if isinstance(stop, FloatingPointError):
            raise FloatingPointError(f"{stop}; {kept}") from None
        raise KeyboardInterrupt(
            f"interrupted; {kept}; continue by: echo-ext train --resume --out {directory}"
        ) from None
