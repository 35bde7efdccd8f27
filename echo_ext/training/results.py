"""The result of a finished run and its figures."""

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
from echo_ext.data import LabeledDataset
from echo_ext.models import Model
from echo_ext.training.configuration import Configuration
from echo_ext.training.fitting import evaluation_batch_size
from echo_ext.training.progress import with_progress
from echo_ext.training.run_directory import RATES, RunDirectory
from echo_ext.training.schedules import Stream, derive_seed

if TYPE_CHECKING:
    from echo_ext import plots

__all__ = ["RECONSTRUCTED_IMAGES", "TEST_DRAWS", "evenly_spaced", "mean_and_error", "measure", "write_figures"]

TEST_DRAWS = 4
# Numbers of rows in the figures, where vectors are shown as scatter plots.
RECONSTRUCTED_IMAGES, SAMPLED_IMAGES = 12, 64
VECTORS = 2000


def measure(
    model: Model,
    test: LabeledDataset,
    configuration: Configuration,
    history: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """The content of ``result.json``: the rate or rate bound, distortion and -ELBO of the test rows, and settings."""
    torch.manual_seed(derive_seed(configuration.seed, Stream.MEASURE))
    batch_size = evaluation_batch_size(next(model.parameters()).device)
    measured = metrics.rate_distortion(model, test, draws=TEST_DRAWS, batch_size=batch_size)
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
    """The mean over seeds and its standard error, which is NaN for a single seed."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def evenly_spaced(data: LabeledDataset, rows: int) -> Tensor:
    """The x of this many evenly spaced rows, because files may be sorted by label; of all rows if there are fewer."""
    rows = min(rows, len(data))
    return data.values(torch.arange(rows, device=data.labels.device) * len(data) // rows)


@torch.no_grad()
def write_figures(
    model: Model,
    test: LabeledDataset,
    configuration: Configuration,
    directory: RunDirectory,
    history: Sequence[Mapping[str, float]],
    result: Mapping[str, Any],
) -> None:
    """Write ``reconstructions.png``, ``samples.png`` and ``curves.png``."""
    from echo_ext import plots

    torch.manual_seed(derive_seed(configuration.seed, Stream.FIGURES))
    model.eval()
    are_images = len(test.data_shape) == 3
    reconstructions, samples = (RECONSTRUCTED_IMAGES, SAMPLED_IMAGES) if are_images else (VECTORS, VECTORS)
    x = evenly_spaced(test, reconstructions)
    reconstruct, sample = (with_progress(method, "drawing") for method in (model.reconstruct, model.sample))
    reconstructed = reconstruct(x.to(next(model.parameters()).device))
    name = configuration.recipe
    figures = {
        "reconstructions.png": plots.reconstructions(x, {name: reconstructed.cpu()}),
        "samples.png": plots.samples({name: sample(samples).cpu()}),
        "curves.png": plots.curves({name: _series(history, result)}),
    }
    for file, figure in figures.items():
        with directory.replacement(file) as part:
            figure.savefig(part)


def _series(history: Sequence[Mapping[str, float]], result: Mapping[str, Any]) -> plots.History:
    """The rate, distortion and -ELBO after each epoch, and of the test rows."""
    from echo_ext import plots

    rate = next(name for name in RATES if name in result)

    def by_quantity(part: str) -> dict[str, list[float]]:
        rates, distortions = ([row[f"{part}_{name}"] for row in history] for name in (rate, "distortion"))
        return {
            rate: rates,
            "distortion": distortions,
            "neg_elbo": [sum(pair) for pair in zip(rates, distortions, strict=True)],
        }

    test = {name: result[name] for name in (rate, "distortion", "neg_elbo")}
    return plots.History(by_quantity("train"), by_quantity("valid"), test)
