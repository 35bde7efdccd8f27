"""The files of a run, none of which ever holds only a part of its content."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from echo_ext import __version__, _files, _parsing
from echo_ext._files import PART
from echo_ext.metrics.likelihood import rate_name_in
from echo_ext.models import Model
from echo_ext.models.base import load_weights
from echo_ext.training import checkpoints, ownership
from echo_ext.training.configuration import SETTINGS, Configuration
from echo_ext.training.schedules import best_epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "RunDirectory", "checked_result", "load", "load_initial"]

CONFIGURATION_FILE = "config.yaml"
CHECKPOINT_FILE = "last.ckpt"
BEST_FILE = "best.ckpt"
METRICS_FILE = "metrics.csv"
RESULT_FILE = "result.json"
EVALUATION_FILE = "evaluation.json"

# What readers need of a result, besides its rate or rate bound.
_RESULT = {
    **{"recipe": str, "data": str, "beta": _parsing.NUMBER, "seed": int, "rows": {"test": int}},
    **dict.fromkeys(("distortion", "neg_elbo", "epochs", "seconds"), _parsing.NUMBER),
}


class Run(NamedTuple):
    """A trained model with its configuration and history, as :func:`load` returns it.

    Attributes:
        model: The model, in eval mode.
        configuration: The settings of the run.
        history: The losses of each finished epoch, by the names of the columns of ``metrics.csv``.

    Example:
        >>> model, configuration, history = echo_ext.training.load("runs/echo")  # see the example of train
        >>> configuration.recipe, len(history)
        ('echo', 1)
    """

    model: Model
    configuration: Configuration
    history: list[dict[str, float]]


def load(path: str | os.PathLike[str]) -> Run:
    """Load the model of a run, in eval mode.

    Its weights are those of the best epoch so far for a run with early stopping (``patience``), or else those of the
    last checkpoint, which may be one from the middle of an epoch.

    Raises:
        FileNotFoundError: There is no run, or no finished epoch.
        ValueError: A file is damaged, or belongs to another model.

    Example:
        >>> model = echo_ext.training.load("runs/echo").model  # see the example of train
        >>> model.encode_mean(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 4])
    """
    directory = RunDirectory(path)
    configuration = directory.configuration()
    checkpoint = directory.load_checkpoint(configuration)
    if checkpoint["epoch"] == 0:
        raise FileNotFoundError(f"no epoch of the run in {directory} was finished")
    history = checkpoint["history"]
    if configuration.patience is not None:
        checkpoint = directory.load_best(configuration, history)
    shapes = checkpoint["data_shape"], checkpoint["batch_rows"]
    with torch.device("meta"):  # needs no memory, even if the files are hostile
        load_weights(configuration.build(*shapes), checkpoint["state_dict"], assign=True)
    model = configuration.build(*shapes)
    load_weights(model, checkpoint["state_dict"])
    return Run(model.eval(), configuration, history)


def checked_result(content: Any, configuration: Configuration) -> dict[str, Any]:
    """The content of ``result.json`` itself; raises ValueError if it lacks measures or belongs to another run."""
    _parsing.check_structure("it", content, _RESULT)
    _parsing.check_structure("it", content, {rate_name_in(content): _parsing.NUMBER})
    if difference := configuration.first_difference(content, ("recipe", "data", "beta", "seed")):
        raise ValueError(f"it belongs to another run, with {difference}")
    return dict(content)


def load_initial(model: Model, configuration: Configuration) -> None:
    """Load the weights of the ``initial_run`` of a configuration, as :func:`load` gives them, into its model.

    Raises:
        FileNotFoundError: There is no finished run.
        ValueError: A file of the run is damaged, or its data or its model have another shape.
    """
    path = str(configuration.initial_run)
    try:
        recipe = RunDirectory(path).configuration().recipe
        RunDirectory(path).result()
        initial = load(path).model
    except (FileNotFoundError, ValueError) as wrong:
        kind = FileNotFoundError if isinstance(wrong, FileNotFoundError) else ValueError
        raise kind(f"initial_run must be the folder of a finished run, but {wrong}") from wrong
    if initial.data_shape != model.data_shape:
        found = f"{initial.data_shape} in {path}"
        raise ValueError(f"initial_run must be a run on x of shape {model.data_shape}, got {found}")
    wanted = f"a run whose weights fit the model of recipe {configuration.recipe!r}"
    misfit = f"initial_run must be {wanted}, got recipe {recipe!r} in {path}"
    load_weights(model, initial.state_dict(), misfit=misfit)


class RunDirectory:
    """A folder with one run: ``config.yaml``, the checkpoints, ``metrics.csv``, ``result.json`` and figures.

    The checkpoints load with ``torch.load(weights_only=True)``. They hold the weights of the model under "state_dict",
    and the settings that determine it. ``last.ckpt`` is that of the last finished epoch, with all that training needs
    to continue. ``best.ckpt``, which a run with a validation set has too, is that of the epoch with the lowest
    validation loss. With early stopping, it is the model of the run.

    Args:
        path: The folder.
        task: Name of the program that writes there. Each task has its own lock and its own temporary files, so that
            a run can be evaluated while it is being trained.

    Attributes:
        path: The folder.

    Example:
        >>> directory = echo_ext.training.RunDirectory("runs/echo")  # see the example of train
        >>> directory.is_finished, directory.result()["epochs"]
        (True, 1)
    """

    def __init__(self, path: str | os.PathLike[str], task: str = "run") -> None:
        self.path = Path(path)
        self._lock = f"{task}.lock"
        self._part = PART if task == "run" else f".{task}{PART}"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def holds_run(self) -> bool:
        """Whether the folder contains a run."""
        return (self.path / CONFIGURATION_FILE).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether the folder contains a checkpoint."""
        return (self.path / CHECKPOINT_FILE).is_file()

    @property
    def has_result(self) -> bool:
        """Whether there is a ``result.json``, which may be damaged."""
        return (self.path / RESULT_FILE).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete.

        ``result.json``, which is written last, is then there and belongs to this run.
        """
        try:
            self.result()
        except (FileNotFoundError, ValueError):
            return False
        return True

    # ---- Ownership ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def owned(self, *, timeout: float = ownership.TIMEOUT) -> Iterator[None]:
        """Lock the folder for this process, and remove the temporary files of processes that were killed.

        The operating system releases the lock when the process ends, however it ends. Another owner has ``timeout``
        seconds to finish.

        Raises:
            FileExistsError: Another process owns the folder.
            PermissionError: The folder cannot be written to.
            ValueError: The folder cannot be created, or its file system has no locks.
        """
        with ownership.owned(self.path, self._lock, timeout=timeout):
            for folder in self.path.glob(f"{self._part}*"):
                shutil.rmtree(folder, ignore_errors=True)
            yield

    def remove_leftovers(self) -> None:
        """Remove the temporary files of killed processes, unless the folder is in use or not writable."""
        if any(self.path.glob(f"{self._part}*")):
            with contextlib.suppress(OSError, ValueError), self.owned():
                pass

    @contextlib.contextmanager
    def begun(self, configuration: Configuration) -> Iterator[None]:
        """Own the folder and :meth:`begin` a run; one that fails before its first checkpoint leaves no files."""
        with self.owned():
            self.begin(configuration)
            try:
                yield
            except Exception:
                if not self.has_checkpoint:  # resuming could only fail in the same way again
                    for name in (CONFIGURATION_FILE, BEST_FILE):
                        (self.path / name).unlink(missing_ok=True)
                raise

    def begin(self, configuration: Configuration) -> None:
        """Create the folder and ``config.yaml``.

        Raises:
            FileExistsError: The folder contains a run already.
            OSError, ValueError: The folder cannot be created or written to.
        """
        self.refuse_run(configuration)
        import yaml

        text = yaml.safe_dump(configuration.as_mapping(), sort_keys=False)
        with ownership.explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                _files.create(self.path / CONFIGURATION_FILE, text.encode(), prefix=self._part)
            except FileExistsError:
                self.refuse_run(configuration)
                raise

    def refuse_run(self, configuration: Configuration) -> None:
        """Raise FileExistsError if the folder contains a run, NotADirectoryError if the path is a file."""
        self.refuse_other_run(configuration)
        if self.holds_run:
            raise FileExistsError(f"{self} contains this run already; resume it (--resume) or choose another folder")
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self} must be a folder, but it is a file")

    def refuse_owned(self) -> None:
        """Raise FileExistsError if another process owns the folder, or an error of :meth:`owned`."""
        if (self.path / self._lock).exists():
            with self.owned():
                pass

    def refuse_other_run(self, configuration: Configuration) -> None:
        """Raise FileExistsError if the folder contains a run with another configuration."""
        if not self.holds_run:
            return
        if difference := configuration.first_difference(self.configuration().as_mapping(), SETTINGS):
            raise FileExistsError(f"{self} contains another run, with {difference}; choose another folder")

    # ---- Reading -----------------------------------------------------------------------------------------------------

    def configuration(self) -> Configuration:
        """The content of ``config.yaml``; raises FileNotFoundError if there is none, ValueError if it is damaged."""
        file = self.path / CONFIGURATION_FILE
        if not file.is_file():
            raise FileNotFoundError(f"there is no run in {self}: it has no {CONFIGURATION_FILE}")
        try:
            return Configuration.from_mapping(_parsing.read_yaml(file))
        except (ValueError, TypeError) as wrong:
            raise ValueError(f"{file} is not the configuration of a run of echo-ext {__version__}: {wrong}") from wrong

    def load_checkpoint(self, configuration: Configuration) -> dict[str, Any]:
        """The content of ``last.ckpt``, on the CPU.

        Raises:
            FileNotFoundError: No epoch was finished.
            ValueError: The file is damaged, or belongs to another model.
        """
        file = self.path / CHECKPOINT_FILE
        if not file.is_file():
            raise FileNotFoundError(f"no epoch of the run in {self} was finished: it has no {CHECKPOINT_FILE}")
        return checkpoints.read(file, configuration)

    def load_best(self, configuration: Configuration, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """The content of ``best.ckpt``, on the CPU, of a run with this history.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, older than the best epoch of the history, or belongs to another model.
        """
        file, expected = self.path / BEST_FILE, best_epoch(history, configuration.warm_up_epochs)
        if not file.is_file():
            raise FileNotFoundError(f"{file} with the weights of epoch {expected} is missing; train the run again")
        checkpoint = checkpoints.read(file, configuration)
        # Its epoch is the one after the history if the process was killed between its two checkpoints.
        if checkpoint["epoch"] < expected:
            found = f"epoch {checkpoint['epoch']}, but epoch {expected} is the best"
            raise ValueError(f"{file} has the weights of {found}; train the run again")
        return checkpoint

    def result(self) -> dict[str, Any]:
        """The content of ``result.json``.

        Raises:
            FileNotFoundError: The run is not finished.
            ValueError: The file is damaged, or belongs to another run than ``config.yaml``.
        """
        file = self.path / RESULT_FILE
        if not file.is_file():
            raise FileNotFoundError(f"the run in {self} is not finished: it has no {RESULT_FILE}")
        try:
            return checked_result(_parsing.read_json(file), self.configuration())
        except ValueError as wrong:
            raise ValueError(f"{file} is damaged: {wrong}") from wrong

    # ---- Writing -----------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Mapping[str, Any], *, is_best: bool = False) -> None:
        """Replace ``last.ckpt``, and before it ``best.ckpt`` if the checkpoint is that of the best epoch so far.

        If that fails, as on a full disk, an OSError says that the previous one is kept.
        """
        contents = {BEST_FILE: checkpoints.weights_only(checkpoint)} if is_best else {}
        contents[CHECKPOINT_FILE] = dict(checkpoint)
        try:
            with _files.replacements(self.path, *contents, prefix=self._part) as parts:
                for part, content in zip(parts, contents.values(), strict=True):
                    part.write_bytes(checkpoints.dump(content))
        except OSError as refused:
            kept = "the previous one is kept" if self.has_checkpoint else "there is no previous one"
            what = f"the checkpoint of epoch {checkpoint['epoch']}"
            raise OSError(f"{what} could not be written to {self}: {refused.strerror}; {kept}") from refused

    def write_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write ``metrics.csv`` with one row for each finished epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self.write(METRICS_FILE, text.getvalue().encode())

    def write_json(self, name: str, content: object) -> None:
        """Write a JSON file of this name, such as ``result.json``."""
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_figures(self, figures: Mapping[str, Figure]) -> None:
        """Write figures under these names."""
        for name, figure in figures.items():
            with self.replacement(name) as part:
                figure.savefig(part)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Replace a file of this name once its whole content is on the disk."""
        _files.write(self.path / name, content, prefix=self._part)

    def replacement(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A context with a temporary path; the file written there replaces the file of this name at the end."""
        return _files.replacement(self.path / name, prefix=self._part)
