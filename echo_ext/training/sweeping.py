"""Sweeps: training of a grid of recipes, model settings, betas and seeds, and its rate-distortion curves."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from echo_ext import _checks, _parsing
from echo_ext._progress import progress, silenced
from echo_ext.metrics import RateDistortion
from echo_ext.metrics.likelihood import rate_name_in
from echo_ext.models import Model, PixelCNN
from echo_ext.training.configuration import Configuration
from echo_ext.training.evaluation import evaluate as evaluate_run
from echo_ext.training.evaluation import evenly_spaced
from echo_ext.training.fitting import Deadline, TimeLimitReached
from echo_ext.training.processes import run_in_processes, sigterm_interrupts
from echo_ext.training.run_directory import EVALUATION_FILE, RunDirectory, load
from echo_ext.training.running import check_loggers, train

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Sweep", "at_equal_rate", "matched_by_rate", "series_label", "sweep"]

TABLE, EQUAL_RATE = "table", "equal_rate"
# Number of rates at which the series are compared.
EQUAL_RATES = 7
CURVES = "rate_distortion.png"
# The reconstructions in the figure: images, averaged samples of z, and rates at which the series are shown.
RECONSTRUCTED_IMAGES, RECONSTRUCTION_DRAWS, SHOWN_RATES = 8, 10, 4
# Seconds to wait while another sweep of the same folder writes its table.
LOCK_TIMEOUT = 60.0
IMPORTANCE_SETTINGS = ("importance_draws", "importance_rows")


class Sweep(NamedTuple):
    """The result of a sweep.

    Its runs form series, which share the recipe and the model settings that differ in the sweep. The tables have a
    column for each of these settings, with numbers, strings, or the YAML text of other values; it is empty where a
    configuration does not give the setting.

    Attributes:
        table: One row for each series and beta of the finished runs: the mean over the seeds of every numeric measure,
            of ``evaluate`` too if the runs were evaluated, in nats per sample where it is an information or a
            likelihood. ``NAME_std`` and ``NAME_error`` are its standard deviation over the seeds and the standard error
            of the mean (NaN for one seed).
        failures: The folder name and the error of each run that failed.
        unfinished: The folder names of the runs that the time limit stopped or did not let start.
        equal_rate: The distortion of each series at rates that all of them reach, as :func:`at_equal_rate` returns it.
        settings: The names of the model settings that differ among the runs of a recipe.
    """

    table: pd.DataFrame
    failures: dict[str, str]
    unfinished: list[str]
    equal_rate: pd.DataFrame
    settings: list[str]


def sweep(
    configurations: Sequence[Configuration],
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    time_limit: float | None = None,
    trim: int = 0,
    evaluate: bool = False,
    on_run: Callable[[str, dict[str, Any] | None], None] | None = None,
    **options: Any,
) -> Sweep:
    """Train every configuration in a folder of its own; write its tables and ``rate_distortion.png``.

    The tables are ``table.csv`` and ``table.json``, and ``equal_rate.csv`` if the curves of the series overlap.
    The folder of a run is RECIPE-betaBETA-seedSEED, followed by -NAMEVALUE for each of the settings that differ.

    Finished runs are not trained again, and interrupted runs are resumed. A run that fails does not stop the others,
    nor does a run whose files are damaged or that another process is training. On a CPU the weights do not depend on
    when and how often the sweep was stopped.

    Args:
        configurations: The runs, in the order of training, all on one data set; they differ in recipe, model settings,
            beta or seed.
        out: The folder of the table and of the folders of all runs.
        jobs: Number of runs at a time, each in its own process. More use a GPU better and need more of its memory.
        time_limit: Seconds after which all runs are saved and the sweep returns. The same call continues them. A run
            that is being evaluated at that time is finished first. None means no limit.
        trim: Number of the best and of the worst seeds, by -ELBO, that the averages of each series and beta leave out;
            1 is that of the Echo paper. Those with no more than twice as many finished runs are not in the table.
        evaluate: Whether to evaluate each run, as :func:`~echo_ext.training.evaluate` does, and to average these
            measures too. A run with an ``evaluation.json`` of all its epochs is not evaluated again.
        on_run: Called after each run with the name of its folder and its result, or None if it failed.
        options: ``data_dir``, ``device``, ``compile``, ``cuda_graph``, ``loggers`` and ``show_progress`` of
            :func:`~echo_ext.training.train`.

    Raises:
        FileExistsError: A folder contains a run with another configuration.
        TypeError: A value has the wrong type.
        ValueError: There are no configurations, two have the same folder, a value is out of range, or ``trim`` leaves
            no seeds.

    Example:
        >>> from echo_ext.training import Configuration, sweep
        >>> settings = {"latent_dim": 4, "epochs": 1, "limit": 200}
        >>> configurations = [Configuration.of("echo", "digits", beta=beta, **settings) for beta in (0.5, 2.0)]
        >>> sweep(configurations, "runs/sweep", show_progress=False).table[["recipe", "beta", "seeds"]]
          recipe  beta  seeds
        0   echo   0.5      1
        1   echo   2.0      1
    """
    if not configurations:
        raise ValueError("configurations must contain at least one, got none")
    _checks.whole("jobs", jobs, minimum=1)
    check_loggers(options.get("loggers", ()))
    settings = _differing(configurations)
    _check_trim(configurations, settings, trim)
    deadline = None if time_limit is None else Deadline.after(time_limit)
    out = Path(out)
    runs: dict[str, Configuration] = {}
    for each in configurations:
        if runs.setdefault(name := _folder(each, settings), each) is not each:
            raise ValueError(
                "configurations must differ in recipe, beta, seed or the letters and digits of a model setting, "
                f"got two for the folder {name!r}; leave one of them out"
            )
    for name, configuration in runs.items():
        with contextlib.suppress(ValueError):  # a damaged folder is reported as the failure of its run
            RunDirectory(out / name).refuse_other_run(configuration)
    configurations[0].load_data(options.get("data_dir"))  # fails before the first run if the data are missing

    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    is_shown = options.get("show_progress", True)
    with silenced(not is_shown), progress("runs", len(runs), "run", leave=None) as bar:
        for name, outcome in _outcomes(runs, out, jobs, deadline, {**options, "evaluate": evaluate}):
            if isinstance(outcome, TimeLimitReached):
                continue
            if isinstance(outcome, Exception):
                failures[name] = f"{type(outcome).__name__}: {outcome}"
            else:
                found[name] = {**outcome, **_series(runs[name], settings)}
            bar.update()
            if on_run is not None:
                on_run(name, found.get(name))
    finished = {name: run for name, run in runs.items() if name in found}
    results = [found[name] for name in finished]
    table, equal_rate = _table(results, trim, settings), at_equal_rate(results, settings=settings)
    if len(table):
        folder = RunDirectory(out, task="sweep")
        with folder.owned(timeout=LOCK_TIMEOUT):
            folder.write(f"{TABLE}.csv", table.to_csv(index=False, na_rep="nan").encode())
            if len(equal_rate):
                folder.write(f"{EQUAL_RATE}.csv", equal_rate.to_csv(index=False, na_rep="nan").encode())
            folder.write_json(f"{TABLE}.json", table.astype(object).where(table.notna(), None).to_dict("records"))
            folder.write_figures({CURVES: _curves(table, results, settings, finished, out, options.get("data_dir"))})
    unfinished = [name for name in runs if name not in found and name not in failures]
    return Sweep(table, failures, unfinished, equal_rate, settings)


def _differing(configurations: Sequence[Configuration]) -> list[str]:
    """The names of the model settings that differ among the configurations of a recipe."""
    names = dict.fromkeys(itertools.chain(*(each.model_settings for each in configurations)))
    recipes = {each.recipe for each in configurations}

    def number_of_series(name: str) -> int:
        return len({tuple(_series(each, [name]).values()) for each in configurations})

    return [name for name in names if number_of_series(name) > len(recipes)]


def _series(configuration: Configuration, settings: Sequence[str]) -> dict[str, Any]:
    """What the runs of a curve have in common, as columns of the tables: their recipe and the settings that differ."""
    given = {name: configuration.model_settings.get(name, "") for name in settings}
    plain = {name: each if isinstance(each, int | float) else _text(each) for name, each in given.items()}
    return {"recipe": configuration.recipe, **plain}


def series_label(series: Mapping[str, Any], settings: Sequence[str]) -> str:
    """The name of a series, such as ``mim, objective=vae``, from its columns in a table."""
    return ", ".join([series["recipe"], *(f"{name}={text}" for name, text in _texts(series, settings).items())])


def _folder(configuration: Configuration, settings: Sequence[str]) -> str:
    """The name of the folder of a run."""
    name = f"{configuration.recipe}-beta{configuration.beta:g}-seed{configuration.seed}"
    for setting, text in _texts(_series(configuration, settings), settings).items():
        name += f"-{setting}" + re.sub(r"[^a-zA-Z0-9.+-]+", "_", text).strip("_")
    return name


def _texts(series: Mapping[str, Any], settings: Sequence[str]) -> dict[str, str]:
    """The texts of the settings that a series gives."""
    return {name: _text(series[name]) for name in settings if series[name] != ""}


def _text(value: object) -> str:
    """The value of a setting in YAML, which is the same for 1 and 1.0, as a column with 0.5 makes a float of 1."""
    return value if isinstance(value, str) else json.dumps(value).removesuffix(".0")


def _outcomes(
    runs: Mapping[str, Configuration], out: Path, jobs: int, deadline: Deadline | None, options: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """Yield the name of each run with its result or its error; no run starts after the deadline."""

    def may_start() -> bool:
        return deadline is None or not deadline.has_passed

    unfinished = [name for name in runs if options["evaluate"] or not RunDirectory(out / name).has_result]
    if jobs > 1:
        options = {**options, "show_progress": False}
    calls = {name: (runs[name], out / name, {**options, "deadline": deadline}) for name in unfinished}
    for name in runs:
        if name not in calls:
            RunDirectory(out / name).remove_leftovers()
            yield name, _outcome(RunDirectory(out / name).result)
    if jobs > 1:
        with sigterm_interrupts():
            yield from run_in_processes(_train_one, calls, jobs, may_start=may_start)
    else:
        for name, call in calls.items():
            if may_start():
                yield name, _outcome(_train_one, *call)


def _outcome(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any] | Exception:
    try:
        return function(*arguments)
    except Exception as error:
        return error


def _train_one(configuration: Configuration, path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train a run, unless it is finished, and evaluate it if that is an option; return the measures of both."""
    training = {name: value for name, value in options.items() if name != "evaluate"}
    directory = RunDirectory(path)
    with silenced(not options.get("show_progress", True)):  # in a process of its own too
        if options["evaluate"] and directory.has_result:
            directory.remove_leftovers()
            result = directory.result()
        else:
            result = train(configuration, path, resume=directory.holds_run, **training)
        return {**_evaluation(path, result, options), **result} if options["evaluate"] else result


