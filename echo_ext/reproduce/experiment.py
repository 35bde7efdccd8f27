"""What the experiments have in common: single runs that are kept, values over seeds, and the files of a result."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from echo_ext import training
from echo_ext._checks import brief
from echo_ext._versions import versions
from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.training.parsing import read_json
from echo_ext.training.results import mean_and_error
from echo_ext.training.running import load_data
from echo_ext.training.schedules import Stream, derive_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Bench", "Case", "Experiment", "Measure", "Outcome", "Row", "reproduce", "run_name", "stated"]

RESULT = "result.json"
TABLE = "table.md"
MEASURES = "measures.json"
RUNS = "runs"
# Seconds that another process gets to write its files into the same folder.
PATIENCE = 60.0

Measure: TypeAlias = Callable[[Model, Mapping[str, LabelledDataset]], Mapping[str, float]]
Labels: TypeAlias = Mapping[str, "str | float"]
Case: TypeAlias = tuple[Labels, training.Configuration]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment of a paper.

    Args:
        summary: one line on what it shows.
        source: the paper and where in it.
        run: does it.
        seeds: how many, where nobody says otherwise.
    """

    summary: str
    source: str
    run: Callable[[Bench], Outcome]
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one case: each quantity's values, one for each seed; ``labels`` say which case it is."""

    labels: Labels
    values: Mapping[str, Sequence[float]]

    def mean(self, quantity: str) -> float:
        """Over the seeds."""
        return mean_and_error(self.values[quantity])[0]

    def error(self, quantity: str) -> float:
        """The mean's standard error; NaN for a single seed."""
        return mean_and_error(self.values[quantity])[1]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an experiment found: the table's rows, figures by the names of their files, and how it was done."""

    rows: Sequence[Row]
    figures: Mapping[str, Figure]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where an experiment works, and what the user asks of it.

    Args:
        out: the folder of its results; each of its single runs has a folder of its own below.
        seeds: one run of each case for each.
        epochs: in place of the experiment's own; None for these.
        limit: only the first so many training rows; None for all.
        data_dir: as ``root`` of :func:`echo_ext.data.load`.
        device: where to train and measure.
        progress: show bars where standard error is a terminal.
    """

    out: Path
    seeds: Sequence[int] = (0, 1, 2)
    epochs: int | None = None
    limit: int | None = None
    data_dir: str | os.PathLike[str] | None = None
    device: torch.device | str = "cpu"
    progress: bool = True

    def configuration(self, recipe: str, data: str, **given: Any) -> training.Configuration:
        """As :meth:`echo_ext.training.Configuration.of`, with the epochs and the limit that the user asks for."""
        asked = {"epochs": self.epochs, "limit": self.limit}
        stated = {name: value for name, value in asked.items() if value is not None}
        return training.Configuration.of(recipe, data, **{**given, **stated})

    def measure(self, name: str, configuration: training.Configuration, measure: Measure) -> dict[str, float]:
        """Train the run of this name, unless it was, and measure its model, unless it was; both are kept.

        Raises:
            FileExistsError: there is a run of this name with another configuration.
        """
        directory = training.RunDirectory(self.out / RUNS / name)
        training.train(
            configuration,
            directory.path,
            data_dir=self.data_dir,
            resume=directory.holds_run,
            device=self.device,
            progress=self.progress,
        )
        file = directory.path / MEASURES
        if not file.is_file():
            parts = {part: rows.to(self.device) for part, rows in load_data(configuration, self.data_dir).items()}
            model = training.load(directory.path).model.to(self.device)
            torch.manual_seed(derive_seed(configuration.seed, Stream.MEASURE))
            with torch.no_grad():
                measured = dict(measure(model, parts))
            with directory.owned(patience=PATIENCE):
                directory.write_json(MEASURES, measured)
        return _read_measures(file)

    def model(self, name: str) -> Model:
        """The trained model of a run, in eval mode."""
        return training.load(self.out / RUNS / name).model.to(self.device)

    def rows(self, cases: Sequence[Case], measure: Measure) -> list[Row]:
        """A row for each case, its labels and its configuration, measured once for each seed."""
        measured: list[list[dict[str, float]]] = [[] for _ in cases]
        # Seed by seed, so that fewer seeds than asked for make a whole table too.
        for seed, case in self.bar(list(itertools.product(self.seeds, range(len(cases))))):
            labels, configuration = cases[case]
            configuration = dataclasses.replace(configuration, seed=seed)
            measured[case].append(self.measure(run_name(labels, seed), configuration, measure))
        return [
            Row(labels, {quantity: [each[quantity] for each in values] for quantity in values[0]})
            for (labels, _), values in zip(cases, measured, strict=True)
        ]

    def bar(self, work: Sequence[Any]) -> Iterator[Any]:
        """Go through the single runs with a progress bar."""
        from tqdm.auto import tqdm

        # None: no bar where standard error is not a terminal.
        return iter(tqdm(work, desc="runs", unit="run", disable=None if self.progress else True))


def run_name(labels: Labels, seed: int) -> str:
    """The folder of the run of a case and seed."""
    words = [f"{value:g}" if isinstance(value, (int, float)) else value for value in labels.values()]
    return "-".join([*words, f"seed{seed}"]).lower().replace(" ", "-")


def stated(configuration: training.Configuration, *names: str) -> dict[str, Any]:
    """The configuration's values of these names, for the settings that an outcome states."""
    return {name: getattr(configuration, name) for name in names}


