"""Exclusive ownership of a folder by a lock of the operating system, which is released even if the process is killed.

A file next to the locked one names the owner, which removes both at the end. After a kill they stay, unlocked, until
the next owner uses them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["explained", "owned"]

# Seconds to wait for a lock, because a process that only asks for the owner holds it for a moment; and for the record.
TIMEOUT = 0.5
_POLL_INTERVAL = 0.02
_RECORD_BYTES = 1024


@contextlib.contextmanager
def owned(folder: Path, name: str, *, timeout: float = TIMEOUT) -> Iterator[None]:
    """Hold the lock ``name`` of a folder, which is created if necessary and removed again if it is empty at the end.

    Another owner has ``timeout`` seconds to finish.

    Raises:
        FileExistsError: Another process owns the folder; the message names it.
        PermissionError: The folder cannot be written to.
        ValueError: The folder cannot be created, or its file system has no locks.
    """
    file, record = folder / name, (folder / name).with_suffix(".owner")
    lock = FileLock(file, timeout, poll_interval=_POLL_INTERVAL, fallback_to_soft=False)
    until = time.monotonic() + timeout
    try:
        with explained(folder):
            while not lock.is_locked:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire()
                except FileNotFoundError:  # the previous owner has just removed the folder
                    if time.monotonic() >= until:
                        raise
                except Timeout:
                    raise FileExistsError(f"{folder} is in use by {_owner(record)}; wait until it has ended") from None
            record.unlink(missing_ok=True)  # so that nothing is written through a link
            me = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
            with record.open("x") as opened:
                opened.write(json.dumps(me) + "\n")
        yield
    finally:
        if lock.is_locked:  # false in a process that was forked inside the block
            for each in (record, file):  # while the lock is held, so that the next owner's files are not removed
                with contextlib.suppress(OSError):  # Windows does not remove a file that is open
                    each.unlink()
            lock.release()
            with contextlib.suppress(OSError):
                folder.rmdir()


def _owner(record: Path) -> str:
    """A description of the owner, for whose record this waits a moment."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            with record.open("rb") as opened:
                owner = json.loads(opened.read(_RECORD_BYTES))
            return f"process {owner['pid']:d} on {owner['host']:.100} since {owner['started']:.30}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or damaged
            if time.monotonic() >= until:
                return "another process"
        time.sleep(_POLL_INTERVAL)


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Report errors of the file system in one line that says what is wrong with the folder."""
    try:
        yield
    except FileExistsError as refused:
        if refused.errno is None:
            raise
        raise NotADirectoryError(f"{folder} must be a folder, but it is a file") from refused
    except NotADirectoryError as refused:
        raise NotADirectoryError(f"{folder} cannot be created, because one of its parents is a file") from refused
    except PermissionError as refused:
        raise PermissionError(f"{folder} is not writable: {refused.strerror}") from refused
    except OSError as refused:
        without_locks = refused.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
        what = "on a file system without locks" if without_locks else "not writable"
        raise ValueError(f"{folder} is {what}: {refused.strerror}") from refused
