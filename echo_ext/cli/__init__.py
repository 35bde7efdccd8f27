"""The command ``echo-ext``.

Its subcommands are modules with HELP, EXAMPLES (command lines), add_arguments(parser) and run(arguments), and USAGE if
the arguments are too many to be shown in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import echo_ext
from echo_ext import _checks
from echo_ext.cli.completion import add_print_completion

__all__ = ["main"]

COMMANDS = ("info", "demo", "mi", "data", "recipes", "train", "evaluate", "sweep", "encode", "sample", "push", "pull")

# Errors that the user can fix have exit code 2, all others 1.
_BAD_INPUT = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)

# What is printed if no command is given.
FIRST_STEPS = f"""{echo_ext.__doc__}

First steps:

  echo-ext info
      what is installed, and whether a GPU can be used
  echo-ext demo
      train two small autoencoders and compare them
  echo-ext mi FILE.csv --matrix
      mutual information between all columns of a table
  echo-ext train --recipe echo --data digits
      train a model; recipes and data list all of them
  echo-ext evaluate runs/echo-digits-beta1-seed0
      measure what it has learned

echo-ext --help lists all commands, and echo-ext COMMAND --help has
examples. Documentation: https://echo-ext.readthedocs.io"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and report an error in one line on stderr.

    Returns:
        The exit code: 0, 1 for a failure, 2 for bad usage or input, 130 after an interrupt.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # rather than fail where the encoding lacks a character
    # Its warnings are about the folder of its cache, instead of which it uses another one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    arguments = argparse.Namespace(command="", debug=False, flags={})
    try:
        with _flushed_output():
            arguments = _parse(argv)
            arguments.run(arguments)
    except KeyboardInterrupt as stop:
        return _report(arguments.command, str(stop) or "interrupted", 130)
    except BrokenPipeError:  # the reader of stdout has ended
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        if isinstance(error, _BAD_INPUT):
            # An error begins with the name of an argument, which is set by the flag of this name.
            name, must, rest = _describe(error).partition(" must ")
            return _report(arguments.command, f"error: {arguments.flags.get(name, name)}{must}{rest}", 2)
        return _report(arguments.command, f"error: {_describe(error)} (--debug shows where)", 1)
    return 0


@contextlib.contextmanager
def _flushed_output() -> Iterator[None]:
    """Flush stdout at the end; if it cannot be written, prevent that the interpreter's own flush fails once more."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _describe(error: Exception) -> str:
    """What an error says, with the class if it is not meant for users."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the output cannot be written'}: {error.strerror}"
    return str(error) if isinstance(error, _BAD_INPUT) else f"{type(error).__name__}: {error}"


def _report(command: str, message: str, code: int) -> int:
    print(f"{f'echo-ext {command}'.strip()}: {' '.join(message.split())}", file=sys.stderr)
    return code


# ---- Arguments -------------------------------------------------------------------------------------------------------


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that ends with the default, unless that is None or what a switch does when it is not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if isinstance(action.default, bool | None) else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            raise argparse.ArgumentError(None, str(_checks.unknown("command", value, list(action.choices))))
        super()._check_value(action, value)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        parser = arguments.parser
        near = difflib.get_close_matches(unknown[0].partition("=")[0], parser._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="echo-ext", description=echo_ext.__doc__, allow_abbrev=False, formatter_class=_Help)
    parser.epilog = "echo-ext COMMAND --help describes a command and has examples. Documentation: "
    parser.epilog += "https://echo-ext.readthedocs.io"
    parser.add_argument("--version", action="version", version=f"echo-ext {echo_ext.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_print_completion(parser)
    parser.set_defaults(run=lambda _: print(FIRST_STEPS), parser=parser, flags={}, command="")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        module = importlib.import_module(f"echo_ext.cli.{name}")
        about = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        command = commands.add_parser(
            name, help=module.HELP, description=about, allow_abbrev=False, formatter_class=_Help
        )
        command.usage = getattr(module, "USAGE", None)
        command.epilog = "\n".join(["examples:", *(f"  {line}" for line in module.EXAMPLES)])
        # Suppressed, so that this default does not override a --debug before the command.
        add = command.add_argument
        add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
        module.add_arguments(command)
        flags = {action.dest: action.option_strings[0] for action in command._actions if action.option_strings}
        command.set_defaults(run=module.run, flags=flags, parser=command)
    return parser
