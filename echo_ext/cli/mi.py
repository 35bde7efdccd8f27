"""The command ``echo-ext mi``, which estimates the mutual information between columns of files."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echo_ext import _checks
from echo_ext._progress import progress
from echo_ext.cli.machine import check_writable
from echo_ext.cli.mi_results import Question, estimate_lags, estimate_matrix, estimate_pair
from echo_ext.cli.tables import Table, join_tables, read_table
from echo_ext.estimators.independence import NULL_DISTRIBUTIONS, SURROGATES
from echo_ext.estimators.ksg import METHODS, MULTIVARIATE_METHODS
from echo_ext.estimators.options import TRANSFORMS
from echo_ext.estimators.samples import NAN_POLICIES

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "estimate the mutual information between columns of CSV, NPY, NPZ or Parquet files by nearest neighbors"
USAGE = "echo-ext mi FILE [FILE ...] (--x COLS --y COLS | --matrix) [options]"
EXAMPLES = (
    "echo-ext mi data.csv --x height --y weight,age",
    "echo-ext mi data.csv --matrix --plot matrix.png",
    "echo-ext mi data.csv --x smokes --y illness --given age --permutations 1000",
    "echo-ext mi series.csv --x rain --y level --lag 48 --json",
)
WITHOUT_ORDER = ("mixed", "plug-in", "miller-madow")  # the methods for categories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    what = "a .csv, .npy, .npz or .parquet file whose rows are samples; the columns of several stand side by side"
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help=what)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_variables(parser.add_argument_group("variables").add_argument)
    _add_estimator(parser.add_argument_group("estimator").add_argument)
    _add_tests(parser.add_argument_group("test of independence").add_argument)
    add = parser.add_argument_group("several estimates at once").add_argument
    what = "estimate every pair of columns, or every pair of --x and --y if given"
    add("--matrix", action="store_true", help=what)
    add("--fdr", action="store_true", help="adjust the p-values of a matrix for its number of pairs")
    add("--lag", type=int, metavar="MAX", help="scan I(x at t - lag; y at t | given at t) for lags from 0 to MAX")
    add("--plot", type=Path, metavar="OUT.png", help="write a plot of the matrix or of the lags")


def _add_variables(add: Callable[..., object]) -> None:
    add("--x", metavar="COLS", help="columns of the first variable: names or numbers from 0, separated by commas")
    add("--y", metavar="COLS", help="columns of the second variable")
    add("--given", metavar="COLS", help="columns of a variable to condition on")
    add("--groups", metavar="COL", help="column that labels the trial or recording of each row, for time series")
    what = "whether the first line of a CSV file contains names (default: inferred from its cells)"
    add("--header", action=argparse.BooleanOptionalAction, help=what)
    what = "refuse missing values, or leave out the rows of an estimate that have any"
    add("--nan-policy", default="raise", choices=NAN_POLICIES, help=what)


def _add_estimator(add: Callable[..., object]) -> None:
    what = "number of neighbors, or a fraction of the rows; more of them lower the variance but can increase the bias"
    add("--k", type=_read_k, default=3, help=what)
    what = (
        "name of the estimator (default: mixed if a column holds words, which are categories, and ksg1 otherwise); for "
        "numbers, mixed and miller-madow need few distinct values that each occur often, and are far too large for "
        "rounded numbers and large counts: add uniform noise as wide as the grid to those"
    )
    add("--method", choices=METHODS, help=what)
    add("--unit", default="nats", choices=("nats", "bits"), help="unit of the result")
    what = "what is done to each column of numbers first (default: standardize next to categories, otherwise none)"
    add("--transform", choices=[str(each or "none") for each in TRANSFORMS], help=what)
    what = "number of rows before and after a sample that are not its neighbors, for time series"
    add("--exclude-within", type=int, default=0, metavar="ROWS", help=what)


def _add_tests(add: Callable[..., object]) -> None:
    add("--permutations", type=int, default=0, metavar="N", help="test independence by N surrogates")
    what = "kind of surrogates (default: local with --given, otherwise shuffle)"
    add("--surrogate", choices=SURROGATES, help=what)
    add("--block-length", type=int, metavar="ROWS", help="length of the blocks of --surrogate block")
    what = "empirical p-values, or the tail of a distribution that is fitted to the surrogates' estimates"
    add("--null", default="empirical", choices=NULL_DISTRIBUTIONS, help=what)
    what = "stop once independence can no longer be rejected at this level"
    add("--early-stopping", type=float, metavar="ALPHA", help=what)
    add("--seed", type=int, default=0, metavar="N", help="seed of the surrogates")


def _read_k(text: str) -> int | float:
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an int or a fraction in (0, 1), got {text!r}") from None


def run(args: argparse.Namespace) -> None:
    """Estimate and print the mutual information."""
    _check_flags(args)
    with progress(f"reading {', '.join(map(str, args.files))}", None):
        tables = [read_table(path, args.header if path.suffix.lower() == ".csv" else None) for path in args.files]
    if args.header is not None and not any(path.suffix.lower() == ".csv" for path in args.files):
        raise ValueError(f"--header and --no-header need a CSV file, got {args.files[0]}")
    table = join_tables(tables)
    question = _read_question(args, table)
    estimate = estimate_matrix if args.matrix else estimate_pair if args.lag is None else estimate_lags
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        result = estimate(args, question)
    texts = list(dict.fromkeys(" ".join(str(each.message).split()) for each in caught))
    if not args.x and (left_out := [name for name in table.names if name not in question.names["x"]]):
        print(f"echo-ext mi: left out as not numeric: {', '.join(left_out)}", file=sys.stderr)
    for text in texts:
        print(f"echo-ext mi: warning: {text}", file=sys.stderr)
    if args.json:
        source = _one_or_all([{"file": str(each.path), "header_line": each.header_line} for each in tables])
        described = {"n": question.num_rows, **question.names, "categories": question.categories, **question.settings}
        print(json.dumps({**source, **described, **result.numbers, "warnings": texts}))
        return
    files = "; ".join(f"{each.path}{_describe_header(each)}" for each in tables)
    print(f"echo-ext mi: {question.num_rows} rows from {files}", file=sys.stderr)
    result.show()


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, before any file is read."""
    if args.plot and not (args.matrix or args.lag is not None):
        raise ValueError("--plot needs --matrix or --lag")
    if not args.matrix and not (args.x and args.y):
        raise ValueError("--x and --y must name the columns of the two variables; for all pairs use --matrix")
    _checks.whole("--permutations", args.permutations, minimum=0)
    if args.lag is not None:
        _checks.whole("--lag", args.lag, minimum=0)
        if args.matrix or args.permutations:
            raise ValueError(f"--lag cannot be combined with {'--matrix' if args.matrix else '--permutations'}")
    if args.fdr and not (args.matrix and args.permutations):
        raise ValueError("--fdr needs --matrix and --permutations, since it adjusts the p-values of all pairs")
    of_one_test = {
        "--surrogate": args.surrogate,
        "--block-length": args.block_length,
        "--early-stopping": args.early_stopping,
        "--null": None if args.null == "empirical" else args.null,
    }
    for flag, value in of_one_test.items():
        if value is not None and not args.permutations:
            raise ValueError(f"{flag} needs --permutations, the number of surrogates")
        if value is not None and args.matrix:
            raise ValueError(f"{flag} cannot be combined with --matrix")
    if args.early_stopping is not None and args.null != "empirical":
        raise ValueError(f"--early-stopping needs --null empirical, got --null {args.null}")
    if args.plot:
        _check_plot(args.plot)


