"""The command ``echo-ext sweep``, which trains a grid of recipes, model settings, betas and seeds."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from echo_ext import _checks
from echo_ext.cli.machine import check_writable
from echo_ext.cli.printing import print_table, with_error
from echo_ext.cli.train import PACKAGES, add_settings, model_setting, options, settings
from echo_ext.metrics.likelihood import RATE_WORDS
from echo_ext.training.configuration import SETTINGS, Configuration
from echo_ext.training.evaluation import LABELS
from echo_ext.training.sweeping import series_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "train a grid of recipes, model settings, betas and seeds; print the table and plot the rate-distortion curves"
USAGE = "echo-ext sweep --recipe NAME [NAME ...] --data NAME --out DIR [options]"
EXAMPLES = (
    "echo-ext sweep --recipe echo vae --data digits --beta 0.5,1,2 --seeds 0,1 --out sweep",
    "echo-ext sweep --recipe vae --data digits --set hidden=[32],[128,128] --out widths --jobs 2",
    "echo-ext sweep --recipe echo --data mnist --beta 1,2,4 --out night --time-limit 8h",
)

Value = TypeVar("Value")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add, of_grid = parser.add_argument, parser.add_argument_group("grid", "Every combination is trained.").add_argument
    text = "weights of the rate, separated by commas, such as 0.1,0.5,1,2"
    of_grid(
        "--recipe", nargs="+", required=True, metavar="NAME", help="one or more recipes; echo-ext recipes lists them"
    )
    of_grid("--data", required=True, metavar="NAME", help=SETTINGS["data"].help)
    of_grid("--beta", default="1", metavar="LIST", help=text)
    of_grid("--seeds", default="0", metavar="LIST", help="seeds, separated by commas, such as 0,1,2")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the table and all runs")
    add("--jobs", type=int, default=1, metavar="N", help="number of runs to train at a time on the device")
    text = "save all runs and stop after a time such as 90s, 9m or 1h30m; the same command continues them"
    add("--time-limit", metavar="TIME", help=text)
    text = "leave out the N best and the N worst seeds, by -ELBO, from the averages over the seeds"
    add("--trim", type=int, default=0, metavar="N", help=text)
    add("--evaluate", action="store_true", help="evaluate each run too, and average these measures")
    text = "another argument of the model with one or more values in YAML, such as --set hidden=[256,256] or --set "
    text += "hidden=[5],[20], which trains with each; can be repeated"
    of_grid("--set", dest="model_settings", action="append", metavar="NAME=LIST", default=argparse.SUPPRESS, help=text)
    add_settings(parser, without=("recipe", "data", "beta", "seed", "model_settings"))


def run(arguments: argparse.Namespace) -> None:
    """Train the runs that are not finished and print the table."""
    betas = _list("--beta", arguments.beta, float)
    seeds = _list("--seeds", arguments.seeds, int)
    time_limit = None if arguments.time_limit is None else _seconds(arguments.time_limit)
    packages = ("pandas", "sklearn", "scipy") if arguments.evaluate else ("pandas",)
    _checks.installed(*PACKAGES, *packages, purpose="sweep")
    check_writable("out", arguments.out)
    from echo_ext import training

    given = settings(arguments, _axis)
    axes = given.get("model_settings", {})
    models = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    # All runs of one seed come first, so that a sweep which stops early has a complete table of fewer seeds.
    grid = itertools.product(seeds, dict.fromkeys(arguments.recipe), models, betas)
    runs = [
        Configuration.of(**given | {"recipe": recipe, "model_settings": model, "beta": beta, "seed": seed})
        for seed, recipe, model, beta in grid
    ]
    try:
        limits = {"jobs": arguments.jobs, "time_limit": time_limit}
        limits |= {"trim": arguments.trim, "evaluate": arguments.evaluate}
        done = training.sweep(runs, arguments.out, on_run=_report, **limits, **options(arguments))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; run the same command again to continue") from None
    if len(done.table):
        print()
        header = ("recipe", "beta", "seeds", "", "rate", "distortion", "-ELBO")
        rows = done.table.to_dict("records")
        labels = [series_label(row, done.settings) for row in rows]
        print_table([header, *((label, *_cells(row)) for label, row in zip(labels, rows, strict=True))])
        if names := [name for name in LABELS if name in done.table and name not in ("rate", "distortion", "neg_elbo")]:
            print()
            measured = [[with_error(row[name], row[f"{name}_error"], 3) for name in names] for row in rows]
            betas_of = [f"{row['beta']:g}" for row in rows]
            heads = ("recipe", "beta", *(LABELS[name] for name in names))
            print_table([heads, *((*each, *cells) for *each, cells in zip(labels, betas_of, measured, strict=True))])
        if len(done.equal_rate.drop_duplicates(["recipe", *done.settings])) > 1:
            print("\ndistortion at equal rates, interpolated between betas")
            _print_equal_rate(done.equal_rate, done.settings)
        left_out = f", without the {arguments.trim} best and worst by -ELBO" if arguments.trim else ""
        print(f"means over the seeds{left_out}, +- standard errors")
        print(f"written to {arguments.out}")
    if done.unfinished:
        left = f"{len(done.unfinished)} of {len(runs)} runs are not finished"
        print(f"the time limit was reached: {left}; run the same command again to continue")
    if done.failures:
        name, error = next(iter(done.failures.items()))
        many = f"{len(done.failures)} of {len(runs)} runs failed"
        raise RuntimeError(f"{many}; the first error is that of {name}: {error}")


def _list(flag: str, text: str, kind: Callable[[str], Value]) -> Sequence[Value]:
    """The distinct values of a comma-separated list."""
    try:
        return list(dict.fromkeys(kind(word) for word in text.split(",")))
    except ValueError:
        raise ValueError(f"{flag} must be numbers separated by commas, got {text!r}") from None


def _axis(name: str, text: str) -> list[Any]:
    """The values of ``--set NAME=TEXT``, which commas outside brackets, braces and quotes separate."""
    try:
        values: Any = model_setting(name, f"[{text}]")
    except ValueError:
        values = []
    if not values or text.rstrip().endswith(","):
        what = "one or more values in YAML, separated by commas and none of them empty"
        raise ValueError(f"--set {name} must be {what}, got {_checks.brief(text)}")
    if any(value in values[:index] for index, value in enumerate(values)):
        raise ValueError(f"--set {name} must be distinct values, got {_checks.brief(text)}")
    return list(values)


def _seconds(text: str) -> float:
    """Convert a time such as 540, 90s, 9m or 1h30m to seconds."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d*)?)s?)?", text)
    hours, minutes, seconds = (float(part or 0) for part in parts.groups()) if parts else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ValueError(f"--time-limit must be a positive time, such as 90s, 9m or 1h30m, got {text!r}")
    return total


def _report(name: str, result: dict[str, Any] | None) -> None:
    from tqdm import tqdm

    tqdm.write(f"{name}: " + (f"-ELBO {result['neg_elbo']:.2f}" if result else "failed"))  # above the bars
    sys.stdout.flush()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    measured = [with_error(row[name], row[f"{name}_error"]) for name in ("rate", "distortion", "neg_elbo")]
    return f"{row['beta']:g}", str(row["seeds"]), RATE_WORDS[row["rate_name"]], *measured


def _print_equal_rate(table: pd.DataFrame, settings: Sequence[str]) -> None:
    """Print a row for each rate and a column for each series."""
    cells = [with_error(*each) for each in table[["distortion", "distortion_error"]].to_numpy().tolist()]
    labels = [series_label(row, settings) for row in table.to_dict("records")]
    columns = list(dict.fromkeys(labels))
    grid = table.assign(cell=cells, series=labels).pivot(index="rate", columns="series", values="cell")[columns]
    print_table(
        [("rate", *columns), *((f"{rate:.2f}", *row) for rate, row in zip(grid.index, grid.to_numpy(), strict=True))]
    )
