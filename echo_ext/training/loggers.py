"""The loggers of Fabric that a run can write besides ``metrics.csv``: TensorBoard, and Weights & Biases.

Each repeats the history of a resumed run, so that its log has every epoch once, whenever the run was killed.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.utilities.rank_zero import rank_zero_only

from echo_ext.training.configuration import Configuration

__all__ = ["make_loggers", "started"]

PROJECT = "echo-ext"  # of Weights & Biases, unless WANDB_PROJECT names another


class TensorBoardLog(TensorBoardLogger):
    """Event files in the folder ``tensorboard`` of a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="tensorboard", version="")

    @rank_zero_only
    def begin(self, *, resume: bool) -> None:
        """Remove the event files of an earlier call, whose history is logged again."""
        for file in Path(self.log_dir).glob("events.out.tfevents.*"):
            file.unlink()


class WandbLog(Logger):
    """A run of Weights & Biases with the name of the folder, which keeps the identity of the run to resume it."""

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        self._folder = folder
        self._configuration = configuration
        self._run: Any = None

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._folder.absolute().name

    @property
    def version(self) -> str | None:
        """The identity of the run, once it has begun."""
        return None if self._run is None else str(self._run.id)

    @rank_zero_only
    def begin(self, *, resume: bool) -> None:
        """Start the run, or continue it."""
        import wandb

        folder = self._folder / "wandb"
        folder.mkdir(exist_ok=True)
        identity = folder / "echo-ext-run"
        if not (resume and identity.is_file()):
            identity.write_text(uuid.uuid4().hex)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=self.name,
                id=identity.read_text()[:32],
                resume="allow",
                dir=self._folder,
                config=self._configuration.as_mapping(),
            )
        except Exception as refused:  # such as a missing login, without a terminal to ask for it
            reason = " ".join(str(refused).split()).rstrip(".")
            advice = "log in by `wandb login`, or set WANDB_MODE=offline"
            raise RuntimeError(f"Weights & Biases cannot start a run: {reason}; {advice}") from refused

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row, unless the run that is continued has it already."""
        if step is None or step >= self._run.step:
            self._run.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the configuration of the run."""
        self._run.config.update(params)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload what is left and end the run."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "success" else 1)


def make_loggers(names: Sequence[str], folder: Path, configuration: Configuration) -> list[Logger]:
    """Return the loggers of these names, for Fabric; they write nothing before they are :func:`started`."""
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLog(folder),
        "wandb": lambda: WandbLog(folder, configuration),
    }
    return [make() for name, make in makers.items() if name in names]


@contextlib.contextmanager
def started(loggers: Sequence[Any], history: Sequence[Mapping[str, float]], *, resume: bool) -> Iterator[None]:
    """Begin the logs with the history of a resumed run, and complete them at the end."""
    status = "failed"
    try:
        for logger in loggers:
            logger.begin(resume=resume)
            for row in history:
                logger.log_metrics(row, step=int(row["step"]))
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
