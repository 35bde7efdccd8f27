"""Calls that run side by side, each in a process of its own."""

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

__all__ = ["sendable", "side_by_side", "terminable"]

# Seconds that a process gets to end by itself once it was asked to.
PATIENCE = 60.0


def side_by_side(
    function: Callable[..., Any],
    calls: Mapping[str, tuple[Any, ...]],
    jobs: int,
    *,
    may_start: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[str, Any]]:
    """Make every call in a fresh process, at most ``jobs`` of them at a time; yields names with outcomes as they end.

    A fresh process gives back all memory of the device when it ends, whatever happened in it, and one that is killed
    takes no other call with it. The processes share the threads that this one has, since more threads than cores are
    many times slower. They end when this process ends, even when it is killed.

    Args:
        function: A function of a module, which a new process can import.
        calls: The arguments of each call, by name.
        jobs: How many processes run at a time.
        may_start: Asked before each start; once it is false, the remaining calls are not made.

    Yields:
        The name of a call, and what it returned or the exception that it raised.
    """
    # Spawned: a forked process could use neither torch's threads nor the GPU.
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
                except (EOFError, OSError):  # it ended before, or while, it sent its outcome
                    process.join()
                    outcome = RuntimeError(f"its process ended with exit code {process.exitcode}")
                receiver.close()
                yield name, outcome
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(PATIENCE)
            process.kill()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what is inside as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> None:
    """Make one call and send its outcome."""
    # Ctrl-C reaches every process of the terminal; the first process alone decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    outcome: Any
    try:
        with terminable():  # from here on SIGTERM ends the process as an exception does, which cleans up
            try:
                outcome = function(*arguments)
            except Exception as error:
                outcome = sendable(error)
            sender.send(outcome)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def sendable(error: Exception) -> Exception:
    """The error, or its text where it cannot go from one process to another."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling runs the error's own code, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """Terminate this process once the one that started it has gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(PATIENCE)
    os._exit(1)
