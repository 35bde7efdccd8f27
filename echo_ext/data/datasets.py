"""Rows of (x, label): images kept as bytes, vectors, and the three ways to make pixels zeros and ones."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["BINARIZATIONS", "BinaryImages", "ImageDataset", "LabelledDataset", "Rows", "VectorDataset", "binarize"]

Rows: TypeAlias = int | slice | Tensor  # one row, or a batch of them

BINARIZATIONS = ("none", "static", "dynamic")


class LabelledDataset(Dataset[tuple[Tensor, Tensor]]):
    """``dataset[i]`` is ``(x, label)``; a slice or an index tensor gives a whole batch at once, with one more leading
    dimension on both.

    Attributes:
        labels: int64 (rows,); -1 where the source has none.
        binary: whether every x is zeros and ones.
    """

    labels: Tensor
    binary = False

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def __getitem__(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """One row, or a batch of them: x float32 (*data_shape), label int64."""
        return self.values(rows), self.labels[rows]

    @property
    def data_shape(self) -> torch.Size:
        """Shape of one x: (channels, height, width) of an image, (columns,) of a vector."""
        raise NotImplementedError

    def values(self, rows: Rows) -> Tensor:
        """The x of these rows alone: float32."""
        raise NotImplementedError

    def select(self, rows: slice | Tensor) -> LabelledDataset:
        """The data set of these rows."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> LabelledDataset:
        """The data set with its tensors on a device, so that batches are made there."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; what is random in the rows is then drawn anew. Nothing is, in most data sets."""


class ImageDataset(LabelledDataset):
    """Images with labels, kept as bytes and scaled to [0, 1] when asked for.

    Args:
        levels: uint8 (rows, channels, height, width), from 0 to ``white``.
        labels: int64 (rows,).
        white: the level that becomes 1.
    """

    def __init__(self, levels: Tensor, labels: Tensor, *, white: int = 255) -> None:
        if len(levels) != len(labels):
            raise ValueError(f"there must be one label per image, but there are {len(levels)} and {len(labels)}")
        self.levels = levels
        self.labels = labels
        self.white = white
        self.binary = white == 1

    @property
    def data_shape(self) -> torch.Size:
        """(channels, height, width)."""
        return self.levels.shape[1:]

    def values(self, rows: Rows) -> Tensor:
        """Pixels in [0, 1]."""
        return self.levels[rows].to(torch.float32) / self.white

    def select(self, rows: slice | Tensor) -> ImageDataset:
        """The data set of these rows."""
        return ImageDataset(self.levels[rows], self.labels[rows], white=self.white)

    def to(self, device: torch.device | str) -> ImageDataset:
        """The data set on a device."""
        return ImageDataset(self.levels.to(device), self.labels.to(device), white=self.white)


