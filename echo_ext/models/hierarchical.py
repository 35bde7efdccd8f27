"""Two-level Gaussian models of images, z2 -> z1 -> x, with a convolutional or an autoregressive decoder.

The networks are those of Tomczak & Welling (2018, "VAE with a VampPrior"), which Livne et al. (2019) train by MIM. The
latent z is the concatenation of z1 and z2, each of ``latent_dim / 2`` dimensions.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from echo_ext import _checks
from echo_ext.models.densities import widened
from echo_ext.models.joint import DiagonalGaussian, JointModel
from echo_ext.models.likelihoods import Bernoulli
from echo_ext.models.marginals import Marginal, StandardNormal, VampPrior
from echo_ext.models.mim import OBJECTIVES, joint_losses

__all__ = ["ConvHVAE", "MaskedConv2d", "MaskedLayer", "PixelCNN", "PixelHVAE", "TwoLevelModel", "TwoLevelPosterior"]

HIDDEN = 300
LOG_VARIANCES = (-6.0, 2.0)
Progress = Callable[[Iterable[int]], Iterable[int]]


class TwoLevelPosterior:
    """The posterior q(z2|x) q(z1|x, z2).

    Args:
        upper: The distribution q(z2|x).
        lower: A function of z2 that returns q(z1|x, z2).
    """

    def __init__(self, upper: DiagonalGaussian, lower: Callable[[Tensor], DiagonalGaussian]) -> None:
        self.upper = upper
        self.lower = lower

    def draw(self) -> Tensor:
        """One sample of (z1, z2) for each x: (B, latent_dim)."""
        z2 = self.upper.draw()
        return torch.cat([self.lower(z2).draw(), z2], dim=1)

    def log_prob(self, z: Tensor) -> Tensor:
        """``log q(z2|x) + log q(z1|x, z2)``: (B,)."""
        z1, z2 = z.chunk(2, dim=1)
        return self.upper.log_prob(z2) + self.lower(z2).log_prob(z1)


class TwoLevelModel(JointModel):
    """Two levels of latents; a subclass adds p(x|z1, z2), a product of Bernoulli distributions.

    Args:
        data_shape: Shape of one x, (channels, height, width).
        latent_dim: Number of dimensions of z1 and z2 together, an even number. The papers have 40 for each, which is
            80 here.
        objective: One of :data:`~echo_ext.models.mim.OBJECTIVES` except "cross-entropy".
        prior: The distribution p(z2), "standard-normal" or "vamp".
        pseudo_inputs: Number of pseudo-inputs of the VampPrior. More make p(z2) more flexible and each step slower.

    Raises:
        ValueError: A name is unknown, latent_dim is odd, or the data are not images.
    """

    prior: Marginal

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 80,
        *,
        objective: str = "vae",
        prior: str = "standard-normal",
        pseudo_inputs: int = 500,
    ) -> None:
        super().__init__(data_shape, latent_dim)
        if len(self.data_shape) != 3:
            raise ValueError(f"data_shape must be (channels, height, width), got {self.data_shape}")
        if latent_dim % 2:
            raise ValueError(f"latent_dim must be even, one half for each level, got {latent_dim}")
        known = [name for name in OBJECTIVES if name != "cross-entropy"]
        _checks.choice("objective", objective, known)
        _checks.choice("prior", prior, ("standard-normal", "vamp"))
        self.objective = objective
        self.likelihood = Bernoulli()
        level = latent_dim // 2
        channels, *sides = self.data_shape
        features = 6 * math.prod(math.ceil(side / 4) for side in sides)

        # q(z2|x), q(z1|x, z2) and p(z1|z2)
        self.upper = nn.Sequential(_convolutions(channels, kernels=(7, 3, 5, 3, 3)), nn.Linear(features, 2 * level))
        self.lower_view = _convolutions(channels, kernels=(3, 3, 3, 3, 3))
        self.lower_context = _gated_linear(level, features)
        self.lower = nn.Sequential(_gated_linear(2 * features, HIDDEN), nn.Linear(HIDDEN, 2 * level))
        self.descent = nn.Sequential(
            _gated_linear(level, HIDDEN), _gated_linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2 * level)
        )
        if prior == "standard-normal":
            self.prior = StandardNormal(level)
        else:
            self.prior = VampPrior(self.infer_upper, self.data_shape, pseudo_inputs)
        self._make_decoder(level)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    @abc.abstractmethod
    def _make_decoder(self, level: int) -> None:
        """Add the modules of p(x|z1, z2), where z1 and z2 have ``level`` dimensions each."""

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The loss and the terms of :func:`~echo_ext.models.mim.joint_losses`, each 0-d and in nats per sample."""
        return joint_losses(self.objective, self, x)

    def infer(self, x: Tensor) -> TwoLevelPosterior:
        """The posterior q(z2|x) q(z1|x, z2) of each x of (B, *data_shape)."""
        self.checked(x)
        return TwoLevelPosterior(self.infer_upper(x), functools.partial(self._infer_lower, self.lower_view(x)))

    def infer_upper(self, x: Tensor) -> DiagonalGaussian:
        """The distribution q(z2|x) for each x of (B, *data_shape)."""
        return _gaussian(self.upper(x))

    def _infer_lower(self, view: Tensor, z2: Tensor) -> DiagonalGaussian:
        return _gaussian(self.lower(torch.cat([view, self.lower_context(z2)], dim=1)))

    def descend(self, z2: Tensor) -> DiagonalGaussian:
        """The distribution p(z1|z2) for each z2 of (B, latent_dim / 2)."""
        return _gaussian(self.descent(z2))

    def log_prior(self, z: Tensor) -> Tensor:
        """``log p(z2) + log p(z1|z2)``: (B,)."""
        z1, z2 = z.chunk(2, dim=1)
        return self.prior.log_prob(z2) + self.descend(z2).log_prob(z1)

    def draw_prior(self, n: int) -> Tensor:
        """``n`` samples of (z1, z2), where z2 is drawn first: (n, latent_dim)."""
        return self._complete(self.prior.sample(n))

    def draw_anchor(self, n: int) -> Tensor:
        """Samples of the prior with gradients to p(z1|z2), which is a part of the decoder, but not to p(z2)."""
        with torch.no_grad():
            z2 = self.prior.sample(n)
        return self._complete(z2)

    def _complete(self, z2: Tensor) -> Tensor:
        return torch.cat([self.descend(z2).draw(), z2], dim=1)

    def prepare(self, x: Tensor) -> None:
        """Initialize the pseudo-inputs of a VampPrior from training rows (B, *data_shape)."""
        if isinstance(self.prior, VampPrior):
            self.prior.prepare(x)


