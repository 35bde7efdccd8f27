"""The files of a run, each written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from echo_ext import _checks
from echo_ext.training import checkpoints, ownership, parsing
from echo_ext.training.configuration import Configuration

__all__ = ["CHECKPOINT", "CONFIGURATION", "METRICS", "RATES", "RESULT", "RunDirectory"]

CONFIGURATION = "config.yaml"
CHECKPOINT = "last.ckpt"
METRICS = "metrics.csv"
RESULT = "result.json"
RATES = {"rate": "rate", "rate_bound": "rate bound"}  # key in result.json and name in tables
PART = ".part-"  # how the names of folders begin in which files are written before they take their place


class RunDirectory:
    """A folder with one run in it: ``config.yaml``, ``last.ckpt``, ``metrics.csv``, ``result.json`` and pictures.

    ``last.ckpt`` is of the last finished epoch, and loads with ``torch.load(weights_only=True)``: the model's weights
    under "state_dict", all that training needs to go on beside them.

    Args:
        path: The folder.
        task: What is written there. Each task has a lock and unfinished files of its own, so that a run can be
            evaluated while it is being trained.
    """

    def __init__(self, path: str | os.PathLike[str], task: str = "run") -> None:
        self.path = Path(path)
        self._lock = f"{task}.lock"
        self._part = PART if task == "run" else f".{task}{PART}"

    def __str__(self) -> str:
        return str(self.path)

    # ---- Configuration -----------------------------------------------------------------------------------------------

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / CONFIGURATION).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether an epoch of it was finished."""
        return (self.path / CHECKPOINT).is_file()

    @property
    def has_result(self) -> bool:
        """Whether there is a ``result.json``, whatever is in it."""
        return (self.path / RESULT).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether all is done and written: ``result.json`` is the last file, and it is of this run."""
        try:
            self.result()
        except (FileNotFoundError, ValueError):
            return False
        return True

    # ---- Ownership ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def owned(self, *, patience: float = ownership.PATIENCE) -> Iterator[None]:
        """Be the only one who writes here, and remove what writers that were killed have left.

        The operating system frees the folder when the process ends, however it ends.

        Args:
            patience: How many seconds to wait for another owner to end.

        Raises:
            FileExistsError: Another process owns the folder; the message names the process.
            OSError, ValueError: The folder cannot be made, written to or locked.
        """
        with ownership.owned(self.path, self._lock, patience=patience):
            for folder in self.path.glob(f"{self._part}*"):
                shutil.rmtree(folder, ignore_errors=True)
            yield

    def remove_leftovers(self) -> None:
        """Remove what writers that were killed have left, unless somebody writes here now or nobody can."""
        if any(self.path.glob(f"{self._part}*")):
            with contextlib.suppress(OSError, ValueError), self.owned():
                pass

    @contextlib.contextmanager
    def begun(self, configuration: Configuration) -> Iterator[None]:
        """Own the folder, and begin a run in it; a run that fails before its first checkpoint leaves no trace.

        Raises:
            FileExistsError: There is a run here, this one or another.
            OSError, ValueError: As :meth:`owned`.
        """
        with self.owned():
            self.begin(configuration)
            try:
                yield
            except Exception:
                if not self.has_checkpoint:
                    self.forget()  # it could only fail in the same way again
                raise

    def begin(self, configuration: Configuration) -> None:
        """Make the folder and write ``config.yaml``, which must not be there.

        Raises:
            FileExistsError: there is a run here, this one or another.
            OSError: the folder cannot be made or written to.
        """
        self.refuse_run(configuration)
        import yaml

        text = yaml.safe_dump(configuration.as_mapping(), sort_keys=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._create(CONFIGURATION, text.encode())
        except FileExistsError:
            self.refuse_run(configuration)
            raise
        except PermissionError as refused:
            raise PermissionError(f"{self} is not writable: {refused.strerror}") from refused
        except OSError as refused:
            raise ValueError(f"{self} is not writable: {refused.strerror}") from refused

    def forget(self) -> None:
        """Take back what :meth:`begin` did; the folder stays where there is more in it."""
        (self.path / CONFIGURATION).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def configuration(self) -> Configuration:
        """What ``config.yaml`` says.

        Raises:
            FileNotFoundError: nothing was saved here.
            ValueError: the file is not a configuration.
        """
        file = self.path / CONFIGURATION
        if not file.is_file():
            raise FileNotFoundError(f"there is no run in {self}: it has no {CONFIGURATION}")
        try:
            return Configuration.from_mapping(parsing.read_yaml(file))
        except (ValueError, TypeError) as wrong:
            raise ValueError(f"{file} is not the configuration of a run: {wrong}") from wrong

    def refuse_run(self, configuration: Configuration) -> None:
        """FileExistsError where there is a run here, this one or another; NotADirectoryError where there is a file."""
        self.expect(configuration)
        if self.holds_run:
            raise FileExistsError(f"{self} holds this run already: resume it (--resume) or choose another folder")
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self} is a file; the folder of a run is wanted")

    def refuse_owned(self) -> None:
        """FileExistsError where another process owns the folder now."""
        if (owner := ownership.describe_owner(self.path, self._lock)) is not None:
            raise FileExistsError(f"{self} is in use by {owner}; wait until it has ended")

    def expect(self, configuration: Configuration) -> None:
        """FileExistsError where the folder holds a run with another configuration."""
        if self.holds_run and (difference := configuration.first_difference(self.configuration())):
            raise FileExistsError(f"{self} holds another run: it has {difference}; choose another folder")

    # ---- Checkpoint --------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Replace ``last.ckpt``; where that fails the one before is still there.

        Raises:
            OSError: the disk is full, read-only or gone.
        """
        try:
            self.write(CHECKPOINT, checkpoints.dump(checkpoint))
        except OSError as refused:
            kept = "the one before it is kept" if self.has_checkpoint else "there is none before it"
            what = f"the checkpoint of epoch {checkpoint['epoch']}"
            raise OSError(f"{what} could not be written to {self}: {refused.strerror}; {kept}") from refused

    def load_checkpoint(self, configuration: Configuration) -> dict[str, Any]:
        """What ``last.ckpt`` holds, on the CPU.

        Raises:
            FileNotFoundError: no epoch was finished.
            ValueError: the file is damaged, or of another recipe.
        """
        file = self.path / CHECKPOINT
        if not file.is_file():
            raise FileNotFoundError(f"no epoch of the run in {self} was finished: it has no {CHECKPOINT}")
        return checkpoints.read(file, configuration.recipe)

    # ---- Tables and results ------------------------------------------------------------------------------------------

    def write_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """One row of ``metrics.csv`` for each finished epoch."""
        columns = list(dict.fromkeys(name for row in history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self.write(METRICS, text.getvalue().encode())

    def write_json(self, name: str, content: object) -> None:
        """A file such as ``result.json``."""
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any]:
        """What ``result.json`` holds.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, or of another run than ``config.yaml``.
        """
        file = self.path / RESULT
        if not file.is_file():
            raise FileNotFoundError(f"the run in {self} is not finished: it has no {RESULT}")
        try:
            content = parsing.read_json(file)
            _check_result(content, self.configuration())
        except ValueError as wrong:
            raise ValueError(f"{file} is damaged: {wrong}") from wrong
        assert isinstance(content, dict)
        return content

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Put a file in place once every byte of it is on the disk."""
        with self.part(name) as part:
            _write_through(part, content)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[Path]:
        """A path to write to, which becomes the file of this name once that is done."""
        with tempfile.TemporaryDirectory(dir=self.path, prefix=self._part, ignore_cleanup_errors=True) as folder:
            part = Path(folder) / name
            yield part
            os.replace(part, self.path / name)

    def _create(self, name: str, content: bytes) -> None:
        """Put a file in place whole, or raise FileExistsError where there is one."""
        with tempfile.TemporaryDirectory(dir=self.path, prefix=self._part, ignore_cleanup_errors=True) as folder:
            part = Path(folder) / name
            _write_through(part, content)
            try:
                os.link(part, self.path / name)
            except OSError as refused:
                if refused.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                os.replace(part, self.path / name)  # the file system has no links, and the lock alone must do


def _write_through(file: Path, content: bytes | memoryview) -> None:
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _check_result(content: object, configuration: Configuration) -> None:
    """Refuse what is not the whole result of a run with this configuration."""
    if not isinstance(content, dict):
        raise ValueError("it is not a mapping")
    for name in ("recipe", "data", "beta", "seed"):
        if name not in content:
            raise ValueError(f"it has no {name!r}")
        if content[name] != getattr(configuration, name):
            found, wanted = _checks.brief(content[name]), _checks.brief(getattr(configuration, name))
            raise ValueError(f"it is of another run, with {name} {found}, not {wanted}")
    rate = next((name for name in RATES if name in content), "rate")
    for name in (rate, "distortion", "neg_elbo", "epochs", "seconds"):
        if not _is_number(content.get(name)):
            raise ValueError(f"its {name!r} must be a number, got {_checks.brief(content.get(name))}")
    rows = content.get("rows")
    if not isinstance(rows, dict) or not _is_number(rows.get("test")):
        raise ValueError("it does not say how many rows were measured")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
