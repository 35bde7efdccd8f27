"""Vectors with known distributions for the small experiments of the papers: Gaussian mixtures and one-hot states."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from typing_extensions import Self

from echo_ext.data.datasets import RowIndex, VectorDataset

__all__ = ["MIXTURES", "Mixture", "MixtureDataset", "load_mixture", "load_states"]

_ROWS = {"train": 10_000, "valid": 2_000, "test": 10_000}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of equally likely ``N(means[c], sigma^2 I)``, where means are float64 (components, columns)."""

    means: Tensor
    sigma: float

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of each row of (rows, columns), in nats: float64 (rows,)."""
        means = self.means.to(x.device)
        components = Independent(Normal(means, self.sigma), 1)
        mixture = MixtureSameFamily(Categorical(means.new_ones(len(means))), components)
        log_prob: Tensor = mixture.log_prob(x.to(torch.float64))
        return log_prob

    def sample(self, rows: int, *, seed: int, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Independent samples, float32 (rows, columns), and the component of each, int64 (rows,)."""
        random = np.random.default_rng((seed, epoch))
        components = torch.from_numpy(random.integers(len(self.means), size=rows))
        noise = torch.from_numpy(random.standard_normal((rows, self.means.shape[1])))
        return (self.means[components] + self.sigma * noise).to(torch.float32), components


class MixtureDataset(VectorDataset):
    """Samples of a mixture, whose labels are their components.

    The rows depend only on the seed and the epoch. A selection has the same selection of the rows of each epoch.

    Args:
        mixture: The distribution.
        rows: Number of rows.
        seed: Seed of the rows.
        fresh: Whether each epoch (:meth:`set_epoch`) has fresh rows, or all have those of the first.

    Example:
        >>> dataset = echo_ext.data.load("gmm2d")["train"]
        >>> x, components = dataset[:5]
        >>> x.shape, dataset.mixture.log_prob(x).shape  # the density of the distribution is known
        (torch.Size([5, 2]), torch.Size([5]))
    """

    # The position of a row among all that are drawn is kept by a selection.
    _row_tensors = ("stored", "labels", "_positions")

    def __init__(self, mixture: Mixture, rows: int, *, seed: int, fresh: bool) -> None:
        super().__init__(*mixture.sample(rows, seed=seed))
        self.mixture = mixture
        self.fresh = fresh
        self._positions = torch.arange(rows, device="cpu")
        self._drawn: tuple[tuple[int, int], ...] = ((rows, seed),)  # of each part that was joined

    def values(self, rows: RowIndex) -> Tensor:
        """The x of these rows; a copy, because :meth:`set_epoch` overwrites the stored rows."""
        return self.stored[rows].clone()

    def joined(self, other: Self) -> Self:
        """The data set of these rows and then those of another part, all of them fresh if these are."""
        both = super().joined(other)
        both._positions = torch.cat([self._positions, other._positions + sum(rows for rows, _ in self._drawn)])
        both._drawn = self._drawn + other._drawn
        return both

    def set_epoch(self, epoch: int) -> None:
        """Use the rows of this epoch from now on. Persistent workers of a DataLoader are not affected."""
        if self.fresh:
            drawn = [self.mixture.sample(rows, seed=seed, epoch=epoch) for rows, seed in self._drawn]
            x, labels = (torch.cat(each)[self._positions.cpu()] for each in zip(*drawn, strict=True))
            self.stored.copy_(x)  # in place, so that a recorded CUDA graph reads them
            self.labels = labels.to(self.labels.device)

    def _replace(self, tensors: dict[str, Tensor]) -> Self:
        return super()._replace({**tensors, "stored": tensors["stored"].clone()})


def _means_in_the_plane() -> Tensor:
    """The origin and four of the five points that divide the unit circle equally, as in the code of the authors."""
    angles = 2 * math.pi / 5 * torch.arange(4, dtype=torch.float64, device="cpu")
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.cat([circle.new_zeros(1, 2), circle])


def _means_in_twenty_dimensions() -> Tensor:
    """Those of the plane in the first two columns, and evenly spaced numbers in the others."""
    spaced = torch.linspace(-50, 50, 100, dtype=torch.float64, device="cpu").view(5, 20)
    return torch.cat([_means_in_the_plane(), spaced[:, 2:]], dim=1)


# The mixtures in two and in twenty dimensions are those of Livne, Swersky & Fleet (2019): their paper states the number
# of components, and their published code the places. The one in one dimension is a choice of this project.
MIXTURES = {
    "gmm1d": Mixture(torch.tensor([[-1.5], [0], [1.5]], dtype=torch.float64, device="cpu"), 0.25),
    "gmm2d": Mixture(_means_in_the_plane(), 0.25),
    "gmm20d": Mixture(_means_in_twenty_dimensions(), 0.25),
    # The second toy of the Mutual Autoencoder (Phuong et al. 2018).
    "normal": Mixture(torch.zeros(1, 1, dtype=torch.float64, device="cpu"), 1.0),
}


def load_mixture(name: str) -> dict[str, MixtureDataset]:
    """Generate 10000 / 2000 / 10000 samples, the same on every call; each epoch has fresh training rows."""
    return {
        part: MixtureDataset(MIXTURES[name], rows, seed=seed, fresh=part == "train")
        for seed, (part, rows) in enumerate(_ROWS.items())
    }


def load_states(states: int = 10) -> dict[str, VectorDataset]:
    """Generate 10000 / 2000 / 10000 one-hot rows with equally frequent states (first toy of the Mutual Autoencoder)."""
    labels = {part: torch.arange(rows, device="cpu") % states for part, rows in _ROWS.items()}
    one_hot = torch.eye(states, dtype=torch.float32, device="cpu")
    return {part: VectorDataset(one_hot[each], each) for part, each in labels.items()}
