"""Binary MNIST and Omniglot in each of their forms, and files that are fetched from a server."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import math
import struct
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import IDX, REAL, away_from_all_data, needs_real_files, write_idx
from data_cases import idx as idx_bytes

from echo_ext import data
from echo_ext.data import _files, binary_mnist, idx, omniglot
from echo_ext.data._files import Published

PARTS = {"train": 6, "valid": 3, "test": 2}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    return away_from_all_data(monkeypatch, tmp_path)


# ---- Binary MNIST ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bits():
    return {part: torch.randint(2, (rows, 784), dtype=torch.uint8).numpy() for part, rows in PARTS.items()}


def write_amat(folder, bits, *, end="\n"):
    folder.mkdir(exist_ok=True)
    for part, rows in bits.items():
        text = "".join(" ".join(map(str, row)) + end for row in rows)
        (folder / f"binarized_mnist_{part}.amat").write_bytes(text.encode())


def write_packed(folder, bits):
    folder.mkdir(exist_ok=True)
    np.savez(folder / binary_mnist.PACKED, **{part: np.packbits(rows, axis=1) for part, rows in bits.items()})


@pytest.mark.parametrize("write", [write_amat, functools.partial(write_amat, end=" \r\n"), write_packed])
def test_binary_mnist_is_read_in_either_form(tmp_path, bits, write):
    write(tmp_path / "binary-mnist", bits)
    parts = data.load("binary-mnist", tmp_path)
    for part, rows in bits.items():
        assert torch.equal(parts[part][:][0], torch.from_numpy(rows).view(-1, 1, 28, 28).float())
        assert set(parts[part].labels.tolist()) == {-1}
        assert parts[part].binary


def test_binary_mnist_takes_labels_that_lie_beside_it(tmp_path, bits):
    write_packed(tmp_path, bits)
    labels = {part: np.arange(rows, dtype=np.uint8) for part, rows in PARTS.items()}
    np.savez(tmp_path / "labels.npz", **{f"{part}_label": values for part, values in labels.items()})
    parts = data.load("binary-mnist", tmp_path)
    assert [parts[part].labels.tolist() for part in PARTS] == [list(range(rows)) for rows in PARTS.values()]
    np.savez(tmp_path / "labels.npz", train_label=np.zeros(5, int))
    with pytest.raises(ValueError, match=r"labels.npz: 'train_label' should be numbers of 6, got int64 of \(5,\)"):
        data.load("binary-mnist", tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[:-7], "its 1565 numbers are not whole lines of 784"),
        (lambda text: text.replace(b"\n", b" ", 1), "are not whole lines of 784"),
        (lambda text: b"0 " + text[:-3] + b"\n", "its 1568 numbers are not whole lines of 784"),
        (lambda text: b"", "its 0 numbers are not whole lines"),
        (lambda text: b"2" + text[1:], "is not a file of zeros and ones"),
        (lambda text: gzip.compress(text), "is not a file of zeros and ones"),
    ],
)
def test_a_damaged_amat_file_is_named(tmp_path, bits, change, complaint):
    write_amat(tmp_path, bits)
    path = tmp_path / "binarized_mnist_test.amat"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=complaint) as error:
        data.load("binary-mnist", tmp_path)
    assert str(path) in str(error.value)


def damage(path, *, keep=None, flip=None):
    content = bytearray(path.read_bytes())
    if flip is not None:
        content[flip] ^= 0xFF
    path.write_bytes(content[:keep])


@pytest.mark.parametrize("how", [{"keep": -40}, {"keep": 0}, {"keep": 300}, {"flip": 400}])
def test_a_damaged_npz_file_is_named(tmp_path, bits, how):
    write_packed(tmp_path, bits)
    path = tmp_path / binary_mnist.PACKED
    damage(path, **how)
    with pytest.raises(ValueError, match="is not a whole npz file") as error:
        data.load("binary-mnist", tmp_path)
    assert str(path) in str(error.value)


def test_an_npz_file_of_something_else_is_named(tmp_path, bits):
    np.savez(tmp_path / binary_mnist.PACKED, train=np.zeros((4, 98), np.uint8), other=np.zeros(3))
    with pytest.raises(ValueError, match=r"binarized_mnist.npz has no array 'valid'; it has train, other"):
        data.load("binary-mnist", tmp_path)
    with (tmp_path / binary_mnist.PACKED).open("wb") as file:
        np.save(file, np.zeros((4, 98), np.uint8))
    with pytest.raises(ValueError, match=r"is not a whole npz file: File is not a zip file"):
        data.load("binary-mnist", tmp_path)
    write_packed(tmp_path, {part: rows[:, :700] for part, rows in bits.items()})
    with pytest.raises(ValueError, match=r"'train' should be numbers of rows x 98, got uint8 of \(6, 88\)"):
        data.load("binary-mnist", tmp_path)


def test_binary_mnist_of_the_published_size_must_be_the_published_one(tmp_path, bits):
    write_packed(tmp_path, bits | {"test": np.zeros((10_000, 784), np.uint8)})
    with pytest.raises(ValueError, match="is not the test part of binary-mnist: as long as the published file"):
        data.load("binary-mnist", tmp_path)


@needs_real_files
def test_the_real_bits_are_the_published_text():
    # The text that they stand for has the checksum that its publishers' file has.
    rows = data.load("binary-mnist", REAL)["valid"].levels.flatten(1).numpy()
    text = np.full((len(rows), 2 * 784), ord(" "), dtype=np.uint8)
    text[:, ::2] = rows + ord("0")
    text[:, -1] = ord("\n")
    assert f"sha256:{hashlib.sha256(text).hexdigest()}" == binary_mnist.FILES["valid"].checksum


# ---- Omniglot --------------------------------------------------------------------------------------------------------


def write_omniglot(folder, name):
    levels = {"train": torch.randint(256, (36, 28, 28)).numpy(), "test": torch.randint(256, (5, 28, 28)).numpy()}
    alphabets = {part: torch.randint(50, (len(rows),)).numpy() for part, rows in levels.items()}
    if name == "chardata.mat":
        io = pytest.importorskip("scipy.io")
        arrays = {}
        for prefix, part in (("", "train"), ("test", "test")):
            # Column by column, as MATLAB has it.
            arrays[f"{prefix}data"] = np.stack([image.flatten(order="F") / 255 for image in levels[part]], axis=1)
            arrays[f"{prefix}target"] = np.eye(50)[:, alphabets[part]]
        io.savemat(folder / name, arrays, do_compression=True)
    else:
        arrays = {f"{part}_images": rows.astype(np.uint8) for part, rows in levels.items()}
        np.savez(folder / name, **arrays, **{f"{part}_alphabet": values for part, values in alphabets.items()})
    return levels, alphabets


def publish(monkeypatch, path):
    """Make a file of a test's own the published chardata.mat."""
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(omniglot, "FILE", dataclasses.replace(omniglot.FILE, checksum=f"md5:{digest}"))


