"""Train an autoencoder with Echo noise on the digits of scikit-learn, in plain PyTorch.

The loss is rate + distortion in nats. The rate, -log|s|, is known from the encoder alone: there is no prior, and no KL
divergence.

    python examples/echo_autoencoder.py

The script prints the rate and the distortion of the test rows, and writes a figure of reconstructions and of samples
from the marginal q(z). It succeeds (exit status 0) if the -ELBO of the test rows ends below 27 nats.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import echo_ext

LATENTS = 8
BATCH = 100


class EchoAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2 * LATENTS))
        self.channel = echo_ext.EchoChannel(num_terms=BATCH - 1)  # the noise of a row: all other rows of its batch
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 256), nn.ReLU(), nn.Linear(256, 64))

    def forward(self, x):
        """Return the logits of the pixels and the rate of each row in nats."""
        f_raw, s_raw = self.encoder(x).chunk(2, dim=-1)
        z, rate = self.channel(f_raw, s_raw)
        return self.decoder(z), rate.sum(dim=-1)

    def losses(self, x):
        """Return rate and distortion, the means over the rows."""
        logits, rate = self(x)
        distortion = binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=-1)
        return rate.mean(), distortion.mean()


def train(epochs):
    pixels = torch.tensor(load_digits().data / 16, dtype=torch.float32)  # 1797 rows of 64 pixels in [0, 1]
    pixels = pixels[torch.randperm(len(pixels))]
    rows, test = pixels[:1500], pixels[1500:]
    model = EchoAutoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            rate, distortion = model.losses(batch)
            (rate + distortion).backward()
            optimizer.step()
        model.eval()  # the noise of test rows is made of training rows, which the channel keeps
        with torch.no_grad():
            rate, distortion = (each.item() for each in model.losses(test))
        print(f"epoch {epoch:2}: rate {rate:5.2f}, distortion {distortion:5.2f}, -ELBO {rate + distortion:5.2f}")
    return model, test, rate + distortion


@torch.no_grad()
def plot(model, test, out):
    from matplotlib.figure import Figure

    samples = model.decoder(model.channel.sample(10)).sigmoid()
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    titles = {"test digits": test[:10], "reconstructions": model(test[:10])[0].sigmoid(), "samples": samples}
    for part, (title, images) in zip(figure.subfigures(3, 1), titles.items(), strict=True):
        part.suptitle(title, fontsize=9)
        for axes, image in zip(part.subplots(1, 10), images, strict=True):
            axes.imshow(image.reshape(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.axis("off")
    figure.savefig(out, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40, help="passes through the training rows (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and noise (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("echo_autoencoder.png"), help="the figure (default: %(default)s)"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model, test, bound = train(args.epochs)
    plot(model, test, args.out)
    print(f"wrote {args.out}")
    return int(bound > 27)


if __name__ == "__main__":
    raise SystemExit(main())