class ConvHVAE(TwoLevelModel):
    """A two-level model whose pixels are independent given z1 and z2; its arguments are those of the base class."""

    def _make_decoder(self, level: int) -> None:
        channels = self.data_shape[0]
        self.from_z1 = _gated_linear(level, HIDDEN)
        self.from_z2 = _gated_linear(level, HIDDEN)
        self.decoder = nn.Sequential(
            _gated_linear(2 * HIDDEN, math.prod(self.data_shape)),
            nn.Unflatten(1, self.data_shape),
            *(_gated_convolution(inputs, 64, 3) for inputs in (channels, 64, 64, 64)),
            nn.Conv2d(64, channels, 1),
        )

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z1, z2)``: (B,)."""
        return self.likelihood.log_prob(x, self._logits(z))

    def draw_data(self, z: Tensor) -> tuple[Tensor, bool]:
        """Binary images, (B, *data_shape), and False, since no gradients flow through them."""
        return self.likelihood.sample(self._logits(z)), False

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each (z1, z2): (B, *data_shape)."""
        return self.likelihood.mean(self._logits(z))

    def _logits(self, z: Tensor) -> Tensor:
        z1, z2 = z.chunk(2, dim=1)
        return widened(self.decoder(torch.cat([self.from_z1(z1), self.from_z2(z2)], dim=1)))


