"""A user's models made of parts, for type checkers alone: they refuse the lines marked `# error`, and no others."""

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Laplace
from typing_extensions import assert_type

from echo_ext.models import Autoencoder, EchoChannel, GaussianChannel, MMDRegularizer, Prior, StandardNormal, build


class Mine(Prior):
    def log_prob(self, z: Tensor) -> Tensor:
        return -z.abs().sum(1)

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, 2)


def likelihood(mean: Tensor) -> Distribution:
    return Independent(Laplace(mean, 1.0), 1)


encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)
model = Autoencoder(encoder, decoder, GaussianChannel(), prior=Mine(), likelihood=likelihood, beta=0.5)
Autoencoder(encoder, decoder, EchoChannel(), beta=[0.5, 1.0], regularizers=[MMDRegularizer(1.0)])

assert_type(model.loss(torch.zeros(5, 3)), dict[str, Tensor])
assert_type(model.encode(torch.zeros(5, 3)), Tensor)
assert_type(build("vae", (3,)).sample(2), Tensor)

# ---- Mistakes

Autoencoder(encoder, decoder, GaussianChannel(), prior="vamp")  # error
Autoencoder(encoder, decoder, GaussianChannel(), prior=StandardNormal(2), likelihood="bernoulli")  # error
Autoencoder(encoder, decoder)  # error
