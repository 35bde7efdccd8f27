"""MIM against VAE on a mixture in the plane, in networks of three widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from echo_ext import data, metrics, mutual_information
from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.reproduce.experiment import Bench, Case, Experiment, Outcome, Row, run_name, stated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "compare", "measure"]

DATA = "gmm2d"
WIDTHS = (5, 20, 500)
MODELS = {"VAE": "vae", "A-MIM": "a-mim", "MIM": "mim", "VAE+H": "vae-h", "MIM-H": "mim-h"}
EPOCHS, WARM_UP = 30, 3
NEIGHBORS = 5
# Test rows, and draws of z for each, that the likelihood is estimated by.
LIKELIHOOD_ROWS, LIKELIHOOD_DRAWS = 1000, 200
# Test rows in the figure of the codes.
DRAWN = 240

INFORMATION, ERROR, ACCURACY, NLL = "I(x; z), nats", "RMSE", "5-NN accuracy", "NLL, nats"


def compare(bench: Bench, models: Sequence[str]) -> Outcome:
    """Train these models in each width, and measure them."""
    cases: list[Case] = [
        (
            {"hidden units": width, "model": model},
            # One recipe for all of them, so that they share everything but the loss.
            bench.configuration(
                "mim",
                DATA,
                latent_dim=2,
                epochs=EPOCHS,
                warm_up_epochs=WARM_UP,
                schedule="constant-then-linear",
                model={"objective": MODELS[model], "hidden": [width]},
            ),
        )
        for width in WIDTHS
        for model in models
    ]
    rows = bench.rows(cases, measure)
    _, configuration = cases[0]
    settings = {
        "data": DATA,
        "layers": "two linear layers with tanh between in encoder and in decoder, as in the published code",
        **stated(
            configuration, "latent_dim", "epochs", "limit", "batch_size", "learning_rate", "schedule", "warm_up_epochs"
        ),
        INFORMATION: f"KSG with k = {NEIGHBORS} between the test rows and a draw of z of each",
        ERROR: "root of the mean square error per coordinate of the reconstructed test rows",
        NLL: f"importance sampling, {LIKELIHOOD_DRAWS} draws of z for each of {LIKELIHOOD_ROWS} test rows",
    }
    names = [run_name(labels, bench.seeds[0]) for labels, _ in cases]
    titles = [f"{labels['model']}, {labels['hidden units']} hidden units" for labels, _ in cases]
    figures = {
        "measures.png": _measures(rows, models),
        "codes.png": _codes([bench.model(name) for name in names], titles, columns=len(models)),
    }
    return Outcome(rows, figures, settings)


def measure(model: Model, parts: Mapping[str, LabelledDataset]) -> dict[str, float]:
    """I(x; z) by KSG, RMSE, 5-NN accuracy and importance-sampled NLL on the test rows."""
    train, test = parts["train"], parts["test"]
    x = test.values(slice(None))
    z = model.encode(x)
    accuracy = metrics.knn_accuracy(
        model.encode(train.values(slice(None))), train.labels, z, test.labels, k=min(NEIGHBORS, len(train))
    )
    nll = metrics.importance_nll(model, x[:LIKELIHOOD_ROWS], samples=LIKELIHOOD_DRAWS, batch_size=50_000)
    return {
        INFORMATION: float(mutual_information(x.double(), z.double(), k=NEIGHBORS)),
        ERROR: (model.decode(z) - x).square().mean().sqrt().item(),
        ACCURACY: accuracy,
        NLL: nll,
    }


def _measures(rows: Sequence[Row], models: Sequence[str]) -> Figure:
    from echo_ext import plots

    def trend(quantity: str, model: str) -> list[tuple[float, float]]:
        return [(row.mean(quantity), row.error(quantity)) for row in rows if row.labels["model"] == model]

    measured = {quantity: {model: trend(quantity, model) for model in models} for quantity in rows[0].values}
    return plots.trends(measured, places=WIDTHS, across="hidden units")


@torch.no_grad()
def _codes(models: Sequence[Model], titles: Sequence[str], *, columns: int) -> Figure:
    from echo_ext import plots

    torch.manual_seed(0)
    x, labels = data.load(DATA)["test"][:DRAWN]
    codes = {title: model.cpu().encode(x) for title, model in zip(titles, models, strict=True)}
    return plots.clouds(codes, labels=labels, columns=columns)


EXPERIMENT = Experiment(
    summary="MIM against VAE on a mixture in the plane: MIM informs where VAE collapses",
    source="Livne, Swersky & Fleet 2019, section 4 (2-D mixture)",
    run=lambda bench: compare(bench, ("VAE", "A-MIM", "MIM")),
)
