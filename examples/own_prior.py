"""Train a VAE with a prior of your own; exit with status 0 if training lowers the -ELBO of the test rows."""

import torch
from torch.distributions import StudentT

from echo_ext import data, metrics, models


class HeavyTails(torch.nn.Module):
    """Student's t-distributions with learned scales."""

    def __init__(self, latents):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(latents))

    def log_prob(self, z):  # the log density of each row: (B,)
        return StudentT(5.0, 0.0, self.log_scale.exp()).log_prob(z).sum(1)

    def sample(self, n):  # without gradients: (n, latents)
        return StudentT(5.0, 0.0, self.log_scale.exp()).sample((n,))


def main():
    torch.manual_seed(0)
    train, test = (data.load("digits")[part].values(slice(None)).flatten(1) for part in ("train", "test"))
    encoder, decoder = models.mlp(64, 128, 16), models.mlp(8, 128, 64)
    model = models.Autoencoder(encoder, decoder, models.GaussianChannel(), prior=HeavyTails(8))
    optimizer, found = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for epochs in (0, 30):
        for rows in [batch for _ in range(epochs) for batch in torch.randperm(len(train)).split(100)]:
            optimizer.zero_grad()
            model.loss(train[rows])["loss"].backward()
            optimizer.step()
        found.append(metrics.rate_distortion(model, test))
        print(f"after {epochs} epochs: rate bound {found[-1].rate:.2f}, distortion {found[-1].distortion:.2f} nats")
    return int(found[1].neg_elbo >= found[0].neg_elbo)


if __name__ == "__main__":
    raise SystemExit(main())
