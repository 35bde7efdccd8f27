"""Omniglot at 28 x 28 pixels with the split of Burda et al. (2016), from chardata.mat or a rebuilt copy of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from echo_ext import _checks
from echo_ext.data._files import FileLocator, RemoteFile, check_checksum, read_npz
from echo_ext.data.datasets import ImageDataset, split

__all__ = ["FILE", "REBUILT", "load_omniglot"]

FILE = RemoteFile(
    "chardata.mat",
    "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat",
    "md5:21ecaf34373511aa7691cf2e0802aa3d",
)
# A copy of chardata.mat rebuilt from the original drawings, which is not identical in every pixel.
REBUILT = "omniglot28_rebuilt.npz"

_ROWS = {"train": 24345, "test": 8070}
_VALIDATION = 1345 / 24345  # the usual share of the training file, which leaves 23000 rows


def load_omniglot(locator: FileLocator) -> dict[str, ImageDataset]:
    """Load 23000 / 1345 / 8070 rows, where ink is 1 and paper 0; the label is the alphabet, 0 to 49."""
    path = locator.find(FILE.name, REBUILT) or locator.obtain(FILE)
    training, test = _read_rebuilt(path) if path.name == REBUILT else _read_mat(path)
    # The rows are sorted by alphabet.
    return {**split(training, valid=round(_VALIDATION * len(training))), "test": test}


def _read_rebuilt(path: Path) -> list[ImageDataset]:
    parts = []
    with read_npz(path) as arrays:
        for part, rows in _ROWS.items():
            images = arrays.read(f"{part}_images", np.uint8, None, 28, 28, max_rows=rows)
            labels = arrays.read(f"{part}_alphabet", np.int64, len(images))
            parts.append(ImageDataset(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels)))
    return parts


def _read_mat(path: Path) -> list[ImageDataset]:
    # SciPy's reader may crash on a damaged file, so only the published file is passed to it.
    check_checksum(
        path,
        FILE,
        f"save other images as {REBUILT} with arrays train_images, train_alphabet, test_images, test_alphabet",
    )
    _checks.installed("scipy", purpose=f"reading {path}")
    from scipy.io import loadmat

    names = {"data": "target", "testdata": "testtarget"}
    content = loadmat(path, variable_names=[*names, *names.values()])
    parts = []
    for images, labels in names.items():
        # MATLAB stores the columns of an image one after the other.
        levels = np.rint(255 * content[images].T.reshape(-1, 28, 28).swapaxes(1, 2)).astype(np.uint8)
        parts.append(ImageDataset(torch.from_numpy(levels).unsqueeze(1), torch.from_numpy(content[labels].argmax(0))))
    return parts
