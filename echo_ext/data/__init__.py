"""Data sets by name, as rows of (x, label): images in [0, 1], vectors as they are."""

from __future__ import annotations

from echo_ext.data import catalog
from echo_ext.data._files import StrPath
from echo_ext.data.datasets import (
    BINARIZATIONS,
    BinaryImages,
    ImageDataset,
    LabelledDataset,
    VectorDataset,
    binarize,
)
from echo_ext.data.dsprites import DSprites

__all__ = [
    "BINARIZATIONS",
    "BinaryImages",
    "DSprites",
    "ImageDataset",
    "LabelledDataset",
    "VectorDataset",
    "binarize",
    "load",
    "names",
]


def names() -> list[str]:
    """What :func:`load` knows; ``echo-ext data`` says more."""
    return list(catalog.CATALOG)


def load(
    name: str, root: StrPath | None = None, *, binarization: str = "none", seed: int = 0
) -> dict[str, LabelledDataset]:
    """Load a data set: ``{"train": ..., "valid": ..., "test": ...}``, the same disjoint parts on every call.

    Files are looked for in ``root``, or its subfolder of the data set's name, then in the cache (ECHO_EXT_CACHE, else
    ``echo-ext`` in the user's cache folder), into which they are downloaded where they are missing, unless
    ECHO_EXT_OFFLINE is set. A download is compared with the publisher's checksum; whatever is read, with the checksums
    in the file's own format, its announced shape, and where its content is as long as the published one, with that. A
    file may have fewer rows than the published one, but not more; chardata.mat must be the published file.

    Args:
        name: one of :func:`names`.
        root: the folder. None for the environment variable ECHO_EXT_DATA.
        binarization: ``"none"``: gray levels stay (the Echo paper's Omniglot and Fashion-MNIST). ``"static"``: every
            pixel is drawn once. ``"dynamic"``: training pixels anew in each epoch that ``set_epoch`` announces, the
            other parts once (the two-level models). Images that are zeros and ones stay as they are.
        seed: of the binarization.

    Raises:
        ValueError: an unknown name or binarization; a file is not what it should be.
        TypeError: a binarization of vectors.
        FileNotFoundError: the folder is not there; a file is nowhere and cannot be downloaded.
        ModuleNotFoundError: ``"digits"`` without scikit-learn, chardata.mat without SciPy.
    """
    entry = catalog.find(name)
    if binarization not in BINARIZATIONS:
        raise ValueError(f"binarization must be one of {', '.join(BINARIZATIONS)}, not {binarization!r}")
    parts = entry.load(entry.shelf(root))
    for part, dataset in parts.items():
        if not len(dataset):
            raise ValueError(f"the {part} part of {name} must have rows, but its files are too small for any")
    held_out = "none" if binarization == "none" else "static"
    # Neighboring seeds for the parts, so that no two draw the same numbers.
    return {
        part: binarize(dataset, binarization if part == "train" else held_out, seed=3 * seed + index)
        for index, (part, dataset) in enumerate(parts.items())
    }
