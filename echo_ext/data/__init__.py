"""Data sets by name or path, with rows (x, label): images in [0, 1], or vectors."""

from __future__ import annotations

from echo_ext import _checks
from echo_ext.data import catalog
from echo_ext.data._files import StrPath
from echo_ext.data.datasets import BINARIZATIONS, BinaryImages, ImageDataset, LabeledDataset, VectorDataset, binarize
from echo_ext.data.dsprites import DSprites
from echo_ext.data.mixtures import MixtureDataset

__all__ = [
    "BinaryImages",
    "DSprites",
    "ImageDataset",
    "LabeledDataset",
    "MixtureDataset",
    "VectorDataset",
    "binarize",
    "load",
    "names",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def names() -> list[str]:
    """Return the names that :func:`load` accepts; the command ``echo-ext data`` describes them.

    Example:
        >>> "mnist" in echo_ext.data.names()
        True
    """
    return list(catalog.CATALOG)


def load(
    name: StrPath, root: StrPath | None = None, *, binarization: str = "none", seed: int = 0
) -> dict[str, LabeledDataset]:
    """Load the disjoint parts "train", "valid" and "test" of a data set, which are the same on every call.

    Files are searched in ``root``, in its subfolder named after the data set, and in the cache (ECHO_EXT_CACHE, or else
    ``echo-ext`` in the user's cache folder). Missing files are downloaded into the cache, unless ECHO_EXT_OFFLINE is
    set.

    Downloads are verified with the publisher's checksum. All files are verified with the checksums of their format and
    with their announced shape, and content with the length of the published file also with its checksum. A file may
    have fewer rows than the published one, but not more. The file chardata.mat must be the published one.

    Own data are an .npz file or a folder. The file has an array ``x``: images (N, H, W), (N, C, H, W) or (N, H, W, C)
    of uint8 levels from 0 to 255, of bool or of floats in [0, 1], where C is 1 or 3; or float vectors (N, d). It may
    have integer ``labels`` (N,). The folder has .png and .jpg images of one size, gray or RGB, in itself, or in one
    subfolder for each label. A random 80 / 10 / 10 % of the rows, the same on every call, are the three parts. They
    depend on the number of rows, so files are not to be added while models are compared.

    The training rows of a mixture ("gmm2d", "normal", ...) are drawn again in each epoch set by
    :meth:`LabeledDataset.set_epoch`.

    Args:
        name: One of :func:`names`, or the path of own data. A name is looked up first: write ``./mnist`` for a folder.
        root: The folder with the files. None means the environment variable ECHO_EXT_DATA.
        binarization: How gray levels are turned into zeros and ones. "none" keeps them, as the Echo paper does for
            Omniglot and Fashion-MNIST. "static" draws every pixel once. "dynamic" draws the training pixels again in
            each epoch set by ``set_epoch``, and those of the other parts once, as for the two-level models. Binary
            images are not changed.
        seed: Seed of the binarization.

    Raises:
        ValueError: The name or the binarization is unknown, or a file has the wrong content.
        TypeError: The data to binarize are vectors.
        FileNotFoundError: The folder does not exist, or a file is missing and cannot be downloaded.
        ModuleNotFoundError: scikit-learn is missing, which "digits" and "fashion-pca20" need, SciPy, which chardata.mat
            needs, or Pillow, which images need.

    Warns:
        UserWarning: The images of dSprites are rendered, because the original file cannot be had.

    Example:
        >>> parts = echo_ext.data.load("digits")
        >>> {part: len(dataset) for part, dataset in parts.items()}
        {'train': 1297, 'valid': 200, 'test': 300}
        >>> x, labels = parts["train"][:100]
        >>> x.shape, labels.shape
        (torch.Size([100, 1, 8, 8]), torch.Size([100]))
    """
    entry = catalog.find(name)
    _checks.choice("binarization", binarization, BINARIZATIONS)
    parts = entry.load(entry.locator(root))
    for part, dataset in parts.items():
        if not len(dataset):
            raise ValueError(f"the {part} part of {name} must have rows, but its files are too small")
    held_out = "none" if binarization == "none" else "static"
    # Each part has its own seed, so that no two parts draw the same numbers.
    return {
        part: binarize(dataset, binarization if part == "train" else held_out, seed=3 * seed + index)
        for index, (part, dataset) in enumerate(parts.items())
    }