def _check_plot(path: Path) -> None:
    _checks.installed("matplotlib", purpose="--plot", extra="mi")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in formats:
        raise ValueError(f"--plot must be a file that ends in one of .{', .'.join(formats)}, got {path}")
    check_writable("--plot", path.parent, [path.name])


def _read_question(args: argparse.Namespace, table: Table) -> Question:
    """Return the variables, and the keywords of the estimators."""
    names = {"x": table.find(args.x) if args.x else table.numeric_names()}
    names["y"] = table.find(args.y) if args.y else names["x"]
    if args.given:
        names["given"] = table.find(args.given)
    if not names["x"]:
        raise ValueError(f"{table.path} has no numeric columns")
    flags = {key: [table.is_categorical(name) for name in columns] for key, columns in names.items()}
    categories = [name for key in names for name, flag in zip(names[key], flags[key], strict=True) if flag]
    method = args.method or ("mixed" if categories else "ksg1")
    if categories and method not in WITHOUT_ORDER:
        raise ValueError(
            f"--method {method} is for numbers, but column {categories[0]!r} holds categories; "
            f"for these there are {', '.join(WITHOUT_ORDER)}"
        )
    if args.given and method not in MULTIVARIATE_METHODS:
        raise ValueError(f"--method {method} cannot be combined with --given")
    # Different categories are at distance 1, which says nothing next to numbers of another spread.
    transform = args.transform or ("standardize" if categories and method == "mixed" else "none")
    settings = {
        "k": args.k,
        "method": method,
        "unit": args.unit,
        "exclude_within": args.exclude_within,
        "nan_policy": args.nan_policy,
        "transform": None if transform == "none" else transform,
    }
    return Question(
        names=names,
        values={key: table.numbers(each, args.nan_policy, categories=True) for key, each in names.items()},
        # The methods that count cells take all columns as categories.
        discrete={key: each for key, each in flags.items() if method == "mixed" and any(each)},
        categories=list(dict.fromkeys(categories)),
        settings=settings,
        groups=_read_groups(args.groups, table) if args.groups else None,
    )


def _read_groups(wanted: str, table: Table) -> Any:
    columns = table.find(wanted)
    if len(columns) != 1:
        raise ValueError(f"--groups must be one column, got {', '.join(columns)}")
    return table.labels(columns[0])


def _describe_header(table: Table) -> str:
    if table.path.suffix.lower() != ".csv":
        return ""
    return f", header in line {table.header_line}" if table.header_line else ", no header"


def _one_or_all(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what describes one file, or lists with an entry for each of several."""
    return each[0] if len(each) == 1 else {key: [one[key] for one in each] for key in each[0]}
