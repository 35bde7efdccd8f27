"""Data sets of rows (x, label): images stored as bytes, vectors, and binarized images."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Self

from echo_ext import _checks

__all__ = [
    "BINARIZATIONS",
    "BinaryImages",
    "ImageDataset",
    "LabeledDataset",
    "RowIndex",
    "VectorDataset",
    "binarize",
    "split",
]

RowIndex: TypeAlias = int | slice | Tensor  # one row, or a batch of rows

BINARIZATIONS = ("none", "static", "dynamic")


class LabeledDataset(Dataset[tuple[Tensor, Tensor]]):
    """A data set of pairs ``(x, label)``.

    An integer index returns one pair. A slice or an index tensor returns a batch, with one more leading dimension for
    both.

    Attributes:
        stored: What x is made of, with one entry per row: by default x itself, float32 ``(rows, *data_shape)``.
        labels: The labels, int64 (rows,); -1 if the source has none.
        binary: Whether every x consists of zeros and ones.
        has_test_part: Whether the source has test rows, on which nothing is ever trained.

    Example:
        >>> dataset = echo_ext.data.LabeledDataset(torch.randn(100, 3), torch.arange(100) % 2)
        >>> x, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=20)))
        >>> x.shape, labels.shape, len(dataset.select(slice(50)))
        (torch.Size([20, 3]), torch.Size([20]), 50)
    """

    binary = False
    has_test_part = True
    _row_tensors: ClassVar[tuple[str, ...]] = ("stored", "labels")  # the attributes with one entry per row

    def __init__(self, stored: Tensor, labels: Tensor) -> None:
        if len(stored) != len(labels):
            raise ValueError(f"labels must have one label for each of {len(stored)} rows, got {len(labels)}")
        self.stored = stored
        self.labels = labels

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def __getitem__(self, rows: RowIndex) -> tuple[Tensor, Tensor]:
        """One row or a batch of rows: x float32 ``(*data_shape)``, label int64."""
        return self.values(rows), self.labels[rows]

    @property
    def data_shape(self) -> torch.Size:
        """The shape of one x, (channels, height, width) for an image or (columns,) for a vector."""
        return self.values(slice(1)).shape[1:]

    def values(self, rows: RowIndex) -> Tensor:
        """The x of these rows, float32, without their labels."""
        return self.stored[rows]

    def select(self, rows: slice | Tensor) -> Self:
        """The data set of these rows."""
        return self._replace({name: getattr(self, name)[rows] for name in self._row_tensors})

    def joined(self, other: Self) -> Self:
        """The data set of these rows and then those of another part of the same source."""
        return self._replace(
            {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in self._row_tensors}
        )

    def to(self, device: torch.device | str) -> Self:
        """The data set with its tensors on a device, where batches are then made."""
        return self._replace({name: each.to(device) for name, each in vars(self).items() if isinstance(each, Tensor)})

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, for which a data set with random rows draws fresh ones. Others ignore it."""

    def _replace(self, tensors: dict[str, Any]) -> Self:
        other = copy.copy(self)
        vars(other).update(tensors)
        return other


AnyDataset = TypeVar("AnyDataset", bound=LabeledDataset)


