"""The demonstration's pictures, each as a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from echo_ext import plots
from echo_ext.demo.training import MODELS, History, Measured

__all__ = ["curves", "reconstructions", "samples"]


def reconstructions(images: Tensor, reconstructed: Mapping[str, Tensor]) -> Figure:
    """Test images above what each model makes of them; all (n, channels, height, width)."""
    return plots.reconstructions(images, {MODELS[kind]: mean for kind, mean in reconstructed.items()})


def samples(drawn: Mapping[str, Tensor]) -> Figure:
    """Decoded draws of each model's marginal side by side; each (n, channels, height, width)."""
    titles = {"echo": "Echo: z from its exact marginal", "vae": "VAE: z from N(0, I)"}
    return plots.samples({titles[kind]: images for kind, images in drawn.items()})


def curves(history: Mapping[str, History], tested: Mapping[str, Measured], *, rate_floor: float) -> Figure:
    """Rate, distortion and -ELBO against the epoch: validation in full, training faintly, test as dots."""
    courses = {}
    for kind, points in history.items():
        training, validation = (_series(part) for part in zip(*points, strict=True))
        test = {name: values[0] for name, values in _series([tested[kind]]).items()}
        courses[MODELS[kind]] = plots.Course(training, validation, test)
    return plots.curves(courses, rate_floor=rate_floor)


def _series(points: Sequence[Measured]) -> dict[str, list[float]]:
    return {name: [getattr(point, name) for point in points] for name in ("rate", "distortion", "neg_elbo")}