@pytest.mark.parametrize("name", ["chardata.mat", "omniglot28_rebuilt.npz"])
def test_omniglot_is_read_in_either_form(tmp_path, monkeypatch, name):
    levels, alphabets = write_omniglot(tmp_path, name)
    if name == "chardata.mat":
        publish(monkeypatch, tmp_path / name)
    parts = data.load("omniglot", tmp_path)
    assert torch.equal(parts["test"][:][0], torch.from_numpy(levels["test"]).unsqueeze(1) / 255)
    assert parts["test"].labels.tolist() == alphabets["test"].tolist()
    assert (len(parts["train"]), len(parts["valid"])) == (34, 2)
    found = [
        (image.numpy().tobytes(), int(label))
        for part in ("train", "valid")
        for image, label in zip(parts[part].levels, parts[part].labels, strict=True)
    ]
    given = zip(levels["train"].astype(np.uint8), alphabets["train"], strict=True)
    assert sorted(found) == sorted((image.tobytes(), int(label)) for image, label in given)
    assert torch.equal(parts["valid"].levels, data.load("omniglot", tmp_path)["valid"].levels)


@pytest.mark.parametrize("how", [{"keep": -400}, {"keep": 0}, {"keep": 90}, {"flip": 1000}, {}])
def test_no_parser_sees_a_chardata_other_than_the_published(tmp_path, monkeypatch, how):
    write_omniglot(tmp_path, "chardata.mat")
    if how:
        publish(monkeypatch, tmp_path / "chardata.mat")
        damage(tmp_path / "chardata.mat", **how)
    monkeypatch.setattr("scipy.io.loadmat", None)
    with pytest.raises(ValueError, match=r"must be the published chardata\.mat \(md5:.*, got md5:.*give other images"):
        data.load("omniglot", tmp_path)


# ---- Hostile files ---------------------------------------------------------------------------------------------------


