"""Train an autoencoder with Echo noise and an encoder and a decoder of your own, in a plain PyTorch loop.

The script succeeds (exit status 0) if training lowers the sum of rate and distortion on the test rows.
"""

import torch
from torch import nn

import echo_ext


def networks(latents):
    """An encoder, the halves of whose output are f and s of the channel, and a decoder to the logits of the pixels."""
    convolutions = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1)
    encoder = nn.Sequential(*convolutions, nn.SiLU(), nn.Flatten(), nn.Linear(32 * 2 * 2, 2 * latents))
    decoder = nn.Sequential(nn.Linear(latents, 128), nn.SiLU(), nn.Linear(128, 64), nn.Unflatten(1, (1, 8, 8)))
    return encoder, decoder


def main():
    torch.manual_seed(0)
    parts = echo_ext.data.load("digits")  # images of 8 x 8 pixels, which are part of scikit-learn
    train, test = parts["train"].values(slice(None)), parts["test"]
    channel = echo_ext.EchoChannel(num_terms=99)
    model = echo_ext.models.Autoencoder(*networks(8), channel, beta=0.3)  # more information than for beta=1
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = []
    for epochs in (0, 30):
        for rows in [batch for _ in range(epochs) for batch in torch.randperm(len(train)).split(100)[:-1]]:
            optimizer.zero_grad()
            model.loss(train[rows])["loss"].backward()
            optimizer.step()
        model.refresh(train)  # evaluation draws the noise from codes of training rows
        found.append(echo_ext.metrics.rate_distortion(model, test))
        print(f"after {epochs} epochs: rate {found[-1].rate:.2f}, distortion {found[-1].distortion:.2f} nats")
    return 0 if found[1].neg_elbo < found[0].neg_elbo else 1


if __name__ == "__main__":
    raise SystemExit(main())
