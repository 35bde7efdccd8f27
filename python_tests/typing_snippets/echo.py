"""A user's calls of Echo, for type checkers alone: they refuse the lines marked `# error`, and no others."""

import torch
from torch import Tensor
from typing_extensions import assert_type

from echo_ext import EchoChannel, echo_sample

f, s = torch.zeros(5, 3), torch.full((5, 3), 0.5)

assert_type(echo_sample(f, s), Tensor)
assert_type(echo_sample(f, s, num_terms=2, sampling="ring", bank=(f, s), seed=1), Tensor)

# ---- Mistakes

echo_sample(f, s, sampling="rng")  # error
EchoChannel(sampling="rng")  # error