def _evaluation(path: Path, result: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``evaluation.json``, which is computed if there is none for all epochs of the run."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # one that is damaged is written again
        found: Any = _parsing.read_json(path / EVALUATION_FILE)
        if isinstance(found, dict) and all(found.get(name) == result[name] for name in ("recipe", "data", "epochs")):
            return found
    deadline = options["deadline"]
    if deadline is not None and deadline.has_passed:
        raise TimeLimitReached(f"the time limit was reached before the evaluation of {path}")
    return evaluate_run(path, **{name: options[name] for name in ("data_dir", "device") if name in options})


def _check_trim(configurations: Sequence[Configuration], settings: Sequence[str], trim: int) -> None:
    """Refuse a number of extreme seeds that leaves none of a series and beta."""
    _checks.whole("trim", trim, minimum=0)
    groups = [(series_label(_series(each, settings), settings), each.beta) for each in configurations]
    for (label, beta), seeds in Counter(groups).items():
        if seeds <= 2 * trim:
            raise ValueError(
                f"trim must be less than half the number of seeds, which is {seeds} for {label!r} at beta {beta:g}, "
                f"got {trim}"
            )


def _table(results: Sequence[Mapping[str, Any]], trim: int = 0, settings: Sequence[str] = ()) -> pd.DataFrame:
    """The table of :class:`Sweep`, in the order of the results."""
    import pandas as pd

    keys, quantities = ["recipe", *settings, "beta", "rate_name"], ["rate", "distortion", "neg_elbo"]
    named = [(rate_name_in(result), result) for result in results]
    rows = [{**result, "rate_name": name, "rate": result[name]} for name, result in named]
    others = [name for name in dict.fromkeys(itertools.chain(*rows)) if name not in (*keys, *quantities)]
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in others}
    quantities += [name for name, values in known.items() if values and all(_is_measure(name, each) for each in values)]
    runs = pd.DataFrame(rows, columns=[*keys, "seed", *quantities])
    groups = runs.groupby(keys, sort=False)["neg_elbo"]
    place = groups.rank(method="first")
    runs = runs[(place > trim) & (place <= groups.transform("size") - trim)]
    kinds = (("", "mean"), ("_std", "std"), ("_error", "sem"))
    measures = {f"{each}{end}": (each, kind) for each in quantities for end, kind in kinds}
    table = runs.groupby(keys, sort=False).agg(seeds=("seed", "size"), **measures).reset_index()
    table.insert(keys.index("rate_name"), "seeds", table.pop("seeds"))
    return table


