"""MNIST and Fashion-MNIST, each of which consists of four files in the idx format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echo_ext.data._files import FileLocator, InvalidFile, RemoteFile, check_content, unpacked
from echo_ext.data.datasets import ImageDataset

__all__ = ["FILES", "load_idx"]

_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _remote_files(base: str, *md5: str) -> tuple[RemoteFile, ...]:
    pairs = zip(_NAMES, md5, strict=True)
    return tuple(RemoteFile(f"{name}.gz", f"{base}{name}.gz", f"md5:{digest}") for name, digest in pairs)


# The checksums of the downloaded files, as given by the publishers and torchvision.
FILES = {
    "mnist": _remote_files(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion-mnist": _remote_files(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
}

# SHA-256 of the unpacked files, by length, because files may have been packed again since their download.
_CONTENT: dict[str, dict[str, dict[int, str]]] = {
    "mnist": {
        "train-images-idx3-ubyte": {47040016: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"},
        "train-labels-idx1-ubyte": {60008: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"},
        "t10k-images-idx3-ubyte": {7840016: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"},
        "t10k-labels-idx1-ubyte": {10008: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"},
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": {47040016: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"},
        "train-labels-idx1-ubyte": {60008: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"},
        "t10k-images-idx3-ubyte": {7840016: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"},
        "t10k-labels-idx1-ubyte": {10008: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"},
    },
}


def load_idx(locator: FileLocator) -> dict[str, ImageDataset]:
    """Load the data set that the locator names; the last sixth of the training file is the validation part."""
    tensors = {}
    for remote in FILES[locator.name]:
        stem = remote.name.removesuffix(".gz")
        path = locator.obtain(remote, stem)
        tensors[stem] = _read_idx(path, 3 if "images" in stem else 1, locator.name, _CONTENT[locator.name][stem])
    training, test = (
        ImageDataset(tensors[images].unsqueeze(1), tensors[labels].to(torch.int64))
        for images, labels in (_NAMES[:2], _NAMES[2:])
    )
    held_out = len(training) // 6
    return {
        "train": training.select(slice(0, len(training) - held_out)),
        "valid": training.select(slice(len(training) - held_out, None)),
        "test": test,
    }


def _read_idx(path: Path, dimensions: int, name: str, known: Mapping[int, str]) -> Tensor:
    """Read the uint8 tensor of one file, without unpacking more than its header announces."""
    # The header is 0, 0, the type (8 for bytes), the number of dimensions, and the dimensions in big-endian order.
    magic = bytes((0, 0, 8, dimensions))
    size = 4 + 4 * dimensions
    with unpacked(path) as file:
        header = file.read(size)
        if header[:4] != magic:
            raise InvalidFile(f"{path} is not an idx file: it must begin with {magic.hex()}, got {header[:4].hex()}")
        if len(header) < size:
            raise InvalidFile(f"{path} is truncated: its header must have {size} bytes, got {len(header)}")
        shape = [int(length) for length in np.frombuffer(header, dtype=">u4", offset=4)]
        _check_shape(path, shape, name, max(known) - size)
        # Reading one more byte shows whether the file ends here.
        content = file.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        raise ValueError(
            f"{path} is damaged: its header announces {' x '.join(map(str, shape))} = {math.prod(shape)} bytes, "
            f"but {len(content)} follow"
        )
    check_content(path, f"the file of {name}", header + content, known)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def _check_shape(path: Path, shape: list[int], name: str, published_size: int) -> None:
    """Refuse other shapes than images of 28 x 28 or labels, and more rows than were published."""
    image = [28, 28] if len(shape) == 3 else []
    max_rows = published_size // math.prod(image)
    if shape[1:] != image or not 1 <= shape[0] <= max_rows:
        wanted = " x ".join(["rows", *map(str, image)])
        announced = " x ".join(map(str, shape))
        raise InvalidFile(f"{path} must have {wanted} bytes of {name} with 1 to {max_rows} rows, got {announced}")
