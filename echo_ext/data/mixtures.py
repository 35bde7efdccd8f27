"""Vectors with known distributions for the small experiments of the papers: Gaussian mixtures and one-hot states."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from echo_ext.data.datasets import VectorDataset

__all__ = ["MIXTURES", "Mixture", "load_mixture", "load_states"]

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

    def sample(self, rows: int, *, seed: int) -> VectorDataset:
        """Independent float32 samples, whose labels are their components."""
        random = np.random.default_rng(seed)
        labels = torch.from_numpy(random.integers(len(self.means), size=rows))
        noise = torch.from_numpy(random.standard_normal((rows, self.means.shape[1])))
        return VectorDataset((self.means[labels] + self.sigma * noise).to(torch.float32), labels)


# In two dimensions the components and sigma are those of Livne, Swersky & Fleet (2019), the means those of their code.
# The mixtures in one and in twenty dimensions are choices of this project.
MIXTURES = {
    "gmm1d": Mixture(torch.tensor([[-1.5], [0], [1.5]], dtype=torch.float64, device="cpu"), 0.25),
    "gmm2d": Mixture(torch.tensor([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64, device="cpu"), 0.25),
    "gmm20d": Mixture(torch.eye(20, dtype=torch.float64, device="cpu")[:10], 0.25),
    # The second toy of the Mutual Autoencoder (Phuong et al. 2018).
    "normal": Mixture(torch.zeros(1, 1, dtype=torch.float64, device="cpu"), 1.0),
}


def load_mixture(name: str) -> dict[str, VectorDataset]:
    """Generate 10000 / 2000 / 10000 samples, which are the same on every call."""
    return {part: MIXTURES[name].sample(rows, seed=seed) for seed, (part, rows) in enumerate(_ROWS.items())}


def load_states(states: int = 10) -> dict[str, VectorDataset]:
    """Generate 10000 / 2000 / 10000 one-hot rows with equally frequent states (first toy of the Mutual Autoencoder)."""
    labels = {part: torch.arange(rows, device="cpu") % states for part, rows in _ROWS.items()}
    one_hot = torch.eye(states, dtype=torch.float32, device="cpu")
    return {part: VectorDataset(one_hot[each], each) for part, each in labels.items()}
