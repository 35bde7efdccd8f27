"""Completion of the command line by a shell, whose script shtab writes.

The script is static: completion that asks the program itself would import PyTorch for every press of the tab key.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from echo_ext import _checks, data, models

__all__ = ["add_print_completion"]

SHELLS = ("bash", "zsh", "fish")
_FOLDERS = ("out", "data_dir", "initial_run", "directory")


def add_print_completion(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``--print-completion`` to the parser of all commands."""
    what = "print a script for this shell that completes commands, arguments, recipes and data sets"
    parser.add_argument("--print-completion", action=_Print, choices=SHELLS, help=what)


class _Print(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        _checks.installed("shtab", purpose="--print-completion", extra="completion")
        import shtab

        for action in _actions(parser):
            _describe(action, shtab)
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _describe(action: argparse.Action, shtab: Any) -> None:
    """Say what completes an argument: the names that it takes, files or folders."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.dest == "recipe":
        action.choices = list(models.recipes())
    elif action.dest == "data":
        action.complete = _names_or_files(data.names())  # type: ignore[attr-defined]
    elif action.dest == "device":
        action.choices = ["cpu", "cuda"]
    elif "|" in metavar:
        action.choices = [word for word in metavar.split("|") if not word.isupper()]
    elif metavar.startswith(("FILE", "OUT.")):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.dest in _FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _names_or_files(names: list[str]) -> dict[str, Any]:
    words, function = " ".join(names), "_echo_ext_data"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{words} (__fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f'{function}() {{ compgen -W "{words}" -- "$1"; compgen -f -- "$1"; }}',
            "zsh": f"{function}() {{ _alternative 'names:data set:({words})' 'files:file:_files' }}",
        },
    }
