"""Replace the Gaussian noise of a VAE by Echo noise, in one line, and compare both on the digits of scikit-learn.

The two autoencoders differ in the lines of Autoencoder.forward that make z and the rate. The rate of the VAE, a KL
divergence from N(0, I), bounds its information from above; the rate of Echo is its information.

    python examples/gaussian_to_echo.py

After 800 steps, the -ELBO of the test rows is 24.6 nats with both. Longer training is in favor of Echo: with --steps
3000 --seeds 3 they have 24.04 (VAE) and 23.96 (Echo). The script succeeds (exit status 0) if the -ELBO of Echo is at
most half a nat above that of the VAE.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional

import echo_ext


class Autoencoder(nn.Module):
    """A small autoencoder with Gaussian noise, or with a channel such as EchoChannel."""

    def __init__(self, channel=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2 * 8))
        self.decoder = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 64))
        self.channel = channel

    def forward(self, x):
        """Return the means of rate and distortion in nats per sample."""
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
    parser.add_argument("--steps", type=int, default=800, help="training steps of each autoencoder (default: 800)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds to average over (default: 1)")
    args = parser.parse_args()
    channels = {"VAE": lambda: None, "Echo": lambda: echo_ext.EchoChannel(num_terms=99)}
    bounds = {}
    for name, make in channels.items():
        found = torch.stack([train(make(), seed, args.steps) for seed in range(args.seeds)])
        rate, distortion = found.mean(0).tolist()
        bounds[name] = rate + distortion
        print(f"{name:>4}: rate {rate:.2f}, distortion {distortion:.2f}, -ELBO {bounds[name]:.2f} nats per sample")
        if args.seeds > 1:
            print("      -ELBO by seed: " + ", ".join(f"{bound:.2f}" for bound in found.sum(1).tolist()))
    return int(bounds["Echo"] > bounds["VAE"] + 0.5)


if __name__ == "__main__":
    raise SystemExit(main())
