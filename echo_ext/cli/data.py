"""``echo-ext data``: the data sets there are, and where they are on this machine."""

from __future__ import annotations

import argparse

from echo_ext.data.catalog import CATALOG, Entry

__all__ = ["HELP", "add_arguments", "run"]

HELP = "list the data sets: shape, rows, source, license, and where they are on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to look."""
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of the data's files; default: ECHO_EXT_DATA")


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
        return f"here: {path}"
    return f"not here; {entry.without}: {entry.page}" if entry.page else entry.without
