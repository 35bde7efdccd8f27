"""Reading of numeric columns from CSV, NPY, NPZ and Parquet files."""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import io
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from echo_ext.data._files import Archive, InvalidFile, check_header, parsing

Column: TypeAlias = npt.NDArray[np.float64]

SUFFIXES = (".csv", ".npy", ".npz", ".parquet")


class Table:
    """The columns of a file by name. Columns that are not numeric raise an error only when they are used."""

    def __init__(
        self,
        path: Path,
        columns: Iterable[tuple[str, Any]],
        header_line: int | None = None,
        describe_row: Callable[[int], str] = "row {}".format,
    ) -> None:
        """Store the columns of a file.

        Args:
            path: Path of the file.
            columns: The name and the values of each column. Names must be distinct.
            header_line: Number of the line that contains the names, counted from 1; None if there is none.
            describe_row: Function from the number of a row, counted from 0, to its name in error messages.
        """
        self.path = path
        self.header_line = header_line
        self._describe_row = describe_row
        self._columns: dict[str, Any] = {}
        for name, values in columns:
            if name in self._columns:
                raise InvalidFile(f"{path} must have distinct column names, got two columns {name!r}")
            self._columns[name] = values
        if not self._columns:
            raise InvalidFile(f"{path} has no columns")

    @property
    def names(self) -> list[str]:
        """The names of all columns, in order."""
        return list(self._columns)

    def numeric_names(self) -> list[str]:
        """The names of the numeric columns."""
        return [name for name, values in self._columns.items() if np.asarray(values).dtype.kind in "biuf"]

    def find(self, wanted: str) -> list[str]:
        """The names of the columns in a comma-separated list of names or numbers from 0; `a` stands for `a:0`, ..."""
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
        """The values of these columns, (N, d) float64."""
        columns = [self._numbers(name) for name in names]
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            raise ValueError(f"{self.path}: columns {', '.join(names)} must have one length, got {sorted(lengths)}")
        return np.stack(columns, axis=1)

    def _numbers(self, name: str) -> Column:
        values = np.asarray(self._columns[name])
        if values.ndim != 1:
            raise ValueError(f"{self.path}: column {name!r} must have one value per row, got shape {values.shape}")
        if values.dtype.kind not in "biuf":
            for row, value in enumerate(values):
                if not _is_number(value):
                    raise ValueError(
                        f"{self.path}: column {name!r} must be numeric, got {str(value)[:80]!r} in "
                        f"{self._describe_row(row)}"
                    )
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise ValueError(
                f"{self.path}: column {name!r} must have finite values, got {len(bad)} missing or infinite ones, the "
                f"first in {self._describe_row(int(bad[0]))}"
            )
        self._check_integers(name, values, numbers)
        return numbers

    def _check_integers(self, name: str, values: npt.NDArray[Any], numbers: Column) -> None:
        """Refuse integers that float64 cannot represent, because different ones would become equal."""
        if values.dtype.kind in "bf":
            return
        for row in np.flatnonzero(np.abs(numbers) >= 2**53).tolist():
            text = str(values[row]).strip()
            if _is_integer(text) and int(text) != int(numbers[row]):
                raise ValueError(
                    f"{self.path}: column {name!r} must have integers that float64 can represent, got {text[:80]} in "
                    f"{self._describe_row(row)}; subtract a constant first"
                )


