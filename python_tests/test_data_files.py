"""Binary MNIST and Omniglot in all of their formats, hostile files, and downloads from a server."""

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
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import IDX, REAL, away_from_all_data, needs_real_files, write_idx
from data_cases import idx as idx_bytes

from echo_ext import data
from echo_ext.data import binary_mnist, catalog, dsprites, idx, omniglot
from echo_ext.data._files import RemoteFile

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
def test_binary_mnist_is_read_in_every_format(tmp_path, bits, write):
    write(tmp_path / "binary-mnist", bits)
    parts = data.load("binary-mnist", tmp_path)
    for part, rows in bits.items():
        assert torch.equal(parts[part][:][0], torch.from_numpy(rows).view(-1, 1, 28, 28).float())
        assert set(parts[part].labels.tolist()) == {-1}
        assert parts[part].binary


def test_binary_mnist_reads_labels_from_its_folder(tmp_path, bits):
    write_packed(tmp_path, bits)
    labels = {part: np.arange(rows, dtype=np.uint8) for part, rows in PARTS.items()}
    np.savez(tmp_path / "labels.npz", **{f"{part}_label": values for part, values in labels.items()})
    parts = data.load("binary-mnist", tmp_path)
    assert [parts[part].labels.tolist() for part in PARTS] == [list(range(rows)) for rows in PARTS.values()]
    np.savez(tmp_path / "labels.npz", train_label=np.zeros(5, int))
    with pytest.raises(ValueError, match=r"'train_label' must be numbers of shape 6, got int64 of shape \(5,\)"):
        data.load("binary-mnist", tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[:-7], "its 1565 numbers are not in lines of 784"),
        (lambda text: text.replace(b"\n", b" ", 1), "are not in lines of 784"),
        (lambda text: b"0 " + text[:-3] + b"\n", "its 1568 numbers are not in lines of 784"),
        (lambda text: b"", "its 0 numbers are not in lines"),
        (lambda text: b"2" + text[1:], "must contain only zeros and ones"),
        (lambda text: gzip.compress(text), "must contain only zeros and ones"),
    ],
)
def test_damaged_amat_file_is_named(tmp_path, bits, change, complaint):
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
def test_damaged_npz_file_is_named(tmp_path, bits, how):
    write_packed(tmp_path, bits)
    path = tmp_path / binary_mnist.PACKED
    damage(path, **how)
    with pytest.raises(ValueError, match="is not a whole npz file") as error:
        data.load("binary-mnist", tmp_path)
    assert str(path) in str(error.value)


def test_npz_file_with_other_arrays_is_named(tmp_path, bits):
    np.savez(tmp_path / binary_mnist.PACKED, train=np.zeros((4, 98), np.uint8), other=np.zeros(3))
    with pytest.raises(ValueError, match=r"binarized_mnist.npz has no array 'valid'; it has train, other"):
        data.load("binary-mnist", tmp_path)
    with (tmp_path / binary_mnist.PACKED).open("wb") as file:
        np.save(file, np.zeros((4, 98), np.uint8))
    with pytest.raises(ValueError, match=r"is not a whole npz file: File is not a zip file"):
        data.load("binary-mnist", tmp_path)
    write_packed(tmp_path, {part: rows[:, :700] for part, rows in bits.items()})
    with pytest.raises(ValueError, match=r"'train' must be numbers of shape rows x 98, got uint8 of shape \(6, 88\)"):
        data.load("binary-mnist", tmp_path)


def test_content_of_the_published_size_must_be_published(tmp_path, bits):
    write_packed(tmp_path, bits | {"test": np.zeros((10_000, 784), np.uint8)})
    with pytest.raises(ValueError, match="is not the test part of binary-mnist: it has the length of the published"):
        data.load("binary-mnist", tmp_path)


@needs_real_files
def test_real_bits_have_the_published_checksum():
    # Written as text, the bits have the checksum of the published file.
    rows = data.load("binary-mnist", REAL)["valid"].stored.flatten(1).numpy()
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
            # MATLAB stores images column by column.
            arrays[f"{prefix}data"] = np.stack([image.flatten(order="F") / 255 for image in levels[part]], axis=1)
            arrays[f"{prefix}target"] = np.eye(50)[:, alphabets[part]]
        io.savemat(folder / name, arrays, do_compression=True)
    else:
        arrays = {f"{part}_images": rows.astype(np.uint8) for part, rows in levels.items()}
        np.savez(folder / name, **arrays, **{f"{part}_alphabet": values for part, values in alphabets.items()})
    return levels, alphabets


