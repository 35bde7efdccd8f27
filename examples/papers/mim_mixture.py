"""MIM compared with a VAE on a two-dimensional mixture, for networks of three widths."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import figures
import torch
from experiment import Case, Context, Experiment, Result, Row, main, run_name, selected_settings

from echo_ext import data, metrics, mutual_information
from echo_ext.data import LabeledDataset
from echo_ext.models import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DATA = "gmm2d"
WIDTHS = (5, 20, 500)
MODELS = {"VAE": "vae", "A-MIM": "a-mim", "MIM": "mim", "VAE+H": "vae-h", "MIM-H": "mim-h"}
EPOCHS, WARM_UP = 30, 3
NEIGHBORS = 5
# Number of test rows for the likelihood, and number of samples of z for each.
LIKELIHOOD_ROWS, LIKELIHOOD_SAMPLES = 1000, 200
# Number of test rows in the figure of the codes.
PLOTTED_ROWS = 240

INFORMATION, ERROR, ACCURACY, NLL = "I(x; z), nats", "RMSE", "5-NN accuracy", "NLL, nats"


def compare(context: Context, models: Sequence[str]) -> Result:
    """Train and evaluate these models for each width."""
    cases: list[Case] = [
        (
            {"hidden units": width, "model": model},
            # One recipe for all models, so that they differ only in the loss.
            context.configuration(
                "mim",
                DATA,
                latent_dim=2,
                epochs=EPOCHS,
                warm_up_epochs=WARM_UP,
                schedule="constant-then-linear",
                model_settings={"objective": MODELS[model], "hidden": [width]},
            ),
        )
        for width in WIDTHS
        for model in models
    ]
    rows = context.rows(cases, measure)
    _, configuration = cases[0]
    settings = {
        "data": DATA,
        "layers": "two linear layers with tanh in between, in the encoder and in the decoder, as in the published code",
        **selected_settings(
            configuration, "latent_dim", "epochs", "limit", "batch_size", "learning_rate", "schedule", "warm_up_epochs"
        ),
        INFORMATION: f"KSG with k = {NEIGHBORS} between the test rows and one sample of z for each",
        ERROR: "root mean square error per coordinate of the reconstructed test rows",
        NLL: f"importance sampling, {LIKELIHOOD_SAMPLES} samples of z for each of {LIKELIHOOD_ROWS} test rows",
    }
    names = [run_name(labels, context.seeds[0]) for labels, _ in cases]
    titles = [f"{labels['model']}, {labels['hidden units']} hidden units" for labels, _ in cases]
    drawn = {
        "measures.png": _measures(rows, models),
        "codes.png": _codes([context.model(name) for name in names], titles, columns=len(models)),
    }
    return Result(rows, drawn, settings)


def measure(model: Model, parts: Mapping[str, LabeledDataset]) -> dict[str, float]:
    """Measure I(x; z) by KSG, RMSE, 5-NN accuracy and importance-sampled NLL on the test rows."""
    train, test = parts["train"], parts["test"]
    x = test.values(slice(None))
    z = model.encode(x)
    accuracy = metrics.knn_accuracy(
        model.encode(train.values(slice(None))), train.labels, z, test.labels, k=min(NEIGHBORS, len(train))
    )
    nll = metrics.importance_nll(model, x[:LIKELIHOOD_ROWS], draws=LIKELIHOOD_SAMPLES, max_batch_size=50_000)
    return {
        INFORMATION: float(mutual_information(x.double(), z.double(), k=NEIGHBORS)),
        ERROR: (model.decode(z) - x).square().mean().sqrt().item(),
        ACCURACY: accuracy,
        NLL: nll,
    }


def _measures(rows: Sequence[Row], models: Sequence[str]) -> Figure:
    def trend(quantity: str, model: str) -> list[tuple[float, float]]:
        return [(row.mean(quantity), row.error(quantity)) for row in rows if row.labels["model"] == model]

    measured = {quantity: {model: trend(quantity, model) for model in models} for quantity in rows[0].values}
    return figures.trends(measured, ticks=WIDTHS, xlabel="hidden units")


@torch.no_grad()
def _codes(models: Sequence[Model], titles: Sequence[str], *, columns: int) -> Figure:
    torch.manual_seed(0)
    x, labels = data.load(DATA)["test"][:PLOTTED_ROWS]
    codes = {title: model.cpu().encode(x) for title, model in zip(titles, models, strict=True)}
    return figures.scatters(codes, labels=labels, columns=columns)


EXPERIMENT = Experiment(
    summary="MIM compared with a VAE on a two-dimensional mixture: z stays informative where the VAE collapses",
    source="Livne, Swersky & Fleet 2019, section 4 (2-D mixture)",
    run=lambda context: compare(context, ("VAE", "A-MIM", "MIM")),
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
