"""The files of a run, each written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from echo_ext.training.configuration import Configuration

__all__ = ["CHECKPOINT", "CONFIGURATION", "METRICS", "RESULT", "RunDirectory"]

CONFIGURATION = "config.yaml"
CHECKPOINT = "last.ckpt"
METRICS = "metrics.csv"
RESULT = "result.json"
PART = ".part-"  # how the names of folders begin in which files are written before they take their place


class RunDirectory:
    """A folder with one run in it: ``config.yaml``, ``last.ckpt``, ``metrics.csv``, ``result.json`` and pictures.

    ``last.ckpt`` is of the last finished epoch, and loads with ``torch.load(weights_only=True)``: the model's weights
    under "state_dict", all that training needs to go on beside them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

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
    def is_finished(self) -> bool:
        """Whether all is done and written."""
        return (self.path / RESULT).is_file()

    def begin(self, configuration: Configuration) -> None:
        """Make the folder and write ``config.yaml``.

        Raises:
            FileExistsError: there is a run here, this one or another.
            OSError: the folder cannot be made or written to.
        """
        self.refuse_run(configuration)
        import yaml

        text = yaml.safe_dump(configuration.as_mapping(), sort_keys=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write(CONFIGURATION, text.encode())
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
        import yaml

        try:
            return Configuration.from_mapping(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as wrong:
            raise ValueError(f"{file} is not the configuration of a run: {wrong}") from wrong

    def refuse_run(self, configuration: Configuration) -> None:
        """FileExistsError where there is a run here, this one or another; NotADirectoryError where there is a file."""
        self.expect(configuration)
        if self.holds_run:
            raise FileExistsError(f"{self} holds this run already: resume it (--resume) or choose another folder")
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self} is a file; the folder of a run is wanted")

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
        buffer = io.BytesIO()
        torch.save(dict(checkpoint), buffer)
        try:
            self.write(CHECKPOINT, buffer.getbuffer())
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
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as broken:  # what a damaged file makes of its reader can be anything
            raise ValueError(f"{file} is damaged: it is not a whole checkpoint") from broken
        if not isinstance(checkpoint, dict) or not {"recipe", "state_dict", "epoch"} <= checkpoint.keys():
            raise ValueError(f"{file} is not a checkpoint of echo-ext")
        if checkpoint["recipe"] != configuration.recipe:
            raise ValueError(f"{file} is of recipe {checkpoint['recipe']!r}, not {configuration.recipe!r}")
        return checkpoint

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
        """What ``result.json`` holds; FileNotFoundError or ValueError where there is none or it is damaged."""
        file = self.path / RESULT
        if not file.is_file():
            raise FileNotFoundError(f"the run in {self} is not finished: it has no {RESULT}")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as wrong:
            raise ValueError(f"{file} is damaged: {wrong}") from wrong
        if not isinstance(content, dict):
            raise ValueError(f"{file} is damaged: it is not a mapping")
        return content

    def remove_leftovers(self) -> None:
        """Remove what writers that were killed have left."""
        for folder in self.path.glob(f"{PART}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Put a file in place once every byte of it is on the disk."""
        with self.part(name) as part, part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[Path]:
        """A path to write to, which becomes the file of this name once that is done."""
        with tempfile.TemporaryDirectory(dir=self.path, prefix=PART, ignore_cleanup_errors=True) as folder:
            part = Path(folder) / name
            yield part
            os.replace(part, self.path / name)