def publish(monkeypatch, path):
    """Accept the file of a test as the published chardata.mat."""
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(omniglot, "FILE", dataclasses.replace(omniglot.FILE, checksum=f"md5:{digest}"))


@pytest.mark.parametrize("name", ["chardata.mat", "omniglot28_rebuilt.npz"])
def test_omniglot_is_read_in_every_format(tmp_path, monkeypatch, name):
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
        for image, label in zip(parts[part].stored, parts[part].labels, strict=True)
    ]
    given = zip(levels["train"].astype(np.uint8), alphabets["train"], strict=True)
    assert sorted(found) == sorted((image.tobytes(), int(label)) for image, label in given)
    assert torch.equal(parts["valid"].stored, data.load("omniglot", tmp_path)["valid"].stored)


@pytest.mark.parametrize("how", [{"keep": -400}, {"keep": 0}, {"keep": 90}, {"flip": 1000}, {}])
def test_only_the_published_chardata_is_parsed(tmp_path, monkeypatch, how):
    write_omniglot(tmp_path, "chardata.mat")
    if how:
        publish(monkeypatch, tmp_path / "chardata.mat")
        damage(tmp_path / "chardata.mat", **how)
    monkeypatch.setattr("scipy.io.loadmat", None)
    with pytest.raises(ValueError, match=r"must be the published chardata\.mat \(md5:.*, got md5:.*save other images"):
        data.load("omniglot", tmp_path)


# ---- Hostile files ---------------------------------------------------------------------------------------------------


def peak_of(action):
    """The peak memory of Python and NumPy during an action, in bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_gzip_is_unpacked_only_to_the_announced_size(tmp_path):
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
def test_idx_files_of_other_shapes_are_refused(tmp_path, name, shape):
    write_idx(tmp_path)
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    content = bytes(math.prod(shape)) if math.prod(shape) < 2**20 else bytes(2**20)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + content))
    wanted = "rows x 28 x 28" if len(shape) == 3 else "rows"
    with pytest.raises(ValueError, match=rf"must have {wanted} bytes of mnist with 1 to \d+ rows, got"):
        data.load("mnist", tmp_path)


def test_every_part_must_have_rows(tmp_path):
    write_idx(tmp_path, train=5)
    with pytest.raises(ValueError, match="the valid part of mnist must have rows, but its files are too small"):
        data.load("mnist", tmp_path)


def test_npz_of_another_shape_is_not_unpacked(tmp_path, bits):
    write_packed(tmp_path, bits)
    np.savez_compressed(tmp_path / binary_mnist.PACKED, train=np.zeros((700_000, 98), np.uint8))

    def load():
        with pytest.raises(ValueError, match="'train' must have at most 50000 rows, got 700000"):
            data.load("binary-mnist", tmp_path)

    assert peak_of(load) < 1 << 23


def test_npz_header_that_announces_too_much_is_named(tmp_path, bits):
    write_packed(tmp_path, bits)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15, 98)})
    with zipfile.ZipFile(tmp_path / binary_mnist.PACKED, "w") as archive:
        archive.writestr("train.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"'train' must have 98000000000000128 bytes according to its .*, got 128"):
        data.load("binary-mnist", tmp_path)


# ---- Downloads -------------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder. It announces a file in ``cut`` completely, but sends only half of it."""

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
    """A server for MNIST with small files."""
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
        digests = [(hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest(), "") for name in IDX]
        monkeypatch.setitem(idx.FILES, "mnist", idx._idx_files(address, *digests))
        yield running
        running.shutdown()
        thread.join()


def test_missing_files_are_downloaded_once(tmp_path, server, cache):
    parts = data.load("mnist")
    expected = data.load("mnist", tmp_path / "server")
    for part in parts:
        assert torch.equal(parts[part][:][0], expected[part][:][0])
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(f"{name}.gz" for name in IDX)
    assert server.asked == [f"/{name}.gz" for name in IDX]
    data.load("mnist")
    assert len(server.asked) == 4


