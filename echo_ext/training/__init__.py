"""Training of recipes with Lightning Fabric, with run directories, exact resume, evaluation and sweeps."""

from echo_ext.training.application import encode, sample
from echo_ext.training.configuration import Configuration
from echo_ext.training.evaluation import evaluate
from echo_ext.training.fitting import Deadline, TimeLimitReached
from echo_ext.training.run_directory import Run, RunDirectory, load
from echo_ext.training.running import train
from echo_ext.training.sharing import export, pull, push
from echo_ext.training.sweeping import sweep

__all__ = [
    "Configuration",
    "Deadline",
    "Run",
    "RunDirectory",
    "TimeLimitReached",
    "encode",
    "evaluate",
    "export",
    "load",
    "pull",
    "push",
    "sample",
    "sweep",
    "train",
]


def __dir__() -> list[str]:
    return sorted(__all__)
