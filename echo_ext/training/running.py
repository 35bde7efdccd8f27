"""A run from its configuration to its results; and a run's model out of its folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch

from echo_ext import data
from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.training import results
from echo_ext.training.checkpoints import load_weights
from echo_ext.training.configuration import Configuration
from echo_ext.training.deadline import Deadline, TimeLimitReached
from echo_ext.training.fitting import PREPARED_ROWS, fit, make_fabric, take
from echo_ext.training.processes import sendable, terminable
from echo_ext.training.progress import ProgressBar
from echo_ext.training.run_directory import RESULT, RunDirectory
from echo_ext.training.schedules import Stream, derive_seed, epoch_rows

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Run", "load", "load_data", "train"]

# What a run that has begun trains for, whatever the deadline, so that calls with a short time limit come to an end.
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
    tensorboard: bool = False,
    progress: bool = True,
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """Train a recipe, measure it on the test rows, write everything into a folder and return ``result.json``.

    On the CPU a run that was killed and resumed ends with the same weights, bit for bit, as one left alone. Under
    ``torchrun`` all processes train one model; the first one measures and writes it, and the others return an empty
    dictionary. The folder has one owner from the first file to the last: a second call for it is refused and changes
    nothing.

    Args:
        configuration: what to train, on what, and how.
        out: the folder of the run; must not hold one, unless ``resume``.
        data_dir: as ``root`` of :func:`echo_ext.data.load`.
        resume: go on after the last finished epoch of the run in ``out``; if it is done already, return its results.
            A ``result.json`` that is damaged or of another run is measured again.
        device: where to train.
        compile: run the loss through ``torch.compile``.
        cuda_graph: on a GPU, record the step as a CUDA graph, so that the host launches it as a whole. It makes no
            difference elsewhere, nor to a step that waits for the device.
        tensorboard: also log to ``out/tensorboard``.
        progress: show a progress bar where standard error is a terminal.
        deadline: when to stop, in the middle of an epoch too, but not before a second of training. The run is saved
            first; a measurement of the trained model that has begun is finished.

    Raises:
        FileExistsError: ``out`` holds a run, or another process owns it.
        FileNotFoundError: nothing to resume; or the data's files are not there.
        FloatingPointError: the loss or one of its terms is not finite; the last good checkpoint is kept.
        KeyboardInterrupt: interrupted or terminated; the run can be resumed.
        OSError: a file cannot be written; the checkpoint before is kept.
        TimeLimitReached: the deadline has passed; resuming the run continues with the next step.
        ValueError: a value out of range, a model that does not fit the data, a damaged checkpoint; a deadline for
            several processes.
    """
    directory, processes = RunDirectory(out), int(os.environ.get("WORLD_SIZE", 1))
    if deadline is not None and processes > 1:
        raise ValueError("deadline must be None where several processes train one model, which cannot agree on it")
    loggers = _loggers(directory, tensorboard)
    # With several processes first of all, since it is how they hear from the first one whether the folder is theirs.
    fabric = make_fabric(torch.device(device), configuration.precision, loggers) if processes > 1 else None
    try:
        with contextlib.ExitStack() as ownership:
            saved = _agreed(fabric, lambda: _look(directory, configuration, resume, ownership))
            if saved is not None:
                return saved
            parts = load_data(configuration, data_dir)
            _check_rows(parts, configuration, processes)
            torch.manual_seed(derive_seed(configuration.seed, Stream.WEIGHTS))
            model = configuration.build(parts["train"].data_shape)
            fabric = fabric or make_fabric(torch.device(device), configuration.precision, loggers)
            if not resume:
                _agreed(fabric, lambda: ownership.enter_context(directory.begun(configuration)))
            checkpoint = directory.load_checkpoint(configuration) if resume and directory.has_checkpoint else None
            begun = time.monotonic()

            def should_stop() -> bool:
                return deadline is not None and deadline.has_passed and time.monotonic() - begun > MINIMUM_SECONDS

            history = _fit(
                *(model, parts, configuration, directory, fabric),
                checkpoint=checkpoint,
                compile=compile,
                cuda_graph=cuda_graph,
                should_stop=should_stop,
                progress=progress,
            )
            _leave_group()
            if not fabric.is_global_zero:
                return {}
            if should_stop():
                raise TimeLimitReached("the time limit was reached after training, before the model was measured")
            _finish(model, parts["train"], configuration, directory)
            result = results.measure(model, parts["test"], configuration, history)
            results.write_figures(model, parts["test"], configuration, directory, history, result)
            directory.write_json(RESULT, result)  # last: it says that all is there
            return result
    finally:
        _leave_group()


def _look(
    directory: RunDirectory, configuration: Configuration, resume: bool, ownership: contextlib.ExitStack
) -> dict[str, Any] | None:
    """Refuse a folder that this run cannot have, and own that of a run to be resumed; its result where it is done."""
    if not resume:
        directory.refuse_owned()
        directory.refuse_run(configuration)
        return None
    if not directory.holds_run:
        raise FileNotFoundError(f"there is nothing to resume in {directory}: it holds no run")
    directory.expect(configuration)
    if not directory.is_finished:
        ownership.enter_context(directory.owned())
    if directory.is_finished:  # before, or meanwhile
        directory.remove_leftovers()
        return directory.result()
    return None


def _agreed(fabric: Fabric | None, action: Callable[[], T]) -> T:
    """What the action of the first process returns or raises, in all processes."""
    if fabric is None or fabric.world_size == 1:
        return action()
    outcome: Any = None
    if fabric.is_global_zero:
        try:
            outcome = action()
        except Exception as error:
            outcome = sendable(error)
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return cast(T, outcome)


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_rows(parts: Mapping[str, LabelledDataset], configuration: Configuration, processes: int) -> None:
    """Refuse data with a part that is too small to train on, to validate or to measure."""
    for name, least in (("train", processes), ("valid", processes), ("test", 1)):
        if len(parts[name]) < least:
            each = ", one for each process" if least > 1 else ""
            raise ValueError(
                f"data {configuration.data!r} must have at least {least} {name} rows{each}, got {len(parts[name])}"
            )


def _fit(
    model: Model,
    parts: Mapping[str, LabelledDataset],
    configuration: Configuration,
    directory: RunDirectory,
    fabric: Fabric,
    *,
    checkpoint: Mapping[str, Any] | None,
    progress: bool,
    **options: Any,
) -> list[dict[str, float]]:
    """Train with a progress bar; what stops it says what is kept."""
    try:
        with terminable():
            shares = {"rank": fabric.global_rank, "world_size": fabric.world_size}
            steps = len(epoch_rows(len(parts["train"]), configuration.batch_size, seed=0, epoch=0, **shares))
            with ProgressBar(
                f"{configuration.recipe} on {configuration.data}",
                steps=steps * configuration.epochs,
                done=_steps_done(checkpoint, steps) if checkpoint else 0,
                shown=progress and fabric.is_global_zero,
            ) as bar:
                return fit(
                    model,
                    parts,
                    configuration,
                    directory,
                    fabric,
                    checkpoint=checkpoint,
                    on_step=bar.step,
                    on_epoch=bar.epoch,
                    **options,
                )
    except KeyboardInterrupt:
        kept = _what_is_kept(directory)
        raise KeyboardInterrupt(f"interrupted; {kept}; to go on: echo-ext train --resume --out {directory}") from None
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; {_what_is_kept(directory)}") from None


class Run(NamedTuple):
    """What a folder holds: the trained model in eval mode, its configuration, and the history of its epochs."""

    model: Model
    configuration: Configuration
    history: list[dict[str, float]]


def load(path: str | os.PathLike[str]) -> Run:
    """The model of a run, as its last checkpoint has it; in the middle of an epoch, if the run was stopped there.

    Raises:
        FileNotFoundError: there is no run, or no finished epoch.
        ValueError: a file is damaged, or of another recipe.
    """
    directory = RunDirectory(path)
    configuration = directory.configuration()
    checkpoint = directory.load_checkpoint(configuration)
    if checkpoint["epoch"] == 0:
        raise FileNotFoundError(f"no epoch of the run in {directory} was finished")
    with torch.device("meta"):  # takes no memory, whatever the files say
        load_weights(configuration.build(checkpoint["data_shape"]), checkpoint, assign=True)
    model = configuration.build(checkpoint["data_shape"])
    load_weights(model, checkpoint)
    return Run(model.eval(), configuration, checkpoint["history"])


def load_data(
    configuration: Configuration, data_dir: str | os.PathLike[str] | None = None
) -> dict[str, LabelledDataset]:
    """The parts of the run's data, limited and binarized as it says; raises as :func:`echo_ext.data.load`."""
    parts = data.load(configuration.data, data_dir, binarization=configuration.binarization, seed=configuration.seed)
    return {**parts, "train": parts["train"].select(slice(configuration.limit))}


