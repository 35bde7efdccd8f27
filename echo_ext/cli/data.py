"""The command ``echo-ext data``, which lists the data sets and where they are on this machine."""

from __future__ import annotations

import argparse

from echo_ext.cli.machine import add_data_dir
from echo_ext.data.catalog import CATALOG, Entry

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "list the data sets with their shapes, rows, sources, licenses, and files on this machine"
EXAMPLES = (
    "echo-ext data",
    "echo-ext data --data-dir ~/datasets",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add_data_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print three lines for each data set."""
    for name, entry in CATALOG.items():
        shape = " x ".join(map(str, entry.data_shape))
        train, valid, test = entry.rows
        print(f"{name:<18}  {shape}, {train} / {valid} / {test} rows")
        print(f"{'':<18}  {entry.source}; license: {entry.license}")
        print(f"{'':<18}  {_where(entry, arguments.data_dir)}")


def _where(entry: Entry, root: str | None) -> str:
    path = entry.found(root)
    if path is not None:
        return f"found: {path}"
    return f"not found; {entry.fallback}: {entry.page}" if entry.page else entry.fallback