def read_table(path: Path, header: bool | None = None) -> Table:
    """Read a file, whose suffix determines its format.

    Args:
        path: Path of the file.
        header: Whether the first line of a CSV file contains the names of its columns. None infers it from the cells.

    Raises:
        ValueError: The file cannot be read; the message is one line.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if suffix == ".csv":
        return _read_csv(path, header)
    if header is not None:
        raise ValueError(f"--header and --no-header need a CSV file, got {path}")
    kind = "Parquet" if suffix == ".parquet" else suffix[1:].upper()
    with parsing(f"{path} cannot be read as {kind}"):
        return {".npy": _read_npy, ".npz": _read_npz, ".parquet": _read_parquet}[suffix](path)


def _is_number(value: object) -> bool:
    text = str(value)
    if "_" in text or not text.isascii():  # float("1_000") is 1000
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_integer(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").removeprefix("+").isdigit()


# ---- CSV -------------------------------------------------------------------------------------------------------------

_SEPARATORS = ("\t", ";", ",", "|", " ")  # " " stands for any number of spaces
_SAMPLE = 100  # number of lines from which the separator and the header are inferred


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The layout of a CSV file.

    Attributes:
        encoding: Encoding of the text.
        separator: Separator of the cells, one of ``_SEPARATORS``.
        names: Names of the columns.
        header_line: Number of the line that contains the names, counted from 1; None if there is none.
        begin: Number of lines before the first row of values.
    """

    encoding: str
    separator: str
    names: list[str]
    header_line: int | None
    begin: int


def _read_csv(path: Path, header: bool | None) -> Table:
    try:
        import pandas
    except ImportError:
        raise ValueError("reading CSV needs pandas: pip install 'echo-ext[mi]'") from None
    with parsing(f"{path} cannot be read as CSV"):
        layout = _layout(path, header)
        with path.open(encoding=layout.encoding, newline="") as lines:
            for _ in range(layout.begin):
                lines.readline()
            try:
                frame = pandas.read_csv(
                    lines,
                    sep=r"\s+" if layout.separator == " " else layout.separator,
                    skipinitialspace=True,
                    header=None,
                    names=range(len(layout.names)),
                    # In a single column a blank line is a missing value.
                    skip_blank_lines=len(layout.names) > 1,
                    low_memory=False,
                )
            except pandas.errors.ParserError:
                _check_widths(path, layout)
                raise
        # pandas pads rows that are too short.
        if frame.iloc[:, -1].isna().any():
            _check_widths(path, layout)
    return Table(
        path,
        [(name, frame[column].to_numpy()) for column, name in enumerate(layout.names)],
        layout.header_line,
        lambda row: f"line {_line_number(path, layout, row)}",
    )