class PixelHVAE(TwoLevelModel):
    """A two-level model with an autoregressive decoder: a pixel depends on z1, z2 and the pixels before it.

    The order of the pixels is row by row. ``loss`` and ``log_weight`` evaluate p(x|z1, z2) of a given x in one pass.
    ``decode``, ``reconstruct`` and ``sample`` draw one pixel after the other and return the mean of each pixel given
    the pixels drawn before it. The expectation of that over repeated calls is the mean of x. Their argument
    ``progress`` wraps the iteration over the pixels, as ``tqdm.tqdm`` does.

    Drawing uses the running statistics of the batch normalization. Objectives with decoder samples draw in every step,
    and evaluate these samples with the running statistics too, so that the density is that of the distribution that
    the samples come from.

    Args:
        data_shape: Shape of one x, (1, height, width).
        latent_dim: Number of dimensions of z1 and z2 together, as for :class:`TwoLevelModel`; the same holds for all
            other arguments.
    """

    def _make_decoder(self, level: int) -> None:
        if self.data_shape[0] != 1:
            raise ValueError(f"data_shape must be (1, height, width) for a pixel decoder, got {self.data_shape}")
        shape = self.data_shape[1:]
        self.from_z1 = nn.Sequential(_gated_linear(level, math.prod(shape)), nn.Unflatten(1, (1, *shape)))
        self.from_z2 = nn.Sequential(_gated_linear(level, math.prod(shape)), nn.Unflatten(1, (1, *shape)))
        self.decoder = PixelCNN(2)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z1, z2)``, the sum over all pixels given the ones before them: (B,)."""
        return self.likelihood.log_prob(x, widened(self.decoder(x, self._maps(z))))

    def draw_data(self, z: Tensor) -> tuple[Tensor, bool]:
        """Binary images, (B, *data_shape), and False, since no gradients flow through them."""
        return self.decoder.draw(self._maps(z))[0], False

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Use the running statistics, which decoder samples are drawn with, to evaluate them too."""
        before = self.decoder.training
        self.decoder.eval()
        try:
            yield
        finally:
            self.decoder.train(before)

    def decode(self, z: Tensor, progress: Progress = iter) -> Tensor:
        """The mean of each pixel given (z1, z2) and the pixels drawn before it: (B, *data_shape), no gradients."""
        return self.decoder.draw(self._maps(z), progress)[1]

    def reconstruct(self, x: Tensor, progress: Progress = iter) -> Tensor:
        """Call :meth:`decode` for one sample of z for each x: (B, *data_shape)."""
        return self.decode(self.encode(x), progress)

    def sample(self, n: int, progress: Progress = iter) -> Tensor:
        """Call :meth:`decode` for ``n`` samples of the prior: (n, *data_shape)."""
        return self.decode(self.draw_prior(n), progress)

    def _maps(self, z: Tensor) -> Tensor:
        z1, z2 = z.chunk(2, dim=1)
        return widened(torch.cat([self.from_z1(z1), self.from_z2(z2)], dim=1))


class MaskedConv2d(nn.Conv2d):
    """A 3 x 3 convolution whose output at a pixel does not depend on later pixels (van den Oord et al. 2016, PixelRNN).

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        hidden: Number of input channels, counted from the first, that are also hidden at the pixel itself (mask A);
            the others are visible there (mask B).
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, hidden: int = 0) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 2:] = 0
        mask[:, :, 2:] = 0
        mask[:, :hidden, 1, 1] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        return functional.conv2d(x, self.weight * self.mask, padding=1)


class MaskedLayer(nn.Module):
    """A masked convolution, batch normalization and ReLU, with the arguments of :class:`MaskedConv2d`."""

    def __init__(self, inputs: int, outputs: int, hidden: int = 0) -> None:
        super().__init__()
        self.convolution = MaskedConv2d(inputs, outputs, hidden)
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
    """A network for the logits of each pixel given conditioning maps and the pixels before it, row by row.

    The first mask hides a pixel from itself, but does not hide the maps at that pixel.

    Args:
        maps: Number of conditioning channels.
        channels: Number of channels of the hidden layers.
        layers: Number of masked convolutions. Each extends the context of a pixel by one row and one column.
    """

    def __init__(self, maps: int, channels: int = 64, layers: int = 8) -> None:
        super().__init__()
        first = MaskedLayer(1 + maps, channels, hidden=1)
        self.layers = nn.Sequential(first, *(MaskedLayer(channels, channels) for _ in range(layers - 1)))
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, maps: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of images x (B, 1, H, W) given maps (B, maps, H, W)."""
        logits: Tensor = self.head(self.layers(torch.cat([x, maps], dim=1)))
        return logits

    @torch.no_grad()
    def draw(self, maps: Tensor, progress: Progress = iter) -> tuple[Tensor, Tensor]:
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
        for place in progress(range(height * width)):
            i, j = divmod(place, width)
            for (weight, bias), plane, following in zip(layers, planes[:-1], planes[1:], strict=True):
                patch = plane[:, :, i : i + 3, j : j + 3].flatten(1)
                following[:, :, i + 1, j + 1] = torch.relu(functional.linear(patch, weight, bias))
            probability = torch.sigmoid(self.head(planes[-1][:, :, i + 1, j + 1, None, None]))[:, :, 0, 0]
            probabilities[:, :, i, j] = probability
            planes[0][:, :1, i + 1, j + 1] = torch.bernoulli(probability)
        return planes[0][:, :1, 1:-1, 1:-1].contiguous(), probabilities


def _gaussian(raw: Tensor) -> DiagonalGaussian:
    mean, log_variance = widened(raw).chunk(2, dim=1)
    return DiagonalGaussian(mean, log_variance.clamp(*LOG_VARIANCES))


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
