"""Files of data sets: where they are looked for, how they are fetched and checked, how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Published",
    "Shelf",
    "StrPath",
    "cache_folder",
    "check_array",
    "check_content",
    "read",
    "read_npz",
    "writing",
]

StrPath = str | os.PathLike[str]

# What reading a damaged zip or gzip file may raise.
BROKEN = (EOFError, OSError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError)


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


def read(path: Path) -> bytes:
    """The content of a file, unpacked where its name ends in ``.gz``; gzip's own checksum is compared."""
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except BROKEN as broken:
        raise ValueError(f"{path} is not a whole gzip file: {broken}") from broken


def check_content(path: Path, what: str, content: bytes | memoryview, known: Mapping[int, str]) -> None:
    """Content as long as the published one must be that: ``known`` has the SHA-256 for each length.

    It costs a few hundredths of a second for MNIST. Content of another length, such as a part of a data set, is free.
    """
    expected = known.get(len(content))
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{path} is not {what}: as long as the published file, but with another SHA-256")


@contextlib.contextmanager
def read_npz(path: Path) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """The arrays of an npz file, whose own checksums are compared as they are read."""
    try:
        # Opened here, since NumPy leaves the file open where it cannot read it.
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it holds a single array")
            with arrays:
                yield _Arrays(path, arrays)
    except _Damaged:
        raise
    except BROKEN as broken:
        raise ValueError(f"{path} is not a whole npz file: {broken}") from broken


class _Damaged(ValueError):
    """A message that is ready to be shown."""


class _Arrays(Mapping[str, npt.NDArray[Any]]):
    def __init__(self, path: Path, arrays: Any) -> None:
        self.path = path
        self.arrays = arrays

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.arrays.files:
            raise _Damaged(f"{self.path} has no array {name!r}; it has {', '.join(self.arrays.files)}")
        array: npt.NDArray[Any] = self.arrays[name]
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays.files)

    def __len__(self) -> int:
        return len(self.arrays.files)


def check_array(path: Path, name: str, array: npt.NDArray[Any], kind: str, *shape: int | None) -> None:
    """An array must be of these kinds of dtype (as in ``dtype.kind``) and of this shape, None for any size."""
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in kind or not fits:
        wanted = " x ".join("rows" if size is None else str(size) for size in shape)
        raise _Damaged(f"{path}: {name!r} should be numbers of {wanted}, but is {array.dtype} of {array.shape}")


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
