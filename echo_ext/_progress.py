"""Progress of long work on stderr: a bar on a terminal, and a line now and then in the log of a job."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from typing_extensions import Self

__all__ = ["is_terminal", "progress", "silenced", "tracked"]

T = TypeVar("T")

# Seconds until the first line in a log, and between two lines.
FIRST_LINE, LINE_INTERVAL = 10.0, 60.0
# Seconds between updates of the time on a terminal while the work reports nothing.
TICK = 1.0
# The most important comes first, because a narrow terminal cuts off the end.
_TIMES = "{percentage:.0f}% [{elapsed}<{remaining}, "

_is_silenced = ContextVar("_is_silenced", default=False)


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal that can overwrite a line."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def silenced(yes: bool = True) -> Iterator[None]:
    """Show no progress inside the block."""
    token = _is_silenced.set(yes or _is_silenced.get())
    try:
        yield
    finally:
        _is_silenced.reset(token)


@contextlib.contextmanager
def progress(
    label: str, total: int | None, unit: str = "", *, of: str = "", done: int = 0, leave: bool | None = False
) -> Iterator[Any]:
    """Yield a tqdm bar whose ``update(n)`` reports that n more units are done.

    Where stderr is no terminal, a line is printed after ten seconds and then every minute, also while nothing is
    reported, and a last one at the end if there was a first. Without tqdm, nothing is shown.

    Args:
        label: What is being done. ``set_description_str(text, refresh=False)`` replaces it.
        total: The number of units, or None if it is not known yet.
        unit: The name of a unit; "B" for bytes, and empty if only the time is shown.
        of: What the labels are about, if they change. The numbers of units are then not shown.
        done: The number of units that were done before.
        leave: Whether to leave the finished bar on the terminal; None leaves it unless another one is around it.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield _Nothing()
        return
    if _is_silenced.get() or sys.stderr is None:
        yield _Nothing()
        return
    counts = "" if of else "{n_fmt}/{total_fmt}, "
    numbers = f": {_TIMES}{counts}{{rate_fmt}}{{postfix}}]" if unit else " [{elapsed}]"
    options: dict[str, Any] = {"desc": label, "total": total, "unit": unit, "initial": done, "unit_scale": unit == "B"}
    on_terminal = is_terminal(sys.stderr)
    about = of.replace("{", "{{").replace("}", "}}")
    if on_terminal:
        layout = f"{{desc}}{numbers} {{bar}} {about}" if unit else f"{{desc}}{numbers}"
        # Shown below, because an interrupt before it can be closed must not leave it there.
        bar = tqdm(**options, bar_format=layout, leave=leave, dynamic_ncols=True, delay=1)
        bar.delay = 0
    else:  # the bar only keeps the numbers, and never draws itself
        layout = f"{about}{', ' if of else ''}{{desc}}{numbers}"
        bar = tqdm(**options, bar_format=layout, file=io.StringIO(), mininterval=math.inf, delay=math.inf)
    is_outer = bar.pos == 0

    def print_line() -> None:
        print(bar, file=sys.stderr, flush=True)

    def show() -> None:
        if not bar.disable:  # which closing sets
            bar.refresh() if on_terminal else print_line()

    first, interval = (TICK, TICK) if on_terminal else (FIRST_LINE, LINE_INTERVAL)
    with contextlib.closing(bar):
        if on_terminal:
            bar.refresh()
        ticker = _Ticker(show, first, interval)
        try:
            yield bar
        finally:
            ticker.end()
            if ticker.has_shown and not on_terminal and (is_outer if leave is None else leave):
                print_line()


def tracked(steps: Iterable[T], label: str, unit: str) -> Iterator[T]:
    """Yield the steps of some work, with its progress."""
    steps = list(steps)
    with progress(label, len(steps), unit) as bar:
        for step in steps:
            yield step
            bar.update()


class _Ticker:
    """Calls a function after some seconds and then regularly, in a thread."""

    def __init__(self, show: Callable[[], object], first: float, interval: float) -> None:
        self.has_shown = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(show, first, interval), daemon=True)
        self._thread.start()

    def _run(self, show: Callable[[], object], first: float, interval: float) -> None:
        wait = first
        while not self._ended.wait(wait):
            with contextlib.suppress(OSError, ValueError):  # stderr was closed
                show()
            self.has_shown, wait = True, interval

    def end(self) -> None:
        """Call it no more."""
        self._ended.set()
        self._thread.join()


class _Nothing:
    """Stands for a bar where none is shown."""

    n = 0
    total: int | None = None

    def __getattr__(self, name: str) -> Callable[..., Self]:
        return lambda *arguments, **options: self
