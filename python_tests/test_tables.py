"""The tables of `echo-ext mi`: common file formats are read correctly, or refused in one line."""

import codecs
import csv
import io
import json
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
from knn_cases import fresh

from echo_ext.cli import main
from echo_ext.cli.tables import read_table

pandas = pytest.importorskip("pandas")
PANDAS = tuple(map(int, pandas.__version__.split(".")[:2]))

ROWS = [[1.5, 2.5], [-3.0, 4.0], [5.0, 6e-3]]


def quoted(rows):
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().encode()


def plain(rows, separator=",", end="\n"):
    return "".join(separator.join(map(str, row)) + end for row in rows).encode()


def read(tmp_path, content, header=None, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_table(path, header)


@pytest.mark.parametrize(
    ("content", "header_line"),
    [
        (quoted(ROWS), None),
        (quoted([["x", "y"], *ROWS]), 1),
        (b"\n \r\n" + plain(ROWS), None),
        (b"\n" + plain([["x", "y"], *ROWS]), 2),
        (codecs.BOM_UTF8 + plain(ROWS), None),
        (codecs.BOM_UTF8 + quoted([["x", "y"], *ROWS]), 1),
        (plain(ROWS).decode().encode("utf-16"), None),
        (plain([["x", "y"], *ROWS]).decode().encode("utf-16"), 1),
        (plain([["x", "y"], *ROWS]).decode().encode("utf-32"), 1),
        (codecs.BOM_UTF16_BE + plain([["x", "y"], *ROWS]).decode().encode("utf-16-be"), 1),
        (b"# made by R\n" + plain(ROWS), None),
        (b"# it's \"made\n\n# by R\n" + plain([["x", "y"], *ROWS]), 4),
        (b"# x y\n" + plain(ROWS, " "), None),
        (b"#\n" * 1000 + plain(ROWS), None),
        *((plain([["x", "y"], *ROWS], separator), 1) for separator in (";", "\t", "|", " ", " \t  ", ", ")),
        *((plain(ROWS, separator), None) for separator in (";", "\t", "|", " ", " \t  ", ", ")),
        (b"  " + plain(ROWS, "  ", "  \n   "), None),
        (plain([["x", "y"], *ROWS], end="\r"), 1),
        (plain([["x", "y"], *ROWS], end="\n\n"), 1),
        (plain([["x", "y"], *ROWS])[:-1], 1),
        (plain([[" x", '"y"'], *ROWS]), 1),
    ],
)
def test_common_files_are_read_completely(tmp_path, content, header_line):
    table = read(tmp_path, content)
    assert table.header_line == header_line
    assert table.names == (["0", "1"] if header_line is None else ["x", "y"])
    assert table.numbers(table.names).tolist() == ROWS


def test_single_column_keeps_its_first_row(tmp_path):
    assert read(tmp_path, codecs.BOM_UTF8 + b"1\n2\n3\n").numbers(["0"]).tolist() == [[1], [2], [3]]


def test_cells_may_contain_separators_and_newlines(tmp_path):
    table = read(tmp_path, b'"a,b",notes,x\n1,"one;\n""two"", 3",4\n2,c;d,5\n')
    assert table.names == ["a,b", "notes", "x"]
    assert table.numbers(["a,b", "x"]).tolist() == [[1, 4], [2, 5]]
    with pytest.raises(ValueError, match=r"'notes' must be numeric, got .* in line 3"):
        table.numbers(["notes"])


def test_column_without_a_name_is_numbered(tmp_path):
    table = read(tmp_path, b'"","x"\n"1",0.5\n"2",0.7\n')  # the format of write.csv in R
    assert table.names == ["Unnamed: 0", "x"]
    assert table.numbers(["x"]).tolist() == [[0.5], [0.7]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x,y\n1,2,3\n4,5,6\n", "got 2 names in line 1 and 3 values in line 2"),
        (b'"x" "y"\n"1" 0.5 0.6\n"2" 0.7 0.8\n', "got 2 names in line 1 and 3 values in line 2"),
        (b"x\n1,5\n2,5\n", "got 1 names in line 1 and 2 values in line 2"),
        (b"x,y,z\n1,2\n4,5\n", "got 3 names in line 1 and 2 values in line 2"),
        (b"\nx,y\n1,2\n\n3,4,5\n", "every row must have 2 values, got 3 in line 5"),
        (b"x,y,z\n1,2,3\n4,5\n6,7,8\n", "every row must have 3 values, got 2 in line 3"),
        (b"x y\n1 2\n3\n", "every row must have 2 values, got 1 in line 3"),
        (b"x,y,x\n1,2,3\n", "must have distinct column names, got two columns 'x'"),
        (b"alice,1,2\nbob,3,4\n", r"line 1 \(alice, 1, 2\) may be names or values; use --header or --no-header"),
        (b"time,0,1\n1,2,3\n", "may be names or values"),
        (b"NA,x\n1,2\n", "may be names or values"),
        (b",0,1\n0,0.3,0.4\n", "may be names or values"),  # pandas' to_csv without names
        (b"0,1\n0.3,0.4\n", "may be names or values"),
        (b"0,1,2\n3,4,5\n", "may be names or values"),
        (b"x,y\n", "has no rows"),
        (b"# nothing\n\n", "has no rows"),
        (b'x,y\n1,"2\n3,4\n', "cannot be read as CSV"),
        (b"x,y\n1,\xe9\n", "cannot be read as CSV"),
    ],
)
def test_ambiguous_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"NA,NA\n1,2\n", "'0' must have finite values, got 1 missing or infinite ones, the first in line 1"),
        (b",\n1,2\n", "'0' must have finite values, got 1 missing or infinite ones, the first in line 1"),
        (b"x\n1\n\n3\n", "'0' must have finite values, got 1 missing or infinite ones, the first in line 3"),
        (b"x,y\n1_000,2\n", "'0' must be numeric, got '1_000' in line 2"),
        pytest.param(
            b"x,y\n1\x00,2\n",
            "'0' must be numeric",
            marks=[
                pytest.mark.skipif(sys.version_info < (3, 11), reason="the csv module of Python 3.10 refuses NUL"),
                pytest.mark.skipif(PANDAS < (3, 1), reason="pandas before 3.1 reads the number before NUL"),
            ],
        ),
        (b"x;y\n1,5;2,5\n", "'0' must be numeric, got '1,5' in line 2"),
        (b"x,y\n\n1,2\n\noops,3\n", "'0' must be numeric, got 'oops' in line 5"),
        (b"x,y\n9007199254740993,1\n", "integers that float64 can represent, got 9007199254740993 in line 2"),
        (b"x,y\n1,1\n99999999999999999999999,1\n", "got 99999999999999999999999 in line 3"),
        (b"x,y\n-1,1\n18446744073709551615,1\n", "got 18446744073709551615 in line 3"),
    ],
)
def test_values_that_are_not_numbers_are_named(tmp_path, content, message):
    table = read(tmp_path, content)
    with pytest.raises(ValueError, match=message.replace("'0'", f"'{table.names[0]}'")) as caught:
        table.numbers(table.find("0"))
    assert "\n" not in str(caught.value)


