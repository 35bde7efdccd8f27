"""Files of data sets: finding, downloading, checking and reading them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from echo_ext._files import replacement
from echo_ext._progress import progress

StrPath = str | os.PathLike[str]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file on the publisher's server.

    Attributes:
        name: Name of the file.
        url: Its address.
        checksum: ``"md5:..."`` or ``"sha256:..."`` of the file.
        sha256: That of its content, if it is packed: it may have been packed again after it was downloaded.
    """

    name: str
    url: str
    checksum: str
    sha256: str = ""


@dataclasses.dataclass
class FileLocator:
    """Finds the files of one data set in a folder, in its subfolder named after the data set, or in the cache.

    Attributes:
        name: Name of the data set.
        page: Web page where the files are available.
        root: The folder. None means the environment variable ECHO_EXT_DATA, which may be unset.
        others: Names of the other data sets, whose folders must not be used by mistake.
    """

    name: str
    page: str
    root: StrPath | None = None
    others: Collection[str] = ()

    @property
    def cache(self) -> Path:
        """The folder for its downloaded and generated files: in ECHO_EXT_CACHE, or else in the user's cache."""
        # pooch.os_cache does this too, but files that are there already must be found without pooch.
        user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "echo-ext")
        return Path(os.environ.get("ECHO_EXT_CACHE") or user, self.name).expanduser()

    @functools.cached_property
    def folders(self) -> list[Path]:
        """The folders to search, in this order.

        Raises:
            FileNotFoundError: The folder does not exist, or belongs to another data set.
        """
        given = os.environ.get("ECHO_EXT_DATA") if self.root is None else self.root
        if not given:
            return [self.cache]
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"the data folder {folder} does not exist")
        if not (folder / self.name).is_dir() and folder.name != self.name and folder.name in self.others:
            raise FileNotFoundError(
                f"{folder} must be the data folder for {self.name}, but looks like that of {folder.name}; "
                "use the folder above it"
            )
        return [folder / self.name, folder, self.cache]

    def find(self, *names: str) -> Path | None:
        """The first of these files that exists; all names are searched in one folder before the next."""
        paths = (folder / name for folder in self.folders for name in names)
        return next((path for path in paths if path.is_file()), None)

    def obtain(self, remote: RemoteFile, *names: str) -> Path:
        """Find the file under its own name or one of ``names``, or else download it into the cache.

        Raises:
            FileNotFoundError: The file does not exist and cannot be downloaded.
            ValueError: The downloaded file has another checksum.
        """
        try:
            return self.find(remote.name, *names) or _download(remote, self.cache)
        except ConnectionError as problem:
            raise self.missing(" or ".join((remote.name, *names)), str(problem)) from None

    def missing(self, wanted: str, reason: str) -> FileNotFoundError:
        """The error for files that were not found and, for this reason, cannot be downloaded."""
        places = ", ".join(str(folder) for folder in self.folders if folder.is_dir()) or str(self.cache)
        return FileNotFoundError(
            f"{wanted} of {self.name} was not found in {places}, and {reason}; download the files of {self.name} by "
            f"hand from {self.page} into {self.cache}, or into a folder that --data-dir (root in Python) or the "
            "environment variable ECHO_EXT_DATA names"
        )


def _download(remote: RemoteFile, folder: Path) -> Path:
    """Download a file and check it before it gets its name; a ConnectionError says why it could not be downloaded."""
    if os.environ.get("ECHO_EXT_OFFLINE"):
        raise ConnectionError(f"ECHO_EXT_OFFLINE does not allow downloading {remote.url}")
    try:
        import pooch
    except ModuleNotFoundError:
        raise ConnectionError("downloading it needs pooch: pip install 'echo-ext[train]'") from None
    pooch.get_logger().setLevel("WARNING")  # its messages name checksums and temporary files
    try:
        with progress(f"downloading {remote.name}", 1, "B") as bar:  # pooch sets the total
            # It writes to a temporary name, checks the file, and renames it.
            downloader = pooch.HTTPDownloader(progressbar=bar)
            fetched = pooch.retrieve(remote.url, remote.checksum, remote.name, folder, downloader=downloader)
    except PermissionError as problem:
        raise ConnectionError(f"{folder} is not writable; ECHO_EXT_CACHE can name another folder") from problem
    except OSError as problem:  # also those of the requests library
        raise ConnectionError(f"downloading {remote.url} into {folder} failed ({type(problem).__name__})") from problem
    except ValueError as problem:  # pooch raises it for a wrong checksum
        raise ValueError(
            f"the file from {remote.url} must be {remote.name} with checksum {remote.checksum}, but its checksum "
            "differs; it was not kept"
        ) from problem
    return Path(fetched)


