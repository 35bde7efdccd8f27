"""CelebA (Liu et al. 2015) at 64 x 64 pixels, from the aligned images and lists of its authors."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext._progress import tracked
from echo_ext.data import images
from echo_ext.data._files import FileLocator, InvalidFile, parsing, read_npz, save_if_possible
from echo_ext.data.datasets import ImageDataset

__all__ = ["ARCHIVE", "ATTRIBUTES", "FOLDER", "PAGE", "PARTITION", "load_celeba"]

PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FOLDER = "img_align_celeba"
ARCHIVE = "img_align_celeba.zip"
PARTITION = "list_eval_partition.txt"
ATTRIBUTES = "list_attr_celeba.txt"
LABEL = "Smiling"

SIDE = 64
_ALIGNED = (3, 218, 178)
_CROP = 148  # the side of the central square, which is the usual one for images of 64 x 64
_PARTS = {"train": "0", "valid": "1", "test": "2"}

Levels = npt.NDArray[np.uint8]


def load_celeba(locator: FileLocator) -> dict[str, ImageDataset]:
    """Load the three parts of the published partition; the label is whether the face smiles, or -1 without its list.

    The images are cropped to the central 148 x 148 pixels and resized to 64 x 64, which takes minutes. They are then
    saved in the cache, which needs 2.5 GB.
    """
    partition = locator.find(PARTITION)
    if partition is None:
        raise locator.missing(PARTITION, "it has no address from which it could be downloaded")
    content = partition.read_bytes()
    places = _partition(partition, content)
    cached = locator.cache / f"celeba{SIDE}-{hashlib.sha256(content).hexdigest()[:16]}.npz"
    levels = _read_cached(cached, len(places)) if cached.is_file() else _prepare(locator, list(places), cached)
    attributes = locator.find(ATTRIBUTES)
    labels = torch.full((len(places),), -1, device="cpu") if attributes is None else _labels(attributes, list(places))
    whole = ImageDataset(torch.from_numpy(levels), labels)
    parts = np.array(list(places.values()))
    return {name: whole.select(torch.from_numpy(np.flatnonzero(parts == part))) for name, part in _PARTS.items()}


def _partition(path: Path, content: bytes) -> dict[str, str]:
    """The part of each image, by file name."""
    with parsing(f"{path} is not a list of images and their parts"):
        lines = [line.split() for line in content.decode().splitlines() if line.strip()]
        places = dict(lines)
    if not places or not set(places.values()) <= set(_PARTS.values()):
        raise ValueError(f"{path} must have lines such as '000001.jpg 0', with part 0, 1 or 2")
    return places


def _labels(path: Path, names: list[str]) -> Tensor:
    """Whether each image has the attribute: int64 (images,)."""
    with parsing(f"{path} is not a list of images and their attributes"):
        _, header, *lines = path.read_text().splitlines()
        column = 1 + header.split().index(LABEL)
        words = (line.split() for line in lines if line.strip())
        values = {each[0]: int(each[column]) for each in words}
        if missing := next((name for name in names if name not in values), None):
            raise InvalidFile(f"{path} must have a line for each image of {PARTITION}, but has none for {missing}")
        return torch.tensor([values[name] > 0 for name in names], device="cpu").to(torch.int64)


def _read_cached(path: Path, rows: int) -> Levels:
    with read_npz(path) as arrays:
        return arrays.read("images", np.uint8, rows, 3, SIDE, SIDE)


def _prepare(locator: FileLocator, names: list[str], cached: Path) -> Levels:
    """Crop and resize all images and save them in the cache, if it is writable."""
    levels = np.empty((len(names), 3, SIDE, SIDE), np.uint8)
    with _source(locator, names[0]) as open_image:
        for row, name in enumerate(tracked(names, "reading CelebA", "image")):
            with open_image(name) as file, images.opened(file, f"{name} of CelebA") as (image, shape):
                if shape != _ALIGNED:
                    wanted, got = (f"RGB of {each[2]} x {each[1]} pixels" for each in (_ALIGNED, shape))
                    raise InvalidFile(f"{name} must be an aligned image of CelebA, {wanted}, got {got}")
                levels[row] = images.channels_first(images.central_square(image, _CROP, SIDE))
    save_if_possible(cached, np.savez, "CelebA could not be saved and will be resized again", images=levels)
    return levels


@contextlib.contextmanager
def _source(locator: FileLocator, first: str) -> Iterator[Callable[[str], IO[bytes]]]:
    """Yield a function that opens an image of the folder or of the archive, whichever is found."""
    found = locator.find(f"{FOLDER}/{first}", ARCHIVE)
    if found is None:
        raise locator.missing(f"{FOLDER} or {ARCHIVE}", "it has no address from which it could be downloaded")
    if found.name != ARCHIVE:
        yield lambda name: (found.parent / name).open("rb")
        return
    with parsing(f"{found} is not a whole zip file"), zipfile.ZipFile(found) as archive:
        yield lambda name: archive.open(f"{FOLDER}/{name}")