def at_equal_rate(
    results: Sequence[Mapping[str, Any]], rates: Sequence[float] | None = None, *, settings: Sequence[str] = ()
) -> pd.DataFrame:
    """Compare the distortions of series at equal rates.

    The curve of each series and seed, over its betas, is interpolated linearly between the measured rates, and never
    extrapolated.

    Args:
        results: The contents of ``result.json`` of all runs, with at least two betas for each series and seed; a seed
            with only one is left out.
        rates: Rates in nats; None for evenly spaced ones over the range that all curves have in common.
        settings: The names of model settings that the results have too. A series is a recipe with their values.

    Returns:
        For each series and rate the number of seeds whose curves reach it and, in nats per sample, the mean of their
        distortions (NaN if there are none), the standard deviation, and the standard error of the mean (NaN for one
        seed). There are no rows if the curves have no range of rates in common.
    """
    import numpy as np
    import pandas as pd

    series = ["recipe", *settings]
    columns = [*series, "seed", "rate", "distortion"]
    runs = pd.DataFrame([{**each, "rate": each[rate_name_in(each)]} for each in results], columns=columns)
    points = runs.groupby([*series, "seed", "rate"], sort=False, as_index=False).mean()
    by_seed = points.groupby([*series, "seed"], sort=False)
    curves = [(key[:-1], each.sort_values("rate")) for key, each in by_seed if len(each) > 1]
    if rates is None:
        low = max((each["rate"].iloc[0] for _, each in curves), default=0.0)
        high = min((each["rate"].iloc[-1] for _, each in curves), default=0.0)
        rates = np.linspace(low, high, EQUAL_RATES).tolist() if low < high else []
    nan = math.nan
    interpolated = [
        pd.DataFrame(
            {
                **dict(zip(series, key, strict=True)),
                "rate": rates,
                "distortion": np.interp(rates, each["rate"], each["distortion"], nan, nan),
            }
        )
        for key, each in curves
    ]
    found = pd.concat([pd.DataFrame({name: [] for name in (*series, "rate", "distortion")}), *interpolated])
    kinds = {"seeds": "count", "distortion": "mean", "distortion_std": "std", "distortion_error": "sem"}
    return found.groupby([*series, "rate"], sort=False)["distortion"].agg(**kinds).reset_index()


