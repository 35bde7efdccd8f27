"""What the experiments share: the command line, saved single runs, statistics over seeds, and the files of a result."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from tqdm.auto import tqdm

from echo_ext.training import Configuration, RunDirectory, load, train

RESULT, TABLE, MEASURES, RUNS = "result.json", "table.md", "measures", "runs"
# Seconds to wait while another process writes its files into the same folder.
LOCK_TIMEOUT = 60.0

Case: TypeAlias = tuple[Mapping[str, Any], Configuration]
Value: TypeAlias = float | str  # of an option


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment of a paper, which trains and measures each of its cases once for each seed.

    Args:
        name: The name in its result, and of its default folder.
        description: A one-line summary, an empty line, and the paper with the section.
        cases: Returns the cases for these options: their labels, which identify them in the table, and their
            configurations.
        measure: Maps a trained model and the parts of its data to the value of each quantity.
        figures: Maps the table of :func:`statistics`, the models of the first seed by the index of that table, and the
            test rows to figures by file name.
        notes: What the settings and the quantities mean.
        options: The lists of numbers or names that ``cases`` takes, by argument, with their default values. "widths"
            is ``--widths 5,20`` on the command line.
        measure_options: The whole numbers that ``measure`` takes, by argument, with their default values. "draws" is
            ``--draws 100`` on the command line. Runs are measured again for other numbers.
        start: Maps the labels of a case to those of an earlier case, whose run of the same seed it starts from, or to
            None.
        seeds: Default number of seeds.
        all_tests: Whether ``figures`` gets the test rows of every case, by the index of the table, and not only those
            of the first case.
    """

    name: str
    description: str
    cases: Callable[..., Iterable[Case]]
    measure: Callable[..., Mapping[str, float]]
    figures: Callable[..., Mapping[str, Any]]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Sequence[Value]] = dataclasses.field(default_factory=dict)
    measure_options: Mapping[str, int] = dataclasses.field(default_factory=dict)
    start: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = lambda labels: None
    seeds: int = 3
    all_tests: bool = False

    @property
    def summary(self) -> str:
        """The first paragraph of the description."""
        return self.description.strip().splitlines()[0].rstrip(".")

    @property
    def source(self) -> str:
        """The second paragraph of the description."""
        return self.description.strip().split("\n\n")[1].rstrip(".")


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Run an experiment with the options of the command line, print its table, and return the exit code."""
    parser = argparse.ArgumentParser(description=f"{experiment.summary} ({experiment.source})")
    out = Path("papers", experiment.name)
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help="folder for the results (%(default)s)")
    parser.add_argument("--seeds", type=int, default=experiment.seeds, metavar="N", help="runs per case (%(default)s)")
    what = "number of the first seed (%(default)s); other processes can train other seeds in the same folder"
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help=what)
    parser.add_argument("--epochs", type=int, metavar="N", help="number of epochs (that of the experiment)")
    what = "number of epochs of the warm-up (that of the experiment)"
    parser.add_argument("--warm-up-epochs", type=int, metavar="N", help=what)
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N training rows")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the files of the data sets (ECHO_EXT_DATA)")
    parser.add_argument("--device", default="cpu", help="device such as cpu or cuda (%(default)s)")
    for name, values in experiment.options.items():
        what = f"{name.replace('_', ' ')} of the cases ({','.join(map(word, values))})"
        parser.add_argument(flag(name), metavar="A,B,...", help=what)
    for name, value in experiment.measure_options.items():
        what = f"{name.replace('_', ' ')} of the measures (%(default)s)"
        parser.add_argument(flag(name), type=int, metavar="N", default=value, help=what)
    given = vars(parser.parse_args(arguments))
    minima = dict.fromkeys(("seeds", "epochs", "warm_up_epochs", "limit", *experiment.measure_options), 1)
    minima["first_seed"] = 0
    for name, minimum in minima.items():
        if (value := given[name]) is not None and value < minimum:
            parser.error(f"{flag(name)} must be at least {minimum}, got {value}")
    options = {}
    for name, default in experiment.options.items():
        text, kind = given.pop(name), type(default[0])
        options[name] = default if text is None else values_in(text, kind)
        if not options[name]:
            what = {int: "whole numbers", float: "numbers", str: "names"}[kind]
            parser.error(f"{flag(name)} must be different {what} separated by commas, got {text!r}")
    measure_options = {name: given.pop(name) for name in experiment.measure_options}
    first = given.pop("first_seed")
    given["seeds"] = range(first, first + given["seeds"])
    try:
        run(experiment, **given, options=options, measure_options=measure_options)
    except (OSError, ValueError) as error:
        print(f"{experiment.name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{experiment.name}: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    out = given["out"]
    print(f"{experiment.summary}\n{experiment.source}\n\n{(out / TABLE).read_text(encoding='utf-8')}\nwritten to {out}")
    return 0


def flag(name: str) -> str:
    """The option of the command line for an argument."""
    return f"--{name.replace('_', '-')}"


def values_in(text: str, kind: Callable[[str], Value]) -> list[Value]:
    """The values between the commas; an empty list if one cannot be read or is there twice."""
    try:
        values = list(map(kind, text.split(",")))
    except ValueError:
        return []
    return values if len(set(values)) == len(values) else []


def run(
    experiment: Experiment,
    out: Path,
    *,
    options: Mapping[str, Sequence[Value]] | None = None,
    measure_options: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    warm_up_epochs: int | None = None,
    limit: int | None = None,
    data_dir: str | None = None,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
) -> pd.DataFrame:
    """Run an experiment, write ``result.json``, ``table.md`` and its figures, and return the values of every run.

    Runs that are done already, in the folder "runs", are not repeated. Epochs, warm-up and limit replace those of the
    cases, both kinds of options those of the experiment. The result has the cases and the seeds of this call only.

    Raises:
        FileExistsError: The folder contains the result of another experiment, or a run with another configuration.
        NotADirectoryError: The path is a file.
    """
    directory = RunDirectory(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} must be a folder, but it is a file")
    if directory.has_result and (other := read(out / RESULT).get("experiment")) != experiment.name:
        raise FileExistsError(
            f"{out} contains the result of {other!r}, not of {experiment.name!r}; choose another folder"
        )
    replaced = {"epochs": epochs, "warm_up_epochs": warm_up_epochs, "limit": limit}
    given = {name: value for name, value in replaced.items() if value is not None}
    chosen = experiment.cases(**{**experiment.options, **(options or {})})
    cases = [(labels, dataclasses.replace(each, **given)) for labels, each in chosen]
    measuring = {**experiment.measure_options, **(measure_options or {})}
    rows, result = [], {}
    # All cases of one seed come first, so that an interrupted experiment has a complete table of fewer seeds.
    work = list(itertools.product(seeds, cases))
    for seed, (labels, configuration) in tqdm(work, desc="runs", unit="run", disable=None if show_progress else True):
        start = experiment.start(labels)
        initial_run = None if start is None else str(out / RUNS / run_name(start, seed))
        configuration = dataclasses.replace(configuration, seed=seed, initial_run=initial_run)
        folder = RunDirectory(out / RUNS / run_name(labels, seed))
        where = {"data_dir": data_dir, "device": device, "show_progress": show_progress}
        result = train(configuration, folder.path, resume=folder.holds_run, **where)
        measured = measure(experiment, configuration, folder, data_dir, device, measuring)
        rows.append({**labels, "seed": seed, **measured})
    runs = pd.DataFrame(rows)
    table = statistics(runs, list(cases[0][0]))
    models = [load(out / RUNS / run_name(labels, seeds[0])).model for labels, _ in cases]
    torch.manual_seed(0)
    with torch.no_grad():
        shown = cases if experiment.all_tests else cases[:1]
        tests = [configuration.load_data(data_dir)["test"] for _, configuration in shown]
        test = dict(zip(table.index, tests, strict=True)) if experiment.all_tests else tests[0]
        figures = experiment.figures(table, dict(zip(table.index, models, strict=True)), test)
    content = {
        "experiment": experiment.name,
        "source": experiment.source,
        "settings": {**settings(cases), **measuring, **experiment.notes},
        "seeds": list(seeds),
        "rows": summarized(cases, runs, table),
        "versions": result["versions"],
    }
    with directory.owned(timeout=LOCK_TIMEOUT):
        directory.write_figures(figures)
        directory.write(TABLE, f"{markdown(table)}\n{caption(len(seeds))}\n".encode())
        directory.write_json(RESULT, content)
    return runs


def measure(
    experiment: Experiment,
    configuration: Configuration,
    folder: RunDirectory,
    data_dir: str | None,
    device: torch.device | str,
    options: Mapping[str, int],
) -> dict[str, float]:
    """Measure a trained run with these options, unless that is done already."""
    name = "-".join([MEASURES, *(f"{each}{value}" for each, value in options.items())]) + ".json"
    if not (folder.path / name).is_file():
        parts = {part: rows.to(device) for part, rows in configuration.load_data(data_dir).items()}
        model = load(folder.path).model.to(device)
        torch.manual_seed(configuration.seed)
        with torch.no_grad():
            measured = dict(experiment.measure(model, parts, **options))
        with folder.owned(timeout=LOCK_TIMEOUT):
            folder.write_json(name, measured)
    return read(folder.path / name)


def read(file: Path) -> dict[str, Any]:
    """Read a JSON file; raise a ValueError that names it if it is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as wrong:
        raise ValueError(f"{file} is damaged: {wrong}; remove it to write it again") from wrong


