"""Autoregressive flows that only shift and do not scale, and therefore preserve volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn import functional

from echo_ext import _checks

__all__ = ["MADE", "FlowTransform", "ShiftFlow"]


class MaskedLinear(nn.Linear):
    """A linear layer that uses only the weights where ``mask`` (outputs, inputs) is 1."""

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
    """A masked network whose output i depends only on the inputs before i (Germain et al. 2015).

    Args:
        dim: Width of the input and the output.
        hidden: Widths of the hidden layers, each followed by a ReLU.

    Example:
        >>> shift = echo_ext.models.MADE(3, hidden=(8,))
        >>> shift(torch.tensor([[1.0, 2.0, 3.0]]))[0, 0] == shift(torch.zeros(1, 3))[0, 0]  # depends on no input
        tensor(True)
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        # A hidden unit of degree k depends on inputs 1 to k; output i depends on units of degrees below i.
        inputs = torch.arange(1, dim + 1)
        degrees = [inputs, *(torch.arange(width) % max(1, dim - 1) + 1 for width in hidden)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(degrees):
            layers += [MaskedLinear((after[:, None] >= before).float()), nn.ReLU()]
        self.layers = nn.Sequential(*layers, MaskedLinear((inputs[:, None] > degrees[-1]).float()))

    def forward(self, z: Tensor) -> Tensor:
        """The shift of each dimension, given those before it: (B, dim)."""
        return self.layers(z)


class ShiftFlow(nn.Module):
    """A flow of steps ``z <- z - m(z)``, where m is a :class:`MADE`; its log-determinant is 0.

    The order of the dimensions is reversed between steps. The forward direction computes all dimensions in parallel.
    It gives samples of an inverse autoregressive flow (Kingma et al. 2016) and densities of a masked autoregressive
    flow (Papamakarios et al. 2017), both without scales.

    Args:
        dim: Width of z.
        steps: Number of steps. More make the flow more flexible.
        hidden: Widths of the hidden layers of each MADE.

    Example:
        >>> flow = echo_ext.models.ShiftFlow(3, steps=2, hidden=(8,))
        >>> z = torch.randn(5, 3)
        >>> torch.allclose(flow.inverse(flow(z)), z, atol=1e-5)
        True
    """

    def __init__(self, dim: int, steps: int = 4, hidden: Sequence[int] = (640, 640, 640)) -> None:
        super().__init__()
        steps = _checks.whole("flow_steps", steps, minimum=1)
        hidden = _checks.widths("flow_hidden", hidden)
        self.steps = nn.ModuleList(MADE(dim, hidden) for _ in range(steps))

    def forward(self, z: Tensor) -> Tensor:
        """Transform (B, dim), all dimensions at once."""
        for number, shift in enumerate(self.steps):
            if number > 0:
                z = z.flip(1)
            z = z - shift(z)
        return z

    def inverse(self, u: Tensor) -> Tensor:
        """The z that :meth:`forward` maps to ``u`` (B, dim), computed one dimension at a time."""
        for number, shift in reversed(list(enumerate(self.steps))):
            z = torch.zeros_like(u)
            for i in range(u.shape[1]):
                # Not in place, because autograd needs the previous values.
                z = torch.cat([z[:, :i], (u + shift(z))[:, i : i + 1], z[:, i + 1 :]], dim=1)
            u = z.flip(1) if number > 0 else z
        return u


class FlowTransform(Transform):
    """A :class:`ShiftFlow` as a transform of :mod:`torch.distributions`.

    It remembers its last input and output, since the inverse takes one pass of the network for each dimension.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: ShiftFlow) -> None:
        super().__init__(cache_size=1)
        self.flow = flow

    def _call(self, x: Tensor) -> Tensor:
        return self.flow(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.flow.inverse(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero, since the flow preserves volume: (B,)."""
        return torch.zeros_like(x[..., 0])
