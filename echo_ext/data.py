"""Image data sets by name, as rows of (x in [0, 1], label)."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ImageDataset", "load", "names"]

# Data sets that are read from a folder, in MNIST's four files, and the page where they can be had.
_IDX_SOURCES = {
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
}
_IDX_DIMENSIONS = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images with labels, kept as bytes and scaled when asked for.

    ``dataset[i]`` is ``(x, label)``: x float32 (channels, height, width) in [0, 1], label a 0-d int64 tensor. A slice
    or an index tensor gives a whole batch at once, with one more leading dimension on both.

    Args:
        levels: uint8 (rows, channels, height, width), from 0 to ``white``.
        labels: int64 (rows,).
        white: the level that becomes 1.
    """

    def __init__(self, levels: Tensor, labels: Tensor, *, white: int = 255) -> None:
        if len(levels) != len(labels):
            raise ValueError(f"there must be one label per image, but there are {len(levels)} and {len(labels)}")
        self.levels = levels
        self.labels = labels
        self.white = white

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.levels)

    def __getitem__(self, rows: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        """One row, or a batch of them."""
        return self.levels[rows].to(torch.float32) / self.white, self.labels[rows]

    @property
    def image_shape(self) -> torch.Size:
        """(channels, height, width)."""
        return self.levels.shape[1:]

    def select(self, rows: slice | Tensor) -> ImageDataset:
        """The data set of these rows."""
        return ImageDataset(self.levels[rows], self.labels[rows], white=self.white)


def names() -> list[str]:
    """What :func:`load` knows."""
    return sorted(["digits", *_IDX_SOURCES])


def load(name: str, root: str | os.PathLike[str] | None = None) -> dict[str, ImageDataset]:
    """Load a data set: ``{"train": ..., "valid": ..., "test": ...}``, the same split on every call.

    Args:
        name: ``"digits"``: scikit-learn's 1797 digits of 8 x 8 pixels, 1297 / 200 / 300 rows; needs no folder.
            ``"fashion-mnist"``, ``"mnist"``: 28 x 28 pixels, 50000 / 10000 / 10000 rows, the last sixth of the training
            file held out for validation.
        root: the folder of the files, gzipped or unpacked, either in it or in a subfolder of the data set's name. None
            for the environment variable ECHO_EXT_DATA.

    Raises:
        ValueError: an unknown name; a file is not what it should be.
        FileNotFoundError: no folder is given, or a file is not in it.
        ModuleNotFoundError: ``"digits"`` without scikit-learn.
    """
    if name == "digits":
        return _load_digits()
    if name in _IDX_SOURCES:
        return _load_idx(name, root)
    raise ValueError(f"there is no data set {name!r}; there are {', '.join(names())}")


def _load_digits() -> dict[str, ImageDataset]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("digits come with scikit-learn: pip install 'echo-ext[demo]'") from missing
    images, labels = load_digits(return_X_y=True)
    levels = torch.from_numpy(images.reshape(-1, 1, 8, 8).astype(np.uint8))
    digits = ImageDataset(levels, torch.from_numpy(labels.astype(np.int64)), white=16)
    # The rows come writer by writer: shuffle them, so that all parts have the same law.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(digits)))
    return {
        "train": digits.select(order[:1297]),
        "valid": digits.select(order[1297:1497]),
        "test": digits.select(order[1497:]),
    }


# ---- The idx files of MNIST and its relatives ------------------------------------------------------------------------


def _load_idx(name: str, root: str | os.PathLike[str] | None) -> dict[str, ImageDataset]:
    folder = _idx_folder(name, root)
    training, test = (
        ImageDataset(
            _read_idx(name, folder, f"{part}-images-idx3-ubyte").unsqueeze(1),
            _read_idx(name, folder, f"{part}-labels-idx1-ubyte").to(torch.int64),
        )
        for part in ("train", "t10k")
    )
    held_out = len(training) // 6
    return {
        "train": training.select(slice(0, len(training) - held_out)),
        "valid": training.select(slice(len(training) - held_out, None)),
        "test": test,
    }


def _idx_folder(name: str, root: str | os.PathLike[str] | None) -> Path:
    given = os.environ.get("ECHO_EXT_DATA") if root is None else root
    if not given:
        raise FileNotFoundError(
            f"{name} is read from a folder: give one (--data-dir on the command line, root in Python) or set "
            f"ECHO_EXT_DATA; its files are at {_IDX_SOURCES[name]}"
        )
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"the data folder {folder} is not there")
    if (folder / name).is_dir():
        return folder / name
    if folder.name != name and folder.name in _IDX_SOURCES:
        raise FileNotFoundError(
            f"{folder} looks like the folder of {folder.name}, not of {name}: give the one above it"
        )
    return folder


def _read_idx(name: str, folder: Path, stem: str) -> Tensor:
    """The uint8 tensor of one file, ``stem`` or ``stem.gz``."""
    path = next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{stem}.gz (or {stem}) of {name} was not found in {folder}; it can be had at {_IDX_SOURCES[name]}"
        )
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as broken:
            raise ValueError(f"{path} is not a whole gzip file: {broken}") from broken

    # Magic number 0, 0, type (8: bytes), number of dimensions; then each dimension, big-endian.
    dimensions = next(count for ending, count in _IDX_DIMENSIONS.items() if stem.endswith(ending))
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise ValueError(f"{path} is not an idx file: it should begin with {magic.hex()}, but has {content[:4].hex()}")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} is truncated: its header has {header} bytes, but the file only {len(content)}")
    shape = [int(size) for size in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)]
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} is damaged: its header announces {' x '.join(map(str, shape))} = {math.prod(shape)} bytes, "
            f"but {len(content) - header} follow"
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy())
