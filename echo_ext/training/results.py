"""What a finished run is measured by, and its pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echo_ext import metrics
from echo_ext._versions import versions
from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.training.configuration import Configuration
from echo_ext.training.fitting import measured_rows
from echo_ext.training.progress import watched
from echo_ext.training.run_directory import RATES, RunDirectory
from echo_ext.training.schedules import Stream, derive_seed

if TYPE_CHECKING:
    from echo_ext import plots

__all__ = ["SHOWN", "TEST_DRAWS", "mean_and_error", "measure", "spread", "write_figures"]

TEST_DRAWS = 4
# Rows in the pictures: images are seen one by one, vectors as a cloud.
SHOWN, DRAWN = 12, 64
SHOWN_VECTORS = 2000


def measure(
    model: Model,
    test: LabelledDataset,
    configuration: Configuration,
    history: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """What ``result.json`` says: rate or rate bound, distortion and -ELBO of the test rows, and how they came about."""
    torch.manual_seed(derive_seed(configuration.seed, Stream.MEASURE))
    at_once = measured_rows(next(model.parameters()).device)
    measured = metrics.rate_distortion(model, test, draws=TEST_DRAWS, batch_size=at_once)
    return {
        "recipe": configuration.recipe,
        "data": configuration.data,
        "beta": configuration.beta,
        "seed": configuration.seed,
        measured.rate_name: measured.rate,
        "distortion": measured.distortion,
        "neg_elbo": measured.neg_elbo,
        "unit": "nats per sample",
        "draws": TEST_DRAWS,
        "rows": {"test": len(test)},
        "epochs": len(history),
        "seconds": round(sum(row["seconds"] for row in history), 2),
        "versions": {**versions(), "lightning": metadata.version("lightning")},
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds, and its standard error; NaN for a single seed."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def spread(data: LabelledDataset, rows: int) -> Tensor:
    """The x of at most so many rows from all over a data set, since files may be sorted by label."""
    rows = min(rows, len(data))
    return data.values(torch.arange(rows, device=data.labels.device) * len(data) // rows)


@torch.no_grad()
def write_figures(
    model: Model,
    test: LabelledDataset,
    configuration: Configuration,
    directory: RunDirectory,
    history: Sequence[Mapping[str, float]],
    result: Mapping[str, Any],
) -> None:
    """``reconstructions.png``, ``samples.png`` and ``curves.png``."""
    from echo_ext import plots

    torch.manual_seed(derive_seed(configuration.seed, Stream.FIGURES))
    model.eval()
    are_images = len(test.data_shape) == 3
    shown, drawn = (SHOWN, DRAWN) if are_images else (SHOWN_VECTORS, SHOWN_VECTORS)
    x = spread(test, shown)
    reconstruct, sample = (watched(draw, "drawing") for draw in (model.reconstruct, model.sample))
    reconstructed = reconstruct(x.to(next(model.parameters()).device))
    name = configuration.recipe
    figures = {
        "reconstructions.png": plots.reconstructions(x, {name: reconstructed.cpu()}),
        "samples.png": plots.samples({name: sample(drawn).cpu()}),
        "curves.png": plots.curves({name: _course(history, result)}),
    }
    for file, figure in figures.items():
        with directory.part(file) as part:
            figure.savefig(part)


def _course(history: Sequence[Mapping[str, float]], result: Mapping[str, Any]) -> plots.Course:
    """The history by quantity, the -ELBO among them."""
    from echo_ext import plots

    rate = next(name for name in RATES if name in result)

    def series(part: str) -> dict[str, list[float]]:
        rates, distortions = ([row[f"{part}_{name}"] for row in history] for name in (rate, "distortion"))
        return {
            rate: rates,
            "distortion": distortions,
            "neg_elbo": [sum(pair) for pair in zip(rates, distortions, strict=True)],
        }

    test = {name: result[name] for name in (rate, "distortion", "neg_elbo")}
    return plots.Course(series("train"), series("valid"), test)
