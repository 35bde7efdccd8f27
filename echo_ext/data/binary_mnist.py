"""Statically binarized MNIST of Salakhutdinov & Murray (2008), as distributed by Larochelle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext.data._files import FileLocator, RemoteFile, check_content, read_npz
from echo_ext.data.datasets import ImageDataset

__all__ = ["FILES", "PACKED", "load_binary_mnist"]

PACKED = "binarized_mnist.npz"  # the same bits, eight per byte: arrays train, valid and test with 98 bytes per row

_BASE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
FILES = {
    part: RemoteFile(f"binarized_mnist_{part}.amat", f"{_BASE}binarized_mnist_{part}.amat", f"sha256:{checksum}")
    for part, checksum in {
        "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    }.items()
}

_ROWS = {"train": 50_000, "valid": 10_000, "test": 10_000}

Levels = npt.NDArray[np.uint8]


def load_binary_mnist(locator: FileLocator) -> dict[str, ImageDataset]:
    """Load 50000 / 10000 / 10000 rows. The source has no labels: they come from ``labels.npz`` or are -1."""
    packed = locator.find(PACKED)
    parts = {}
    for part, rows in _ROWS.items():
        path = packed or locator.obtain(FILES[part])
        levels = _read_packed(path, part) if packed else _read_text(path)
        if len(levels) == rows:
            check_content(
                path, f"the {part} part of binary-mnist", _as_text(levels), FILES[part].checksum.removeprefix("sha256:")
            )
        labels = _labels(path.with_name("labels.npz"), part, len(levels))
        parts[part] = ImageDataset(torch.from_numpy(levels).view(-1, 1, 28, 28), labels, white=1)
    return parts


def _as_text(levels: Levels) -> memoryview:
    """The bytes of the published file with these rows."""
    text = np.full((len(levels), 2 * 784), ord(" "), dtype=np.uint8)
    text[:, ::2] = levels + ord("0")
    text[:, -1] = ord("\n")
    return text.data


def _read_packed(path: Path, part: str) -> Levels:
    with read_npz(path) as arrays:
        return np.unpackbits(arrays.read(part, np.uint8, None, 98, max_rows=_ROWS[part]), axis=1)


def _read_text(path: Path) -> Levels:
    """Read a text file with one row per line: 784 zeros or ones, separated by spaces."""
    lines = path.read_bytes().translate(None, b" \t\r").strip(b"\n")
    characters = np.frombuffer(lines + b"\n", dtype=np.uint8)
    ends = characters == ord("\n")
    digits: Levels = characters[~ends] - ord("0")
    if digits.max(initial=0) > 1:
        raise ValueError(f"{path} must contain only zeros and ones, got other characters")
    if len(characters) % 785 or not ends[784::785].all() or len(digits) != 784 * (len(characters) // 785):
        raise ValueError(f"{path} is damaged: its {len(digits)} numbers are not in lines of 784")
    return digits.reshape(-1, 784)


def _labels(path: Path, part: str, rows: int) -> Tensor:
    if not path.is_file():
        return torch.full((rows,), -1, device="cpu")
    with read_npz(path) as arrays:
        return torch.from_numpy(arrays.read(f"{part}_label", np.int64, rows))
