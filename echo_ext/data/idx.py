"""MNIST and Fashion-MNIST, each of which consists of four files in the idx format."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echo_ext.data._files import FileLocator, InvalidFile, RemoteFile, check_content, parsing
from echo_ext.data.datasets import ImageDataset

__all__ = ["FILES", "NAMES", "load_idx"]

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MAX_ROWS = {"train": 60_000, "t10k": 10_000}


def _idx_files(base: str, *checksums: tuple[str, str]) -> tuple[RemoteFile, ...]:
    pairs = zip(NAMES, checksums, strict=True)
    return tuple(RemoteFile(f"{name}.gz", f"{base}{name}.gz", f"md5:{md5}", sha256) for name, (md5, sha256) in pairs)


# The MD5 of each packed file is as given by the publishers and torchvision.
FILES = {
    "mnist": _idx_files(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("d53e105ee54ea40749a09fcbcd1e9432", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("9fb629c4189551a2d022fa330f9573f3", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("ec29112dd5afa0611ce80d1b7f02629c", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    "fashion-mnist": _idx_files(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ("25c81989df183df01b3e8a0aad5dffbe", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ("bef4ecab320f06d8554ea6380940ec79", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ("bb300cfdad3c16e7a12a480ee83cd310", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
}


def load_idx(locator: FileLocator) -> dict[str, ImageDataset]:
    """Load the data set that the locator names; the last sixth of the training file is the validation part."""
    images, labels, test_images, test_labels = (
        _read_idx(locator.obtain(file, file.name.removesuffix(".gz")), file, locator.name)
        for file in FILES[locator.name]
    )
    training = ImageDataset(images.unsqueeze(1), labels.to(torch.int64))
    held_out = len(training) // 6
    return {
        "train": training.select(slice(0, len(training) - held_out)),
        "valid": training.select(slice(len(training) - held_out, None)),
        "test": ImageDataset(test_images.unsqueeze(1), test_labels.to(torch.int64)),
    }


def _read_idx(path: Path, file: RemoteFile, name: str) -> Tensor:
    """Read the uint8 images or labels of one file, without unpacking more than its header announces."""
    image = [28, 28] if "images" in file.name else []
    max_rows = _MAX_ROWS[file.name.split("-")[0]]
    # The header is 0, 0, the type (8 for bytes), the number of dimensions, and the dimensions in big-endian order.
    magic = bytes((0, 0, 8, 1 + len(image)))
    size = 4 + 4 * (1 + len(image))
    packed = path.suffix == ".gz"
    # At the end of a packed file, gzip verifies its checksum.
    with (
        parsing(f"{path} is not a whole {'gzip ' if packed else ''}file"),
        gzip.open(path) if packed else path.open("rb") as content,
    ):
        header = content.read(size)
        if header[:4] != magic:
            raise InvalidFile(f"{path} is not an idx file: it must begin with {magic.hex()}, got {header[:4].hex()}")
        if len(header) < size:
            raise InvalidFile(f"{path} is truncated: its header must have {size} bytes, got {len(header)}")
        shape = [int(length) for length in np.frombuffer(header, dtype=">u4", offset=4)]
        announced = " x ".join(map(str, shape))
        if shape[1:] != image or not 1 <= shape[0] <= max_rows:
            wanted = " x ".join(["rows", *map(str, image)])
            raise InvalidFile(f"{path} must have {wanted} bytes of {name} with 1 to {max_rows} rows, got {announced}")
        # Reading one more byte shows whether the file ends here.
        values = content.read(math.prod(shape) + 1)
    if len(values) != math.prod(shape):
        raise ValueError(
            f"{path} is damaged: its header announces {announced} = {math.prod(shape)} bytes, but {len(values)} follow"
        )
    if shape[0] == max_rows:
        check_content(path, f"the file of {name}", header + values, file.sha256)
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).reshape(shape)
