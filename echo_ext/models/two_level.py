"""Parts of two-level Gaussian models of images, z2 -> z1 -> x, with a convolutional or an autoregressive decoder.

The networks are those of Tomczak & Welling (2018, "VAE with a VampPrior"), which Livne et al. (2019) train by MIM. Only
the first mask of :class:`PixelCNN` differs, unless ``hides_maps`` chooses theirs. The latent z is the concatenation of
z1 and z2, of ``level`` dimensions each. :class:`~echo_ext.models.MIM` makes a model of these parts, with the objective
"vae" the one of Tomczak & Welling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from echo_ext.models._numerics import widened
from echo_ext.models.channels import GaussianChannel
from echo_ext.models.likelihoods import BernoulliLikelihood
from echo_ext.models.priors import Prior, as_prior

__all__ = [
    "MaskedConv2d",
    "PixelCNN",
    "PixelDistribution",
    "TwoLevelChannel",
    "TwoLevelDecoder",
    "TwoLevelEncoder",
    "TwoLevelPosterior",
    "TwoLevelPrior",
    "convolutional_decoder",
    "feature_width",
    "initialize",
    "level_channel",
    "level_network",
    "pixel_maps",
]

HIDDEN = 300


def level_channel() -> GaussianChannel:
    """The Gaussians of both levels, whose log variances are between -6 and 2."""
    return GaussianChannel(-6.0, 2.0)


class TwoLevelEncoder(nn.Module):
    """The networks of x: the parameters of q(z2|x), and the features of x that q(z1|x, z2) depends on.

    Args:
        data_shape: Shape of one x, (channels, height, width).
        level: Number of dimensions of z1 and of z2.

    Example:
        >>> upper, features = echo_ext.models.TwoLevelEncoder((1, 8, 8), 3)(torch.rand(5, 1, 8, 8))
        >>> upper.shape, features.shape
        (torch.Size([5, 6]), torch.Size([5, 24]))
    """

    def __init__(self, data_shape: Sequence[int], level: int) -> None:
        super().__init__()
        features, channels = feature_width(data_shape), data_shape[0]
        self.upper = nn.Sequential(_convolutions(channels, kernels=(7, 3, 5, 3, 3)), nn.Linear(features, 2 * level))
        self.features = _convolutions(channels, kernels=(3, 3, 3, 3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters (B, 2 * level) and the features (B, features) of x ``(B, *data_shape)``."""
        return self.upper(x), self.features(x)


class TwoLevelChannel(nn.Module):
    """The channel q(z|x) = q(z2|x) q(z1|x, z2) for the output of a :class:`TwoLevelEncoder`.

    Args:
        features: Width of the features of x.
        level: Number of dimensions of z1 and of z2.

    Example:
        >>> q = echo_ext.models.TwoLevelChannel(24, 3)(torch.zeros(5, 6), torch.zeros(5, 24))
        >>> q.rsample().shape
        torch.Size([5, 6])
    """

    def __init__(self, features: int, level: int) -> None:
        super().__init__()
        self.gaussian = level_channel()
        self.context = _gated_linear(level, features)
        self.lower = nn.Sequential(_gated_linear(2 * features, HIDDEN), nn.Linear(HIDDEN, 2 * level))

    def forward(self, upper: Tensor, features: Tensor) -> TwoLevelPosterior:
        """The distribution q(z|x)."""
        q: Distribution = self.gaussian(*upper.chunk(2, dim=1))
        return TwoLevelPosterior(q, functools.partial(self._lower, features))

    def _lower(self, features: Tensor, z2: Tensor) -> Distribution:
        raw = widened(self.lower(torch.cat([features, self.context(z2)], dim=1)))
        return self.gaussian(*raw.chunk(2, dim=1))


