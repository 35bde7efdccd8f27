"""Data sets by name: what they hold, and what is said about folders and files that are not as they should be."""

import gzip
import re
import struct
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from echo_ext import data

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_files(folder, *, pack=gzip.compress, suffix=".gz", train=18, test=5):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    arrays = {}
    for name, rows in zip(FILES, (train, train, test, test), strict=True):
        shape = (rows, 28, 28) if "images" in name else (rows,)
        arrays[name] = random.integers(0, 256 if "images" in name else 10, shape).astype(np.uint8)
        (folder / (name + suffix)).write_bytes(pack(idx(arrays[name])))
    return arrays


def test_digits_are_split_into_disjoint_parts_of_pixels_in_the_unit_interval():
    pytest.importorskip("sklearn")
    parts = data.load("digits")
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 1297, "valid": 200, "test": 300}
    x, labels = parts["train"][:]
    assert x.shape == (1297, 1, 8, 8)
    assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    assert set(labels.tolist()) == set(range(10))
    for rows in parts.values():  # every digit about as often in every part
        assert torch.bincount(rows.labels).min() > 0.06 * len(rows)
    assert torch.equal(x, data.load("digits")["train"][:][0])


def test_a_dataset_gives_rows_slices_and_batches():
    levels = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    dataset = data.ImageDataset(levels, torch.arange(6), white=23)
    x, label = dataset[5]
    assert x.shape == dataset.image_shape == (1, 2, 2)
    assert torch.equal(x, torch.tensor([[[20, 21], [22, 23]]]) / 23)
    assert label == 5
    assert torch.equal(dataset[torch.tensor([4, 0])][1], torch.tensor([4, 0]))
    batches = list(DataLoader(dataset, batch_size=4))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 1, 2, 2), (2, 1, 2, 2)]
    assert torch.equal(torch.cat([x for x, _ in batches]), dataset[:][0])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("subfolder", [True, False])
@pytest.mark.parametrize("by_variable", [True, False])
def test_idx_files_are_found_in_either_layout(tmp_path, monkeypatch, name, packed, subfolder, by_variable):
    how = {} if packed else {"pack": bytes, "suffix": ""}
    arrays = write_files(tmp_path / name if subfolder else tmp_path, **how)
    if by_variable:
        monkeypatch.setenv("ECHO_EXT_DATA", str(tmp_path))
    parts = data.load(name, None if by_variable else tmp_path)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 15, "valid": 3, "test": 5}
    images = torch.from_numpy(arrays["train-images-idx3-ubyte"]).unsqueeze(1) / 255
    assert torch.equal(torch.cat([parts["train"][:][0], parts["valid"][:][0]]), images)
    assert parts["test"][:][1].tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no data set 'cifar'; there are digits, fashion-mnist, mnist$"):
        data.load("cifar")


def test_without_a_folder_it_says_how_to_give_one(monkeypatch):
    monkeypatch.delenv("ECHO_EXT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--data-dir.*ECHO_EXT_DATA.*https://github.com/zalandoresearch"):
        data.load("fashion-mnist")


def test_missing_folder_and_missing_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'nowhere'} is not there")):
        data.load("mnist", tmp_path / "nowhere")
    write_files(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"t10k-labels-idx1-ubyte.gz .*of mnist.* in {re.escape(str(tmp_path))}.*https://"
    ):
        data.load("mnist", tmp_path)


def test_another_data_sets_folder_is_not_taken_for_this_one(tmp_path):
    write_files(tmp_path / "fashion-mnist")
    with pytest.raises(FileNotFoundError, match="the folder of fashion-mnist, not of mnist"):
        data.load("mnist", tmp_path / "fashion-mnist")


def damaged(change):
    return lambda content: gzip.compress(change(content))


@pytest.mark.parametrize(
    ("pack", "complaint"),
    [
        (lambda content: gzip.compress(content)[:-20], "is not a whole gzip file"),
        (lambda content: content, "is not a whole gzip file"),
        (damaged(lambda content: b"\0\0\x0d" + content[3:]), "should begin with 00000803, but has 00000d03"),
        (damaged(lambda content: b""), "should begin with 00000803, but has $"),
        (damaged(lambda content: content[:9]), "truncated: its header has 16 bytes, but the file only 9"),
        (damaged(lambda content: content[:-7]), "announces 18 x 28 x 28 = 14112 bytes, but 14105 follow"),
        (damaged(lambda content: content + b"x"), "announces 18 x 28 x 28 = 14112 bytes, but 14113 follow"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, pack, complaint):
    arrays = write_files(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(pack(idx(arrays["train-images-idx3-ubyte"])))
    with pytest.raises(ValueError, match=complaint) as error:
        data.load("mnist", tmp_path)
    assert str(path) in str(error.value)


def test_images_without_labels_are_refused(tmp_path):
    write_files(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))
    with pytest.raises(ValueError, match="one label per image, but there are 5 and 4"):
        data.load("mnist", tmp_path)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'echo-ext\[demo\]'"):
        data.load("digits")
