"""One owner for a folder: a lock of the operating system, which a process that is killed leaves free.

The lock is on a small file in the folder that says who holds it. The owner removes the file in the end; after a kill it
stays, held by nobody, until the next owner takes it over. (``filelock`` has no version for Python 3.10 that keeps what
is written in the file.)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["describe_owner", "owned"]

# Seconds to wait for a lock, so that a process that merely looks who holds it is in nobody's way; and for its record.
PATIENCE = 0.5
_POLL = 0.02
_RECORD_BYTES = 1024

_held: set[int] = set()


def _close_in_child() -> None:
    """A forked process has its parent's locks too, and would keep them after the parent has died."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def owned(folder: Path, name: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock ``name`` of a folder, which is made where it is missing and removed where it stays empty.

    Args:
        folder: What to own.
        name: The name of the lock's file in it.
        patience: How many seconds to wait for another owner to end.

    Raises:
        FileExistsError: Another process owns the folder; the message names the process.
        PermissionError: The folder cannot be written to.
        ValueError: It cannot be made, or its file system has no locks.
    """
    with _explained(folder):
        descriptor = _acquire(folder, folder / name, patience)
    _held.add(descriptor)
    try:
        with _explained(folder):
            _write_record(descriptor)
        yield
    finally:
        if descriptor in _held:  # not in a process forked in between
            with contextlib.suppress(OSError):  # Windows keeps a file that is open
                (folder / name).unlink()
            _held.discard(descriptor)
            os.close(descriptor)
            with contextlib.suppress(OSError):
                folder.rmdir()


def describe_owner(folder: Path, name: str) -> str | None:
    """Who owns a folder now, in words; None where nobody does."""
    try:
        descriptor = _open(folder / name, create=False)
    except OSError:
        return None
    try:
        return None if _lock(descriptor) else _read_record(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _acquire(folder: Path, file: Path, patience: float) -> int:
    """The descriptor of the locked file."""
    until = time.monotonic() + patience
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _open(file, create=True)
        except FileNotFoundError:  # whoever owned the folder has just removed it
            if time.monotonic() < until:
                continue
            raise
        try:
            locked = _lock(descriptor)
            if locked and _is_in_place(descriptor, file):
                return descriptor
            if not locked and time.monotonic() >= until:
                raise FileExistsError(f"{folder} is in use by {_read_record(descriptor)}; wait until it has ended")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not locked:
            time.sleep(_POLL)


def _open(file: Path, *, create: bool) -> int:
    # Never truncated, since it may be the owner's; never through a link, since it is going to be written to.
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(file, flags | (os.O_CREAT if create else 0), 0o666)


def _is_in_place(descriptor: int, file: Path) -> bool:
    """Whether the file is still the one of its name: the owner before may have removed it while it was being locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _write_record(descriptor: int) -> None:
    record = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, (json.dumps(record) + "\n").encode())


def _read_record(descriptor: int) -> str:
    """Who holds the lock, in words. An owner may have yet to write its record, and gets a moment for it."""
    until = time.monotonic() + PATIENCE
    while True:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            record = json.loads(os.read(descriptor, _RECORD_BYTES))
            pid, host, started = int(record["pid"]), str(record["host"]), str(record["started"])
            return f"process {pid} on {host:.100} since {started:.30}"
        except (ValueError, KeyError, TypeError, RecursionError):  # not there yet, or damaged
            if time.monotonic() >= until:
                return "another process"
        time.sleep(_POLL)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Errors of the file system as one line that says what is wrong with the folder."""
    try:
        yield
    except FileExistsError as refused:
        if refused.errno is None:
            raise
        raise NotADirectoryError(f"{folder} is a file; the folder of a run is wanted") from refused
    except NotADirectoryError as refused:
        raise NotADirectoryError(f"{folder} cannot be made: what it would be in is a file") from refused
    except PermissionError as refused:
        raise PermissionError(f"{folder} is not writable: {refused.strerror}") from refused
    except OSError as refused:
        if refused.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise ValueError(f"{folder} is on a file system without locks: {refused.strerror}") from refused
        raise ValueError(f"{folder} is not writable: {refused.strerror}") from refused


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        """Lock the file without waiting; False where another holds it."""
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # beyond the record, which a locked place would hide from others
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Lock the file without waiting; False where another holds it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
