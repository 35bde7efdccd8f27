"""Columns of CSV, NPY, NPZ and Parquet files, as numbers and as categories."""

from __future__ import annotations

import codecs
import csv
import difflib
import functools
import itertools
import re
import textwrap
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from echo_ext import _checks
from echo_ext._types import NanPolicy
from echo_ext.data._files import Archive, InvalidFile, check_header, parsing

Column: TypeAlias = npt.NDArray[np.float64]

# The name of each format and the packages that read it; the columns of NPZ may differ in length, which pandas forbids.
_FORMATS = {".csv": ("CSV", "pandas"), ".npy": ("NPY",), ".npz": ("NPZ",), ".parquet": ("Parquet", "pandas", "pyarrow")}
_LETTER = re.compile(r"[^\W\d_]")
_REMEDY = "; --nan-policy omit leaves such rows out"
_NUMBER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)\s*", re.ASCII | re.IGNORECASE)
# The other cells that are values for pandas: a missing one or a bool.
_MISSING = re.compile(r"-?1\.#(ind|qnan)|<?na>?|#?n/a( n/a)?|#na|null|none|true|false", re.IGNORECASE)


class Table:
    """The columns of a file by name. Columns that cannot be read raise an error only when they are used.

    ``header_line`` is the number of the line with the names, from 1; ``describe_row`` names a row in error messages.
    """

    def __init__(self, path: Path, columns: Iterable[tuple[str, Any]], header_line: int | None = None) -> None:
        self.path = path
        self.header_line = header_line
        self.describe_row: Callable[[int], str] = "row {}".format
        self._columns: dict[str, npt.NDArray[Any]] = {}
        # For each column of several tables side by side, its table and its name there.
        self._sources: dict[str, tuple[Table, str]] = {}
        for name, values in columns:
            if name in self._columns:
                raise InvalidFile(f"{path} must have distinct column names, got two columns {name!r}")
            self._columns[name] = np.asarray(values)
        if not self._columns:
            raise InvalidFile(f"{path} has no columns")

    @property
    def names(self) -> list[str]:
        """The names of all columns, in order."""
        return list(self._columns)

    @property
    def num_rows(self) -> int:
        """The number of rows of the first column."""
        return len(next(iter(self._columns.values())))

    def numeric_names(self) -> list[str]:
        """The names of the numeric columns."""
        return [name for name, values in self._columns.items() if values.dtype.kind in "biuf"]

    def find(self, wanted: str) -> list[str]:
        """The names of the columns in a comma-separated list of names or numbers from 0; `a` stands for `a:0`, ..."""
        found: list[str] = []
        for word in map(str.strip, wanted.split(",")):
            columns = [word] if word in self._columns else [each for each in self.names if each.startswith(f"{word}:")]
            if not columns and word.isdigit():
                columns = self.names[int(word) :][:1]
            if not columns or not word:
                raise self._no_column(word)
            found += columns
        return found

    def _no_column(self, word: str) -> ValueError:
        near = difflib.get_close_matches(word, self.names, n=3)
        names = textwrap.shorten(", ".join(map(repr, near or self.names)), 200, placeholder=" ...")
        what = "the most similar are" if near else "it has"
        return ValueError(f"{self.path} has no column {word!r}; {what} {names}; numbers from 0 choose a column too")

    def is_categorical(self, name: str) -> bool:
        """Whether a column holds words: every cell that is not missing has a letter, and none is a number."""
        values = self._columns[name]
        known = [value for value in values if not _is_missing(value)] if values.dtype.kind in "OU" else []
        return bool(known) and all(
            isinstance(value, str | bool) and _LETTER.search(str(value)) and not _NUMBER.fullmatch(str(value))
            for value in known
        )

    def labels(self, name: str) -> npt.NDArray[Any]:
        """The values of a column as they are."""
        return self._columns[name]

    def numbers(self, names: list[str], nan_policy: NanPolicy = "raise", *, categories: bool = False) -> Column:
        """The values of these columns, (N, d) float64; if ``categories``, with numbers for those of words.

        Missing values are refused, or NaN if the policy is "omit".
        """
        columns = [self._read(name, nan_policy, categories) for name in names]
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            raise ValueError(f"{self.path}: columns {', '.join(names)} must have one length, got {sorted(lengths)}")
        return np.stack(columns, axis=1)

    def _read(self, name: str, nan_policy: NanPolicy, categories: bool) -> Column:
        table, name = self._sources.get(name, (self, name))  # which errors are about
        read = table._categories if categories and table.is_categorical(name) else table._numbers
        return read(name, nan_policy)

    def _refusal(self, name: str, must: str, row: int | None = None, remedy: str = "") -> ValueError:
        where = "" if row is None else f" in {self.describe_row(row)}"
        return ValueError(f"{self.path}: column {name!r} must {must}{where}{remedy}")

    def _categories(self, name: str, nan_policy: NanPolicy) -> Column:
        values = self._columns[name]
        missing = np.array([_is_missing(value) for value in values])
        if nan_policy == "raise" and missing.any():
            got = f"have no missing values, got {missing.sum()}, the first"
            raise self._refusal(name, got, int(missing.argmax()), _REMEDY)
        codes = np.unique([str(value) for value in values], return_inverse=True)[1].astype(np.float64)
        return np.where(missing, np.nan, codes)

    def _numbers(self, name: str, nan_policy: NanPolicy) -> Column:
        values = self._columns[name]
        if values.ndim != 1:
            raise self._refusal(name, f"have one value per row, got shape {values.shape}")
        for row, value in enumerate(() if values.dtype.kind in "biuf" else values):
            if not _is_missing(value) and not _NUMBER.fullmatch(str(value)):
                raise self._refusal(name, f"be numeric, got {str(value)[:80]!r}", row)
        if values.dtype.kind == "O":
            values = np.array([np.nan if _is_missing(value) else value for value in values], dtype=object)
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float64)
        bad = np.flatnonzero(np.isinf(numbers) if nan_policy == "omit" else ~np.isfinite(numbers)).tolist()
        if bad:
            what = "infinite ones" if nan_policy == "omit" else "missing or infinite ones"
            remedy = "" if np.isinf(numbers).any() else _REMEDY
            raise self._refusal(name, f"have finite values, got {len(bad)} {what}, the first", bad[0], remedy)
        # Different integers that float64 cannot represent would become equal.
        for row in np.flatnonzero(np.abs(numbers) >= 2**53).tolist():
            text = str(values[row]).strip()
            if _is_integer(text) and int(text) != int(numbers[row]):
                got = f"have integers that float64 can represent, got {text[:80]}"
                raise self._refusal(name, got, row, "; subtract a constant first")
        return numbers