class TwoLevelPosterior(Distribution):
    """The distribution q(z2|x) q(z1|x, z2) of z = (z1, z2).

    Args:
        upper: The distribution q(z2|x).
        lower: A function of z2 that returns q(z1|x, z2).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # as in the base class
    has_rsample = True

    def __init__(self, upper: Distribution, lower: Callable[[Tensor], Distribution]) -> None:
        event = torch.Size([2 * upper.event_shape[0]])
        super().__init__(upper.batch_shape, event, validate_args=False)
        self.upper = upper
        self.lower = lower

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """One sample of (z1, z2) for each x: (B, 2 * level)."""
        if len(sample_shape):
            raise ValueError(f"sample_shape must be () for two levels, got {tuple(sample_shape)}")
        z2 = self.upper.rsample()
        return torch.cat([self.lower(z2).rsample(), z2], dim=1)

    @property
    def mean(self) -> Tensor:
        """The code without noise: the mean of q(z2|x), and that of q(z1|x, z2) for it, (B, 2 * level)."""
        z2 = self.upper.mean
        return torch.cat([self.lower(z2).mean, z2], dim=1)

    def log_prob(self, value: Tensor) -> Tensor:
        """``log q(z2|x) + log q(z1|x, z2)``: (B,)."""
        z1, z2 = value.chunk(2, dim=1)
        return self.upper.log_prob(z2) + self.lower(z2).log_prob(z1)


class TwoLevelPrior(Prior):
    """The prior p(z2) p(z1|z2). Its samples have gradients to p(z1|z2), which is a part of the decoder, not to p(z2).

    Args:
        lower: Maps z2 (B, level) to the mean and log variance of p(z1|z2), (B, 2 * level), such as a
            :func:`level_network`.
        upper: The distribution p(z2).

    Example:
        >>> prior = echo_ext.models.TwoLevelPrior(echo_ext.models.level_network(3), echo_ext.models.StandardNormal(3))
        >>> prior.log_prob(prior.sample(5)).shape
        torch.Size([5])
    """

    def __init__(self, lower: nn.Module, upper: nn.Module) -> None:
        super().__init__()
        self.gaussian = level_channel()
        self.lower = lower
        self.upper = as_prior("upper", upper)

    def given(self, z2: Tensor) -> Distribution:
        """The distribution p(z1|z2) for each z2 of (B, level)."""
        return self.gaussian(*widened(self.lower(z2)).chunk(2, dim=1))

    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z2) + log p(z1|z2)``: (B,)."""
        z1, z2 = z.chunk(2, dim=1)
        return self.upper.log_prob(z2) + self.given(z2).log_prob(z1)

    def sample(self, n: int) -> Tensor:
        """``n`` samples of (z1, z2), where z2 is drawn first: (n, 2 * level)."""
        z2 = self.upper.sample(n)
        return torch.cat([self.given(z2).rsample(), z2], dim=1)

    def prepare(self, x: Tensor) -> None:
        """Initialize p(z2) from training rows ``(B, *data_shape)``."""
        self.upper.prepare(x)


class TwoLevelDecoder(nn.Module):
    """Networks of z1 and of z2, whose outputs are joined and passed to a third network.

    Args:
        from_z1, from_z2: Networks from (B, level) to features, which are concatenated along dimension 1.
        joint: Network from the joined features to the parameters of the likelihood.

    Example:
        >>> z1, z2, joint = torch.nn.Linear(3, 8), torch.nn.Linear(3, 8), torch.nn.Linear(16, 64)
        >>> echo_ext.models.TwoLevelDecoder(z1, z2, joint)(torch.zeros(5, 6)).shape
        torch.Size([5, 64])
    """

    def __init__(self, from_z1: nn.Module, from_z2: nn.Module, joint: nn.Module) -> None:
        super().__init__()
        self.from_z1 = from_z1
        self.from_z2 = from_z2
        self.joint = joint

    def forward(self, z: Tensor) -> Tensor:
        """The parameters of the likelihood for z (B, 2 * level)."""
        z1, z2 = z.chunk(2, dim=1)
        return self.joint(torch.cat([self.from_z1(z1), self.from_z2(z2)], dim=1))


def convolutional_decoder(data_shape: Sequence[int], level: int) -> TwoLevelDecoder:
    """Build the decoder from z (B, 2 * level) to the logits of independent pixels, ``(B, *data_shape)``."""
    from_z1, from_z2 = _gated_linear(level, HIDDEN), _gated_linear(level, HIDDEN)
    return TwoLevelDecoder(
        from_z1,
        from_z2,
        nn.Sequential(
            _gated_linear(2 * HIDDEN, math.prod(data_shape)),
            nn.Unflatten(1, tuple(data_shape)),
            *(_gated_convolution(inputs, 64, 3) for inputs in (data_shape[0], 64, 64, 64)),
            nn.Conv2d(64, data_shape[0], 1),
        ),
    )