def _steps_done(checkpoint: Mapping[str, Any], steps: int) -> int:
    """How many steps a checkpoint stands for, at so many an epoch."""
    unfinished = checkpoint.get("unfinished_epoch")
    return steps * int(checkpoint["epoch"]) + (len(unfinished["costs"]["values"]) if unfinished else 0)


def _finish(model: Model, train: LabelledDataset, configuration: Configuration, directory: RunDirectory) -> None:
    """Let the model bring its statistics up to date, once."""
    checkpoint = directory.load_checkpoint(configuration)
    if checkpoint["finished"]:
        return
    torch.manual_seed(derive_seed(configuration.seed, Stream.REFRESH))
    rows = take(train, PREPARED_ROWS, seed=derive_seed(configuration.seed, Stream.ROWS))
    model.refresh(rows.to(next(model.parameters()).device))
    directory.save_checkpoint({**checkpoint, "finished": True, "state_dict": model.state_dict()})


def _what_is_kept(directory: RunDirectory) -> str:
    return "the last finished epoch is saved" if directory.has_checkpoint else "no epoch was finished"


def _loggers(directory: RunDirectory, tensorboard: bool) -> list[Any]:
    if not tensorboard:
        return []
    try:
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        return [TensorBoardLogger(directory.path, name="tensorboard", version="")]
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("logging to TensorBoard needs it: pip install 'echo-ext[train]'") from missing
