"""Training and evaluation of the two models of the demonstration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from echo_ext import models
from echo_ext.data import LabeledDataset
from echo_ext.echo.channel import EchoChannel
from echo_ext.metrics import gaussian_total_correlation
from echo_ext.models.autoencoder import Autoencoder

__all__ = [
    "MODELS",
    "SETTINGS",
    "Autoencoder",
    "History",
    "Measured",
    "Setting",
    "build",
    "measure",
    "noise_total_correlation",
    "train",
]

MODELS = {"echo": "Echo", "vae": "VAE"}  # keys in result.json and names in the table and the figures


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of both models for one data set."""

    latent_dim: int
    hidden: int
    learning_rate: float
    epochs: int
    batch_size: int = 100


SETTINGS = {
    "digits": Setting(latent_dim=8, hidden=128, learning_rate=3e-3, epochs=600),
    "fashion-mnist": Setting(latent_dim=10, hidden=256, learning_rate=2e-3, epochs=8),
    "mnist": Setting(latent_dim=10, hidden=256, learning_rate=2e-3, epochs=8),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Means over the rows of a data set, in nats per sample."""

    rate: float
    distortion: float

    @property
    def neg_elbo(self) -> float:
        """The upper bound on -log p(x), which is rate + distortion."""
        return self.rate + self.distortion


History = list[tuple[Measured, Measured]]  # for each epoch, means over the training rows and over the validation rows


def build(kind: str, data: LabeledDataset, setting: Setting, *, beta: float, seed: int) -> Autoencoder:
    """Build an untrained ``"echo"`` or ``"vae"``; for the same seed both have the same initial weights."""
    torch.manual_seed(seed)
    model = models.build(
        kind,
        data.data_shape,
        latent_dim=setting.latent_dim,
        architecture="mlp",
        hidden=(setting.hidden, setting.hidden),
        num_terms=setting.batch_size - 1,
        beta=beta,
    )
    assert isinstance(model, Autoencoder)
    return model


def train(
    model: Autoencoder, parts: dict[str, LabeledDataset], setting: Setting, *, seed: int, device: torch.device
) -> Iterator[tuple[Measured, Measured]]:
    """Train with Adam; yield the means over the training rows and over the validation rows after each epoch.

    The learning rate is constant for the first half of the epochs and then falls linearly to 0. For the same seed every
    model has the same batches.
    """
    data = parts["train"]
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 * (1 - epoch / setting.epochs)))
    order = torch.Generator().manual_seed(seed)
    for _ in range(setting.epochs):
        model.train()
        totals = torch.zeros(2, device=device)
        for rows in torch.split(torch.randperm(len(data), generator=order), setting.batch_size):
            terms = model.loss(data[rows][0].to(device))
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            totals += len(rows) * _rate_and_distortion(terms).detach()
        schedule.step()
        yield Measured(*(totals / len(data)).tolist()), measure(model, parts["valid"], device=device)
    model.refresh(data[torch.randperm(len(data))[:10_000]][0].to(device))  # enough rows to fill a bank


@torch.no_grad()
def measure(model: Autoencoder, data: LabeledDataset, *, device: torch.device, draws: int = 1) -> Measured:
    """The rate and distortion of a data set in eval mode, over ``draws`` noise samples for each row."""
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for _ in range(draws):
        for rows in torch.split(torch.arange(len(data)), 1000):
            totals += len(rows) * _rate_and_distortion(model.loss(data[rows][0].to(device))).double()
    return Measured(*(totals / (draws * len(data))).tolist())


def _rate_and_distortion(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([terms["rate"] if "rate" in terms else terms["rate_bound"], terms["distortion"]])


def noise_total_correlation(channel: EchoChannel, *, draws: int = 100_000) -> float:
    """The second-order total correlation of the noise in nats, estimated from samples of the marginal."""
    return gaussian_total_correlation(channel.sample(draws))
