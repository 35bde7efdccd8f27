"""The second-order total correlation of the Echo noise after training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import figures
import torch
from experiment import Case, Context, Experiment, Result, Row, main, run_name, selected_settings
from torch import Tensor

from echo_ext import metrics
from echo_ext.data import LabeledDataset
from echo_ext.models import Autoencoder, Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PUBLISHED = {"binary-mnist": 7.3, "omniglot": 18.8, "fashion-mnist": 30.2}
# About 5,000 steps on each data set.
EPOCHS = {"binary-mnist": 10, "omniglot": 22, "fashion-mnist": 10}
HIDDEN = (512, 512)
LEARNING_RATE = 1e-3
SAMPLES = 100_000

CORRELATION = "TC of the noise, nats"


def run(context: Context) -> Result:
    """Train Echo on each data set, and measure its noise."""
    cases: list[Case] = [
        (
            {"data": data},
            context.configuration(
                "echo",
                data,
                epochs=EPOCHS[data],
                learning_rate=LEARNING_RATE,
                model_settings={"architecture": "mlp", "hidden": list(HIDDEN)},
            ),
        )
        for data in PUBLISHED
    ]
    measured = context.rows(cases, measure)
    rows = [Row({**row.labels, "published TC": PUBLISHED[str(row.labels["data"])]}, row.values) for row in measured]
    _, configuration = cases[0]
    settings = {
        "shortened": "fully connected layers and few epochs; the published values are for convolutions and 200 epochs",
        "layers": "784-512-512-32 and back, ReLU",
        **selected_settings(configuration, "latent_dim", "limit", "batch_size", "learning_rate", "schedule"),
        "epochs": {str(labels["data"]): configuration.epochs for labels, configuration in cases},
        CORRELATION: f"-1/2 log det of the correlation matrix of {SAMPLES} samples of the noise",
        "rate, distortion": "on the test rows, in nats per sample",
    }
    models = {str(labels["data"]): context.model(run_name(labels, context.seeds[0])) for labels, _ in cases}
    return Result(rows, {"correlations.png": _correlations(models)}, settings)


def measure(model: Model, parts: Mapping[str, LabeledDataset]) -> dict[str, float]:
    """The total correlation of the noise, and the rate, distortion and -ELBO of the test rows."""
    found = metrics.rate_distortion(model, parts["test"])
    return {
        CORRELATION: metrics.gaussian_total_correlation(_noise(model)),
        "rate": found.rate,
        "distortion": found.distortion,
        "-ELBO": found.neg_elbo,
    }


def _noise(model: Model) -> Tensor:
    """Samples of the noise, which has the same distribution as z: (SAMPLES, latent_dim)."""
    assert isinstance(model, Autoencoder)
    return model.channel.sample(SAMPLES)


@torch.no_grad()
def _correlations(models: Mapping[str, Model]) -> Figure:
    torch.manual_seed(0)
    return figures.correlations({data: _noise(model) for data, model in models.items()})


EXPERIMENT = Experiment(
    summary="the total correlation of the Echo noise, whose dimensions are dependent, after shortened training",
    source="Brekelmans, Moyer, Galstyan & Ver Steeg 2019, section 5",
    run=run,
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