def reproduce(name: str, experiment: Experiment, bench: Bench) -> Outcome:
    """Run an experiment and write ``result.json``, ``table.md`` and its figures into ``bench.out``.

    Raises:
        FileExistsError: the folder holds the results of another experiment.
        NotADirectoryError: it is a file.
    """
    if bench.out.exists() and not bench.out.is_dir():
        raise NotADirectoryError(f"{bench.out} is a file; the folder of an experiment is wanted")
    directory = training.RunDirectory(bench.out)
    if directory.has_result and (other := _experiment_of(bench.out / RESULT)) != name:
        raise FileExistsError(
            f"{bench.out} holds the results of {brief(other)}, not of {name!r}; choose another folder"
        )
    outcome = experiment.run(bench)
    with directory.owned(patience=PATIENCE):
        _write(directory, name, experiment, bench, outcome)
    return outcome


def _write(directory: training.RunDirectory, name: str, experiment: Experiment, bench: Bench, outcome: Outcome) -> None:
    for file, figure in outcome.figures.items():
        with directory.part(file) as part:
            figure.savefig(part)
    directory.write(TABLE, table(outcome.rows).encode())
    directory.write_json(
        RESULT,
        {
            "experiment": name,
            "source": experiment.source,
            "settings": dict(outcome.settings),
            "seeds": list(bench.seeds),
            "rows": [_as_mapping(row) for row in outcome.rows],
            "versions": versions(),
        },
    )


def _experiment_of(file: Path) -> object:
    """Which experiment a ``result.json`` is of; None where it does not say."""
    try:
        content = read_json(file)
    except ValueError as wrong:
        raise ValueError(f"{file} is damaged: {wrong}") from wrong
    return content.get("experiment") if isinstance(content, dict) else None


def _read_measures(file: Path) -> dict[str, float]:
    try:
        content = read_json(file)
    except ValueError as wrong:
        raise ValueError(f"{file} is damaged: {wrong}; remove it, and the run is measured again") from wrong
    numbers = isinstance(content, dict) and all(isinstance(value, (int, float)) for value in content.values())
    if not numbers:
        raise ValueError(f"{file} is damaged: it must map names to numbers; remove it, and the run is measured again")
    return cast(dict[str, float], content)


def table(rows: Sequence[Row]) -> str:
    """Markdown: the labels, then each quantity's mean with its standard error over the seeds."""
    labels, quantities = (list(dict.fromkeys(name for row in rows for name in part(row))) for part in _PARTS)
    lines = [[*labels, *quantities], ["---"] * (len(labels) + len(quantities))]
    for row in rows:
        cells = [_word(row.labels.get(label, "")) for label in labels]
        lines.append(cells + [_cell(row, quantity) if quantity in row.values else "" for quantity in quantities])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_PARTS: tuple[Callable[[Row], Mapping[str, Any]], ...] = (lambda row: row.labels, lambda row: row.values)


def _cell(row: Row, quantity: str) -> str:
    mean, error = row.mean(quantity), row.error(quantity)
    return f"{mean:.3g}" if math.isnan(error) else f"{mean:.{_digits(error)}f} ± {error:.{_digits(error)}f}"


def _digits(error: float) -> int:
    """Decimals that show two digits of a standard error, from 0 to 5."""
    return min(max(1 - math.floor(math.log10(error)), 0), 5) if error > 0 else 2


def _word(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _as_mapping(row: Row) -> dict[str, Any]:
    return {
        **row.labels,
        **{
            quantity: {
                "values": list(values),
                "mean": row.mean(quantity),
                "standard_error": None if math.isnan(error := row.error(quantity)) else error,
            }
            for quantity, values in row.values.items()
        },
    }
