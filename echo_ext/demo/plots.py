"""The figures of the demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from echo_ext import plots
from echo_ext.demo.training import MODELS, History, Measured

__all__ = ["curves", "reconstructions", "samples"]


def reconstructions(images: Tensor, reconstructed: Mapping[str, Tensor]) -> Figure:
    """Plot test images and their reconstructions by each model; all are (n, channels, height, width)."""
    return plots.reconstructions(images, {MODELS[kind]: mean for kind, mean in reconstructed.items()})


def samples(drawn: Mapping[str, Tensor]) -> Figure:
    """Plot decoded samples of each model's marginal side by side; all are (n, channels, height, width)."""
    titles = {"echo": "Echo: z from its exact marginal", "vae": "VAE: z from N(0, I)"}
    return plots.samples({titles[kind]: images for kind, images in drawn.items()})


def curves(history: Mapping[str, History], tested: Mapping[str, Measured], *, rate_floor: float) -> Figure:
    """Plot rate, distortion and -ELBO against the epoch, for training, validation and test rows."""
    histories = {}
    for kind, points in history.items():
        training, validation = (_series(part) for part in zip(*points, strict=True))
        test = {name: values[0] for name, values in _series([tested[kind]]).items()}
        histories[MODELS[kind]] = plots.History(training, validation, test)
    return plots.curves(histories, rate_floor=rate_floor)


def _series(points: Sequence[Measured]) -> dict[str, list[float]]:
    return {name: [getattr(point, name) for point in points] for name in ("rate", "distortion", "neg_elbo")}
