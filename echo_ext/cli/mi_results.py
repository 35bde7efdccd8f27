"""The results of ``echo-ext mi``: a pair of variables with its test, a scan of lags, or a matrix."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from echo_ext import _checks, estimators
from echo_ext._progress import is_terminal, progress
from echo_ext.cli.printing import print_table
from echo_ext.cli.tables import Column
from echo_ext.estimators.embedding import Times

__all__ = ["Question", "Result", "estimate_lags", "estimate_matrix", "estimate_pair"]

SIGNIFICANT = 0.05  # the p-value up to which the heat map marks a pair
MAX_TICKS = 60  # the number of names that fit at an axis of the heat map
OF_NUMBERS = ("ksg1", "ksg2", "bi-ksg")  # by which the information of a column about itself is infinite
PARTS = 10  # those from which a standard error is estimated


@dataclass(frozen=True)
class Question:
    """What is to be estimated.

    Attributes:
        names: The names of the columns of "x", "y" and perhaps "given".
        values: Their values, (N, d).
        discrete: For those with categories, which columns hold them.
        categories: The names of the columns that hold categories.
        settings: The keywords that all estimators have.
        groups: The trial of each row, or None.
    """

    names: dict[str, list[str]]
    values: dict[str, Column]
    discrete: dict[str, list[bool]]
    categories: list[str]
    settings: dict[str, Any]
    groups: npt.NDArray[Any] | None

    @property
    def num_rows(self) -> int:
        """The number of rows of x."""
        return len(self.values["x"])

    def keywords(self, given: str) -> dict[str, Any]:
        """The keywords of an estimator, in which conditions have this name."""
        discrete = {f"discrete_{given if key == 'given' else key}": flags for key, flags in self.discrete.items()}
        return {**self.settings, **discrete, "groups": self.groups}


@dataclass(frozen=True)
class Result:
    """A result.

    Attributes:
        numbers: What is written as JSON.
        show: Prints it as text.
    """

    numbers: dict[str, Any]
    show: Callable[[], None]


# ---- A pair ----------------------------------------------------------------------------------------------------------


def estimate_pair(args: argparse.Namespace, question: Question) -> Result:
    """Estimate the information of x and y, perhaps given conditions, and test it."""
    variables, keywords = list(question.values.values()), question.keywords("z")
    estimator: Any = (
        estimators.conditional_mutual_information if "given" in question.names else estimators.mutual_information
    )
    found: dict[str, Any] = {}
    if args.permutations:
        found.update(_test(args, variables, keywords))
    missing = np.any([np.isnan(each).any(-1) for each in variables], axis=0)
    found["rows"] = int((~missing).sum())
    with progress("estimate and its standard error", None):
        if not args.permutations:
            found = {"estimate": estimator(*variables, **keywords), **found}
        if (error := _standard_error(estimator, variables, found["rows"], args.seed, keywords)) is not None:
            found["standard_error"] = error
    if shared := _shared_columns(question):
        _checks.warn(
            f"column {shared[0]!r} is in --x and in --y, so that their information is infinite; the estimate only "
            "grows with the number of rows"
        )
    return Result(found, lambda: print(_describe_pair(args, question, found)))


def _shared_columns(question: Question) -> list[str]:
    """The columns of numbers that x and y have in common, whose information the method takes as infinite."""
    names = question.names
    is_infinite = question.settings["method"] in OF_NUMBERS
    return [name for name in names["x"] if name in names["y"]] if is_infinite else []


def _test(args: argparse.Namespace, variables: Sequence[Column], keywords: dict[str, Any]) -> dict[str, Any]:
    options = {
        "surrogate": args.surrogate,
        "block_length": args.block_length,
        "null": args.null,
        "early_stopping": args.early_stopping,
    }
    independence_test: Any = estimators.independence_test
    with progress("permutations", args.permutations, "permutation") as bar:
        test = independence_test(
            *variables, n_resamples=args.permutations, seed=args.seed, progress=_report_to(bar), **options, **keywords
        )
    return {
        "estimate": test.statistic,
        "p_value": test.pvalue,
        "permutations": len(test.null_distribution),
        "seed": args.seed,
        **options,
    }


def _standard_error(
    estimator: Any, variables: Sequence[Column], num_rows: int, seed: int, keywords: dict[str, Any]
) -> float | None:
    """Return the standard error, or None if there are too few rows for it."""
    k = keywords["k"]
    if num_rows // PARTS <= (k if isinstance(k, int) else 1) + 2 * keywords["exclude_within"]:
        return None
    try:
        found = estimators.with_standard_error(estimator, *variables, parts=PARTS, seed=seed, **keywords)
    except ValueError:  # a part has too few rows of a trial
        return None
    return float(found.standard_error)


def _describe_pair(args: argparse.Namespace, question: Question, found: dict[str, Any]) -> str:
    first, *others = (",".join(columns) for columns in question.names.values())
    line = f"I({first}; {' | '.join(others)}) = {found['estimate']:.6g}"
    if "standard_error" in found:
        line += f" +- {found['standard_error']:.2g}"
    rows = f"{question.num_rows} rows"
    if found["rows"] < question.num_rows:
        rows = f"{found['rows']} of {rows}"
    settings = question.settings
    transform = f", {settings['transform']}" if settings["transform"] else ""
    line += f" {args.unit}   ({settings['method']}{transform}, k = {args.k}, {rows})"
    if args.permutations:
        line += f"   p = {found['p_value']:.4g} ({found['permutations']} permutations)"
    return line


# ---- Lags ------------------------------------------------------------------------------------------------------------


def estimate_lags(args: argparse.Namespace, question: Question) -> Result:
    """Estimate the information of x some rows earlier and y, perhaps given conditions at the time of y."""
    n = question.num_rows
    if args.lag >= n:
        raise ValueError(f"--lag must be less than the number of rows, {n}, got {args.lag}")
    lags = range(args.lag + 1)
    found = []
    with progress("lags", len(lags), "lag") as bar:
        for lag in lags:
            found.append(_estimate_lag(question, lag))
            bar.update()
    best = int(np.argmax(found))
    if args.plot:
        given = f" given {','.join(question.names['given'])}" if "given" in question.names else ""
        with _figure(args.plot, (6.4, 3.6)) as axes:
            axes.plot(lags, found, marker="o", markersize=3)
            axes.axvline(best, color="0.7", linewidth=1, zorder=0)
            axes.set_xlabel(f"lag of {','.join(question.names['x'])} (rows)")
            axes.set_ylabel(f"mutual information with {','.join(question.names['y'])}{given} ({args.unit})")
    marks = ["<- largest" if lag == best else "" for lag in lags]
    rows = [("lag", args.unit, "")]
    rows += [(f"{lag}", f"{value:.6f}", mark) for lag, value, mark in zip(lags, found, marks, strict=True)]
    return Result({"lags": list(lags), "mi": found}, lambda: print_table(rows))


def _estimate_lag(question: Question, lag: int) -> float:
    """Return one estimate; rows of x and y that are paired belong to one trial."""
    times, keywords = Times(question.num_rows, lag, question.groups), question.keywords("z")
    x, *others = question.values.values()
    now = times.rows.numpy()
    variables = [times.embed(torch.from_numpy(x), lag, 1).numpy(), *(each[now] for each in others)]
    if question.groups is not None:
        keywords["groups"] = question.groups[now]
    if len(variables) == 3:
        return float(estimators.conditional_mutual_information(*variables, **keywords))
    return float(estimators.mutual_information(*variables, **keywords))


# ---- A matrix --------------------------------------------------------------------------------------------------------


def estimate_matrix(args: argparse.Namespace, question: Question) -> Result:
    """Estimate every pair of columns of x, or of x and y, perhaps given conditions, and test them."""
    rows, columns = question.names["x"], question.names["y"]
    keywords = question.keywords("given")
    if not args.y:
        keywords.pop("discrete_y", None)
    values = question.values
    num_pairs = len(rows) * len(columns) if args.y else len(rows) * (len(rows) + 1) // 2
    steps, unit = (args.permutations, "permutation") if args.permutations else (num_pairs, "pair")
    with progress(f"{unit}s", steps, unit) as bar:
        found: Any = estimators.mutual_information_matrix(
            values["x"],
            values["y"] if args.y else None,
            given=values.get("given"),
            n_resamples=args.permutations,
            fdr=args.fdr,
            seed=args.seed,
            progress=_report_to(bar),
            **keywords,
        )
    matrix, p = (found.statistic, found.pvalue) if args.permutations else (found, None)
    numbers: dict[str, Any] = {"mi": matrix.tolist()}
    if p is not None:
        known = [[None if np.isnan(value) else value for value in row] for row in p.tolist()]
        numbers.update({"p_values": known, "fdr": args.fdr, "permutations": args.permutations, "seed": args.seed})
    # It grows with the number of rows, and would dominate the color scale.
    own = np.array([[r == c for c in columns] for r in rows]) & (question.settings["method"] in OF_NUMBERS)
    shown = np.where(own, np.nan, matrix)
    if args.plot:
        _plot_matrix(args.plot, shown, p, rows, columns, args.unit)

    def show() -> None:
        _print_matrix(shown, rows, columns)
        if p is not None:
            adjusted = ", adjusted for the number of pairs" if args.fdr else ""
            print(f"\np-values ({args.permutations} permutations{adjusted}):")
            _print_matrix(p, rows, columns)

    return Result(numbers, show)


def _print_matrix(matrix: npt.NDArray[Any], rows: list[str], columns: list[str]) -> None:
    """Print a matrix with pandas, or without it where it is not installed."""
    try:
        import pandas
    except ImportError:
        cells = zip(rows, matrix, strict=True)
        texts = ((name, *("-" if np.isnan(value) else f"{value:.4f}" for value in row)) for name, row in cells)
        print_table([("", *columns), *texts])
        return
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None  # longer lines would be broken
    table = pandas.DataFrame(matrix, rows, columns)
    print(table.to_string(float_format="{:.4f}".format, na_rep="-", line_width=width))


def _plot_matrix(
    path: Path,
    shown: npt.NDArray[Any],
    p: npt.NDArray[Any] | None,
    rows: list[str],
    columns: list[str],
    unit: str,
) -> None:
    """Write a heat map in which small p-values have a star."""
    side = min(2.5 + 0.3 * max(len(rows), len(columns)), 20.0)
    with _figure(path, (side + 1, side)) as axes:
        image = axes.imshow(shown, cmap="viridis", vmin=0)
        for names, set_ticks, angle in ((columns, axes.set_xticks, 90), (rows, axes.set_yticks, 0)):
            places = range(0, len(names), -(-len(names) // MAX_TICKS))
            set_ticks(places, [names[place] for place in places], rotation=angle)
        bar = axes.figure.colorbar(image, shrink=0.6, fraction=0.05)
        bar.ax.tick_params(labelsize=5 + side)
        bar.set_label(f"mutual information ({unit})", size=5 + side)
        if p is not None:
            axes.set_title(f"* p <= {SIGNIFICANT}", fontsize="small")
            for row, column in np.argwhere((p <= SIGNIFICANT) & ~np.isnan(shown)):
                is_bright = image.norm(shown[row, column]) > 0.6
                color = "black" if is_bright else "white"
                axes.text(column, row, "*", color=color, ha="center", va="center")


# ---- Output ----------------------------------------------------------------------------------------------------------


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}", file=sys.stderr)


def _report_to(bar: Any) -> Callable[[int], object]:
    """The ``progress`` of an estimator, which is called with the number of steps done, for a bar."""
    return lambda done: bar.update(done - bar.n)