def test_header_flag_overrides_the_inference(tmp_path):
    assert read(tmp_path, b"0,1\n1,0\n", None).numbers(["0", "1"]).tolist() == [[0, 1], [1, 0]]
    assert read(tmp_path, b",0,1\n0,0.3,0.4\n", True).numbers(["0", "1"]).tolist() == [[0.3, 0.4]]
    assert read(tmp_path, b"0,1\n0.3,0.4\n", False).numbers(["0", "1"]).tolist() == [[0, 1], [0.3, 0.4]]
    assert read(tmp_path, b"al,1\nbo,2\n", False).numbers(["1"]).tolist() == [[1], [2]]
    np.save(tmp_path / "a.npy", np.eye(3))
    with pytest.raises(ValueError, match="--header and --no-header need a CSV file"):
        read_table(tmp_path / "a.npy", True)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_integers_are_never_rounded(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", good=np.array([2**60, 3], dtype), bad=np.array([2**53, 2**53 + 1], dtype))
    table = read_table(tmp_path / "a.npz")
    assert table.numbers(["good"]).tolist() == [[2**60], [3]]
    with pytest.raises(ValueError, match=r"'bad' must have integers .* represent, got 9007199254740993 in row 1"):
        table.numbers(["bad"])


# ---- NumPy and Parquet files -----------------------------------------------------------------------------------------


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def header(shape, dtype="<f8", rest=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + rest


def test_arrays_with_the_same_column_names_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **{"x": np.ones((4, 2)), "x:0": np.zeros(4)})
    with pytest.raises(ValueError, match="must have distinct column names, got two columns 'x:0'"):
        read_table(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_arrays_with_the_same_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must have distinct array names, got 'x' twice"):
        read(tmp_path, npz([("x.npy", npy(np.zeros(3))), ("x.npy", npy(np.ones(3)))]), name="a.npz")


HUGE = (10**16,)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", npz([("x.npy", header(HUGE))])),
        ("a.npz", npz([("x.npy", header((-1,)))])),
        ("a.npz", npz([("x.npy", npy(np.zeros(3)) + b"more")])),
        ("a.npz", npz([("x.npy", npy(np.zeros(3))[:-1])])),
        ("a.npz", npz([("readme.txt", b"no array")])),
        ("a.npz", npz([("x.npy", header((3,), "|O", bytes(24)))])),
        ("a.npz", npz([("x.npy", npy(np.zeros(3)))], zipfile.ZIP_LZMA)),
        ("a.npy", header(HUGE)),
        ("a.npy", npy(np.zeros(3)) + b"more"),
        ("a.npy", npy(np.zeros(3))[:-1]),
        ("a.npy", header((3,), "|O", bytes(24))),
        ("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
    ],
)
def test_arrays_that_contradict_their_headers_are_refused(tmp_path, name, content):
    with pytest.raises(ValueError, match=f"cannot be read as {name[2:].upper()}") as caught:
        read(tmp_path, content, name=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "dtype"), [((0, 10**12), "<f8"), ((1, 10**12), "|S0"), ((10**15,), "|V0")])
