"""Training and measuring: the same few lines for both models."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch

from echo_ext.channel import EchoChannel
from echo_ext.data import LabelledDataset
from echo_ext.demo.models import Autoencoder, GaussianChannel
from echo_ext.metrics import gaussian_total_correlation

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
    "one_thread",
    "train",
]

MODELS = {"echo": "Echo", "vae": "VAE"}  # key in result.json and name in tables and pictures


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both models share on one data set."""

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
        """The bound on -log p(x): rate + distortion."""
        return self.rate + self.distortion


History = list[tuple[Measured, Measured]]  # after each epoch: of the training rows, of the validation rows


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and sums then do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(kind: str, data: LabelledDataset, setting: Setting, *, seed: int) -> Autoencoder:
    """An untrained model, ``"echo"`` or ``"vae"``: with one seed both begin with the same weights."""
    torch.manual_seed(seed)
    channel = EchoChannel(num_terms=setting.batch_size - 1) if kind == "echo" else GaussianChannel(setting.latent_dim)
    return Autoencoder(channel, data.data_shape, latent_dim=setting.latent_dim, hidden=setting.hidden)


def train(
    model: Autoencoder,
    parts: dict[str, LabelledDataset],
    setting: Setting,
    *,
    beta: float,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[Measured, Measured]]:
    """Minimise ``distortion + beta * rate`` on ``parts["train"]``; after each epoch yield what it measured in training
    and what ``parts["valid"]`` measures.

    Adam, its learning rate constant for half of the epochs and then linear to 0. With one seed every model sees the
    same batches.
    """
    data = parts["train"]
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, 2 * (1 - epoch / setting.epochs)))
    order = torch.Generator().manual_seed(seed)
    for _ in range(setting.epochs):
        model.train()
        totals = torch.zeros(2, device=device)
        for rows in torch.split(torch.randperm(len(data), generator=order), setting.batch_size):
            rate, distortion = model(data[rows][0].to(device))
            optimizer.zero_grad()
            (distortion + beta * rate).mean().backward()
            optimizer.step()
            totals += torch.stack([rate.sum(), distortion.sum()]).detach()
        schedule.step()
        yield Measured(*(totals / len(data)).tolist()), measure(model, parts["valid"], device=device)
    refresh_bank(model, data, device=device)


@torch.no_grad()
def refresh_bank(model: Autoencoder, data: LabelledDataset, *, device: torch.device) -> None:
    """Fill the Echo channel's bank with rows as the final weights encode them, for noise of exactly the final law."""
    if isinstance(model.channel, EchoChannel):
        model.train()
        model.encode(data[torch.randperm(len(data))[: model.channel.bank_size]][0].to(device))


@torch.no_grad()
def measure(model: Autoencoder, data: LabelledDataset, *, device: torch.device, draws: int = 1) -> Measured:
    """Rate and distortion of a data set in eval mode, each row sent ``draws`` times."""
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for _ in range(draws):
        for rows in torch.split(torch.arange(len(data)), 1000):
            rate, distortion = model(data[rows][0].to(device))
            totals += torch.stack([rate.double().sum(), distortion.double().sum()])
    return Measured(*(totals / (draws * len(data))).tolist())


def noise_total_correlation(channel: EchoChannel, *, draws: int = 100_000) -> float:
    """How dependent the dimensions of the noise are (second order), in nats, from draws of the marginal."""
    return gaussian_total_correlation(channel.sample(draws))