def pixel_maps(data_shape: Sequence[int], level: int) -> TwoLevelDecoder:
    """Build the decoder from z (B, 2 * level) to two maps (B, 2, height, width) for a :class:`PixelCNN`."""
    if len(data_shape) != 3 or data_shape[0] != 1:
        raise ValueError(f"data_shape must be (1, height, width) for a pixel decoder, got {tuple(data_shape)}")
    layers = [_gated_linear(level, math.prod(data_shape)) for _ in range(2)]
    z1, z2 = (nn.Sequential(layer, nn.Unflatten(1, tuple(data_shape))) for layer in layers)
    return TwoLevelDecoder(z1, z2, nn.Identity())


class MaskedConv2d(nn.Conv2d):
    """A 3 x 3 convolution whose output at a pixel does not depend on later pixels (van den Oord et al. 2016, PixelRNN).

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        blind: Number of input channels, counted from the first, that are hidden at the pixel itself too (mask A); the
            others are visible there (mask B).
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, blind: int = 0) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 2:] = 0
        mask[:, :, 2:] = 0
        mask[:, :blind, 1, 1] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        return functional.conv2d(x, self.weight * self.mask, padding=1)


class MaskedLayer(nn.Module):
    """A masked convolution, batch normalization and ReLU, with the arguments of :class:`MaskedConv2d`."""

    def __init__(self, inputs: int, outputs: int, blind: int = 0) -> None:
        super().__init__()
        self.convolution = MaskedConv2d(inputs, outputs, blind)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        return torch.relu(self.norm(self.convolution(x)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """The affine map of a 3 x 3 patch before the ReLU in eval mode: a matrix (outputs, inputs * 9) and a bias."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = (self.convolution.weight * self.convolution.mask).flatten(1) * scale[:, None]
        return weight, norm.bias - norm.running_mean * scale