def _layout(path: Path, header: bool | None) -> _Layout:
    """Infer the layout of a file from its first lines; blank lines and lines that begin with # are skipped."""
    encoding = _encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        lines = ((skipped, line) for skipped, line in enumerate(file) if not _is_skipped(line))
        skipped, first_line = next(lines, (0, ""))
        sample = [first_line, *itertools.islice(file, _SAMPLE - 1)]
    separator = _separator(sample)
    records = list(_records(sample, separator))
    if not records:
        raise InvalidFile(f"{path} has no rows")
    end, first = records[0]
    line = skipped + end
    if header is None:
        header = _is_header(path, line, [cells for _, cells in records])
    begin = line if header else skipped
    rows = records[1:] if header else records
    if not rows:
        raise InvalidFile(f"{path} has no rows")
    end, row = rows[0]
    if len(row) != len(first):
        raise InvalidFile(
            f"{path}: every column must have a name, got {len(first)} names in line {line} and {len(row)} values in "
            f"line {skipped + end}"
        )
    names = [cell.strip() or f"Unnamed: {column}" for column, cell in enumerate(first)]
    return _Layout(
        encoding,
        separator,
        names if header else list(map(str, range(len(first)))),
        line if header else None,
        begin,
    )


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(4)
    # The byte order mark of UTF-32 begins with that of UTF-16.
    if begin in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    return "utf-16" if begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _is_skipped(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _separator(sample: list[str]) -> str:
    """The first separator that splits all lines into equally many cells, or else the first that splits most lines.

    Separators that can also occur inside numbers and texts are tried last.
    """
    widths = {separator: [len(cells) for _, cells in _records(sample, separator)] for separator in _SEPARATORS}
    if len(sample) == _SAMPLE:
        # The sample may end inside the last record.
        widths = {separator: found[:-1] or found for separator, found in widths.items()}
    for separator, found in widths.items():
        if len(set(found)) == 1 and found[0] > 1:
            return separator
    for separator, found in widths.items():
        if 2 * sum(width > 1 for width in found) > len(found):
            return separator
    return ","


def _records(lines: Iterable[str], separator: str, *, blank: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line and the cells of each record; with ``blank`` blank lines are records too."""
    if separator == " ":
        lines = (" ".join(line.split()) + "\n" for line in lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for cells in reader:
        if blank or len(cells) > 1 or "".join(cells).strip():
            yield reader.line_num, cells


def _rows(path: Path, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line in the file, counted from 1, and the cells of each row of values."""
    with path.open(encoding=layout.encoding, newline="") as lines:
        values = itertools.islice(lines, layout.begin, None)
        for line, cells in _records(values, layout.separator, blank=len(layout.names) == 1):
            yield layout.begin + line, cells


def _line_number(path: Path, layout: _Layout, row: int) -> int:
    with contextlib.suppress(csv.Error, StopIteration):
        return next(itertools.islice(_rows(path, layout), row, None))[0]
    return layout.begin + row + 1


def _check_widths(path: Path, layout: _Layout) -> None:
    for line, cells in _rows(path, layout):
        if len(cells) != len(layout.names) and (cells or len(layout.names) > 1):
            raise InvalidFile(
                f"{path}: every row must have {len(layout.names)} values, got {len(cells)} in line {line}"
            )


def _is_header(path: Path, line: int, records: list[list[str]]) -> bool:
    """Whether the first record contains names rather than values; raises an error if it could be either."""
    import pandas

    first = [cell.strip() for cell in records[0]]
    text = io.StringIO()
    csv.writer(text).writerow(first)
    text.seek(0)
    # pandas decides whether a cell is a value, a missing value or text.
    kinds = pandas.read_csv(text, header=None, skip_blank_lines=False).dtypes
    names = [
        cell
        for cell, kind in zip(first, kinds, strict=True)
        if not pandas.api.types.is_numeric_dtype(kind) and not _is_number(cell)
    ]
    if names and len(names) == sum(map(bool, first)):
        return True
    if names or _counts_columns(first, records[1:]):
        shown = ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")
        raise InvalidFile(f"{path}: line {line} ({shown[:80]}) may be names or values; use --header or --no-header")
    return False


def _counts_columns(first: list[str], rows: list[list[str]]) -> bool:
    """Whether a record is 0, 1, ..., possibly after an unnamed index, as pandas writes for columns without names."""
    numbers = first if first[0] else first[1:]
    if not numbers or numbers != list(map(str, range(len(numbers)))):
        return False
    # Two integers may also be a row of integer values.
    return len(first) > 2 or not first[0] or any(not _is_integer(cell.strip()) for cells in rows for cell in cells)


# ---- Parquet and NumPy files -----------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> Table:
    try:
        import pandas  # noqa: F401
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]
    except ImportError:
        raise InvalidFile("reading Parquet needs pandas and pyarrow: pip install 'echo-ext[mi]'") from None
    with ParquetFile(path, page_checksum_verification=True) as file:
        frame = file.read().to_pandas()
    return Table(path, [(str(name), column.to_numpy()) for name, column in frame.items()])


def _read_npy(path: Path) -> Table:
    with path.open("rb") as file:
        check_header(file, path.stat().st_size, "it")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.names:
        return Table(path, [(name, array[name]) for name in array.dtype.names])
    return Table(path, [(str(c), column) for c, column in enumerate(_columns(path, "the array", array))])


def _read_npz(path: Path) -> Table:
    columns: list[tuple[str, Any]] = []
    with zipfile.ZipFile(path) as file:
        archive = Archive(path, file)
        for name in archive.names:
            array = archive.read(name)
            split = _columns(path, f"array {name!r}", array)
            columns += [(name if array.ndim == 1 else f"{name}:{c}", column) for c, column in enumerate(split)]
    return Table(path, columns)


def _columns(path: Path, what: str, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    if array.ndim not in (1, 2):
        raise InvalidFile(f"{path}: {what} must have rows and columns, got shape {array.shape}")
    # The header of an array without values may announce any number of columns.
    if not array.size or not array.itemsize:
        raise InvalidFile(f"{path}: {what} must have values, got {array.dtype} of shape {array.shape}")
    return [array] if array.ndim == 1 else list(array.T)
