"""Encoder networks, from x to the inputs of a channel, and decoder networks, from z to the parameters of a likelihood.

Convolutions store their weights in the channels-last memory format, which is faster on CPUs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from echo_ext import _checks

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "INITIALIZATIONS",
    "Split",
    "architecture_for",
    "make_decoder",
    "make_encoder",
    "mlp",
]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "leaky-relu": functools.partial(nn.LeakyReLU, 0.2),
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}

ARCHITECTURES = {
    "conv28": "convolutions of the Echo paper for images of 28 x 28",
    "conv64": "convolutions of Locatello et al. (2019), as in the Echo paper, for images of 64 x 64 (dSprites)",
    "mlp": "fully connected layers for data of any shape",
}
INITIALIZATIONS = {
    "glorot": "weights uniform with the variance 2 / (fan_in + fan_out), biases 0 (Glorot & Bengio 2010)",
    "torch": "weights and biases uniform up to 1 / sqrt(fan_in), as torch leaves them",
}
_IMAGE_SIDES = {"conv28": 28, "conv64": 64}


def architecture_for(data_shape: Sequence[int]) -> str:
    """Return the convolutional architecture for images of this size, or "mlp" if there is none."""
    for name, side in _IMAGE_SIDES.items():
        if tuple(data_shape[1:]) == (side, side):
            return name
    return "mlp"


def make_encoder(
    architecture: str,
    data_shape: Sequence[int],
    outputs: int,
    *,
    hidden: Sequence[int] | None = None,
    activation: str = "relu",
    initialization: str = "glorot",
) -> nn.Module:
    """Build a network from x ``(B, *data_shape)`` to (B, outputs).

    Args:
        architecture: "conv28" for the convolutions of the Echo paper for images of 28 x 28, "conv64" for those of
            Locatello et al. (2019) for images of 64 x 64, both as in Brekelmans et al. (2019, appendix E), or "mlp" for
            fully connected layers and data of any shape.
        data_shape: Shape of one x: (channels, height, width) for an image, (columns,) for a vector.
        outputs: Width of the last layer, which is linear. The channels of this package need two outputs per latent.
        hidden: Widths of the hidden layers of an MLP. None means (512, 512).
        activation: "elu", "leaky-relu" (with slope 0.2), "relu", "softplus", "swish" or "tanh", applied after every
            layer except the last.
        initialization: "glorot" for uniform weights of the variance ``2 / (fan_in + fan_out)`` and biases of 0 (Glorot
            & Bengio 2010), or "torch" for those of PyTorch. With "glorot" an MLP with tanh is an odd function of its
            input, and training on symmetric data may not leave that state.

    Raises:
        ValueError: A name is unknown, or the architecture does not support this shape.

    Example:
        >>> echo_ext.models.make_encoder("mlp", (1, 8, 8), 2 * 4, hidden=(32,))(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 8])
    """
    widths, act = _widths_and_activation(architecture, data_shape, hidden, activation)
    if architecture == "mlp":
        options = {"activation": activation, "initialization": initialization}
        return nn.Sequential(nn.Flatten(), mlp(math.prod(data_shape), *widths, outputs, **options))
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
    return _channels_last(initialized(nn.Sequential(*layers), initialization))


def make_decoder(
    architecture: str,
    data_shape: Sequence[int],
    latent_dim: int,
    *,
    outputs: int = 1,
    hidden: Sequence[int] | None = None,
    activation: str = "relu",
    initialization: str = "glorot",
) -> nn.Module:
    """Build a network from z (B, latent_dim) to ``(B, outputs * data_shape[0], *data_shape[1:])``.

    Args:
        architecture: "conv28", "conv64" or "mlp", as in :func:`make_encoder`.
        data_shape: Shape of one x: (channels, height, width) for an image, (columns,) for a vector.
        latent_dim: Number of dimensions of z.
        outputs: Number of parameters that the likelihood has for each element of x.
        hidden: Widths of the hidden layers of an MLP, in the order of the encoder. None means (512, 512).
        activation: As in :func:`make_encoder`; the last layer is linear.
        initialization: As in :func:`make_encoder`.

    Raises:
        ValueError: A name is unknown, or the architecture does not support this shape.

    Example:
        >>> echo_ext.models.make_decoder("conv28", (1, 28, 28), 4)(torch.zeros(5, 4)).shape
        torch.Size([5, 1, 28, 28])
    """
    widths, act = _widths_and_activation(architecture, data_shape, hidden, activation)
    shape = (outputs * data_shape[0], *data_shape[1:])
    if architecture == "mlp":
        options = {"activation": activation, "initialization": initialization}
        layers = mlp(latent_dim, *reversed(widths), math.prod(shape), **options)
        return nn.Sequential(layers, nn.Unflatten(1, shape))
    if architecture == "conv28":
        # A transposed convolution of stride 1 is the same as a convolution, which is faster.
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
    return _channels_last(initialized(layers, initialization))


class Split(nn.Module):
    """An encoder whose output (B, sum(widths)) is divided into the inputs of the channel, of these widths."""

    def __init__(self, encoder: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.widths = tuple(widths)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode x ``(B, *data_shape)``."""
        return tuple(self.encoder(x).split(self.widths, dim=1))


def mlp(*widths: int, activation: str = "relu", initialization: str = "glorot") -> nn.Sequential:
    """Build an MLP from the widths of its input, hidden layers and output; its last layer has no activation.

    Args:
        widths: The widths, at least two.
        activation, initialization: As in :func:`make_encoder`.

    Example:
        >>> echo_ext.models.mlp(4, 32, 2, activation="tanh")(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return initialized(nn.Sequential(*layers[:-1]), initialization)


def initialized(network: nn.Sequential, initialization: str) -> nn.Sequential:
    """Initialize a network in place, by one of :data:`INITIALIZATIONS`, and return it."""
    _checks.choice("initialization", initialization, INITIALIZATIONS)
    for layer in network.modules() if initialization == "glorot" else ():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def _channels_last(network: nn.Sequential) -> nn.Sequential:
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def _widths_and_activation(
    architecture: str, data_shape: Sequence[int], hidden: Sequence[int] | None, activation: str
) -> tuple[Sequence[int], Callable[[], nn.Module]]:
    """Check the arguments of a network; return the widths of the hidden layers of an MLP and the activation."""
    _checks.choice("architecture", architecture, ARCHITECTURES)
    _checks.choice("activation", activation, ACTIVATIONS)
    side = _IMAGE_SIDES.get(architecture)
    if side is None:
        return _checks.widths("hidden", (512, 512) if hidden is None else hidden), ACTIVATIONS[activation]
    if len(data_shape) != 3 or tuple(data_shape[1:]) != (side, side):
        raise ValueError(
            f"data_shape must be (channels, {side}, {side}) for architecture {architecture!r}, "
            f"got {tuple(data_shape)}; architecture 'mlp' supports any shape"
        )
    if hidden is not None:
        raise ValueError(f"hidden must be None for architecture {architecture!r}, got {_checks.brief(hidden)}")
    return (), ACTIVATIONS[activation]