def test_original_dsprites_are_downloaded(tmp_path, server, cache, monkeypatch):
    name, content = dsprites.ORIGINAL.name, b"not rendered"
    (tmp_path / "server" / name).write_bytes(content)
    address = f"http://127.0.0.1:{server.server_port}/{name}"
    remote = RemoteFile(name, address, f"md5:{hashlib.md5(content).hexdigest()}")
    monkeypatch.setattr(dsprites, "ORIGINAL", remote)
    with pytest.raises(ValueError, match="is not a whole dSprites file"):
        data.load("dsprites")
    assert (cache / "dsprites" / name).read_bytes() == content


def test_single_missing_file_is_downloaded(tmp_path, server, cache):
    write_idx(tmp_path / "mine" / "mnist")
    (tmp_path / "mine" / "mnist" / f"{IDX[2]}.gz").unlink()
    data.load("mnist", tmp_path / "mine")
    assert [path.name for path in (cache / "mnist").iterdir()] == [f"{IDX[2]}.gz"]


def test_download_with_another_checksum_is_not_kept(tmp_path, server, cache):
    (tmp_path / "server" / f"{IDX[1]}.gz").write_bytes(b"a page that says: not found")
    with pytest.raises(ValueError, match=rf"127.0.0.1:\d+/{IDX[1]}.gz must be {IDX[1]}.gz with .*; it was not kept"):
        data.load("mnist")
    assert [path.name for path in (cache / "mnist").iterdir()] == [f"{IDX[0]}.gz"]


def test_interrupted_download_leaves_no_files(server, cache):
    server.cut.append(f"/{IDX[0]}.gz")
    with pytest.raises(FileNotFoundError, match=rf"{IDX[0]}.gz .* downloading http://127.* failed .*by hand from"):
        data.load("mnist")
    assert list((cache / "mnist").iterdir()) == []


@pytest.mark.parametrize("problem", ["gone", "not there"])
def test_server_without_the_file_is_reported(tmp_path, server, monkeypatch, problem):
    if problem == "gone":
        (tmp_path / "server" / f"{IDX[0]}.gz").unlink()
    else:
        address = "http://127.0.0.1:9/"  # the discard port, where no server listens
        monkeypatch.setitem(idx.FILES, "mnist", (RemoteFile("a.gz", f"{address}a.gz", "md5:0", ""),))
    with pytest.raises(FileNotFoundError, match=r"was not found in .* and downloading http://127.0.0.1.* failed"):
        data.load("mnist")


class Rendered(Exception):
    pass


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("name", [name for name, entry in catalog.CATALOG.items() if entry.page])
def test_error_without_network_says_what_to_fetch_and_where_to_put_it(cache, monkeypatch, name, offline):
    def render(path):
        raise Rendered

    monkeypatch.setattr(dsprites, "_render", render)
    if not offline:
        monkeypatch.delenv("ECHO_EXT_OFFLINE")
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where no server listens
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises((FileNotFoundError, Rendered)) as error:
            data.load(name)
    message = str(caught[0].message if caught else error.value)
    entry = catalog.CATALOG[name]
    assert any(file in message for files in entry.files for file in files)
    assert f" of {entry.folder} was not found in {cache / entry.folder}, and " in message
    assert f"by hand from {entry.page} into {cache / entry.folder}, or into a folder that --data-dir" in message
    if name != "celeba":
        assert ("does not allow downloading http" if offline else "failed (ProxyError)") in message
    assert "\n" not in message


def test_unwritable_cache_is_named(server, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pooch.retrieve", refuse)
    monkeypatch.setenv("ECHO_EXT_CACHE", "/nowhere")
    with pytest.raises(FileNotFoundError, match="/nowhere/mnist is not writable; ECHO_EXT_CACHE can name another"):
        data.load("mnist")


def test_offline_error_names_file_and_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        data.load("omniglot", tmp_path / "mine")
    message = str(error.value)
    for part in ("chardata.mat of omniglot", str(tmp_path / "mine"), "ECHO_EXT_OFFLINE", "https://github.com/yburda"):
        assert part in message
    assert "\n" not in message


def test_missing_pooch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.delenv("ECHO_EXT_OFFLINE")
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(FileNotFoundError, match=r"downloading it needs pooch: pip install 'echo-ext\[train\]'"):
        data.load("binary-mnist")