def peak_of(action):
    """The most memory that Python and NumPy had at once, in bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_more_of_a_gzip_file_is_unpacked_than_its_header_announces(tmp_path):
    arrays = write_idx(tmp_path)
    path = tmp_path / f"{IDX[0]}.gz"
    path.write_bytes(gzip.compress(idx_bytes(arrays[IDX[0]]) + bytes(1 << 26)))

    def load():
        with pytest.raises(ValueError, match="announces 18 x 28 x 28 = 14112 bytes, but 14113 follow"):
            data.load("mnist", tmp_path)

    assert peak_of(load) < 1 << 23


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (IDX[0], (2**32 - 1, 28, 28)),
        (IDX[0], (60_001, 28, 28)),
        (IDX[2], (10_001, 28, 28)),
        (IDX[3], (10_001,)),
        (IDX[0], (18, 32, 32)),
        (IDX[0], (18, 0, 28)),
        (IDX[0], (0, 28, 28)),
        (IDX[1], (2**32 - 1,)),
        (IDX[1], (0,)),
    ],
)
def test_idx_files_must_hold_images_of_28_by_28_in_no_more_rows_than_published(tmp_path, name, shape):
    write_idx(tmp_path)
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    content = bytes(math.prod(shape)) if math.prod(shape) < 2**20 else bytes(2**20)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + content))
    wanted = "rows x 28 x 28" if len(shape) == 3 else "rows"
    with pytest.raises(ValueError, match=rf"must hold {wanted} bytes of mnist with 1 to \d+ rows, but announces"):
        data.load("mnist", tmp_path)


def test_every_part_must_have_rows(tmp_path):
    write_idx(tmp_path, train=5)
    with pytest.raises(ValueError, match="the valid part of mnist must have rows, but its files are too small for any"):
        data.load("mnist", tmp_path)


def test_a_compressed_npz_file_is_unpacked_only_where_its_shape_is_right(tmp_path, bits):
    write_packed(tmp_path, bits)
    np.savez_compressed(tmp_path / binary_mnist.PACKED, train=np.zeros((700_000, 98), np.uint8))

    def load():
        with pytest.raises(ValueError, match="'train' must have at most 50000 rows, got 700000"):
            data.load("binary-mnist", tmp_path)

    assert peak_of(load) < 1 << 23


def test_an_npz_header_that_announces_too_much_is_named(tmp_path, bits):
    write_packed(tmp_path, bits)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15, 98)})
    with zipfile.ZipFile(tmp_path / binary_mnist.PACKED, "w") as archive:
        archive.writestr("train.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"'train' must take 98000000000000128 bytes by its header.*but takes 128"):
        data.load("binary-mnist", tmp_path)


# ---- Downloads -------------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of a file called in ``cut`` only half is sent, though all is announced."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path not in self.server.cut:
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """MNIST's publisher, with small files."""
    pytest.importorskip("pooch")
    monkeypatch.delenv("ECHO_EXT_OFFLINE")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "server"
    write_idx(folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as running:
        running.asked, running.cut = [], []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{running.server_port}/"
        digests = [hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest() for name in IDX]
        monkeypatch.setitem(idx.FILES, "mnist", idx._published(address, *digests))
        yield running
        running.shutdown()
        thread.join()


def test_files_that_are_nowhere_are_downloaded_once(tmp_path, server, cache):
    parts = data.load("mnist")
    expected = data.load("mnist", tmp_path / "server")
    for part in parts:
        assert torch.equal(parts[part][:][0], expected[part][:][0])
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(f"{name}.gz" for name in IDX)
    assert server.asked == [f"/{name}.gz" for name in IDX]
    data.load("mnist")
    assert len(server.asked) == 4


def test_a_file_that_is_missing_in_the_folder_is_downloaded_beside_the_others(tmp_path, server, cache):
    write_idx(tmp_path / "mine" / "mnist")
    (tmp_path / "mine" / "mnist" / f"{IDX[2]}.gz").unlink()
    data.load("mnist", tmp_path / "mine")
    assert [path.name for path in (cache / "mnist").iterdir()] == [f"{IDX[2]}.gz"]


def test_a_download_with_another_checksum_is_not_kept(tmp_path, server, cache):
    (tmp_path / "server" / f"{IDX[1]}.gz").write_bytes(b"a page that says: not found")
    with pytest.raises(ValueError, match=rf"127.0.0.1:\d+/{IDX[1]}.gz sent is not {IDX[1]}.gz.*nothing was kept"):
        data.load("mnist")
    assert [path.name for path in (cache / "mnist").iterdir()] == [f"{IDX[0]}.gz"]


def test_an_interrupted_download_leaves_nothing(server, cache):
    server.cut.append(f"/{IDX[0]}.gz")
    with pytest.raises(FileNotFoundError, match=rf"{IDX[0]}.gz .* downloading http://127.* failed .*can be had at"):
        data.load("mnist")
    assert list((cache / "mnist").iterdir()) == []


@pytest.mark.parametrize("problem", ["gone", "not there"])
def test_a_server_without_the_file_is_reported(tmp_path, server, monkeypatch, problem):
    if problem == "gone":
        (tmp_path / "server" / f"{IDX[0]}.gz").unlink()
    else:
        address = "http://127.0.0.1:9/"  # the discard port, on which nothing listens
        monkeypatch.setitem(idx.FILES, "mnist", (Published("a.gz", f"{address}a.gz", "md5:0"),))
    with pytest.raises(FileNotFoundError, match=r"was not found in .* and downloading http://127.0.0.1.* failed"):
        data.load("mnist")


def test_offline_it_says_what_was_looked_for_where(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        data.load("omniglot", tmp_path / "mine")
    message = str(error.value)
    for part in ("chardata.mat of omniglot", str(tmp_path / "mine"), "ECHO_EXT_OFFLINE", "https://github.com/yburda"):
        assert part in message
    assert "\n" not in message


def test_without_pooch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("ECHO_EXT_OFFLINE")
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'echo-ext\[train\]' would be needed to download it"):
        data.load("binary-mnist")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with _files.writing(path) as file:
        file.write(b"first")

    def interrupted():
        with _files.writing(path) as file:
            file.write(b"sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
