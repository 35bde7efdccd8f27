"""CelebA: generated images in the exact layout of its files, and the errors of damaged copies."""

import re
import zipfile

import numpy as np
import pytest
import torch
from data_cases import away_from_all_data

from echo_ext import cli, data

Image = pytest.importorskip("PIL.Image")

PARTS = [0, 2, 1, 0, 0, 1, 2, 0]
SMILING = [1, -1, -1, 1, -1, 1, 1, -1]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    return away_from_all_data(monkeypatch, tmp_path)


def face(row, size=(178, 218)):
    """A smooth image, which JPEG keeps: a gray level for each row of the data, and horizontal and vertical ramps."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return np.stack([across, down, np.full_like(down, 20 * row)], 2).astype(np.uint8)


def write_celeba(folder, *, packed=False, attributes=True, size=(178, 218)):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{row + 1:06}.jpg" for row in range(len(PARTS))]
    images = folder / "img_align_celeba"
    images.mkdir()
    for row, name in enumerate(names):
        Image.fromarray(face(row, size)).save(images / name, quality=95)
    if packed:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            for name in names:
                archive.write(images / name, f"img_align_celeba/{name}")
                (images / name).unlink()
        images.rmdir()
    lines = [f"{name} {part}\n" for name, part in zip(names, PARTS, strict=True)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    if attributes:
        lines = [f"{name} -1  {value:2} -1\n" for name, value in zip(names, SMILING, strict=True)]
        (folder / "list_attr_celeba.txt").write_text(f"{len(names)}\nBald Smiling Young \n{''.join(lines)}")


def rows_of(part):
    return [row for row, each in enumerate(PARTS) if each == part]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("subfolder", [False, True])
def test_celeba_is_cropped_and_resized(tmp_path, cache, packed, subfolder):
    root = tmp_path / "files"
    write_celeba(root / "celeba" if subfolder else root, packed=packed)
    parts = data.load("celeba", root)
    # The centers of the pixels of the central 148 x 148 square, whose neighbors are averaged.
    left, top = (178 - 148) / 2, (218 - 148) / 2
    centers = (np.arange(64) + 0.5) * 148 / 64 - 0.5
    across, down = 255 * (left + centers) / 177, 255 * (top + centers) / 217
    for part, name in enumerate(("train", "valid", "test")):
        x, labels = parts[name][:]
        assert x.shape == (len(rows_of(part)), 3, 64, 64)
        assert labels.tolist() == [int(SMILING[row] > 0) for row in rows_of(part)]
        for image, row in zip(255 * x.numpy(), rows_of(part), strict=True):
            inside = np.s_[1:-1, 1:-1]  # at the borders the average is one-sided
            expected = np.broadcast_arrays(across[None, :], down[:, None], np.array([[20.0 * row]]))
            for channel in range(3):
                assert np.abs(image[channel] - expected[channel])[inside].max() < 5
    (saved,) = (cache / "celeba").iterdir()
    assert re.fullmatch(r"celeba64-[0-9a-f]{16}\.npz", saved.name)
    assert np.load(saved)["images"].shape == (8, 3, 64, 64)


def test_celeba_is_resized_once(tmp_path, monkeypatch):
    write_celeba(tmp_path / "celeba", packed=True, attributes=False)
    first = data.load("celeba", tmp_path)
    (tmp_path / "celeba" / "img_align_celeba.zip").unlink()
    second = data.load("celeba", tmp_path)
    for name in first:
        assert torch.equal(first[name][:][0], second[name][:][0])
        assert set(second[name].labels.tolist()) == {-1}


def test_unwritable_cache_of_celeba_warns(tmp_path, monkeypatch):
    write_celeba(tmp_path / "celeba")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ECHO_EXT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="CelebA could not be saved and will be resized again"):
        assert len(data.load("celeba", tmp_path)["train"]) == 4


@pytest.mark.parametrize("file", ["list_eval_partition.txt", "img_align_celeba.zip"])
def test_missing_files_of_celeba_name_their_source(tmp_path, file):
    write_celeba(tmp_path / "celeba", packed=True)
    (tmp_path / "celeba" / file).unlink()
    wanted = rf"{file} of celeba was not found in .*{tmp_path}.*no address.* by hand from https://mmlab.*--data-dir"
    with pytest.raises(FileNotFoundError, match=wanted):
        data.load("celeba", tmp_path)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (
            lambda folder: (folder / "list_eval_partition.txt").write_text("000001.jpg 3\n"),
            "list_eval_partition.txt must have lines such as '000001.jpg 0', with part 0, 1 or 2",
        ),
        (
            lambda folder: (folder / "list_eval_partition.txt").write_text("000001.jpg\n"),
            "list_eval_partition.txt is not a list of images and their parts",
        ),
        (
            lambda folder: (folder / "list_attr_celeba.txt").write_text("1\nSmiling\n000001.jpg 1\n"),
            "must have a line for each image of list_eval_partition.txt, but has none for 000002.jpg",
        ),
        (
            lambda folder: (folder / "list_attr_celeba.txt").write_text("1\nBald\n000001.jpg 1\n"),
            "list_attr_celeba.txt is not a list of images and their attributes: .*Smiling",
        ),
        (
            lambda folder: Image.new("RGB", (64, 64)).save(folder / "img_align_celeba" / "000003.jpg"),
            "000003.jpg must be an aligned image of CelebA, RGB of 178 x 218 pixels, got RGB of 64 x 64 pixels",
        ),
        (
            lambda folder: (folder / "img_align_celeba" / "000003.jpg").write_bytes(b"no image"),
            "000003.jpg of CelebA is not a whole image",
        ),
    ],
)
def test_damaged_files_of_celeba_are_named(tmp_path, spoil, complaint):
    write_celeba(tmp_path / "celeba")
    spoil(tmp_path / "celeba")
    with pytest.raises(ValueError, match=complaint):
        data.load("celeba", tmp_path)


def test_command_says_that_celeba_must_be_downloaded(tmp_path, capsys):
    assert cli.main(["data"]) == 0
    assert "not found; must be downloaded by hand: https://mmlab" in capsys.readouterr().out
    write_celeba(tmp_path / "celeba")
    assert cli.main(["data", "--data-dir", str(tmp_path)]) == 0
    assert f"found: {tmp_path / 'celeba' / 'list_eval_partition.txt'}" in capsys.readouterr().out
