"""What the experiments share: the command line, saved single runs, statistics over seeds, and the files of a result."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from tqdm.auto import tqdm

import echo_ext
from echo_ext import training
from echo_ext.data import LabeledDataset
from echo_ext.models import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT = "result.json"
TABLE = "table.md"
MEASURES = "measures.json"
RUNS = "runs"
# Seconds to wait while another process writes its files into the same folder.
LOCK_TIMEOUT = 60.0

Measure: TypeAlias = Callable[[Model, Mapping[str, LabeledDataset]], Mapping[str, float]]
Labels: TypeAlias = Mapping[str, "str | float"]
Case: TypeAlias = tuple[Labels, training.Configuration]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment of a paper.

    Args:
        summary: A one-line description of what it shows.
        source: The paper and the section.
        run: The function that runs the experiment.
        seeds: Default number of seeds.
    """

    summary: str
    source: str
    run: Callable[[Context], Result]
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """The values of each quantity for one case, one for each seed; ``labels`` identify the case."""

    labels: Labels
    values: Mapping[str, Sequence[float]]

    def mean(self, quantity: str) -> float:
        """The mean of a quantity over the seeds."""
        return statistics.fmean(self.values[quantity])

    def error(self, quantity: str) -> float:
        """The standard error of the mean, which is NaN for a single seed."""
        values = self.values[quantity]
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an experiment: the rows of its table, its figures by file name, and its settings."""

    rows: Sequence[Row]
    figures: Mapping[str, Figure]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Context:
    """The folder of an experiment and the options of the user.

    Args:
        out: The folder of the results. The single runs have folders of their own below it.
        seeds: The seeds, for each of which every case is run once.
        epochs: Number of epochs. None means the default of the experiment.
        limit: Number of training rows, counted from the first. None means all.
        data_dir: The folder of the data, as ``root`` of :func:`echo_ext.data.load`.
        device: The device for training and evaluation.
        progress: Whether to show progress bars if stderr is a terminal.
    """

    out: Path
    seeds: Sequence[int] = (0, 1, 2)
    epochs: int | None = None
    limit: int | None = None
    data_dir: str | None = None
    device: torch.device | str = "cpu"
    progress: bool = True

    def configuration(self, recipe: str, data: str, **given: Any) -> training.Configuration:
        """Call :meth:`echo_ext.training.Configuration.of` with the epochs and the limit of the user."""
        options = {"epochs": self.epochs, "limit": self.limit}
        chosen = {name: value for name, value in options.items() if value is not None}
        return training.Configuration.of(recipe, data, **{**given, **chosen})

    def measure(self, name: str, configuration: training.Configuration, measure: Measure) -> dict[str, float]:
        """Train a run of this name and evaluate its model; steps that are done already are not repeated.

        Raises:
            FileExistsError: There is a run of this name with another configuration.
        """
        directory = training.RunDirectory(self.out / RUNS / name)
        training.train(
            configuration,
            directory.path,
            data_dir=self.data_dir,
            resume=directory.holds_run,
            device=self.device,
            show_progress=self.progress,
        )
        file = directory.path / MEASURES
        if not file.is_file():
            parts = {part: rows.to(self.device) for part, rows in configuration.load_data(self.data_dir).items()}
            model = training.load(directory.path).model.to(self.device)
            torch.manual_seed(configuration.seed)
            with torch.no_grad():
                measured = dict(measure(model, parts))
            with directory.owned(timeout=LOCK_TIMEOUT):
                directory.write_json(MEASURES, measured)
        measures = _read(file)
        if not all(isinstance(value, (int, float)) for value in measures.values()):
            raise ValueError(f"{file} is damaged: it must map names to numbers; remove it to evaluate the run again")
        return measures

    def model(self, name: str) -> Model:
        """Load the trained model of a run, in eval mode."""
        return training.load(self.out / RUNS / name).model.to(self.device)

    def rows(self, cases: Sequence[Case], measure: Measure) -> list[Row]:
        """Measure every case, given by its labels and its configuration, for every seed."""
        measured: list[list[dict[str, float]]] = [[] for _ in cases]
        # All cases of one seed come first, so that an interrupted experiment has a complete table of fewer seeds.
        runs = list(itertools.product(self.seeds, range(len(cases))))
        # disable=None disables the bar if stderr is not a terminal.
        for seed, case in tqdm(runs, desc="runs", unit="run", disable=None if self.progress else True):
            labels, configuration = cases[case]
            configuration = dataclasses.replace(configuration, seed=seed)
            measured[case].append(self.measure(run_name(labels, seed), configuration, measure))
        return [
            Row(labels, {quantity: [each[quantity] for each in values] for quantity in values[0]})
            for (labels, _), values in zip(cases, measured, strict=True)
        ]


def run_name(labels: Labels, seed: int) -> str:
    """The name of the folder for the run of a case and seed."""
    words = [f"{value:g}" if isinstance(value, (int, float)) else value for value in labels.values()]
    return "-".join([*words, f"seed{seed}"]).lower().replace(" ", "-")


def selected_settings(configuration: training.Configuration, *names: str) -> dict[str, Any]:
    """The values of these settings of a configuration, as a part of the settings of a result."""
    return {name: getattr(configuration, name) for name in names}


def write_result(name: str, experiment: Experiment, context: Context) -> Result:
    """Run an experiment and write ``result.json``, ``table.md`` and its figures into ``context.out``.

    Raises:
        FileExistsError: The folder contains the result of another experiment.
        NotADirectoryError: The path is a file.
    """
    if context.out.exists() and not context.out.is_dir():
        raise NotADirectoryError(f"{context.out} must be a folder, but it is a file")
    directory = training.RunDirectory(context.out)
    if directory.has_result and (other := _read(context.out / RESULT).get("experiment")) != name:
        raise FileExistsError(f"{context.out} contains the result of {other!r}, not of {name!r}; choose another folder")
    result = experiment.run(context)
    versions = {"echo-ext": echo_ext.__version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    content = {
        "experiment": name,
        "source": experiment.source,
        "settings": dict(result.settings),
        "seeds": list(context.seeds),
        "rows": [_as_mapping(row) for row in result.rows],
        "versions": versions,
    }
    with directory.owned(timeout=LOCK_TIMEOUT):
        directory.write_figures(result.figures)
        directory.write(TABLE, table(result.rows).encode())
        directory.write_json(RESULT, content)
    return result


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Run an experiment as a script, whose file name is the name of the experiment; return the exit code."""
    name = Path(sys.modules[experiment.run.__module__].__file__ or "").stem.replace("_", "-")
    parser = argparse.ArgumentParser(description=f"{experiment.summary} ({experiment.source})")
    parser.add_argument(
        "--out", type=Path, default=Path("papers", name), help="folder for the results (default: papers/NAME)"
    )
    parser.add_argument(
        "--seeds", type=int, default=experiment.seeds, help="number of runs of each case (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="number of training epochs (default: that of the experiment)")
    parser.add_argument("--limit", type=int, help="use only the first LIMIT training rows")
    parser.add_argument("--data-dir", help="folder with the files of the data sets (default: ECHO_EXT_DATA)")
    parser.add_argument("--device", default="cpu", help="device such as cpu or cuda (default: cpu)")
    given = parser.parse_args(arguments)
    for flag in ("seeds", "epochs", "limit"):
        if (value := getattr(given, flag)) is not None and value < 1:
            parser.error(f"--{flag} must be at least 1, got {value}")
    context = Context(given.out, range(given.seeds), given.epochs, given.limit, given.data_dir, given.device)
    try:
        write_result(name, experiment, context)
    except (OSError, ValueError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    print(f"{experiment.summary}\n{experiment.source}\n\n{(given.out / TABLE).read_text(encoding='utf-8')}")
    print(f"mean ± standard error over {given.seeds} seeds; written to {given.out}")
    return 0


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as wrong:
        raise ValueError(f"{file} is damaged: {wrong}; remove it to continue") from wrong
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it must contain a mapping; remove it to continue")
    return content


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of the labels and of the mean and standard error of each quantity over the seeds."""
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
    """The number of decimals, from 0 to 5, that shows two digits of a standard error."""
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