def join_tables(tables: Sequence[Table]) -> Table:
    """Return one table with the columns of all, side by side; names that several have are prefixed by the file's.

    Raises:
        ValueError: Their numbers of rows differ; the message is one line.
    """
    if len(tables) == 1:
        return tables[0]
    for table in tables[1:]:
        if table.num_rows != tables[0].num_rows:
            raise ValueError(
                f"{tables[0].path} and {table.path} must have the same number of rows, got {tables[0].num_rows} and "
                f"{table.num_rows}"
            )
    times = Counter(name for table in tables for name in table.names)
    places = [
        (f"{table.path.stem}.{name}" if times[name] > 1 else name, table, name)
        for table in tables
        for name in table.names
    ]
    path = Path(", ".join(str(table.path) for table in tables))
    joined = Table(path, ((name, table.labels(original)) for name, table, original in places))
    joined._sources = {name: (table, original) for name, table, original in places}
    return joined


def _is_missing(value: Any) -> bool:
    """Whether a cell is None, NaN or pandas' NA."""
    return value is None or str(value) == "<NA>" or (isinstance(value, float) and value != value)


def read_table(path: Path, header: bool | None = None) -> Table:
    """Read a file, whose suffix determines its format.

    Args:
        path: Path of the file.
        header: Whether the first line of a CSV file contains the names of its columns. None infers it from the cells.

    Raises:
        ValueError: The file cannot be read; the message is one line.
        ModuleNotFoundError: A package that this format needs is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(_FORMATS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if header is not None and suffix != ".csv":
        raise ValueError(f"--header and --no-header need a CSV file, got {path}")
    kind, *packages = _FORMATS[suffix]
    _checks.installed(*packages, purpose=f"reading {kind}", extra="mi")
    with parsing(f"{path} cannot be read as {kind}"):
        if suffix == ".csv":
            return _read_csv(path, header)
        return Table(path, _parquet_columns(path) if suffix == ".parquet" else _array_columns(path))


def _is_integer(text: str) -> bool:
    return text.isascii() and text.lstrip("+-").isdigit()


# ---- CSV -------------------------------------------------------------------------------------------------------------

_SEPARATORS = ("\t", ";", ",", "|", " ")  # " " stands for any number of spaces; those that numbers contain come last
_SAMPLE = 100  # number of lines from which the separator and the header are inferred


def _read_csv(path: Path, header: bool | None) -> Table:
    import pandas

    mark = bytes(np.fromfile(path, np.uint8, 4))  # that of UTF-32 begins with that of UTF-16
    encoding = "utf-16" if mark[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    encoding = "utf-32" if mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) else encoding
    with path.open(encoding=encoding, newline="") as file:
        lines = (pair for pair in enumerate(file) if pair[1].strip() and not pair[1].lstrip().startswith("#"))
        skipped, first_line = next(lines, (0, ""))
        sample = [first_line, *itertools.islice(file, _SAMPLE - 1)]
        separator = max(_SEPARATORS, key=lambda each: _separator_quality(sample, each))
        records = list(_records(sample, separator))
        if not records:
            raise InvalidFile(f"{path} has no rows")
        line, first, width = skipped + records[0][0], [cell.strip() for cell in records[0][1]], len(records[0][1])
        if header is None:
            header = _is_header(path, line, first, [cell.strip() for _, cells in records[1:] for cell in cells])
        if len(records) == header:
            raise InvalidFile(f"{path} has no rows")
        before = line if header else skipped  # the number of lines before the first row of values
        file.seek(0)
        for _ in range(before):
            file.readline()
        try:
            frame = pandas.read_csv(
                file,
                sep=r"\s+" if separator == " " else separator,
                skipinitialspace=True,
                header=None,
                names=range(width),
                skip_blank_lines=width > 1,  # in a single column a blank line is a missing value
                low_memory=False,
            )
        except pandas.errors.ParserError:
            frame = None

    @functools.cache
    def row_ends() -> list[int]:
        """The last line of each row; raises an error for the first row of another width."""
        ends = []
        with path.open(encoding=encoding, newline="") as file:
            for end, cells in _records(itertools.islice(file, before, None), separator, blank=width == 1):
                ends.append(before + end)
                if len(cells) != width and (cells or width > 1):
                    rule, got = f"every row must have {width} values", str(len(cells))
                    if header and len(ends) == 1:
                        got = f"{width} names in line {line} and {len(cells)} values"
                        rule = "every column must have a name"
                    raise InvalidFile(f"{path}: {rule}, got {got} in line {ends[-1]}")
        return ends

    whole = records[:-1] if len(sample) == _SAMPLE else records  # the sample may end inside the last record
    # pandas pads rows that are too short, and takes the first cells of rows that are all too long as an index.
    if frame is None or frame.iloc[:, -1].isna().any() or any(len(cells) != width for _, cells in whole):
        row_ends()
        if frame is None:
            raise InvalidFile(f"{path} cannot be read as CSV: its rows are not separated as its first lines are")
    names = [cell or f"Unnamed: {column}" for column, cell in enumerate(first)] if header else map(str, frame)
    table = Table(path, ((name, frame[column]) for column, name in enumerate(names)), line if header else None)
    table.describe_row = lambda row: f"line {row_ends()[row]}"
    return table


def _records(lines: Iterable[str], separator: str, *, blank: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line and the cells of each record; with ``blank`` blank lines are records too."""
    if separator == " ":
        lines = (" ".join(line.split()) + "\n" for line in lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for cells in reader:
        if blank or len(cells) > 1 or "".join(cells).strip():
            yield reader.line_num, cells


def _separator_quality(sample: list[str], separator: str) -> float:
    """3 if it splits all lines into equally many cells, 2 if it splits most lines; if none does, "," is the choice."""
    widths = [len(cells) for _, cells in _records(sample, separator)]
    if len(sample) == _SAMPLE:
        widths = widths[:-1] or widths  # the sample may end inside the last record
    if len(set(widths)) == 1 and widths[0] > 1:
        return 3
    return 2 if 2 * sum(width > 1 for width in widths) > len(widths) else separator == ","


def _is_header(path: Path, line: int, first: list[str], others: list[str]) -> bool:
    """Whether the first record contains names rather than values; raises an error if it could be either."""
    is_name = {not (_NUMBER.fullmatch(cell) or _MISSING.fullmatch(cell)) for cell in first if cell}
    if is_name == {True}:
        return True
    # pandas numbers columns without names 0, 1, ..., possibly after the unnamed index; one or two integers may also be
    # a row of values.
    numbers = first if first[0] else first[1:]
    is_numbered = bool(numbers) and numbers == list(map(str, range(len(numbers))))
    if True in is_name or (is_numbered and not (len(first) < 3 and first[0] and all(map(_is_integer, others)))):
        shown = ", ".join(first)[:80]
        raise InvalidFile(f"{path}: line {line} ({shown}) may be names or values; use --header or --no-header")
    return False


# ---- Parquet and NumPy files -----------------------------------------------------------------------------------------


def _parquet_columns(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    with ParquetFile(path, page_checksum_verification=True) as file:
        yield from ((str(name), column) for name, column in file.read().to_pandas().items())


def _array_columns(path: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The columns of the arrays of a file: `x` or `x:0`, ... in NPZ; 0, ... or the names of the fields in NPY."""
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            check_header(file, path.stat().st_size, "it")
            file.seek(0)
            arrays = {"": np.lib.format.read_array(file, allow_pickle=False)}
    else:
        with zipfile.ZipFile(path) as archive:
            members = Archive(path, archive)
            arrays = {name: members.read(name) for name in members.names}
    for name, array in arrays.items():
        what = f"{path}: array {name!r}" if name else f"{path}: the array"
        if array.ndim not in (1, 2):
            raise InvalidFile(f"{what} must have rows and columns, got shape {array.shape}")
        # The header of an array without values may announce any number of columns.
        if not array.size or not array.itemsize:
            raise InvalidFile(f"{what} must have values, got {array.dtype} of shape {array.shape}")
        if array.dtype.names:
            parts = {field: array[field] for field in array.dtype.names}
        else:
            parts = {"": array} if array.ndim == 1 else {str(c): column for c, column in enumerate(array.T)}
        for part, column in parts.items():
            yield ":".join(filter(None, (name, part))) or "0", column