def _is_measure(name: str, value: object) -> bool:
    """Whether a value in a result is a number that was measured."""
    # The seconds of a run would make the tables of equal runs differ.
    is_setting = name in ("beta", "seed", "draws", "rate_bound", "seconds", *IMPORTANCE_SETTINGS)
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    return is_number and not is_setting and not name.endswith("_error")


def matched_by_rate(results: Sequence[Mapping[str, Any]], settings: Sequence[str] = ()) -> list[int]:
    """Choose runs of similar rate: the index of each run of a reference series, followed by the matches of the others.

    The reference is the first series with Echo noise, or the first of all. Its runs are those of its first seed, in the
    order of their rates, at most ``SHOWN_RATES`` of them. The match of another series is the run with the nearest rate.
    """
    rates = [each[rate_name_in(each)] for each in results]
    by_series: dict[str, list[int]] = {}
    for index, each in enumerate(results):
        by_series.setdefault(series_label(each, settings), []).append(index)
    if not by_series:
        return []
    reference = next((series_label(each, settings) for each in results if "min_rate" in each), next(iter(by_series)))
    seed = min(results[index]["seed"] for index in by_series[reference])
    known = sorted((index for index in by_series[reference] if results[index]["seed"] == seed), key=rates.__getitem__)
    count = min(SHOWN_RATES, len(known))
    chosen = [known[round(place * (len(known) - 1) / max(count - 1, 1))] for place in range(count)]
    return [
        index if label == reference else min(others, key=lambda other: abs(rates[other] - rates[index]))
        for index in chosen
        for label, others in sorted(by_series.items(), key=lambda each: each[0] != reference)
    ]


