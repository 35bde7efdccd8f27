"""Own data: npz files and folders of images, and the errors that name what would be right."""

import os
import re

import numpy as np
import pytest
import torch

from echo_ext import data
from echo_ext.data import catalog, own
from echo_ext.data.datasets import ImageDataset, VectorDataset

Image = pytest.importorskip("PIL.Image")


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def joined(parts):
    """All rows of the parts, as one batch."""
    return tuple(torch.cat(each) for each in zip(*(part[:] for part in parts.values()), strict=True))


def paint(folder, count, *, mode="RGB", size=(6, 4), suffix=".png"):
    """Write random images; return their pixels as (count, channels, height, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    channels = len(mode) if mode != "L" else 1
    levels = np.random.default_rng(count).integers(0, 256, (count, size[1], size[0], channels)).astype(np.uint8)
    for index, image in enumerate(levels):
        Image.fromarray(image.squeeze(2) if channels == 1 else image, mode).save(folder / f"{index:03}{suffix}")
    return levels.transpose(0, 3, 1, 2)


LEVELS = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 7)).astype(np.uint8)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (LEVELS, LEVELS / 255),
        (LEVELS.transpose(0, 2, 3, 1), LEVELS / 255),
        (LEVELS[:, 0], LEVELS[:, :1] / 255),
        (LEVELS[:, :1], LEVELS[:, :1] / 255),
        (LEVELS > 99, LEVELS > 99),
        ((LEVELS / 255).astype(np.float32), LEVELS / 255),
        ((LEVELS / 255).astype(">f8"), LEVELS / 255),
        (np.asfortranarray(LEVELS), LEVELS / 255),
        (LEVELS[:, 0, 0] - 99.0, LEVELS[:, 0, 0] - 99.0),
    ],
)
def test_npz_of_every_layout_is_read_in_its_order(tmp_path, x, expected):
    path = save(tmp_path / "x.npz", x=x, labels=np.arange(30, dtype=np.uint8))
    whole = own.read_own(path)
    values, labels = whole[:]
    assert (values.dtype, labels.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(values, torch.from_numpy(expected.astype(np.float32)))
    assert labels.tolist() == list(range(30))
    assert whole.binary is (x.dtype == bool)
    assert own.describe(path) == (30, tuple(whole.data_shape))
    assert isinstance(whole, VectorDataset if x.ndim == 2 else ImageDataset if x.dtype.kind in "bu" else object)


def test_parts_are_disjoint_tenths_and_repeat(tmp_path):
    path = save(tmp_path / "x.npz", x=np.arange(47.0)[:, None])
    parts = data.load(path)
    assert {name: len(part) for name, part in parts.items()} == {"train": 39, "valid": 4, "test": 4}
    entry = catalog.find(str(path))
    assert (entry.rows, entry.data_shape) == ((39, 4, 4), (1,))
    values, labels = joined(parts)
    assert sorted(values.squeeze(1).tolist()) == list(range(47))
    assert values.squeeze(1).tolist() != list(range(47))
    assert set(labels.tolist()) == {-1}
    assert torch.equal(values, joined(data.load(str(path)))[0])


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", ".png"), ("L", ".PNG"), ("L", ".jpeg"), ("RGB", ".jpg")])
def test_folder_of_images_is_read_in_the_order_of_names(tmp_path, mode, suffix):
    levels = paint(tmp_path, 11, mode=mode, suffix=suffix)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._000.png").write_bytes(b"not an image either")
    whole = own.read_own(tmp_path)
    assert own.describe(tmp_path) == (11, levels.shape[1:])
    if "p" in suffix.lower()[1:2]:  # PNG keeps every level
        assert np.array_equal(whole.stored.numpy(), levels)
    assert whole.labels.tolist() == [-1] * 11


def test_subfolders_are_the_labels_of_their_images(tmp_path):
    expected = [paint(tmp_path / name, count) for name, count in (("ant/small", 3), ("bee", 4), ("cow", 5))]
    (tmp_path / "empty").mkdir()
    paint(tmp_path / ".thumbnails", 2)
    whole = own.read_own(tmp_path)
    assert whole.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 5
    assert np.array_equal(whole.stored.numpy(), np.concatenate(expected))
    values, labels = joined(data.load(tmp_path))
    assert torch.bincount(labels).tolist() == [3, 4, 5]
    assert values.shape == (12, 3, 4, 6)


def test_palettes_are_colors_and_one_bit_images_gray(tmp_path):
    for name, mode, channels in (("palette", "P", 3), ("bits", "1", 1)):
        levels = paint(tmp_path / "rgb", 1)
        (tmp_path / name).mkdir()
        image = Image.fromarray(levels[0].transpose(1, 2, 0)).convert(mode)
        image.save(tmp_path / name / "0.png")
        expected = np.atleast_3d(np.asarray(image.convert("RGB" if channels == 3 else "L")))
        assert np.array_equal(own.read_own(tmp_path / name).stored[0].numpy(), expected.transpose(2, 0, 1))


def test_paths_are_told_from_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert catalog.identify("digits") == "digits"
    assert catalog.identify("no-such-data") == "no-such-data"
    (tmp_path / "digits").mkdir()
    (tmp_path / "mine").mkdir()
    assert catalog.identify("digits") == "digits"  # names come first
    for name, path in (("mine", "mine"), ("./digits", "digits"), ("a.npz", "a.npz"), ("mine/../b/", "b")):
        assert catalog.identify(name) == str(tmp_path / path)
    assert catalog.identify(tmp_path / "digits") == str(tmp_path / "digits")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.identify("~/x.npz") == str(tmp_path / "x.npz")


def test_binarized_images_are_drawn_from_own_levels(tmp_path):
    path = save(tmp_path / "x.npz", x=LEVELS)
    values, _ = joined(data.load(path, binarization="static"))
    assert set(values.unique().tolist()) == {0, 1}


GRAY = np.full((12, 5, 5), 7, np.uint8)
VECTORS = np.zeros((12, 2))
BROKEN = VECTORS.copy()
BROKEN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"images": GRAY, "y": GRAY}, "x.npz has no array 'x'; it has images, y"),
        ({}, "x.npz has no array 'x'; it has none"),
        ({"x": GRAY, "labels": np.arange(11)}, r"'labels' must be 12 integers, one for each row of x, got .*\(11,\)"),
        ({"x": GRAY, "labels": np.zeros(12)}, "'labels' must be 12 integers, .*, got float64"),
        ({"x": BROKEN}, "'x' must be finite, got NaN or infinity in row 4"),
        ({"x": np.zeros((12, 5, 5)) + 7}, r"'x' must be in \[0, 1\] .*, got values from 7 to 7; .* as uint8"),
        ({"x": np.zeros((12, 5, 5, 4), np.uint8)}, r"got uint8 of shape \(12, 5, 5, 4\); remove the alpha channel"),
        ({"x": np.zeros((12, 5, 5, 2), np.uint8)}, r"with C = 1 or 3, .*, got uint8 of shape \(12, 5, 5, 2\)"),
        ({"x": GRAY.astype(np.int64)}, r"must be uint8, bool or float images .*, got int64"),
        ({"x": GRAY[:, 0]}, r"float vectors of shape \(N, d\), got uint8"),
        ({"x": np.uint8(3)}, r"got uint8 of shape \(\)"),
        ({"x": GRAY[:0]}, r"got uint8 of shape \(0, 5, 5\)"),
        ({"x": GRAY // 7}, "'x' must have levels from 0 to 255, got only 0 and 1; save binary images as bool"),
        ({"x": np.array(["a"] * 12)}, "must be uint8, bool or float images"),
        ({"x": np.array([None] * 12)}, "is not a whole npz file: 'x' must not contain Python objects"),
        ({"x": GRAY[:9]}, "must have at least 10 rows for its three parts, got 9"),
    ],
)
def test_unsuitable_arrays_are_named(tmp_path, arrays, complaint):
    path = save(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=complaint) as error:
        data.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_without_data_are_named(tmp_path):
    wanted = "data must be a name that echo-ext data lists, an .npz file with an array x, or a folder of images, got "
    with pytest.raises(FileNotFoundError, match=re.escape(f"{wanted}{tmp_path / 'a.npz'}, which does not exist")):
        data.load(tmp_path / "a.npz")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=re.escape(f"{wanted}{tmp_path / 'a.csv'}")):
        data.load(str(tmp_path / "a.csv"))
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'a.npz'} is not a whole npz file")):
        data.load(tmp_path / "a.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty must have images, \.png, \.jpg, \.jpeg, got a folder without"):
        data.load(tmp_path / "empty")
    with pytest.raises(
        ValueError, match=r"no data set 'mnst'; .* similar are mnist.* path of an \.npz file or of a fol"
    ):
        data.load("mnst")


def put(folder, name, mode, size=(6, 4)):
    Image.new(mode, size).save(folder / name)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (
            lambda folder: put(folder, "z.png", "RGB", (6, 5)),
            "z.png must be RGB of 6 x 4 pixels as 000.png, got RGB of",
        ),
        (lambda folder: put(folder, "z.png", "L"), "z.png must be RGB of 6 x 4 pixels as 000.png, got gray of 6 x 4"),
        (
            lambda folder: put(folder, "z.png", "RGBA"),
            "z.png must have no alpha channel, got mode RGBA; save it as gray",
        ),
        (lambda folder: put(folder, "z.png", "LA"), "z.png must have no alpha channel, got mode LA"),
        (lambda folder: put(folder, "z.png", "I;16"), "z.png must have 8-bit gray levels or RGB colors, got mode I;16"),
        (lambda folder: put(folder, "z.jpg", "CMYK"), "z.jpg must have 8-bit gray levels or RGB colors, got mode CMYK"),
        (
            lambda folder: paint(folder / "more", 2),
            "must have images in itself or in one subfolder for each .*, got both",
        ),
        (lambda folder: (folder / "z.png").write_bytes(b"no image"), "z.png is not a whole image"),
        (
            lambda folder: (folder / "z.png").write_bytes((folder / "000.png").read_bytes()[:-30]),
            "z.png is not a whole image",
        ),
    ],
)
def test_unsuitable_images_are_named(tmp_path, spoil, complaint):
    paint(tmp_path, 11)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=complaint) as error:
        data.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_missing_pillow_names_the_extra(tmp_path, monkeypatch):
    paint(tmp_path, 11)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs PIL: pip install 'echo-ext\[train\]'"):
        data.load(os.fspath(tmp_path))