class PixelCNN(nn.Module):
    """An autoregressive likelihood of binary images: a pixel depends on maps and on the pixels before it, row by row.

    Args:
        maps: Number of conditioning channels.
        channels: Number of channels of the hidden layers.
        layers: Number of masked convolutions. Each extends the context of a pixel by one row and one column.
        hides_maps: Whether the first mask hides the maps at the pixel too, as in the code of Tomczak & Welling (2018).
            A pixel then depends on the maps only at the pixels before it, though nothing requires that.

    Attributes:
        wrap_pixels: A function that wraps the iteration over the pixels when images are drawn, such as ``tqdm.tqdm``.

    Example:
        >>> p = echo_ext.models.PixelCNN(2, channels=4, layers=2)(torch.zeros(5, 2, 8, 8))
        >>> p.log_prob(p.sample()).shape
        torch.Size([5])
    """

    def __init__(self, maps: int, channels: int = 64, layers: int = 8, *, hides_maps: bool = False) -> None:
        super().__init__()
        first = MaskedLayer(1 + maps, channels, blind=1 + maps if hides_maps else 1)
        self.layers = nn.Sequential(first, *(MaskedLayer(channels, channels) for _ in range(layers - 1)))
        self.head = nn.Conv2d(channels, 1, 1)
        self.wrap_pixels: Callable[[Iterable[int]], Iterable[int]] = iter

    def forward(self, maps: Tensor) -> PixelDistribution:
        """The distribution of images (B, 1, H, W) given maps (B, maps, H, W)."""
        return PixelDistribution(self, maps)

    def logits(self, x: Tensor, maps: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of images x (B, 1, H, W) given maps (B, maps, H, W)."""
        return self.head(self.layers(torch.cat([x, maps], dim=1)))

    @torch.no_grad()
    def draw(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Binary images and the probability that each pixel was drawn with, both (B, 1, H, W).

        No layer's value at a pixel depends on later pixels, so each value is computed once, when its pixel is reached.
        The batch normalization uses its running statistics, as in eval mode.
        """
        batch, _, height, width = maps.shape
        layers = [layer.folded() for layer in cast("Iterable[MaskedLayer]", self.layers)]
        # The input of each layer, padded with zeros as in the convolutions.
        planes = [functional.pad(torch.cat([torch.zeros_like(maps[:, :1]), maps], dim=1), (1, 1, 1, 1))]
        planes += [maps.new_zeros(batch, len(bias), height + 2, width + 2) for _, bias in layers]
        probabilities = torch.empty_like(maps[:, :1])
        for place in self.wrap_pixels(range(height * width)):
            i, j = divmod(place, width)
            for (weight, bias), plane, following in zip(layers, planes[:-1], planes[1:], strict=True):
                patch = plane[:, :, i : i + 3, j : j + 3].flatten(1)
                following[:, :, i + 1, j + 1] = torch.relu(functional.linear(patch, weight, bias))
            probability = torch.sigmoid(self.head(planes[-1][:, :, i + 1, j + 1, None, None]))[:, :, 0, 0]
            probabilities[:, :, i, j] = probability
            planes[0][:, :1, i + 1, j + 1] = torch.bernoulli(probability)
        return planes[0][:, :1, 1:-1, 1:-1].contiguous(), probabilities


class PixelDistribution(Distribution):
    """The distribution of images of a :class:`PixelCNN` given maps (B, maps, H, W).

    ``log_prob`` evaluates given images in one pass. ``sample`` and ``mean`` draw one pixel after the other, and use the
    running statistics of the batch normalization. ``mean`` is the mean of each pixel given the pixels drawn before it,
    whose expectation over repeated calls is the mean of x.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # as in the base class

    def __init__(self, network: PixelCNN, maps: Tensor) -> None:
        super().__init__(maps.shape[:1], torch.Size([1, *maps.shape[2:]]), validate_args=False)
        self.network = network
        self.maps = maps

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum over all pixels given the ones before them: (B,)."""
        return BernoulliLikelihood()(widened(self.network.logits(value, self.maps))).log_prob(value)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Binary images, (B, 1, H, W)."""
        if len(sample_shape):
            raise ValueError(f"sample_shape must be () for images drawn pixel by pixel, got {tuple(sample_shape)}")
        return self.network.draw(self.maps)[0]

    @property
    def mean(self) -> Tensor:
        """The mean of each pixel given the pixels drawn before it, (B, 1, H, W), without gradients."""
        return self.network.draw(self.maps)[1]


def level_network(level: int) -> nn.Sequential:
    """Build the gated network from z2 (B, level) to the mean and log variance of p(z1|z2), (B, 2 * level).

    Example:
        >>> echo_ext.models.level_network(3)(torch.zeros(5, 3)).shape
        torch.Size([5, 6])
    """
    return nn.Sequential(_gated_linear(level, HIDDEN), _gated_linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2 * level))


def initialize(*parts: nn.Module) -> None:
    """Initialize the linear layers of two-level parts as the paper does (He et al. 2015)."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)


def feature_width(data_shape: Sequence[int]) -> int:
    """The width of the features of an image of shape (channels, height, width)."""
    if len(data_shape) != 3:
        raise ValueError(f"data_shape must be (channels, height, width), got {tuple(data_shape)}")
    return 6 * math.prod(math.ceil(side / 4) for side in data_shape[1:])


def _gated_linear(inputs: int, outputs: int) -> nn.Module:
    """The product ``h * sigmoid(g)`` of two linear layers h and g."""
    return nn.Sequential(nn.Linear(inputs, 2 * outputs), nn.GLU(dim=1))


def _gated_convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """The product ``h * sigmoid(g)`` of two convolutions h and g, which keep the image size or halve it."""
    return nn.Sequential(nn.Conv2d(inputs, 2 * outputs, kernel, stride, kernel // 2), nn.GLU(dim=1))


def _convolutions(inputs: int, kernels: Sequence[int]) -> nn.Module:
    """Five gated convolutions, two of which halve the image: (B, inputs, H, W) to (B, 6 * H/4 * W/4)."""
    widths, strides = (inputs, 32, 32, 64, 64, 6), (1, 2, 1, 2, 1)
    layers = map(_gated_convolution, widths[:-1], widths[1:], kernels, strides)
    return nn.Sequential(*layers, nn.Flatten())
