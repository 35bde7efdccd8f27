"""The command ``echo-ext mi``, which estimates the mutual information between columns of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from echo_ext import _checks
from echo_ext.cli.tables import Table, read_table
from echo_ext.estimators import (
    conditional_mutual_information,
    mutual_information,
    mutual_information_error,
    mutual_information_matrix,
    permutation_test,
)
from echo_ext.estimators.ksg import METHODS

__all__ = ["HELP", "add_arguments", "run"]

HELP = "estimate the mutual information between columns of a CSV, NPY, NPZ or Parquet file by nearest neighbors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("file", type=Path, help="a .csv, .npy, .npz or .parquet file whose rows are samples")
    parser.add_argument(
        "--x", metavar="COLS", help="columns of the first variable: names or numbers from 0, separated by commas"
    )
    parser.add_argument("--y", metavar="COLS", help="columns of the second variable")
    parser.add_argument("--given", metavar="COLS", help="columns of a third variable to condition on")
    parser.add_argument(
        "--k",
        type=int,
        default=3,
        help="number of neighbors; more lower the variance but can increase the bias (default: 3)",
    )
    parser.add_argument("--method", default="ksg1", choices=METHODS, help="name of the estimator (default: ksg1)")
    parser.add_argument("--unit", default="nats", choices=("nats", "bits"), help="unit of the result (default: nats)")
    parser.add_argument(
        "--exclude-within",
        type=int,
        default=0,
        metavar="ROWS",
        help="number of rows before and after a sample that are not its neighbors, for time series (default: 0)",
    )
    parser.add_argument(
        "--permutations", type=int, default=0, metavar="N", help="test independence by N permutations (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the permutations (default: 0)")
    parser.add_argument("--lag", type=int, metavar="MAX", help="scan I(x at t - lag; y at t) for lags from 0 to MAX")
    parser.add_argument(
        "--matrix", action="store_true", help="estimate every pair of columns, or every pair of --x and --y if given"
    )
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="write a plot of the matrix or of the lags")
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line of a CSV file contains names (default: inferred from its cells)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


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
    table = read_table(args.file, args.header)
    if args.matrix:
        _matrix(args, table)
    elif args.lag is not None:
        _lags(args, table)
    else:
        _pair(args, table)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {"k": args.k, "method": args.method, "unit": args.unit, "exclude_within": args.exclude_within}


def _source(args: argparse.Namespace, table: Table, rows: int) -> dict[str, Any]:
    """The source of the numbers as a part of the JSON result; without --json it is printed on stderr."""
    if not args.json:
        header = ""
        if args.file.suffix.lower() == ".csv":
            header = f", header in line {table.header_line}" if table.header_line else ", no header"
        print(f"echo-ext mi: {rows} rows from {args.file}{header}", file=sys.stderr)
    return {"file": str(args.file), "n": rows, "header_line": table.header_line}


def _pair(args: argparse.Namespace, table: Table) -> None:
    names = {"x": table.find(args.x), "y": table.find(args.y)}
    x, y = (table.numbers(columns) for columns in names.values())
    result: dict[str, Any] = {**_source(args, table, len(x)), **names, **_options(args)}
    if args.given:
        result["given"] = table.find(args.given)
        z = table.numbers(result["given"])
        result["estimate"] = conditional_mutual_information(x, y, z, **_options(args))
    elif args.permutations:
        with _progress(args.permutations) as progress:
            test = permutation_test(x, y, args.permutations, seed=args.seed, progress=progress, **_options(args))
        result |= {"estimate": test.estimate, "p_value": test.p_value, "permutations": args.permutations}
    else:
        result["estimate"] = mutual_information(x, y, **_options(args))
    if not args.given and len(x) // 10 > max(args.k, 2 * args.exclude_within + args.k):
        result["standard_error"] = mutual_information_error(x, y, seed=args.seed, **_options(args)).standard_error
    if args.json:
        print(json.dumps(result))
        return
    given = f" | {','.join(result['given'])}" if args.given else ""
    line = f"I({','.join(names['x'])}; {','.join(names['y'])}{given}) = {result['estimate']:.6g}"
    if "standard_error" in result:
        line += f" +- {result['standard_error']:.2g}"
    line += f" {args.unit}   ({args.method}, k = {args.k}, {len(x)} rows)"
    if args.permutations:
        line += f"   p = {result['p_value']:.4g} ({args.permutations} permutations)"
    print(line)


def _lags(args: argparse.Namespace, table: Table) -> None:
    names = {"x": table.find(args.x), "y": table.find(args.y)}
    x, y = (table.numbers(columns) for columns in names.values())
    if args.lag >= len(x):
        raise ValueError(f"--lag must be less than the number of rows, {len(x)}, got {args.lag}")
    lags = list(range(args.lag + 1))
    values = [float(np.asarray(mutual_information(x[: len(x) - lag], y[lag:], **_options(args)))) for lag in lags]
    best = int(np.argmax(values))
    source = _source(args, table, len(x))
    if args.json:
        print(json.dumps({**source, **names, **_options(args), "lags": lags, "mi": values}))
    else:
        for lag, value in zip(lags, values, strict=True):
            print(f"{lag:6d}  {value: .6f}{'  <- largest' if lag == best else ''}")
    if args.plot:
        with _figure(args.plot, (6.4, 3.6)) as axes:
            axes.plot(lags, values, marker="o", markersize=3)
            axes.axvline(best, color="0.7", linewidth=1, zorder=0)
            axes.set_xlabel(f"lag of {','.join(names['x'])} (rows)")
            axes.set_ylabel(f"mutual information with {','.join(names['y'])} ({args.unit})")


def _matrix(args: argparse.Namespace, table: Table) -> None:
    rows = table.find(args.x) if args.x else table.numeric_names()
    columns = table.find(args.y) if args.y else rows
    if not rows:
        raise ValueError(f"{args.file} has no numeric columns")
    other = table.numbers(columns) if args.y else None
    values = table.numbers(rows)
    matrix = np.asarray(mutual_information_matrix(values, other, **_options(args)))
    source = _source(args, table, len(values))
    if not args.x and len(rows) < len(table.names):
        left_out = [name for name in table.names if name not in rows]
        print(f"echo-ext mi: left out as not numeric: {', '.join(left_out)}", file=sys.stderr)
    if args.json:
        print(json.dumps({**source, "x": rows, "y": columns, **_options(args), "mi": matrix.tolist()}))
    else:
        width = max(9, *(len(name) + 1 for name in rows + columns))
        print(" " * width + "".join(f"{name:>{width}}" for name in columns))
        for name, values in zip(rows, matrix, strict=True):
            print(f"{name:>{width}}" + "".join(f"{value:{width}.4f}" for value in values))
    if args.plot:
        _heat_map(args.plot, matrix, rows, columns, args.unit)


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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'echo-ext[mi]'") from None
    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}", file=sys.stderr)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar if stderr is a terminal and rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("permutations", total=total)
        yield lambda done: bar.update(task, completed=done)
