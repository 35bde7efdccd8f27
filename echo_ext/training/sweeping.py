"""Sweeps: training of a grid of recipes, betas and seeds, and its rate-distortion curves."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from echo_ext import _checks
from echo_ext.metrics import RateDistortion
from echo_ext.training.configuration import Configuration
from echo_ext.training.deadline import Deadline, TimeLimitReached
from echo_ext.training.processes import run_in_processes, sigterm_interrupts
from echo_ext.training.results import evenly_spaced, mean_and_error
from echo_ext.training.run_directory import RATES, RunDirectory
from echo_ext.training.running import load, load_data, train

__all__ = ["Row", "Sweep", "sweep"]

TABLE = "table"
CURVES = "rate_distortion.png"
RECONSTRUCTED_IMAGES = 8
# Seconds to wait while another sweep of the same folder writes its table.
LOCK_TIMEOUT = 60.0


@dataclasses.dataclass(frozen=True)
class Row:
    """The means over the seeds of one recipe and beta in nats per sample, with standard errors (NaN for one seed)."""

    recipe: str
    beta: float
    seeds: int
    rate_kind: str
    rate: float
    rate_error: float
    distortion: float
    distortion_error: float
    neg_elbo: float
    neg_elbo_error: float


class Sweep(NamedTuple):
    """The result of a sweep.

    Attributes:
        rows: The table of the finished runs.
        failures: The folder name and the error of each run that failed.
        unfinished: The folder names of the runs that the time limit stopped or did not let start.
    """

    rows: list[Row]
    failures: dict[str, str]
    unfinished: list[str]


def sweep(
    configurations: Sequence[Configuration],
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    time_limit: float | None = None,
    on_run: Callable[[str, dict[str, Any] | None], None] = lambda name, result: None,
    **options: Any,
) -> Sweep:
    """Train every configuration in a folder of its own; write table.csv, table.json and rate_distortion.png.

    Finished runs are not trained again, and interrupted runs are resumed. A run that fails does not stop the others,
    nor does a run whose files are damaged or that another process is training. On a CPU the weights do not depend on
    when and how often the sweep was stopped.

    Args:
        configurations: The runs, in the order of training. All have the same data set, and no two have the same recipe,
            beta and seed.
        out: The folder of the table and of the folders of all runs.
        jobs: Number of runs at a time, each in its own process. More use a GPU better and need more of its memory; on a
            CPU they share torch's threads.
        time_limit: Seconds after which all runs are saved and the sweep returns. The same call continues them. A run
            that is being evaluated at that time is finished first. None means no limit.
        on_run: A function that is called after each run with the name of its folder and its result, or None if it
            failed.
        options: ``data_dir``, ``device``, ``compile``, ``cuda_graph`` and ``progress`` of
            :func:`~echo_ext.training.train`.

    Raises:
        FileExistsError: A folder contains a run with another configuration.
        TypeError: A value has the wrong type.
        ValueError: There are no configurations, two have the same folder, or a value is out of range.
    """
    if not configurations:
        raise ValueError("configurations must contain at least one, got none")
    _checks.whole("jobs", jobs, minimum=1)
    deadline = None if time_limit is None else Deadline.after(time_limit)
    out = Path(out)
    runs = {_name(configuration): configuration for configuration in configurations}
    if len(runs) < len(configurations):
        raise ValueError("configurations must differ in recipe, beta or seed, but two of them do not")
    for name, configuration in runs.items():
        directory = RunDirectory(out / name)
        with contextlib.suppress(ValueError):  # a damaged folder is reported as the failure of its run
            directory.refuse_other_run(configuration)
    load_data(configurations[0], options.get("data_dir"))  # fails before the first run if the data are missing

    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}

    def record(name: str, outcome: dict[str, Any] | Exception) -> None:
        if isinstance(outcome, TimeLimitReached):
            return
        if isinstance(outcome, Exception):
            failures[name] = f"{type(outcome).__name__}: {outcome}"
        else:
            found[name] = outcome
        on_run(name, found.get(name))

    remaining = dict(runs)
    for name in runs:
        if RunDirectory(out / name).has_result:
            record(name, _saved_result(out / name))
            del remaining[name]
    for name, outcome in _outcomes(remaining, out, jobs, {**options, "deadline": deadline}):
        record(name, outcome)
    rows = _table([found[name] for name in runs if name in found])
    if rows:
        folder = RunDirectory(out, task="sweep")
        with folder.owned(timeout=LOCK_TIMEOUT):
            _write_table(rows, folder)
            _write_curves(rows, {name: runs[name] for name in runs if name in found}, folder, options.get("data_dir"))
    return Sweep(rows, failures, [name for name in runs if name not in found and name not in failures])


def _name(configuration: Configuration) -> str:
    return f"{configuration.recipe}-beta{configuration.beta:g}-seed{configuration.seed}"


def _saved_result(path: Path) -> dict[str, Any] | Exception:
    """The result of a finished run, or the error if its file is damaged."""
    directory = RunDirectory(path)
    directory.remove_leftovers()
    try:
        return directory.result()
    except ValueError as damaged:
        return damaged


def _train_one(configuration: Configuration, path: Path, options: dict[str, Any]) -> dict[str, Any]:
    return train(configuration, path, resume=RunDirectory(path).holds_run, **options)


def _outcomes(
    runs: dict[str, Configuration], out: Path, jobs: int, options: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """Yield the name of each run with its result or its error; no run starts after the deadline."""
    deadline: Deadline | None = options["deadline"]

    def may_start() -> bool:
        return deadline is None or not deadline.has_passed

    if jobs > 1:
        calls = {
            name: (configuration, out / name, {**options, "progress": False}) for name, configuration in runs.items()
        }
        with sigterm_interrupts():
            yield from run_in_processes(_train_one, calls, jobs, may_start=may_start)
        return
    for name, configuration in runs.items():
        if not may_start():
            return
        try:
            yield name, _train_one(configuration, out / name, options)
        except Exception as error:
            yield name, error


def _table(results: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for each recipe and beta, in the order of the results."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["recipe"], result["beta"]), []).append(result)
    rows = []
    for (recipe, beta), group in groups.items():
        kind = next(name for name in RATES if name in group[0])
        means = [mean_and_error([result[name] for result in group]) for name in (kind, "distortion", "neg_elbo")]
        rows.append(Row(recipe, beta, len(group), RATES[kind], *means[0], *means[1], *means[2]))
    return rows


def _write_table(rows: Sequence[Row], folder: RunDirectory) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    folder.write(f"{TABLE}.csv", text.getvalue().encode())
    folder.write_json(f"{TABLE}.json", [_without_nan(dataclasses.asdict(row)) for row in rows])


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


@torch.no_grad()
def _write_curves(
    rows: Sequence[Row], runs: dict[str, Configuration], folder: RunDirectory, data_dir: str | os.PathLike[str] | None
) -> None:
    """Plot distortion against rate, with reconstructions of test images by the first seed of each recipe and beta."""
    from echo_ext import plots

    measured: dict[str, list[RateDistortion]] = {}
    for row in rows:
        measured.setdefault(row.recipe, []).append(
            RateDistortion(
                row.rate,
                row.distortion,
                row.rate_kind == RATES["rate"],
                row.rate_error,
                row.distortion_error,
                row.neg_elbo_error,
            )
        )
    first = next(iter(runs.values()))
    test = load_data(first, data_dir)["test"]
    images = None
    if len(test.data_shape) == 3:
        x = evenly_spaced(test, RECONSTRUCTED_IMAGES)
        images = {"test image": x}
        for name, configuration in sorted(runs.items(), key=lambda run: (run[1].recipe, -run[1].beta, run[1].seed)):
            label = f"{configuration.recipe}, beta {configuration.beta:g}"
            # A run that was trained on another machine may have a result but no weights here.
            if label not in images and RunDirectory(folder.path / name).has_checkpoint:
                torch.manual_seed(0)
                images[label] = load(folder.path / name).model.reconstruct(x)
    figure = plots.rate_distortion(measured, reconstructed=images)
    with folder.replacement(CURVES) as part:
        figure.savefig(part)
