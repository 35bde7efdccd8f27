"""Exclusive ownership of a folder by a lock of the operating system, which is released even if the process is killed.

The locked file is a small file in the folder that names the owner. The owner removes it at the end. After a kill the
file stays, unlocked, until the next owner uses it. (``filelock`` has no version for Python 3.10 that preserves the
content of the file.)
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

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["describe_owner", "explained", "owned"]

# Seconds to wait for a lock, because a process that only asks for the owner holds it for a moment; and for the record.
TIMEOUT = 0.5
_POLL_INTERVAL = 0.02
_RECORD_BYTES = 1024

_held: set[int] = set()


def _close_in_child() -> None:
    """Release the inherited locks in a forked process, which would keep them after its parent has ended."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def owned(folder: Path, name: str, *, timeout: float = TIMEOUT) -> Iterator[None]:
    """Hold the lock ``name`` of a folder, which is created if necessary and removed again if it is empty at the end.

    Another owner has ``timeout`` seconds to finish.

    Raises:
        FileExistsError: Another process owns the folder; the message names it.
        PermissionError: The folder cannot be written to.
        ValueError: The folder cannot be created, or its file system has no locks.
    """
    with explained(folder):
        descriptor = _acquire(folder, folder / name, timeout)
    _held.add(descriptor)
    try:
        with explained(folder):
            _write_record(descriptor)
        yield
    finally:
        if descriptor in _held:  # false in a process that was forked inside the block
            with contextlib.suppress(OSError):  # Windows does not remove a file that is open
                (folder / name).unlink()
            _held.discard(descriptor)
            os.close(descriptor)
            with contextlib.suppress(OSError):
                folder.rmdir()


def describe_owner(folder: Path, name: str) -> str | None:
    """A description of the process that owns a folder, or None if there is none."""
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


def _acquire(folder: Path, file: Path, timeout: float) -> int:
    """Lock the file and return its descriptor."""
    until = time.monotonic() + timeout
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _open(file, create=True)
        except FileNotFoundError:  # the previous owner has just removed the folder
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
            time.sleep(_POLL_INTERVAL)


def _open(file: Path, *, create: bool) -> int:
    # Not truncated, since the content may belong to the owner; not through a link, since the file will be written to.
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(file, flags | (os.O_CREAT if create else 0), 0o666)


def _is_in_place(descriptor: int, file: Path) -> bool:
    """Whether the open file still has its name: the previous owner may have removed it before it was locked here."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _write_record(descriptor: int) -> None:
    record = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, (json.dumps(record) + "\n").encode())


def _read_record(descriptor: int) -> str:
    """A description of the owner, for whose record this waits a moment."""
    until = time.monotonic() + TIMEOUT
    while True:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            record = json.loads(os.read(descriptor, _RECORD_BYTES))
            pid, host, started = int(record["pid"]), str(record["host"]), str(record["started"])
            return f"process {pid} on {host:.100} since {started:.30}"
        except (ValueError, KeyError, TypeError, RecursionError):  # not written yet, or damaged
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
        if refused.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise ValueError(f"{folder} is on a file system without locks: {refused.strerror}") from refused
        raise ValueError(f"{folder} is not writable: {refused.strerror}") from refused


def _lock(descriptor: int) -> bool:
    """Lock the file without waiting; return False if another process holds the lock."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**30, os.SEEK_SET)  # beyond the record, which others could not read if it were locked
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on Windows
        return False
    return True
