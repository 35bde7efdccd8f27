"""Autoregressive flows that shift and never scale, so that they preserve volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from echo_ext.models.networks import positive_widths

__all__ = ["MADE", "ShiftFlow"]


class MaskedLinear(nn.Linear):
    """A linear layer of which only the weights where ``mask`` (outputs, inputs) is 1 are there."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        outputs, inputs = mask.shape
        super().__init__(inputs, outputs)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs) to (B, outputs)."""
        return functional.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """A masked network whose output i depends on inputs before i only (Germain et al. 2015): (B, dim) to (B, dim).

    Args:
        dim: width of input and output.
        hidden: widths of the hidden layers, ReLU after each.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        # A unit of degree k sees inputs 1 to k; output i sees degrees below i.
        inputs = torch.arange(1, dim + 1)
        degrees = [inputs, *(torch.arange(width) % max(1, dim - 1) + 1 for width in hidden)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(degrees):
            layers += [MaskedLinear((after[:, None] >= before).float()), nn.ReLU()]
        self.layers = nn.Sequential(*layers, MaskedLinear((inputs[:, None] > degrees[-1]).float()))

    def forward(self, z: Tensor) -> Tensor:
        """The shift of each dimension, given those before it: (B, dim)."""
        shift: Tensor = self.layers(z)
        return shift


class ShiftFlow(nn.Module):
    """Steps of ``z <- z - m(z)``, m a :class:`MADE`, the dimensions reversed between steps; its log-determinant is 0.

    Forward is parallel. It is the fast direction for draws of an inverse autoregressive flow (Kingma et al. 2016) and
    for densities of a masked autoregressive flow (Papamakarios et al. 2017), both without scales.

    Args:
        dim: width of z.
        steps: how many.
        hidden: widths of each MADE's hidden layers.
    """

    def __init__(self, dim: int, steps: int = 4, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"flow_steps must be at least 1, got {steps}")
        hidden = positive_widths("flow_hidden", hidden)
        self.steps = nn.ModuleList(MADE(dim, hidden) for _ in range(steps))

    def forward(self, z: Tensor) -> Tensor:
        """All dimensions at once: (B, dim) to (B, dim)."""
        for number, shift in enumerate(self.steps):
            if number > 0:
                z = z.flip(1)
            z = z - shift(z)
        return z

    def inverse(self, u: Tensor) -> Tensor:
        """The z that forward maps to ``u`` (B, dim), one dimension after the other."""
        for number, shift in reversed(list(enumerate(self.steps))):
            z = torch.zeros_like(u)
            for i in range(u.shape[1]):
                # A new tensor each time: autograd needs the old ones.
                z = torch.cat([z[:, :i], (u + shift(z))[:, i : i + 1], z[:, i + 1 :]], dim=1)
            u = z.flip(1) if number > 0 else z
        return u