class VectorDataset(LabelledDataset):
    """Vectors with labels, coordinates as they are.

    Args:
        vectors: float32 (rows, columns).
        labels: int64 (rows,).
    """

    def __init__(self, vectors: Tensor, labels: Tensor) -> None:
        if len(vectors) != len(labels):
            raise ValueError(f"there must be one label per vector, but there are {len(vectors)} and {len(labels)}")
        self.vectors = vectors
        self.labels = labels

    @property
    def data_shape(self) -> torch.Size:
        """(columns,)."""
        return self.vectors.shape[1:]

    def values(self, rows: Rows) -> Tensor:
        """The vectors themselves."""
        return self.vectors[rows]

    def select(self, rows: slice | Tensor) -> VectorDataset:
        """The data set of these rows."""
        return VectorDataset(self.vectors[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> VectorDataset:
        """The data set on a device."""
        return VectorDataset(self.vectors.to(device), self.labels.to(device))


# ---- Zeros and ones --------------------------------------------------------------------------------------------------


class BinaryImages(LabelledDataset):
    """Images whose pixels are drawn: 1 with the probability that is their gray level, independently.

    A draw depends on the seed, the epoch, the row and the pixel alone: it is the same in any order of rows, in any
    process and on any device.

    Args:
        images: where the probabilities come from.
        seed: of the draws.
        fresh: each epoch draws anew (:meth:`set_epoch`); else all are as the first.
    """

    binary = True

    def __init__(self, images: ImageDataset, *, seed: int, fresh: bool) -> None:
        self.images = images
        self.labels = images.labels
        self.seed = seed
        self.fresh = fresh
        self.epoch = 0
        # Where a row's pixels lie in the sequence of random numbers, also after a selection.
        self._places = torch.arange(len(images), device=images.labels.device)
        # The epoch's share of the counter. A tensor, since a recorded CUDA graph reads it again in each epoch.
        self._stream = torch.tensor(_stream(seed, 0), device=images.labels.device)

    @property
    def data_shape(self) -> torch.Size:
        """(channels, height, width)."""
        return self.images.data_shape

    def values(self, rows: Rows) -> Tensor:
        """Pixels 0 and 1."""
        levels = self.images.levels[rows].to(torch.int64)
        pixels = math.prod(self.data_shape)
        places = self._places[rows].unsqueeze(-1) * pixels + torch.arange(pixels, device=levels.device)
        uniform = _random_bits(places, self._stream).view(levels.shape)
        return (uniform * self.images.white < levels << _BITS).to(torch.float32)

    def select(self, rows: slice | Tensor) -> BinaryImages:
        """The data set of these rows, each drawn as before."""
        return self._with(self.images.select(rows), self._places[rows])

    def to(self, device: torch.device | str) -> BinaryImages:
        """The data set on a device."""
        return self._with(self.images.to(device), self._places.to(device))

    def set_epoch(self, epoch: int) -> None:
        """From now on, the draws of this epoch. Workers that a loader keeps between epochs do not hear of it."""
        if self.fresh:
            self.epoch = epoch
            self._stream.fill_(_stream(self.seed, epoch))

    def _with(self, images: ImageDataset, places: Tensor) -> BinaryImages:
        other = BinaryImages(images, seed=self.seed, fresh=self.fresh)
        other.set_epoch(self.epoch)
        other._places = places
        return other


def binarize(dataset: LabelledDataset, how: str, *, seed: int = 0) -> LabelledDataset:
    """Make gray levels zeros and ones.

    Args:
        dataset: images; those that are zeros and ones already come back as they are.
        how: ``"none"``: leave them gray. ``"static"``: draw every pixel once, 1 with the probability that is its level.
            ``"dynamic"``: draw anew in each epoch that ``set_epoch`` announces.
        seed: any int; the draws are the same for the same seed and epoch.

    Raises:
        ValueError: ``how`` is not one of these.
        TypeError: the rows are not images.
    """
    if how not in BINARIZATIONS:
        raise ValueError(f"binarization must be one of {', '.join(BINARIZATIONS)}, not {how!r}")
    if how == "none" or dataset.binary:
        return dataset
    if not isinstance(dataset, ImageDataset):
        raise TypeError(f"only gray images can be made binary, not the rows of a {type(dataset).__name__}")
    return BinaryImages(dataset, seed=seed, fresh=how == "dynamic")


_BITS = 24  # of a random number; pixels of 8 bits times these stay far below 2^63
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as int64, which wraps


def _random_bits(places: Tensor, stream: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea & Flood 2014) as a function of its counter: uniform integers below ``2^_BITS``."""
    return _mix(places * _GOLDEN + stream) >> (64 - _BITS) & (1 << _BITS) - 1


def _stream(seed: int, epoch: int) -> int:
    """Where the random numbers of a seed and an epoch begin, as an int64."""
    any_int = torch.tensor(seed % (1 << 64) - (1 << 63), device="cpu")
    return int(_mix(_mix(any_int) + torch.tensor(epoch, device="cpu") * _GOLDEN))


def _mix(state: Tensor) -> Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shift(state, shift)) * (factor - (1 << 64))
    return state ^ _shift(state, 31)


def _shift(state: Tensor, by: int) -> Tensor:
    """An unsigned shift to the right: int64's own repeats the sign."""
    return state >> by & (1 << (64 - by)) - 1
