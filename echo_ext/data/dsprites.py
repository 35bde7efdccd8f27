"""dSprites: images of all combinations of five factors, and a subset with dependent factors."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from echo_ext._progress import tracked
from echo_ext.data import sprites
from echo_ext.data._files import FileLocator, RemoteFile, parsing, read_header, read_npz, save_if_possible
from echo_ext.data.datasets import LabeledDataset, RowIndex, split

__all__ = [
    "FACTOR_NAMES",
    "FACTOR_SIZES",
    "ORIGINAL",
    "REBUILT",
    "DSprites",
    "dependent_rows",
    "factor_total_correlation",
    "load_dsprites",
]

FACTOR_NAMES = ("shape", "scale", "orientation", "x", "y")
FACTOR_SIZES = (3, 6, 40, 32, 32)
ORIGINAL = RemoteFile(
    "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    "https://raw.githubusercontent.com/google-deepmind/dsprites-dataset/master/"
    "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    "md5:7da33b31b13a06f4b04a70402ce90c2e",
)
REBUILT = "dsprites_rebuilt.npz"  # images_packed: (*FACTOR_SIZES, 512 bytes)

_ROWS = math.prod(FACTOR_SIZES)
_BYTES = sprites.SIDE**2 // 8


class DSprites(LabeledDataset):
    """Binary images of 64 x 64 pixels with their factors; the label is the shape.

    The pixels are stored packed, 8 per byte, and all selections share them. They need 377 MB.

    Args:
        bits: Packed images of the grid of factors, whose last factor varies fastest: uint8 (737280, 512).
        rows: Indices of the images in the data set, int64 (rows,). None means all.

    Example:
        >>> black = torch.zeros(1, 512, dtype=torch.uint8).expand(737_280, -1)  # load("dsprites") has the images
        >>> dataset = echo_ext.data.DSprites(black)
        >>> x, shape = dataset[500_000]
        >>> x.shape, shape, dataset.factors[500_000]
        (torch.Size([1, 64, 64]), tensor(2), tensor([2, 0, 8, 9, 0]))
    """

    binary = True
    has_test_part = False
    _row_tensors = ("rows", "labels")

    def __init__(self, bits: Tensor, rows: Tensor | None = None) -> None:
        self.bits = bits
        self.rows = torch.arange(_ROWS, device=bits.device) if rows is None else rows
        self.labels = self.rows // (_ROWS // FACTOR_SIZES[0])

    @property
    def factors(self) -> Tensor:
        """The factors of each row, int64 (rows, 5), as indices of the shape, scale, orientation, x and y."""
        return torch.stack(torch.unravel_index(self.rows, FACTOR_SIZES), dim=1)

    def values(self, rows: RowIndex) -> Tensor:
        """The pixels of these rows, 0 or 1."""
        packed = self.bits[self.rows[rows]].unsqueeze(-1)
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
        pixels = packed.bitwise_right_shift(shifts).bitwise_and(1)
        return pixels.to(torch.float32).reshape(*packed.shape[:-2], 1, sprites.SIDE, sprites.SIDE)

    def whole(self) -> DSprites:
        """The complete grid, which the papers train on and which disentanglement scores sample from."""
        return DSprites(self.bits)


def load_dsprites(locator: FileLocator, rows: Tensor | None = None) -> dict[str, DSprites]:
    """Load the grid, or these rows of it: 90 / 5 / 5 % of them in a random order, the same on every call.

    If the original file is neither found nor can be downloaded, images rendered from the geometry take its place, with
    a UserWarning. Rendering takes some seconds; the images are saved in the cache.
    """
    dataset = DSprites(torch.from_numpy(_bits(locator)), rows)
    return split(dataset, valid=len(dataset) // 20, test=len(dataset) // 20)


# ---- Dependent factors -----------------------------------------------------------------------------------------------


def dependent_rows(*, exclude: float = 0.15, bins: int = 4, seed: int = 15666) -> Tensor:
    """Exclude random combinations of factors; return the indices of the remaining rows: int64, in ascending order.

    The values of each factor are grouped into bins. For every two factors, each pair of bins is excluded with the same
    probability (Echo paper, section 5.3). The default seed gives what it states: 15 % of the rows
    remain, and the total correlation of the factors is 1.49 nats.

    Args:
        exclude: Probability that a pair of bins is excluded. A larger value leaves fewer rows.
        bins: Number of bins of a factor; a factor with fewer values has one bin per value.
        seed: Seed of the exclusion.
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


def factor_total_correlation(factors: Tensor) -> float:
    """The total correlation ``sum_j H(factor j) - H(factors)`` in nats, for equally likely rows with distinct factors.

    Args:
        factors: Indices of the factors, int64 (rows, factors).
    """
    counts = [torch.bincount(column).to(torch.float64) for column in factors.unbind(1)]
    marginal = sum(float(torch.special.entr(count / len(factors)).sum()) for count in counts)
    return marginal - math.log(len(factors))


# ---- Files -----------------------------------------------------------------------------------------------------------

Bits = npt.NDArray[np.uint8]


def _bits(locator: FileLocator) -> Bits:
    """The images of the original file, or else rendered ones."""
    rendered = locator.find(REBUILT)
    try:
        return _read_original(locator.obtain(ORIGINAL))
    except FileNotFoundError as missing:
        warnings.warn(
            "these images of dSprites are rendered; 38 of 363 that were compared with the original differ from it, in "
            f"up to 5 pixels: {missing}",
            stacklevel=1,  # always the same line, so that Python shows the warning once
        )
    return _render(locator.cache / REBUILT) if rendered is None else _read_packed(rendered)


def _render(path: Path) -> Bits:
    """Render all images and save them in the cache, if it is writable."""
    bits = np.empty((*FACTOR_SIZES, _BYTES), dtype=np.uint8)
    for index in tracked(np.ndindex(FACTOR_SIZES[:3]), "rendering dSprites", "shape"):
        bits[index] = sprites.render(*index)
    warning = "dSprites could not be saved and will be rendered again"
    save_if_possible(path, np.savez_compressed, warning, images_packed=bits)
    return bits.reshape(_ROWS, _BYTES)


def _read_packed(path: Path) -> Bits:
    with read_npz(path) as arrays:
        return arrays.read("images_packed", np.uint8, *FACTOR_SIZES, _BYTES).reshape(_ROWS, _BYTES)


def _read_original(path: Path) -> Bits:
    """Read the original file, whose rows are in the order of the grid, and pack its 3 GB in chunks."""
    side = sprites.SIDE
    chunk = 4096
    with (
        parsing(f"{path} is not a whole dSprites file"),
        zipfile.ZipFile(path) as archive,
        archive.open("imgs.npy") as images,
    ):
        header = read_header(images)
        if header != ((_ROWS, side, side), False, np.dtype(np.uint8)):
            raise ValueError(f"its images must be uint8 of shape {(_ROWS, side, side)}, got {header[2]} of {header[0]}")
        bits = np.empty((_ROWS, _BYTES), dtype=np.uint8)
        for start in range(0, _ROWS, chunk):
            pixels = np.frombuffer(images.read(chunk * side * side), dtype=np.uint8)
            # NumPy would broadcast a single image to all rows of the chunk.
            if len(pixels) != chunk * side * side:
                raise ValueError(f"its images end between rows {start} and {start + chunk}")
            bits[start : start + chunk] = np.packbits(pixels.reshape(chunk, side * side), axis=1)
        if images.read(1):
            raise ValueError(f"its header must be followed by {_ROWS} images, got more bytes")
    return bits