def test_arrays_without_values_are_refused(tmp_path, shape, dtype):
    for name, content in (("a.npy", header(shape, dtype)), ("a.npz", npz([("x.npy", header(shape, dtype))]))):
        with pytest.raises(ValueError, match="must have values, got"):
            read(tmp_path, content, name=name)


def test_impossible_unpacked_size_is_refused(tmp_path):
    content = bytearray(npz([("x.npy", header((10**8,)))], zipfile.ZIP_DEFLATED))
    directory = content.index(b"PK\x01\x02")
    for at in (22, directory + 24):  # the unpacked size, before the member and in the directory
        content[at : at + 4] = struct.pack("<I", 8 * 10**8 + 128)
    with pytest.raises(ValueError, match="'x' cannot unpack to the 800000128 bytes that the file announces"):
        read(tmp_path, bytes(content), name="a.npz")


@pytest.mark.parametrize("how", ["stored", "deflated"])
def test_wrong_checksum_is_one_line(tmp_path, capsys, how):
    path = tmp_path / "a.npz"
    x, y = fresh().standard_normal((2, 50))
    (np.savez if how == "stored" else np.savez_compressed)(path, x=x, y=y)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 16
    content[at : at + 4] = struct.pack("<I", zlib.crc32(b"another"))
    path.write_bytes(content)
    assert main(["mi", str(path), "--x", "x", "--y", "y"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("echo-ext mi: error:")
    assert error.count("\n") == 1


def test_parquet_columns_with_the_same_name_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table([pyarrow.array([1.0]), pyarrow.array([2.0])], names=["x", "x"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="got two columns 'x'"):
        read_table(tmp_path / "a.parquet")


def test_wrong_page_checksum_of_parquet_is_found(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = fresh().standard_normal(1000)
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"x": values}), path, write_page_checksum=True, use_dictionary=False, compression="none"
    )
    content = bytearray(path.read_bytes())
    content[content.index(values[500].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_table(path)


@pytest.mark.parametrize(("name", "missing"), [("a.csv", "pandas"), ("a.parquet", "pyarrow")])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, name, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}: pip install 'echo-ext\[mi\]'"):
        read(tmp_path, b"1,2\n", name=name)


# ---- The command -----------------------------------------------------------------------------------------------------


def test_command_reports_rows_and_header(tmp_path, capsys):
    x, y = fresh().standard_normal((2, 40))
    path = tmp_path / "a.csv"
    rows = list(zip(x, y, ["a"] * 40, strict=True))
    path.write_bytes(b"# a comment\n" + plain([["x", "y", "name"], *rows]))
    words = ["mi", str(path), "--x", "x", "--y", "y"]
    assert main(words) == 0
    out, error = capsys.readouterr()
    assert out.startswith("I(x; y) = ")
    assert error == f"echo-ext mi: 40 rows from {path}, header in line 2\n"
    for more in ([], ["--lag", "2"]):
        assert main([*words, *more, "--json"]) == 0
        out, error = capsys.readouterr()
        assert (json.loads(out)["n"], json.loads(out)["header_line"], error) == (40, 2, "")
    assert main(["mi", str(path), "--matrix", "--json"]) == 0
    out, error = capsys.readouterr()
    assert (json.loads(out)["n"], json.loads(out)["header_line"]) == (40, 2)
    assert error == "echo-ext mi: left out as not numeric: name\n"


def test_command_reports_a_missing_header(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_bytes(quoted(fresh().standard_normal((30, 2))))
    assert main(["mi", str(path), "--x", "0", "--y", "1"]) == 0
    out, error = capsys.readouterr()
    assert "30 rows" in out
    assert error == f"echo-ext mi: 30 rows from {path}, no header\n"
    for word, header_line in (("--header", 1), ("--no-header", None)):
        assert main(["mi", str(path), "--x", "0", "--y", "1", word, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["header_line"] == header_line
