"""The command ``echo-ext``: each subcommand is a module here with HELP, add_arguments(parser) and run(arguments)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import echo_ext

__all__ = ["main"]

COMMANDS = ("info", "demo", "mi", "data", "recipes", "train", "evaluate", "sweep", "reproduce")

# What a user can put right: exit code 2. Anything else is 1.
_BAD_INPUT = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error is one line on standard error.

    Exit codes: 0; 1 for a failure; 2 for bad usage or input; 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        return _say(arguments.command, str(stop) or "interrupted", 130)
    except BrokenPipeError:
        # Whoever read standard output has gone; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        if isinstance(error, _BAD_INPUT):
            return _say(arguments.command, f"error: {error}", 2)
        return _say(arguments.command, f"error: {type(error).__name__}: {error} (--debug shows where)", 1)
    return 0


def _say(command: str, message: str, code: int) -> int:
    print(f"echo-ext {command}: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help shows what there is)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="echo-ext", description=echo_ext.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"echo-ext {echo_ext.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"echo_ext.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        # Suppressed, so that it does not undo a --debug before the command.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