@torch.no_grad()
def _curves(
    table: pd.DataFrame,
    results: Sequence[Mapping[str, Any]],
    settings: Sequence[str],
    runs: Mapping[str, Configuration],
    out: Path,
    data_dir: str | os.PathLike[str] | None,
) -> Figure:
    """Plot distortion against rate, with reconstructions of test images by runs of similar rate."""
    from echo_ext import plots

    errors = ["rate_error", "distortion_error", "neg_elbo_error"]
    labels = [series_label(row, settings) for row in table.to_dict("records")]
    by_series = table.assign(series=labels).groupby("series", sort=False)
    measured = {
        label: [RateDistortion(*row) for row in rows[["rate", "distortion", "rate_name", *errors]].to_numpy()]
        for label, rows in by_series
    }
    floors = by_series["min_rate"].max().dropna().to_dict() if "min_rate" in table else None
    test = next(iter(runs.values())).load_data(data_dir)["test"]
    images = None
    if len(test.data_shape) == 3:
        x = evenly_spaced(test, RECONSTRUCTED_IMAGES)
        images = {"test image": x}
        # A run that was trained on another machine may have a result but no weights here.
        saved = [pair for pair in zip(runs, results, strict=True) if RunDirectory(out / pair[0]).has_checkpoint]
        for name, result in [saved[index] for index in matched_by_rate([result for _, result in saved], settings)]:
            label = f"{series_label(result, settings)}, {result[rate_name_in(result)]:.1f} nats"
            if label not in images:
                torch.manual_seed(0)
                images[label] = _mean_reconstruction(load(out / name).model, x)
    return plots.rate_distortion_curves(measured, reconstructed=images, min_rates=floors)


def _mean_reconstruction(model: Model, x: Tensor) -> Tensor:
    """The mean over several samples of z, whose blur shows what differs between them, as in the Echo paper's figure 2.

    An autoregressive decoder draws its pixels itself, and slowly, so that its reconstructions are single ones.
    """
    is_autoregressive = any(isinstance(module, PixelCNN) for module in model.modules())
    return model.reconstruct(x, draws=1 if is_autoregressive else RECONSTRUCTION_DRAWS)
