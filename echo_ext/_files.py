"""Files that appear under their names only when they are complete, even if the process is killed.

Every file is written under a temporary name next to its final place, flushed to the disk and then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PART", "create", "replacement", "replacements", "write"]

PART = ".part-"  # how the names of temporary folders begin


@contextlib.contextmanager
def replacements(folder: Path, *names: str, prefix: str = PART) -> Iterator[list[Path]]:
    """Yield one temporary path for each name; the files written there replace those of the folder at the end.

    None is replaced before all are on the disk, and none at all if an exception leaves the block. The temporary files
    are removed in either case. Only those of a process that is killed stay, in a folder whose name begins with
    ``prefix``.

    Args:
        folder: The folder of the files, which must exist.
        names: The names of the files, which are replaced in this order.
        prefix: How the name of the temporary folder begins.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=prefix, ignore_cleanup_errors=True) as temporary:
        parts = [Path(temporary) / name for name in names]
        yield parts
        for part in parts:
            _flush(part)
        for part in parts:
            os.replace(part, folder / part.name)


@contextlib.contextmanager
def replacement(file: Path, *, prefix: str = PART) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces ``file`` at the end, as in :func:`replacements`."""
    with replacements(file.parent, file.name, prefix=prefix) as (part,):
        yield part


def write(file: Path, content: bytes | memoryview, *, prefix: str = PART) -> None:
    """Replace the content of a file."""
    with replacement(file, prefix=prefix) as part:
        part.write_bytes(content)


def create(file: Path, content: bytes | memoryview, *, prefix: str = PART) -> None:
    """Write a file that must not exist yet.

    Raises:
        FileExistsError: The file exists, perhaps since a moment ago.
    """
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=prefix, ignore_cleanup_errors=True) as temporary:
        part = Path(temporary) / file.name
        part.write_bytes(content)
        _flush(part)
        try:
            os.link(part, file)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            os.replace(part, file)  # the file system has no hard links; callers hold a lock as well


def _flush(file: Path) -> None:
    """Write to the disk what the operating system still holds of a file in memory."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
