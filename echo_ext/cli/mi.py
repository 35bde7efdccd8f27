"""The command ``echo-ext mi``, which estimates the mutual information between columns of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from echo_ext import _checks, estimators
from echo_ext.cli.printing import print_table
from echo_ext.cli.tables import Column, read_table
from echo_ext.estimators.ksg import METHODS

__all__ = ["HELP", "add_arguments", "run"]

HELP = "estimate the mutual information between columns of a CSV, NPY, NPZ or Parquet file by nearest neighbors"

Names: TypeAlias = dict[str, list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("file", type=Path, help="a .csv, .npy, .npz or .parquet file whose rows are samples")
    add("--x", metavar="COLS", help="columns of the first variable: names or numbers from 0, separated by commas")
    add("--y", metavar="COLS", help="columns of the second variable")
    add("--given", metavar="COLS", help="columns of a third variable to condition on")
    what = "number of neighbors; more lower the variance but can increase the bias"
    add("--k", type=int, default=3, help=what)
    add("--method", default="ksg1", choices=METHODS, help="name of the estimator")
    add("--unit", default="nats", choices=("nats", "bits"), help="unit of the result")
    what = "number of rows before and after a sample that are not its neighbors, for time series"
    add("--exclude-within", type=int, default=0, metavar="ROWS", help=what)
    add("--permutations", type=int, default=0, metavar="N", help="test independence by N permutations")
    add("--seed", type=int, default=0, help="seed of the permutations")
    add("--lag", type=int, metavar="MAX", help="scan I(x at t - lag; y at t) for lags from 0 to MAX")
    what = "estimate every pair of columns, or every pair of --x and --y if given"
    add("--matrix", action="store_true", help=what)
    add("--plot", type=Path, metavar="OUT.png", help="write a plot of the matrix or of the lags")
    what = "whether the first line of a CSV file contains names (default: inferred from its cells)"
    add("--header", action=argparse.BooleanOptionalAction, help=what)
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    """Estimate and print the mutual information."""
    if args.matrix and (args.given or args.permutations or args.lag is not None):
        raise ValueError("--matrix can be combined only with --x, --y, --k, --method, --unit and --plot")
    if args.plot and not (args.matrix or args.lag is not None):
        raise ValueError("--plot needs --matrix or --lag")
    if not args.matrix and not (args.x and args.y):
        raise ValueError("--x and --y must name the columns of the two variables; for all pairs use --matrix")
    _checks.whole("--permutations", args.permutations, minimum=0)
    if args.lag is not None:
        _checks.whole("--lag", args.lag, minimum=0)
    if args.given and (args.permutations or args.lag is not None):
        raise ValueError("--given cannot be combined with --permutations or --lag")
    if args.plot:
        _checks.installed("matplotlib", purpose="--plot", extra="mi")
    table = read_table(args.file, args.header)
    names = {"x": table.find(args.x) if args.x else table.numeric_names()}
    names["y"] = table.find(args.y) if args.y else names["x"]
    if args.given:
        names["given"] = table.find(args.given)
    if not names["x"]:
        raise ValueError(f"{args.file} has no numeric columns")
    values = [table.numbers(columns) for columns in names.values()]
    options = {"k": args.k, "method": args.method, "unit": args.unit, "exclude_within": args.exclude_within}
    estimate = _matrix if args.matrix else _pair if args.lag is None else _lags
    numbers, rows = estimate(args, names, values, options)
    if not args.x and (left_out := [name for name in table.names if name not in names["x"]]):
        print(f"echo-ext mi: left out as not numeric: {', '.join(left_out)}", file=sys.stderr)
    if args.json:
        source = {"file": str(args.file), "n": len(values[0]), "header_line": table.header_line}
        print(json.dumps({**source, **names, **options, **numbers}))
        return
    header = ""
    if args.file.suffix.lower() == ".csv":
        header = f", header in line {table.header_line}" if table.header_line else ", no header"
    print(f"echo-ext mi: {len(values[0])} rows from {args.file}{header}", file=sys.stderr)
    print_table(rows)


# Each of the following returns the numbers of the JSON result, and the rows of the table that is printed otherwise.
Result: TypeAlias = tuple[dict[str, Any], Sequence[Sequence[str]]]


def _pair(args: argparse.Namespace, names: Names, values: list[Column], options: dict[str, Any]) -> Result:
    x, y = values[:2]
    found: dict[str, Any] = {}
    if args.given:
        found["estimate"] = estimators.conditional_mutual_information(x, y, values[2], **options)
    elif args.permutations:
        with _progress(args.permutations) as progress:
            test = estimators.independence_test(
                x, y, n_resamples=args.permutations, seed=args.seed, progress=progress, **options
            )
        found = {"estimate": test.statistic, "p_value": test.pvalue, "permutations": args.permutations}
    else:
        found["estimate"] = estimators.mutual_information(x, y, **options)
    if not args.given and len(x) // 10 > max(args.k, 2 * args.exclude_within + args.k):
        uncertain = estimators.with_standard_error(estimators.mutual_information, x, y, seed=args.seed, **options)
        found["standard_error"] = uncertain.standard_error
    first, *others = (",".join(columns) for columns in names.values())
    line = f"I({first}; {' | '.join(others)}) = {found['estimate']:.6g}"
    if "standard_error" in found:
        line += f" +- {found['standard_error']:.2g}"
    line += f" {args.unit}   ({args.method}, k = {args.k}, {len(x)} rows)"
    if args.permutations:
        line += f"   p = {found['p_value']:.4g} ({args.permutations} permutations)"
    return found, [(line,)]


def _lags(args: argparse.Namespace, names: Names, values: list[Column], options: dict[str, Any]) -> Result:
    x, y = values
    if args.lag >= len(x):
        raise ValueError(f"--lag must be less than the number of rows, {len(x)}, got {args.lag}")
    lags = range(args.lag + 1)
    found = [float(estimators.mutual_information(x[: len(x) - lag], y[lag:], **options)) for lag in lags]
    best = int(np.argmax(found))
    if args.plot:
        with _figure(args.plot, (6.4, 3.6)) as axes:
            axes.plot(lags, found, marker="o", markersize=3)
            axes.axvline(best, color="0.7", linewidth=1, zorder=0)
            axes.set_xlabel(f"lag of {','.join(names['x'])} (rows)")
            axes.set_ylabel(f"mutual information with {','.join(names['y'])} ({args.unit})")
    marks = ["<- largest" if lag == best else "" for lag in lags]
    rows = [(f"{lag}", f"{value:.6f}", mark) for lag, value, mark in zip(lags, found, marks, strict=True)]
    return {"lags": list(lags), "mi": found}, rows


def _matrix(args: argparse.Namespace, names: Names, values: list[Column], options: dict[str, Any]) -> Result:
    matrix = np.asarray(estimators.mutual_information_matrix(values[0], values[1] if args.y else None, **options))
    if args.plot:
        _heat_map(args.plot, matrix, names["x"], names["y"], args.unit)
    cells = zip(names["x"], matrix, strict=True)
    rows = [("", *names["y"]), *((name, *(f"{value:.4f}" for value in row)) for name, row in cells)]
    return {"mi": matrix.tolist()}, rows


def _heat_map(path: Path, matrix: npt.NDArray[Any], rows: list[str], columns: list[str], unit: str) -> None:
    # The information of a variable about itself grows with N and would dominate the color scale.
    shown = np.where([[r == c for c in columns] for r in rows], np.nan, matrix)
    side = min(2.5 + 0.3 * max(len(rows), len(columns)), 20.0)
    with _figure(path, (side + 1, side)) as axes:
        image = axes.imshow(shown, cmap="viridis", vmin=0)
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(rows)), rows)
        axes.figure.colorbar(image, label=f"mutual information ({unit})")


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}", file=sys.stderr)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object] | None]:
    """Show a progress bar if stderr is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(desc="permutations", total=total, leave=False, disable=None) as bar:
        yield lambda done: bar.update(done - bar.n)
