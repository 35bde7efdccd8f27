"""Function calls that run at the same time, each in its own process."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, cast

import torch

__all__ = ["picklable", "run_in_processes", "sigterm_interrupts"]

# Seconds to wait for a process to end after SIGTERM.
TERMINATION_TIMEOUT = 60.0


def run_in_processes(
    function: Callable[..., Any],
    calls: Mapping[str, tuple[Any, ...]],
    jobs: int,
    *,
    may_start: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[str, Any]]:
    """Make every call in a new process, at most ``jobs`` at a time; yield their names and outcomes as they end.

    A new process releases all memory of the device when it ends, and a killed process does not affect the other calls.
    The processes share the threads of this process, since more threads than cores would be many times slower. They end
    when this process ends, even if it is killed.

    Args:
        function: A function of a module, which a new process can import. An exception that it raises is its outcome.
        calls: The arguments of each call, by name.
        jobs: Maximum number of processes at a time.
        may_start: Called before each start. Once it returns False, no further calls are made.
    """
    # A forked process could use neither torch's threads nor the GPU.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    waiting = iter(calls.items())
    running: dict[Connection, tuple[str, SpawnProcess]] = {}
    try:
        while True:
            if may_start():
                for name, arguments in itertools.islice(waiting, jobs - len(running)):
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_serve, args=(sender, function, arguments, threads), name=name)
                    process.start()
                    sender.close()
                    running[receiver] = name, process
            if not running:
                return
            for ready in multiprocessing.connection.wait(list(running)):
                receiver = cast(Connection, ready)
                name, process = running.pop(receiver)
                outcome: Any
                try:
                    outcome = receiver.recv()
                    process.join()
                except (EOFError, OSError):  # it ended before it had sent its outcome completely
                    process.join()
                    outcome = RuntimeError(f"its process ended with exit code {process.exitcode}")
                receiver.close()
                yield name, outcome
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(TERMINATION_TIMEOUT)
            process.kill()


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt inside the block, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> None:
    """Make one call and send its outcome."""
    # Ctrl-C reaches every process of the terminal, but only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    outcome: Any
    try:
        with sigterm_interrupts():  # so that the process cleans up
            try:
                outcome = function(*arguments)
            except Exception as error:
                outcome = picklable(error)
            sender.send(outcome)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def picklable(error: Exception) -> Exception:
    """Return the error, or a RuntimeError with its text if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling runs code of the error, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """Terminate this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(TERMINATION_TIMEOUT)
    os._exit(1)