def split(dataset: AnyDataset, *, valid: int, test: int = 0) -> dict[str, AnyDataset]:
    """Divide the rows into parts in a random order, which is the same on every call."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(dataset)))
    sizes = {"train": len(order) - valid - test, "valid": valid, "test": test}
    return {part: dataset.select(rows) for part, rows in zip(sizes, order.split(list(sizes.values())), strict=True)}


class ImageDataset(LabeledDataset):
    """Images with labels, stored as bytes and scaled to [0, 1] when they are used.

    Args:
        levels: Gray levels from 0 to ``white``, uint8 (rows, channels, height, width).
        labels: Labels, int64 (rows,).
        white: The level that is scaled to 1.

    Example:
        >>> levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)  # three images of one pixel
        >>> dataset = echo_ext.data.ImageDataset(levels, torch.tensor([7, 8, 9]))
        >>> x, label = dataset[1]
        >>> x, label
        (tensor([[[0.2000]]]), tensor(8))
    """

    def __init__(self, levels: Tensor, labels: Tensor, *, white: int = 255) -> None:
        super().__init__(levels, labels)
        self.white = white
        self.binary = white == 1

    def values(self, rows: RowIndex) -> Tensor:
        """The pixels of these rows, in [0, 1]."""
        return self.stored[rows].to(torch.float32) / self.white


class VectorDataset(LabeledDataset):
    """Vectors with labels.

    Args:
        stored: The vectors, float32 (rows, columns).
        labels: Labels, int64 (rows,).

    Example:
        >>> dataset = echo_ext.data.VectorDataset(torch.randn(100, 3), torch.full((100,), -1))  # without labels
        >>> dataset.data_shape, dataset[:10][0].shape
        (torch.Size([3]), torch.Size([10, 3]))
    """


# ---- Binarization ----------------------------------------------------------------------------------------------------


class BinaryImages(ImageDataset):
    """Binary images with independent pixels, each of which is 1 with a probability equal to its gray level.

    A pixel depends only on the seed, the epoch, the row and its place, so it is the same for any order of rows, in any
    process and on any device.

    Args:
        images: The gray images.
        seed: Seed of the pixels.
        fresh: Whether each epoch (:meth:`set_epoch`) has fresh pixels, or all have those of the first.

    Example:
        >>> digits = echo_ext.data.load("digits")["train"]
        >>> images = echo_ext.data.BinaryImages(digits, seed=0, fresh=True)
        >>> first = images.values(slice(10))
        >>> images.set_epoch(1)
        >>> first.unique(), first.equal(images.values(slice(10)))
        (tensor([0., 1.]), False)
    """

    # The position of a row in the sequence of random numbers is kept by a selection.
    _row_tensors = ("stored", "labels", "_positions")

    def __init__(self, images: ImageDataset, *, seed: int, fresh: bool) -> None:
        super().__init__(images.stored, images.labels, white=images.white)
        self.binary = True
        self.seed = seed
        self.fresh = fresh
        self._positions = torch.arange(len(images), device=images.labels.device)
        # The part of the counter that depends on the epoch. It is a tensor, so that a recorded CUDA graph reads it.
        self._stream = torch.tensor(_stream(seed, 0), device=images.labels.device)

    def values(self, rows: RowIndex) -> Tensor:
        """The pixels of these rows, 0 or 1."""
        levels = self.stored[rows].to(torch.int64)
        pixels = math.prod(self.stored.shape[1:])
        counters = self._positions[rows].unsqueeze(-1) * pixels + torch.arange(pixels, device=levels.device)
        uniform = _mix(counters * _GOLDEN + self._stream) >> (64 - _BITS) & (1 << _BITS) - 1
        return (uniform.view(levels.shape) * self.white < levels << _BITS).to(torch.float32)

    def joined(self, other: Self) -> Self:
        """The data set of these images and then others, with pixels of their own."""
        both = super().joined(other)
        both._positions = torch.cat([self._positions, other._positions + 1 + int(self._positions.max())])
        return both

    def set_epoch(self, epoch: int) -> None:
        """Use the pixels of this epoch from now on. Persistent workers of a DataLoader are not affected."""
        if self.fresh:
            self._stream.fill_(_stream(self.seed, epoch))

    def _replace(self, tensors: dict[str, Any]) -> Self:
        return super()._replace({**tensors, "_stream": tensors.get("_stream", self._stream).clone()})


def binarize(dataset: LabeledDataset, binarization: str, *, seed: int = 0) -> LabeledDataset:
    """Turn gray levels into zeros and ones.

    Args:
        dataset: The images. Images that are binary already are returned unchanged.
        binarization: "none" keeps the gray levels. "static" draws every pixel once, which is 1 with a probability equal
            to its gray level. "dynamic" draws fresh pixels in each epoch set by ``set_epoch``.
        seed: Seed of the pixels, which are the same for the same seed and epoch.

    Raises:
        ValueError: The binarization is unknown.
        TypeError: The data are not images.

    Example:
        >>> digits = echo_ext.data.load("digits")["train"]
        >>> echo_ext.data.binarize(digits, "static", seed=0)[:100][0].unique()
        tensor([0., 1.])
    """
    _checks.choice("binarization", binarization, BINARIZATIONS)
    if binarization == "none" or dataset.binary:
        return dataset
    if not isinstance(dataset, ImageDataset):
        remedy = "; save images of floats as uint8 levels" if dataset.stored.ndim == 4 else ""
        raise TypeError(f"dataset must be an ImageDataset to be binarized, got {type(dataset).__name__}{remedy}")
    return BinaryImages(dataset, seed=seed, fresh=binarization == "dynamic")


# SplitMix64 (Steele, Lea & Flood 2014) is written out because its numbers must be a function of a counter in a tensor,
# on any device and inside CUDA graphs; NumPy's Philox fills arrays on the CPU, and torch's generators have one state.
_BITS = 24  # bits of a random number, which times an 8-bit gray level stays far below 2^63
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as an int64, whose arithmetic wraps around


def _stream(seed: int, epoch: int) -> int:
    """The start of the counter for a seed and an epoch, as an int64."""
    wrapped = torch.tensor(seed % (1 << 64) - (1 << 63), device="cpu")
    return int(_mix(_mix(wrapped) + torch.tensor(epoch, device="cpu") * _GOLDEN))


def _mix(state: Tensor) -> Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1)):
        # A shift of int64 repeats the sign bit, which the mask removes.
        state = (state ^ state >> shift & (1 << (64 - shift)) - 1) * factor
    return state
