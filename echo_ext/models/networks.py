"""Encoders and decoders: plain networks from x to a channel's pre-activations, and from z to a likelihood's parameters.

Weights begin as Glorot & Bengio (2010) draw them, uniformly, and biases at zero. Convolutions keep their channels last
in memory, which is the faster order on CPUs and no different otherwise.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "architecture_for", "decoder", "encoder", "glorot", "mlp", "positive_widths"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "leaky-relu": functools.partial(nn.LeakyReLU, 0.2),
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}

ARCHITECTURES = {
    "conv28": "Echo's convolutions for images of 28 x 28",
    "conv64": "Echo's convolutions for dSprites, images of 64 x 64",
    "mlp": "fully connected layers, for any shape",
}
_IMAGE_SIDES = {"conv28": 28, "conv64": 64}


def architecture_for(data_shape: Sequence[int]) -> str:
    """The convolutions made for images of this size, else "mlp"."""
    for name, side in _IMAGE_SIDES.items():
        if tuple(data_shape[1:]) == (side, side):
            return name
    return "mlp"


def encoder(
    architecture: str,
    data_shape: Sequence[int],
    outputs: int,
    *,
    hidden: Sequence[int] | None = None,
    activation: str = "relu",
) -> nn.Module:
    """A network from x (B, *data_shape) to (B, outputs), two outputs per latent for the channels here.

    Args:
        architecture: one of :data:`ARCHITECTURES`; the convolutions are those of Brekelmans et al. (2019, appendix C).
        data_shape: shape of one x: (channels, height, width) of an image, (columns,) of a vector.
        outputs: width of the last layer, which is linear.
        hidden: widths of an MLP's hidden layers; None for (512, 512).
        activation: one of :data:`ACTIVATIONS`, after every layer but the last.

    Raises:
        ValueError: an unknown name, or a shape that the architecture does not take.
    """
    widths, act = _checked(architecture, data_shape, hidden, activation)
    if architecture == "mlp":
        return nn.Sequential(nn.Flatten(), mlp(math.prod(data_shape), *widths, outputs, activation=activation))
    if architecture == "conv28":
        layers = [
            *(nn.Conv2d(data_shape[0], 32, 5, padding=2), act()),
            *(nn.Conv2d(32, 32, 5, stride=2, padding=2), act()),
            *(nn.Conv2d(32, 64, 5, padding=2), act()),
            *(nn.Conv2d(64, 64, 5, stride=2, padding=2), act()),
            *(nn.Conv2d(64, 256, 7), act(), nn.Flatten()),
            nn.Linear(256, outputs),
        ]
    else:
        layers = [
            *(nn.Conv2d(data_shape[0], 32, 4, stride=2, padding=1), act()),
            *(nn.Conv2d(32, 32, 4, stride=2, padding=1), act()),
            *(nn.Conv2d(32, 64, 2, stride=2), act()),
            *(nn.Conv2d(64, 64, 2, stride=2), act(), nn.Flatten()),
            *(nn.Linear(1024, 256), act()),
            nn.Linear(256, outputs),
        ]
    return _channels_last(glorot(nn.Sequential(*layers)))


def decoder(
    architecture: str,
    data_shape: Sequence[int],
    latent_dim: int,
    *,
    outputs: int = 1,
    hidden: Sequence[int] | None = None,
    activation: str = "relu",
) -> nn.Module:
    """A network from z (B, latent_dim) to (B, outputs * data_shape[0], *data_shape[1:]), the last layer linear.

    The arguments are those of :func:`encoder`, an MLP's widths in the encoder's order; ``outputs`` is how many
    numbers the likelihood takes for each number of x.
    """
    widths, act = _checked(architecture, data_shape, hidden, activation)
    shape = (outputs * data_shape[0], *data_shape[1:])
    if architecture == "mlp":
        layers = mlp(latent_dim, *reversed(widths), math.prod(shape), activation=activation)
        return nn.Sequential(layers, nn.Unflatten(1, shape))
    if architecture == "conv28":
        # A transposed convolution of stride 1 is a convolution; as one it is the faster of the two.
        layers = nn.Sequential(
            *(nn.Unflatten(1, (latent_dim, 1, 1)), nn.ConvTranspose2d(latent_dim, 64, 7), act()),
            *(nn.Conv2d(64, 64, 5, padding=2), act()),
            *(nn.ConvTranspose2d(64, 64, 5, stride=2, padding=2, output_padding=1), act()),
            *(nn.Conv2d(64, 32, 5, padding=2), act()),
            *(nn.ConvTranspose2d(32, 32, 5, stride=2, padding=2, output_padding=1), act()),
            *(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(32, 32, 4), act()),
            nn.Conv2d(32, shape[0], 5, padding=2),
        )
    else:
        layers = nn.Sequential(
            *(nn.Linear(latent_dim, 256), act()),
            *(nn.Linear(256, 1024), act(), nn.Unflatten(1, (64, 4, 4))),
            *(nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1), act()),
            *(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), act()),
            *(nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1), act()),
            nn.ConvTranspose2d(32, shape[0], 4, stride=2, padding=1),
        )
    return _channels_last(glorot(layers))


def mlp(*widths: int, activation: str = "relu") -> nn.Sequential:
    """Linear layers of these widths, input and output among them, with an activation after all but the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return glorot(nn.Sequential(*layers[:-1]))


def glorot(network: nn.Sequential) -> nn.Sequential:
    """Draw the weights of every layer anew, uniform with variance 2 / (fan_in + fan_out), and set biases to zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def positive_widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    """Widths of layers as a tuple, or a ValueError that names the argument."""
    if not isinstance(widths, list | tuple) or any(not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"{name} must be positive integers, as (512, 512), got {widths!r}")
    return tuple(widths)


def _channels_last(network: nn.Sequential) -> nn.Sequential:
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def _checked(
    architecture: str, data_shape: Sequence[int], hidden: Sequence[int] | None, activation: str
) -> tuple[Sequence[int], Callable[[], nn.Module]]:
    """An MLP's widths and the activation, or a line on what does not fit."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(map(repr, ARCHITECTURES))}, got {architecture!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    side = _IMAGE_SIDES.get(architecture)
    if side is None:
        return positive_widths("hidden", (512, 512) if hidden is None else hidden), ACTIVATIONS[activation]
    if len(data_shape) != 3 or tuple(data_shape[1:]) != (side, side):
        raise ValueError(
            f"architecture {architecture!r} takes images of {side} x {side}, but data_shape is {tuple(data_shape)}; "
            "architecture 'mlp' takes any"
        )
    if hidden is not None:
        raise ValueError(f"hidden is for architecture 'mlp', but architecture is {architecture!r} and hidden {hidden}")
    return (), ACTIVATIONS[activation]
