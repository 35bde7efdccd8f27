"""The command ``echo-ext``, whose subcommands are modules with HELP, add_arguments(parser) and run(arguments)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import echo_ext

__all__ = ["main"]

COMMANDS = ("info", "demo", "mi", "data", "recipes", "train", "evaluate", "sweep", "encode", "sample")

# Errors that the user can fix have exit code 2, all others 1.
_BAD_INPUT = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and report an error in one line on stderr.

    Returns:
        The exit code: 0, 1 for a failure, 2 for bad usage or input, 130 after an interrupt.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        return _report(arguments.command, str(stop) or "interrupted", 130)
    except BrokenPipeError:
        # The reader of stdout has ended. Redirect stdout, so that the interpreter's last flush does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        if isinstance(error, _BAD_INPUT):
            # An error begins with the name of an argument, which is set by the flag of this name.
            name, must, rest = str(error).partition(" must ")
            return _report(arguments.command, f"error: {arguments.flags.get(name, name)}{must}{rest}", 2)
        return _report(arguments.command, f"error: {type(error).__name__}: {error} (--debug shows where)", 1)
    return 0


def _report(command: str, message: str, code: int) -> int:
    print(f"echo-ext {command}: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that ends with the default, unless that is None or what a switch does when it is not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if isinstance(action.default, bool | None) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="echo-ext", description=echo_ext.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"echo-ext {echo_ext.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"echo_ext.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        command.formatter_class = _Help
        # Suppressed, so that this default does not override a --debug before the command.
        add = command.add_argument
        add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
        module.add_arguments(command)
        flags = {action.dest: action.option_strings[0] for action in command._actions if action.option_strings}
        command.set_defaults(run=module.run, flags=flags)
    return parser
