"""What a finished run is measured by, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

from echo_ext import metrics
from echo_ext._versions import versions
from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.training.configuration import Configuration
from echo_ext.training.schedules import Stream, derive_seed

__all__ = ["RATES", "TEST_DRAWS", "measure"]

RATES = {"rate": "rate", "rate_bound": "rate bound"}  # key in result.json and name in tables
TEST_DRAWS = 4


def measure(
    model: Model,
    test: LabelledDataset,
    configuration: Configuration,
    history: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """What ``result.json`` says: rate or rate bound, distortion and -ELBO of the test rows, and how they came about."""
    torch.manual_seed(derive_seed(configuration.seed, Stream.MEASURE))
    measured = metrics.rate_distortion(model, test, draws=TEST_DRAWS)
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
