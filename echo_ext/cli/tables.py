"""Columns of numbers out of files: CSV, NPY, NPZ, Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Column: TypeAlias = npt.NDArray[np.float64]

SUFFIXES = (".csv", ".npy", ".npz", ".parquet")


class Table:
    """The columns of a file by name; what is not numeric is refused when it is asked for."""

    def __init__(self, path: Path, columns: dict[str, Any], first_line: int = 0) -> None:
        """first_line: The number, in the file, of the first row; rows are named by it in messages."""
        self.path = path
        self.first_line = first_line
        self._columns = columns

    @property
    def names(self) -> list[str]:
        """The names of all columns, in order."""
        return list(self._columns)

    def numeric_names(self) -> list[str]:
        """The names of the columns that hold numbers."""
        return [name for name, values in self._columns.items() if np.asarray(values).dtype.kind in "biuf"]

    def find(self, wanted: str) -> list[str]:
        """The columns that a comma-separated list names, by name or by number from 0; `array` means `array:0`, ..."""
        found: list[str] = []
        for word in wanted.split(","):
            word = word.strip()
            parts = [name for name in self._columns if name.startswith(f"{word}:")]
            if word in self._columns:
                found.append(word)
            elif parts and word:
                found.extend(parts)
            elif word.isdigit() and int(word) < len(self._columns):
                found.append(self.names[int(word)])
            else:
                shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
                raise ValueError(f"{self.path} has no column {word!r}; it has {shown}")
        return found

    def numbers(self, names: list[str]) -> Column:
        """The named columns, (N, d) float64."""
        columns = [self._numbers(name) for name in names]
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            raise ValueError(f"{self.path}: columns {', '.join(names)} have different lengths {sorted(lengths)}")
        return np.stack(columns, axis=1)

    def _numbers(self, name: str) -> Column:
        values = np.asarray(self._columns[name])
        if values.dtype.kind not in "biuf":
            for row, value in enumerate(values):
                if not _is_number(value):
                    raise ValueError(
                        f"{self.path}: column {name!r} is not numeric: row {row + self.first_line} holds {value!r}"
                    )
        numbers = values.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise ValueError(
                f"{self.path}: column {name!r} has {len(bad)} values that are missing or infinite, the first in row "
                f"{bad[0] + self.first_line}"
            )
        return numbers


def read_table(path: Path) -> Table:
    """Read a file by what its name ends in; ValueError, in one line, says what is wrong with it."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    table = {".csv": _read_csv, ".npy": _read_npy, ".npz": _read_npz, ".parquet": _read_parquet}[suffix](path)
    if not table.names:
        raise ValueError(f"{path} has no columns")
    return table


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ValueError("reading CSV and Parquet needs pandas: pip install 'echo-ext[mi]'") from None
    return pandas


def _read_csv(path: Path) -> Table:
    pandas = _pandas()
    try:
        with path.open(encoding="utf-8") as lines:
            first = lines.readline()
        names = all(not _is_number(cell.strip()) for cell in first.split(","))
        frame = pandas.read_csv(path, header=0 if names else None, low_memory=False)
    except (UnicodeDecodeError, ValueError) as problem:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path} cannot be read as CSV: {_one_line(problem)}") from None
    if len(frame) == 0:
        raise ValueError(f"{path} has no rows")
    return Table(path, {str(name): frame[name].to_numpy() for name in frame}, 2 if names else 1)


def _read_parquet(path: Path) -> Table:
    pandas = _pandas()
    try:
        frame = pandas.read_parquet(path)
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow: pip install 'echo-ext[mi]'") from None
    except Exception as problem:
        raise ValueError(f"{path} cannot be read as Parquet: {_one_line(problem)}") from None
    return Table(path, {str(name): frame[name].to_numpy() for name in frame})


def _read_npy(path: Path) -> Table:
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} cannot be read as NPY: it is an archive of several arrays")
    if array.dtype.names:
        return Table(path, {name: array[name] for name in array.dtype.names})
    return Table(path, {str(c): column for c, column in enumerate(_columns(path, "the array", array))})


def _read_npz(path: Path) -> Table:
    archive = _load(path)
    if isinstance(archive, np.ndarray):
        raise ValueError(f"{path} cannot be read as NPZ: it is a single array")
    columns: dict[str, Any] = {}
    with archive:
        for name in archive.files:
            try:
                array = archive[name]
            except ValueError as problem:
                raise ValueError(f"{path}: array {name!r} cannot be read: {_one_line(problem)}") from None
            split = _columns(path, f"array {name!r}", array)
            columns |= {name if array.ndim == 1 else f"{name}:{c}": column for c, column in enumerate(split)}
    return Table(path, columns)


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as problem:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:].upper()}: {_one_line(problem)}") from None


def _columns(path: Path, what: str, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    if array.ndim not in (1, 2):
        raise ValueError(f"{path}: {what} must have rows and columns, but has shape {array.shape}")
    return [array] if array.ndim == 1 else list(array.T)


def _one_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