def run_name(labels: Mapping[str, Any], seed: int) -> str:
    """The name of the folder for the run of a case and seed."""
    return "-".join([*map(word, labels.values()), f"seed{seed}"]).lower().replace(" ", "-")


def settings(cases: Sequence[Case]) -> dict[str, Any]:
    """The value of each setting, or, if it is not the same for all cases, the value for each case by its labels."""
    names = [" ".join(map(word, labels.values())) for labels, _ in cases]
    mappings = [configuration.as_mapping() for _, configuration in cases]
    found = {name: [mapping[name] for mapping in mappings] for name in mappings[0] if name != "seed"}
    return {
        name: values[0] if all(each == values[0] for each in values) else dict(zip(names, values, strict=True))
        for name, values in found.items()
    }


# ---- Statistics ------------------------------------------------------------------------------------------------------


def statistics(runs: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Statistics of each quantity over the seeds, for each case.

    They are the "mean", its standard error "sem", the standard deviation "std" (both NaN for one seed), and the value
    for the "first" seed.
    """
    return runs.drop(columns="seed").groupby(list(labels), sort=False).agg(["mean", "sem", "std", "first"])


def summarized(cases: Sequence[Case], runs: pd.DataFrame, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of ``result.json``: for each quantity the values for all seeds, and their statistics."""
    names = {"mean": "mean", "standard_error": "sem", "standard_deviation": "std"}
    rows = []
    for case, (labels, _) in enumerate(cases):
        row = dict(labels)
        for quantity in table.columns.unique(0):
            values = runs[quantity].iloc[case :: len(cases)].tolist()
            found = {name: float(table[quantity, column].iloc[case]) for name, column in names.items()}
            known = {name: None if math.isnan(value) else value for name, value in found.items()}
            row[quantity] = {"values": values, **known}
        rows.append(row)
    return rows


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table of the mean and standard error of each quantity, with two digits of the error."""
    quantities = table.columns.unique(0)
    pairs = {name: table[name][["mean", "sem"]].to_numpy() for name in quantities}
    cells = pd.DataFrame({name: [cell(*each) for each in pair] for name, pair in pairs.items()}, table.index)
    cells = cells.reset_index()
    lines = [list(cells), ["---"] * len(cells.columns), *cells.to_numpy(object).tolist()]
    return "".join(f"| {' | '.join(map(word, line))} |\n" for line in lines)


def caption(seeds: int) -> str:
    """The words below the table."""
    return f"Mean ± standard error over {seeds} seeds." if seeds > 1 else "One seed."


def cell(mean: float, error: float) -> str:
    """The words for a mean and its standard error."""
    if math.isnan(error):
        return "" if math.isnan(mean) else f"{mean:.3g}"
    digits = min(max(1 - math.floor(math.log10(error)), 0), 5) if error > 0 else 2
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def word(value: str | float) -> str:
    """A label as it is shown."""
    return value if isinstance(value, str) else f"{value:g}"