def save_if_possible(path: Path, save: Callable[..., None], warning: str, **arrays: npt.NDArray[Any]) -> None:
    """Save arrays in the cache by ``np.savez`` or its like; only warn if the path cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacement(path) as part:
            save(part, **arrays)
    except OSError as problem:
        warnings.warn(f"{warning}: {problem}", stacklevel=3)


# ---- Reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def parsing(complaint: str) -> Iterator[None]:
    """Convert any error of a parser about a damaged file to a ValueError that begins with ``complaint``."""
    try:
        yield
    except InvalidFile:
        raise
    except Exception as problem:
        # Parsers of untrusted bytes may raise nearly anything: struct.error, RecursionError, MemoryError, ...
        first_line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{complaint}: {first_line}") from problem


class InvalidFile(ValueError):
    """A file has the wrong content; the message is complete, so :func:`parsing` does not change it."""


def check_checksum(path: Path, remote: RemoteFile, remedy: str) -> None:
    """Refuse a file that is not byte for byte the published one, before it is parsed."""
    algorithm, checksum = remote.checksum.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != checksum:
        raise ValueError(
            f"{path} must be the published {remote.name} ({remote.checksum}), got {algorithm}:"
            f"{digest.hexdigest()}; {remedy}"
        )


def check_content(path: Path, what: str, content: Buffer, sha256: str) -> None:
    """Refuse unpacked content of the published length that is not the published content."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not {what}: it has the length of the published file, but another SHA-256")


@contextlib.contextmanager
def read_npz(path: Path) -> Iterator[Archive]:
    """Open an untrusted npz file; see :class:`Archive`."""
    with parsing(f"{path} is not a whole npz file"), zipfile.ZipFile(path) as file:
        yield Archive(path, file)


class Archive:
    """The arrays of an npz file.

    Before an array is read, its header must agree with the requested shape and with the size in the zip directory, and
    that size must be possible for its number of compressed bytes. A hostile file therefore cannot make the reader
    allocate more memory. While the array is read, its checksum is verified.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in file.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise InvalidFile(f"{path} must have distinct array names, got {name!r} twice")
            self._members[name] = member

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return list(self._members)

    def header(self, name: str) -> tuple[Shape, np.dtype[Any]]:
        """The shape and dtype of an array, which agree with its size in the zip directory."""
        with self._file.open(self._member(name)) as file:
            return check_header(file, self._member(name).file_size, repr(name))

    def read(
        self, name: str, want: type[np.integer[Any]] | None = None, *shape: int | None, max_rows: int | None = None
    ) -> npt.NDArray[Any]:
        """Read an array.

        Args:
            name: Name of the array.
            want: The dtype to return, uint8 or int64; the file may have integers of another size. None returns an
                array of any dtype and shape as it is.
            shape: Required shape, with None for dimensions of any size.
            max_rows: Maximum number of rows.
        """
        member = self._member(name)
        have, dtype = self.header(name)
        # Deflate compresses at most 1032 bytes to one.
        if member.file_size > 1032 * min(member.compress_size, self.path.stat().st_size):
            raise ValueError(f"{name!r} cannot unpack to the {member.file_size} bytes that the file announces")
        if want is not None:
            fits = len(have) == len(shape) and all(need in (None, size) for need, size in zip(shape, have, strict=True))
            if dtype.kind not in ("u", np.dtype(want).kind) or not fits:
                wanted = " x ".join("rows" if size is None else str(size) for size in shape)
                raise InvalidFile(
                    f"{self.path}: {name!r} must be numbers of shape {wanted}, got {dtype} of shape {have}"
                )
            if max_rows is not None and have[0] > max_rows:
                raise InvalidFile(f"{self.path}: {name!r} must have at most {max_rows} rows, got {have[0]}")
        with self._file.open(member) as file:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array if want is None else array.astype(want, copy=False)

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise InvalidFile(f"{self.path} has no array {name!r}; it has {', '.join(self._members) or 'none'}")
        member = self._members[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r} must be compressed as NumPy does it, got method {member.compress_type}")
        return member


def read_header(file: IO[bytes]) -> tuple[Shape, bool, np.dtype[Any]]:
    """Read the shape, whether the order is that of Fortran, and the dtype from the header of an array in NPY format."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its NPY version must be 1.0 or 2.0, got {'.'.join(map(str, version))}")
    shape, fortran, dtype = readers[version](file)
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape must have no negative sizes, got {shape}")
    return shape, fortran, dtype


def check_header(file: IO[bytes], size: int, what: str) -> tuple[Shape, np.dtype[Any]]:
    """Read the shape and dtype of an array in NPY format, whose header must agree with a file of ``size`` bytes."""
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{what} must not contain Python objects, got {dtype}")
    announced = file.tell() + math.prod(shape) * dtype.itemsize
    if announced != size:
        raise ValueError(
            f"{what} must have {announced} bytes according to its header, {dtype} of shape {shape}, got {size}"
        )
    return shape, dtype
