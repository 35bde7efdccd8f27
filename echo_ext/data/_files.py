"""Files of data sets: where they are looked for, how they are fetched and checked, how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

__all__ = [
    "Archive",
    "Published",
    "Refused",
    "Shelf",
    "StrPath",
    "cache_folder",
    "check_content",
    "check_header",
    "check_published",
    "one_line",
    "parsing",
    "read_header",
    "read_npz",
    "unpacked",
    "writing",
]

StrPath = str | os.PathLike[str]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Published:
    """A file as its publishers give it out: checksum is ``"md5:..."`` or ``"sha256:..."``."""

    name: str
    url: str
    checksum: str


class Shelf:
    """Where the files of one data set are looked for: a folder, or its subfolder named after the set, then the cache.

    Args:
        name: the data set.
        page: where a person can get the files.
        root: the folder. None for the environment variable ECHO_EXT_DATA, which may be unset.
        others: the other data sets, whose folders are not taken for this one's.
    """

    def __init__(self, name: str, page: str, root: StrPath | None = None, *, others: tuple[str, ...] = ()) -> None:
        self.name = name
        self.page = page
        self.cache = cache_folder() / name
        self._root = root
        self._others = others

    @functools.cached_property
    def folders(self) -> list[Path]:
        """Where to look, in this order.

        Raises:
            FileNotFoundError: the folder is not there, or is another data set's.
        """
        given = os.environ.get("ECHO_EXT_DATA") if self._root is None else self._root
        if not given:
            return [self.cache]
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"the data folder {folder} is not there")
        if not (folder / self.name).is_dir() and folder.name != self.name and folder.name in self._others:
            raise FileNotFoundError(
                f"{folder} looks like the folder of {folder.name}, not of {self.name}: give the one above it"
            )
        return [folder / self.name, folder, self.cache]

    def find(self, *names: str) -> Path | None:
        """The first of these files that is there; a folder that has any comes before the next folder."""
        paths = (folder / name for folder in self.folders for name in names)
        return next((path for path in paths if path.is_file()), None)

    def obtain(self, published: Published, *names: str) -> Path:
        """The file under its own name or one of ``names``; where there is none it is downloaded into the cache.

        Raises:
            FileNotFoundError: it is not there and cannot be downloaded.
            ValueError: what was downloaded has another checksum.
        """
        path = self.find(published.name, *names)
        if path is not None:
            return path
        try:
            return _download(published, self.cache)
        except _NotDownloaded as problem:
            wanted = " or ".join((published.name, *names))
            places = ", ".join(str(folder) for folder in self.folders if folder.is_dir()) or str(self.cache)
            raise FileNotFoundError(
                f"{wanted} of {self.name} was not found in {places}, and {problem}; it can be had at {self.page}: give "
                f"its folder (--data-dir on the command line, root in Python) or set ECHO_EXT_DATA"
            ) from None


def cache_folder() -> Path:
    """Where downloaded and generated files are kept: ECHO_EXT_CACHE, else ``echo-ext`` in the user's cache folder."""
    own = os.environ.get("ECHO_EXT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "echo-ext"


# ---- Downloading -----------------------------------------------------------------------------------------------------


class _NotDownloaded(Exception):
    """Why a file was not downloaded, as the second half of a sentence."""


def _download(published: Published, folder: Path) -> Path:
    """Fetch a file whole and check it before it gets its name."""
    if os.environ.get("ECHO_EXT_OFFLINE"):
        raise _NotDownloaded("ECHO_EXT_OFFLINE forbids to download it")
    try:
        import pooch
        import requests
    except ModuleNotFoundError:
        raise _NotDownloaded("pip install 'echo-ext[train]' would be needed to download it") from None
    bar = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    # pooch writes under a name of its own, checks, then renames.
    downloader = pooch.HTTPDownloader(progressbar=bar, timeout=30)
    try:
        # The checksum is compared here, so that a transfer that broke and a file that is another are told apart.
        fetched = pooch.retrieve(
            published.url, published.checksum, fname=published.name, path=folder, downloader=downloader
        )
    except (requests.RequestException, OSError) as problem:
        raise _NotDownloaded(
            f"downloading {published.url} into {folder} failed ({type(problem).__name__})"
        ) from problem
    except ValueError as problem:  # how pooch reports a wrong checksum
        raise ValueError(
            f"what {published.url} sent is not {published.name}: its checksum is not {published.checksum}; nothing was "
            "kept"
        ) from problem
    return Path(fetched)


# ---- Reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def parsing(complaint: str) -> Iterator[None]:
    """Turn whatever a parser raises about a damaged file into a ValueError that begins with ``complaint``."""
    try:
        yield
    except Refused:
        raise
    except Exception as problem:
        # Parsers of untrusted bytes raise nearly everything: struct.error, RecursionError, MemoryError, ...
        raise ValueError(f"{complaint}: {one_line(problem)}") from problem


class Refused(ValueError):
    """A message that is ready to be shown."""


def one_line(problem: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file to read from, unpacked as it is read where its name ends in ``.gz``.

    The caller decides how many bytes to ask for. At the end of the file, gzip's own checksum is compared.
    """
    if path.suffix != ".gz":
        with path.open("rb") as file:
            yield file
        return
    with parsing(f"{path} is not a whole gzip file"), gzip.open(path) as file:
        yield cast("IO[bytes]", file)


def check_published(path: Path, published: Published, remedy: str) -> None:
    """Refuse a file that is not the published one, byte for byte, before any parser sees it."""
    algorithm, checksum = published.checksum.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != checksum:
        raise ValueError(
            f"{path} must be the published {published.name} ({published.checksum}), got {algorithm}:"
            f"{digest.hexdigest()}; {remedy}"
        )


def check_content(path: Path, what: str, content: bytes | memoryview, known: Mapping[int, str]) -> None:
    """Content as long as the published one must be that: ``known`` has the SHA-256 for each length.

    It costs a few hundredths of a second for MNIST. Content of another length, such as a part of a data set, is free.
    """
    expected = known.get(len(content))
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{path} is not {what}: as long as the published file, but with another SHA-256")


@contextlib.contextmanager
def read_npz(path: Path) -> Iterator[Archive]:
    """The arrays of an npz file, which is not trusted: see :class:`Archive`."""
    with parsing(f"{path} is not a whole npz file"), zipfile.ZipFile(path) as file:
        yield Archive(path, file)


class Archive:
    """The arrays of an npz file.

    Before an array is read, its header is compared with what is wanted and with the size that the zip directory states,
    and that size with what the packed bytes can unpack to, so that a hostile file cannot ask for more memory. While it
    is read, its checksum is compared.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in file.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self._members:
                raise Refused(f"{path} has two arrays named {name!r}")
            self._members[name] = member

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return list(self._members)

    def read(self, name: str, kind: str | None = None, *shape: int | None, most: int | None = None) -> npt.NDArray[Any]:
        """Read an array.

        Args:
            name: which.
            kind: the kinds of dtype that it may have (as in ``dtype.kind``). None for any dtype and shape.
            shape: the shape that it must have, None for any size.
            most: the most rows that it may have.
        """
        if name not in self._members:
            raise Refused(f"{self.path} has no array {name!r}; it has {', '.join(self._members)}")
        member = self._members[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r} is packed by method {member.compress_type}, not as NumPy packs arrays")
        with self._file.open(member) as file:
            have, dtype = check_header(file, member.file_size, repr(name))
        # Deflate packs at most 1032 bytes into one.
        if member.file_size > 1032 * min(member.compress_size, self.path.stat().st_size):
            raise ValueError(f"{name!r} cannot unpack to the {member.file_size} bytes that the file announces")
        if kind is not None:
            self._check(name, dtype, have, kind, shape, most)
        with self._file.open(member) as file:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array

    def _check(
        self, name: str, dtype: np.dtype[Any], have: Shape, kind: str, shape: tuple[int | None, ...], most: int | None
    ) -> None:
        fits = len(have) == len(shape) and all(want in (None, size) for want, size in zip(shape, have, strict=True))
        if dtype.kind not in kind or not fits:
            wanted = " x ".join("rows" if size is None else str(size) for size in shape)
            raise Refused(f"{self.path}: {name!r} should be numbers of {wanted}, got {dtype} of {have}")
        if most is not None and have[0] > most:
            raise Refused(f"{self.path}: {name!r} must have at most {most} rows, got {have[0]}")


def read_header(file: IO[bytes]) -> tuple[Shape, bool, np.dtype[Any]]:
    """The shape, the order (whether Fortran's) and the dtype that an array in NumPy's format begins with."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its NPY version must be 1.0 or 2.0, got {'.'.join(map(str, version))}")
    shape, fortran, dtype = readers[version](file)
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape must not be negative, got {shape}")
    return shape, fortran, dtype


def check_header(file: IO[bytes], size: int, what: str) -> tuple[Shape, np.dtype[Any]]:
    """The shape and dtype of an array in NumPy's format whose header fits a file of ``size`` bytes."""
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects, which are not read")
    announced = file.tell() + math.prod(shape) * dtype.itemsize
    if announced != size:
        raise ValueError(f"{what} must take {announced} bytes by its header, {dtype} of {shape}, but takes {size}")
    return shape, dtype


# ---- Writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when it is whole; whatever breaks before leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
