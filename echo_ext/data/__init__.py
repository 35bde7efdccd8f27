"""Data sets by name, as rows of (x, label): images in [0, 1], vectors as they are."""

from __future__ import annotations

from echo_ext.data import catalogue
from echo_ext.data._files import StrPath
from echo_ext.data.datasets import (
    BINARISATIONS,
    BinaryImages,
    ImageDataset,
    LabelledDataset,
    VectorDataset,
    binarise,
)
from echo_ext.data.dsprites import DSprites

__all__ = [
    "BINARISATIONS",
    "BinaryImages",
    "DSprites",
    "ImageDataset",
    "LabelledDataset",
    "VectorDataset",
    "binarise",
    "load",
    "names",
]


def names() -> list[str]:
    """What :func:`load` knows; ``echo-ext data`` says more."""
    return list(catalogue.CATALOGUE)


def load(
    name: str, root: StrPath | None = None, *, binarisation: str = "none", seed: int = 0
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
        binarisation: ``"none"``: grey levels stay (the Echo paper's Omniglot and Fashion-MNIST). ``"static"``: every
            pixel is drawn once. ``"dynamic"``: training pixels anew in each epoch that ``set_epoch`` announces, the
            other parts once (the two-level models). Images that are zeros and ones stay as they are.
        seed: of the binarisation.

    Raises:
        ValueError: an unknown name or binarisation; a file is not what it should be.
        TypeError: a binarisation of vectors.
        FileNotFoundError: the folder is not there; a file is nowhere and cannot be downloaded.
        ModuleNotFoundError: ``"digits"`` without scikit-learn, chardata.mat without SciPy.
    """
    entry = catalogue.find(name)
    if binarisation not in BINARISATIONS:
        raise ValueError(f"binarisation must be one of {', '.join(BINARISATIONS)}, not {binarisation!r}")
    parts = entry.load(entry.shelf(root))
    for part, dataset in parts.items():
        if not len(dataset):
            raise ValueError(f"the {part} part of {name} must have rows, but its files are too small for any")
    held_out = "none" if binarisation == "none" else "static"
    # Neighbouring seeds for the parts, so that no two draw the same numbers.
    return {
        part: binarise(dataset, binarisation if part == "train" else held_out, seed=3 * seed + index)
        for index, (part, dataset) in enumerate(parts.items())
    }
