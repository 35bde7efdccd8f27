"""Replace the Gaussian noise of an existing model by Echo: a recurrent autoencoder of sequences.

The model encodes a sequence with a GRU, adds noise, and decodes the whole sequence at once. `EchoNoise` takes the place
of `Noise` with the same interface: an activation in, z and the information cost in nats out. The script trains both on
the digits of scikit-learn, read as sequences of 8 rows of 8 pixels, and generates new sequences from each.

    python examples/echo_in_your_model.py

In this model the Gaussian stays ahead, by half a nat; gaussian_to_echo.py has networks with which both are equal. The
script succeeds (exit status 0) if the loss of the model with Echo is at most one nat above that of the original.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import echo_ext

BATCH = 100


class Noise(nn.Module):
    """What the model had: the reparameterization trick, with the KL divergence from N(0, I)."""

    def __init__(self, features, latents):
        super().__init__()
        self.to_mean, self.to_log_std = nn.Linear(features, latents), nn.Linear(features, latents)

    def forward(self, h):
        mean, log_std = self.to_mean(h), self.to_log_std(h)
        z = mean + log_std.exp() * torch.randn_like(mean)
        cost = (mean**2 + (2 * log_std).exp() - 1) / 2 - log_std
        return z, cost.sum(dim=-1)

    def sample(self, n):
        return torch.randn(n, self.to_mean.out_features)


class EchoNoise(nn.Module):
    """Echo in its place: the same layers before it, no prior, and an exact cost."""

    def __init__(self, features, latents):
        super().__init__()
        self.to_f, self.to_s = nn.Linear(features, latents), nn.Linear(features, latents)
        self.channel = echo_ext.EchoChannel(num_terms=BATCH - 1)

    def forward(self, h):
        z, rate = self.channel(self.to_f(h), self.to_s(h))
        return z, rate.sum(dim=-1)

    def sample(self, n):
        return self.channel.sample(n)  # from the marginal q(z), which takes the place of the prior


class SequenceAutoencoder(nn.Module):
    def __init__(self, noise, steps=8, width=8, features=96, latents=8):
        super().__init__()
        self.encoder = nn.GRU(width, features, batch_first=True)
        self.noise = noise(features, latents)
        self.decoder = nn.Sequential(
            nn.Linear(latents, 256), nn.ReLU(), nn.Linear(256, steps * width), nn.Unflatten(1, (steps, width))
        )

    def forward(self, sequence):
        """Return the cost of the code and the negative log-likelihood, means over the sequences, in nats."""
        _, h = self.encoder(sequence)
        z, cost = self.noise(h[-1])
        errors = binary_cross_entropy_with_logits(self.decoder(z), sequence, reduction="none")
        return cost.mean(), errors.sum(dim=(1, 2)).mean()

    @torch.no_grad()
    def generate(self, n):
        return self.decoder(self.noise.sample(n)).sigmoid()


def train(noise, rows, test, epochs, seed):
    torch.manual_seed(seed)
    model = SequenceAutoencoder(noise)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(BATCH):  # the last, smaller batch is completed from the bank
            cost, error = model(rows[batch])
            optimizer.zero_grad()
            (cost + error).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return model, torch.tensor([model(test) for _ in range(8)]).mean(dim=0).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="passes through the training sequences (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and noise (default: 0)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images = torch.tensor(load_digits().images / 16, dtype=torch.float32)
    images = images[torch.randperm(len(images))]
    rows, test = images[:1450], images[1450:]
    bounds = {}
    for name, noise in {"Gaussian": Noise, "Echo": EchoNoise}.items():
        model, (cost, error) = train(noise, rows, test, args.epochs, args.seed)
        bounds[name] = cost + error
        print(f"{name:8}: cost {cost:.2f}, -log-likelihood {error:.2f}, sum {bounds[name]:.2f} nats")
        print(f"          mean pixel of the test rows {test.mean():.3f}, generated {model.generate(500).mean():.3f}")
    return int(bounds["Echo"] > bounds["Gaussian"] + 1.0)


if __name__ == "__main__":
    raise SystemExit(main())
