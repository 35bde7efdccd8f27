"""dSprites: every combination of five factors, drawn from its geometry, and a subset whose factors depend."""

from __future__ import annotations

import math
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext.data import sprites
from echo_ext.data._files import Shelf, parsing, read_header, read_npz, writing
from echo_ext.data.datasets import LabelledDataset, Rows

__all__ = [
    "FACTOR_NAMES",
    "FACTOR_SIZES",
    "ORIGINAL",
    "REBUILT",
    "DSprites",
    "dependent_rows",
    "load_dependent_dsprites",
    "load_dsprites",
    "total_correlation",
]

FACTOR_NAMES = ("shape", "scale", "orientation", "x", "y")
FACTOR_SIZES = (3, 6, 40, 32, 32)
ORIGINAL = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
REBUILT = "dsprites_rebuilt.npz"  # images_packed: (*FACTOR_SIZES, 512 bytes)

_ROWS = math.prod(FACTOR_SIZES)
_BYTES = sprites.SIDE**2 // 8
_FACTOR_VALUES = (np.arange(3.0), sprites.SCALES, sprites.ORIENTATIONS, sprites.POSITIONS, sprites.POSITIONS)


class DSprites(LabelledDataset):
    """Images of 64 x 64 black and white pixels with the factors that made them; the label is the shape.

    The pixels stay packed, 8 to a byte, and all selections share them.

    Args:
        bits: uint8 (737280, 512), row by row of the grid of factors, the last factor fastest.
        rows: int64 (rows,), which of them are in the data set. None for all.
    """

    binary = True

    def __init__(self, bits: Tensor, rows: Tensor | None = None) -> None:
        self.bits = bits
        self.rows = torch.arange(_ROWS, device=bits.device) if rows is None else rows
        self.labels = self.rows // (_ROWS // FACTOR_SIZES[0])

    @property
    def data_shape(self) -> torch.Size:
        """(1, 64, 64)."""
        return torch.Size((1, sprites.SIDE, sprites.SIDE))

    @property
    def factors(self) -> Tensor:
        """Each row's factors as indices, in the order of ``FACTOR_NAMES``: int64 (rows, 5)."""
        return torch.stack(torch.unravel_index(self.rows, FACTOR_SIZES), dim=1)

    @property
    def factor_values(self) -> Tensor:
        """Shape 0 to 2, scale 0.5 to 1, orientation 0 to 2 pi, x and y 0 to 1: float64 (rows, 5)."""
        columns = zip(_FACTOR_VALUES, self.factors.unbind(1), strict=True)
        return torch.stack([torch.from_numpy(values).to(index.device)[index] for values, index in columns], dim=1)

    def values(self, rows: Rows) -> Tensor:
        """Pixels 0 and 1."""
        packed = self.bits[self.rows[rows]].unsqueeze(-1)
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
        pixels = packed.bitwise_right_shift(shifts).bitwise_and(1)
        return pixels.to(torch.float32).reshape(*packed.shape[:-2], *self.data_shape)

    def select(self, rows: slice | Tensor) -> DSprites:
        """The data set of these rows."""
        return DSprites(self.bits, self.rows[rows])

    def to(self, device: torch.device | str) -> DSprites:
        """The data set on a device: 377 MB."""
        return DSprites(self.bits.to(device), self.rows.to(device))

    def whole(self) -> DSprites:
        """The full grid, which the papers train on and the scores of disentanglement sample from."""
        return DSprites(self.bits)


def load_dsprites(shelf: Shelf) -> dict[str, DSprites]:
    """663552 / 36864 / 36864 rows of the grid in random order, the same on every call.

    The original file and a rebuilt one are read where they are found; else the images are drawn, which takes some
    seconds, and kept in the cache.
    """
    return _split(DSprites(torch.from_numpy(_bits(shelf))))


def load_dependent_dsprites(shelf: Shelf) -> dict[str, DSprites]:
    """The rows of :func:`dependent_rows`, split alike."""
    return _split(DSprites(torch.from_numpy(_bits(shelf)), dependent_rows()))


def _split(dataset: DSprites) -> dict[str, DSprites]:
    shuffled = dataset.select(torch.from_numpy(np.random.default_rng(0).permutation(len(dataset))))
    held_out = len(dataset) // 20
    return {
        "train": shuffled.select(slice(0, len(dataset) - 2 * held_out)),
        "valid": shuffled.select(slice(len(dataset) - 2 * held_out, len(dataset) - held_out)),
        "test": shuffled.select(slice(len(dataset) - held_out, None)),
    }


