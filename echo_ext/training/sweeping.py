"""A grid of runs, recipes x betas x seeds, and its rate-distortion curves."""

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

from echo_ext.metrics import RateDistortion
from echo_ext.training.configuration import Configuration
from echo_ext.training.deadline import Deadline, TimeLimitReached
from echo_ext.training.processes import side_by_side, terminable
from echo_ext.training.results import SHOWN, mean_and_error, spread
from echo_ext.training.run_directory import RATES, RunDirectory
from echo_ext.training.running import load, load_data, train

__all__ = ["Row", "Sweep", "sweep"]

TABLE = "table"
CURVES = "rate_distortion.png"
# Seconds that another sweep of the same folder gets to write its table.
PATIENCE = 60.0


@dataclasses.dataclass(frozen=True)
class Row:
    """Means over the seeds of one recipe at one beta, in nats per sample, with standard errors (NaN for one seed)."""

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
    """What a sweep found.

    Attributes:
        rows: the table of the finished runs.
        failures: the folder of each run that failed, and its error.
        unfinished: the folders of the runs that the time limit stopped, or that it kept from starting.
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
    """Train every configuration into its folder below ``out``; write table.csv, table.json, rate_distortion.png there.

    Runs that are finished are not trained again, and broken ones go on where they stopped. A run that fails does not
    stop the others, nor does one whose files are damaged or which another process is training. On a CPU the weights do
    not depend on when and how often the sweep was stopped.

    Args:
        configurations: of one data set, each recipe with each beta and seed at most once; they are trained in this
            order.
        out: the folder of the folders.
        jobs: how many runs at a time, each in a process of its own. More of them keep a GPU busier and need more of its
            memory; on a CPU they share torch's threads.
        time_limit: seconds after which all runs are saved and the sweep returns; the same call continues them. A run
            that is being measured by then is finished first. None for no limit.
        on_run: called after each run with its folder's name and its result, None where it failed.
        options: ``data_dir``, ``device``, ``compile``, ``cuda_graph``, ``progress`` of
            :func:`~echo_ext.training.train`.

    Raises:
        FileExistsError: a folder holds a run with another configuration.
        ValueError: no configurations, two for one folder, jobs below 1, or a time limit that is not positive.
    """
    if not configurations:
        raise ValueError("configurations must be at least one, but there is none")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    deadline = None if time_limit is None else Deadline.after(time_limit)
    out = Path(out)
    runs = {_name(configuration): configuration for configuration in configurations}
    if len(runs) < len(configurations):
        raise ValueError("configurations must differ in recipe, beta or seed, but some do not")
    for name, configuration in runs.items():
        directory = RunDirectory(out / name)
        with contextlib.suppress(ValueError):  # a damaged folder is reported as its run's failure
            directory.expect(configuration)
    load_data(configurations[0], options.get("data_dir"))  # refuse what cannot be had before the first run

    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}

    def take(name: str, outcome: dict[str, Any] | Exception) -> None:
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
            take(name, _saved_result(out / name))
            del remaining[name]
    for name, outcome in _outcomes(remaining, out, jobs, {**options, "deadline": deadline}):
        take(name, outcome)
    rows = _table([found[name] for name in runs if name in found])
    if rows:
        folder = RunDirectory(out, task="sweep")
        with folder.owned(patience=PATIENCE):
            _write_table(rows, folder)
            _write_curves(rows, {name: runs[name] for name in runs if name in found}, folder, options.get("data_dir"))
    return Sweep(rows, failures, [name for name in runs if name not in found and name not in failures])


def _name(configuration: Configuration) -> str:
    return f"{configuration.recipe}-beta{configuration.beta:g}-seed{configuration.seed}"


def _saved_result(path: Path) -> dict[str, Any] | Exception:
    """The result of a finished run, or what is wrong with its file."""
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
    """The name of each run with its result or its error, as they end; no run is begun after the deadline."""
    deadline: Deadline | None = options["deadline"]

    def may_start() -> bool:
        return deadline is None or not deadline.has_passed

    if jobs > 1:
        calls = {
            name: (configuration, out / name, {**options, "progress": False}) for name, configuration in runs.items()
        }
        with terminable():
            yield from side_by_side(_train_one, calls, jobs, may_start=may_start)
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
    """Distortion against rate, with what the first seed of each recipe and beta makes of the same test images."""
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
    shown = None
    if len(test.data_shape) == 3:
        x = spread(test, min(SHOWN, 8))
        shown = {"test image": x}
        for name, configuration in sorted(runs.items(), key=lambda run: (run[1].recipe, -run[1].beta, run[1].seed)):
            label = f"{configuration.recipe}, beta {configuration.beta:g}"
            # The weights may be elsewhere: a result alone stands for a run that was trained on another machine.
            if label not in shown and RunDirectory(folder.path / name).has_checkpoint:
                torch.manual_seed(0)
                shown[label] = load(folder.path / name).model.reconstruct(x)
    figure = plots.rate_distortion(measured, reconstructed=shown)
    with folder.part(CURVES) as part:
        figure.savefig(part)
