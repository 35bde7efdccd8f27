"""Data of one's own: an npz file with an array x, or a folder of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echo_ext.data import images
from echo_ext.data._files import InvalidFile, Shape, StrPath, read_npz
from echo_ext.data.datasets import ImageDataset, LabeledDataset, VectorDataset, split

__all__ = ["absolute", "describe", "load_own", "looks_like_path", "part_rows", "read_own"]

_MIN_ROWS = 10  # a tenth of the rows is the validation part, another the test part


def looks_like_path(name: StrPath) -> bool:
    """Whether this is a path rather than the name of a data set, as far as one can tell."""
    text = os.fspath(name)
    return not isinstance(name, str) or Path(text).name != text or text.endswith(".npz") or os.path.exists(text)


def absolute(path: StrPath) -> Path:
    """The absolute path, with the home folder instead of ``~``."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def part_rows(rows: int) -> tuple[int, int, int]:
    """The numbers of rows of the train, valid and test parts."""
    return rows - 2 * (rows // 10), rows // 10, rows // 10


def describe(path: Path) -> tuple[int, Shape]:
    """The number of rows and the shape of one x, without reading them all.

    Raises:
        FileNotFoundError: The path does not exist, or is an empty folder.
        ValueError: The path has the wrong content.
    """
    if _is_folder(path):
        files, _ = _listed(path)
        with images.opened(files[0], files[0]) as (_, first):
            return len(files), first
    with read_npz(path) as arrays:
        shape, dtype = arrays.header("x")
        data_shape = _data_shape(path, shape, dtype)
        return shape[0], data_shape


def load_own(path: Path) -> dict[str, LabeledDataset]:
    """Load 80 / 10 / 10 % of the rows in a random order, the same on every call; the errors are those of read_own."""
    whole = read_own(path)
    if len(whole) < _MIN_ROWS:
        raise ValueError(f"{path} must have at least {_MIN_ROWS} rows for its three parts, got {len(whole)}")
    _, valid, test = part_rows(len(whole))
    return split(whole, valid=valid, test=test)


def read_own(path: Path) -> LabeledDataset:
    """Read all rows, in the order of the npz file, or in the order of the names of the images.

    Raises:
        FileNotFoundError: The path does not exist, or is an empty folder.
        ModuleNotFoundError: Pillow is not installed, which reads images.
        ValueError: The path has the wrong content.
    """
    return _read_folder(path) if _is_folder(path) else _read_arrays(path)


def _is_folder(path: Path) -> bool:
    wanted = "data must be a name that echo-ext data lists, an .npz file with an array x, or a folder of images"
    if not path.exists():
        raise FileNotFoundError(f"{wanted}, got {path}, which does not exist")
    if not path.is_dir() and path.suffix != ".npz":
        raise ValueError(f"{wanted}, got {path}")
    return path.is_dir()


# ---- Arrays ----------------------------------------------------------------------------------------------------------


def _data_shape(path: Path, shape: Shape, dtype: np.dtype[Any]) -> Shape:
    """The shape of one x in the order of PyTorch, for an array of this shape."""
    is_bytes = dtype in (np.uint8, np.bool_)
    if (is_bytes or dtype.kind == "f") and 0 not in shape:
        if len(shape) == 2 and not is_bytes:
            return shape[1:]
        if len(shape) == 3:
            return 1, *shape[1:]
        if len(shape) == 4 and shape[1] in (1, 3):
            return shape[1:]
        if len(shape) == 4 and shape[3] in (1, 3):
            return shape[3], *shape[1:3]
    alpha = "; remove the alpha channel" if len(shape) == 4 and 4 in (shape[1], shape[3]) else ""
    raise InvalidFile(
        f"{path}: 'x' must be uint8, bool or float images of shape (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 "
        f"or 3, or float vectors of shape (N, d), got {dtype} of shape {shape}{alpha}"
    )


def _read_arrays(path: Path) -> LabeledDataset:
    with read_npz(path) as arrays:
        shape, dtype = arrays.header("x")
        data_shape = _data_shape(path, shape, dtype)
        if "labels" in arrays.names:
            found, kind = arrays.header("labels")
            if found != shape[:1] or kind.kind not in "biu":
                wanted = f"{shape[0]} integers, one for each row of x"
                raise InvalidFile(f"{path}: 'labels' must be {wanted}, got {kind} of shape {found}")
            labels = torch.from_numpy(arrays.read("labels").astype(np.int64))
        else:
            labels = torch.full(shape[:1], -1, device="cpu")
        x = arrays.read("x")
    if len(shape) == 4 and shape[1:] != data_shape:
        x = x.transpose(0, 3, 1, 2)
    as_bytes = dtype.kind != "f"
    stored = torch.from_numpy(np.ascontiguousarray(x, np.uint8 if as_bytes else np.float32)).view(-1, *data_shape)
    if as_bytes:
        white = 1 if dtype == np.bool_ else 255
        if white == 255 and int(stored.max()) <= 1:
            wanted = "levels from 0 to 255, got only 0 and 1; save binary images as bool"
            raise ValueError(f"{path}: 'x' must have {wanted}")
        return ImageDataset(stored, labels, white=white)
    _check_numbers(path, stored)
    return VectorDataset(stored, labels) if len(data_shape) == 1 else LabeledDataset(stored, labels)


def _check_numbers(path: Path, x: Tensor) -> None:
    """Refuse floats that are not finite, and pixels that are not in [0, 1]."""
    if not bool(x.isfinite().all()):
        row = int((~x.flatten(1).isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"{path}: 'x' must be finite, got NaN or infinity in row {row}; leave such rows out")
    low, high = float(x.min()), float(x.max())
    if x.ndim == 4 and (low < 0 or high > 1):
        raise ValueError(
            f"{path}: 'x' must be in [0, 1] for images of floats, got values from {low:g} to {high:g}; "
            "scale them, or save levels from 0 to 255 as uint8"
        )


# ---- Folders of images -----------------------------------------------------------------------------------------------


def _images(folder: Path, pattern: str) -> list[Path]:
    found = (file for file in folder.glob(pattern) if file.suffix.lower() in images.SUFFIXES)
    return sorted(file for file in found if not file.name.startswith(".") and file.is_file())


def _listed(folder: Path) -> tuple[list[Path], Tensor]:
    """The images of a folder with their labels; those of images in subfolders are the places of the subfolders."""
    files = _images(folder, "*")
    subfolders = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    classes = [found for each in subfolders if (found := _images(each, "**/*"))]
    if files and classes:
        raise ValueError(f"{folder} must have images in itself or in one subfolder for each label, got both")
    if classes:
        labels = torch.arange(len(classes), device="cpu").repeat_interleave(torch.tensor([*map(len, classes)]))
        return [file for each in classes for file in each], labels
    if not files:
        raise FileNotFoundError(f"{folder} must have images, {', '.join(images.SUFFIXES)}, got a folder without any")
    return files, torch.full((len(files),), -1, device="cpu")


def _read_folder(folder: Path) -> ImageDataset:
    files, labels = _listed(folder)
    with images.opened(files[0], files[0]) as (_, first):
        pass
    levels = np.empty((len(files), *first), np.uint8)
    for row, file in enumerate(files):
        with images.opened(file, file) as (image, shape):
            if shape != first:
                raise InvalidFile(f"{file} must be {_size(first)} as {files[0].name}, got {_size(shape)}")
            levels[row] = images.channels_first(image)
    return ImageDataset(torch.from_numpy(levels), labels)


def _size(shape: tuple[int, int, int]) -> str:
    return f"{'RGB' if shape[0] == 3 else 'gray'} of {shape[2]} x {shape[1]} pixels"