# ---- Factors that depend ---------------------------------------------------------------------------------------------


def dependent_rows(*, exclude: float = 0.15, bins: int = 4, seed: int = 15666) -> Tensor:
    """Rows of the grid that are left when combinations of two factors are forbidden at random: int64, rising.

    Each factor is cut into bins; for every two factors, each pair of their bins is excluded with a probability (the
    Echo paper, table 2). The seed was chosen so that, as there, 15 % of the rows are left and the total correlation of
    the factors is 1.49 nats.

    Args:
        exclude: the probability that a pair is excluded.
        bins: how many a factor has, or one per value where it has fewer.
        seed: of the exclusion.
    """
    random = np.random.default_rng(seed)
    binned = [np.arange(size) * bins // size if size >= bins else np.arange(size) for size in FACTOR_SIZES]
    kept = np.ones(FACTOR_SIZES, dtype=np.bool_)
    for first in range(len(FACTOR_SIZES)):
        for second in range(first + 1, len(FACTOR_SIZES)):
            allowed = random.random((bins, bins)) >= exclude
            pair = allowed[np.ix_(binned[first], binned[second])]
            kept &= np.expand_dims(pair, [axis for axis in range(len(FACTOR_SIZES)) if axis not in (first, second)])
    return torch.from_numpy(np.flatnonzero(kept))


def total_correlation(factors: Tensor) -> float:
    """``sum_j H(factor j) - H(factors)`` in nats when every row is as likely and no two have the same factors.

    Args:
        factors: int64 (rows, factors).
    """
    counts = [torch.bincount(column).to(torch.float64) for column in factors.unbind(1)]
    marginal = sum(float(torch.special.entr(count / len(factors)).sum()) for count in counts)
    return marginal - math.log(len(factors))


# ---- Where the images come from --------------------------------------------------------------------------------------

Bits = npt.NDArray[np.uint8]


def _bits(shelf: Shelf) -> Bits:
    path = shelf.find(ORIGINAL, REBUILT)
    if path is None:
        return _draw(shelf.cache / REBUILT)
    return _read_original(path) if path.name == ORIGINAL else _read_packed(path)


def _draw(path: Path) -> Bits:
    """Draw all images and keep them in the cache, where it can be written."""
    bits = np.empty((*FACTOR_SIZES, _BYTES), dtype=np.uint8)
    for index in _progress(list(np.ndindex(FACTOR_SIZES[:3]))):
        bits[index] = sprites.render(*index)
    try:
        with writing(path) as file:
            np.savez_compressed(file, images_packed=bits)
    except OSError as problem:
        warnings.warn(f"dSprites could not be kept and will be drawn again: {problem}", stacklevel=2)
    return bits.reshape(_ROWS, _BYTES)


def _progress(steps: list[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """A progress bar on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return iter(steps)
    return iter(tqdm(steps, desc="drawing dSprites", disable=not sys.stderr.isatty()))


def _read_packed(path: Path) -> Bits:
    with read_npz(path) as arrays:
        bits = arrays.read("images_packed", "u", *FACTOR_SIZES, _BYTES)
        return bits.astype(np.uint8, copy=False).reshape(_ROWS, _BYTES)


def _read_original(path: Path) -> Bits:
    """Pack the original's 3 GB of bytes as they stream by; its rows are in the order of the grid."""
    side = sprites.SIDE
    chunk = 4096
    with (
        parsing(f"{path} is not a whole dSprites file"),
        zipfile.ZipFile(path) as archive,
        archive.open("imgs.npy") as images,
    ):
        header = read_header(images)
        if header != ((_ROWS, side, side), False, np.dtype(np.uint8)):
            raise ValueError(f"its images are {header[2]} of {header[0]}, not uint8 of {(_ROWS, side, side)}")
        bits = np.empty((_ROWS, _BYTES), dtype=np.uint8)
        for start in range(0, _ROWS, chunk):
            pixels = np.frombuffer(images.read(chunk * side * side), dtype=np.uint8)
            # NumPy would repeat a single image over all rows of the chunk.
            if len(pixels) != chunk * side * side:
                raise ValueError(f"its images end within rows {start} to {start + chunk}")
            bits[start : start + chunk] = np.packbits(pixels.reshape(chunk, side * side), axis=1)
        if images.read(1):
            raise ValueError(f"more bytes than {_ROWS} images follow its header")
    return bits
