"""Exchange the Gaussian of a VAE for Echo noise, in one line, and compare both on the test rows of digits.

The script succeeds (exit status 0) if the -ELBO of Echo is at most half a nat above that of the VAE.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional

import echo_ext


class Autoencoder(nn.Module):
    """A small autoencoder, which returns its rate and distortion in nats per sample."""

    def __init__(self, channel=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2 * 8))
        self.decoder = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 64))
        self.channel = channel

    def forward(self, x):
        first, second = self.encoder(x).chunk(2, dim=-1)
        if self.channel is not None:
            z, rate = self.channel(first, second)
        else:
            z = first + second.exp() * torch.randn_like(first)
            rate = (first**2 + (2 * second).exp() - 1) / 2 - second
        losses = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none")
        return rate.sum(dim=-1).mean(), losses.sum(dim=-1).mean()


def train(channel, seed, steps):
    """Train with Adam; return the rate and the distortion of the test rows, means of 16 samples of z."""
    torch.manual_seed(seed)
    rows, test = (echo_ext.data.load("digits")[part].values(slice(None)).flatten(1) for part in ("train", "test"))
    model = Autoencoder(channel)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rate, distortion = model(rows[torch.randint(len(rows), (100,))])
        optimizer.zero_grad()
        (rate + distortion).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return torch.tensor([model(test) for _ in range(16)]).mean(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    channels = {"VAE": lambda: None, "Echo": lambda: echo_ext.EchoChannel(num_terms=99)}
    bounds = {}
    for name, make in channels.items():
        found = torch.stack([train(make(), seed, given.steps) for seed in range(given.seeds)])
        rate, distortion = found.mean(0).tolist()
        bounds[name] = rate + distortion
        each = ", ".join(f"{bound:.2f}" for bound in found.sum(1).tolist())
        print(f"{name}: rate {rate:.2f}, distortion {distortion:.2f}, -ELBO {bounds[name]:.2f} ({each})")
    return int(bounds["Echo"] > bounds["VAE"] + 0.5)


if __name__ == "__main__":
    raise SystemExit(main())
