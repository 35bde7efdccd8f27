"""MIM compared with a VAE on a two-dimensional mixture: z stays informative where the VAE collapses.

Livne, Swersky & Fleet 2019, section 4 (2-D mixture)
"""

import functools
import itertools

import figures
from experiment import Experiment, main

from echo_ext import metrics, mutual_information
from echo_ext.data.mixtures import MIXTURES
from echo_ext.training import Configuration

DATA = "gmm2d"
WIDTHS = (5, 20, 500)
OBJECTIVES = {"VAE": "vae", "A-MIM": "a-mim", "MIM": "mim", "VAE+H": "vae-h", "MIM-H": "mim-h"}
NEIGHBORS = 5
# Number of test rows for the likelihood, and number of samples of z for each.
LIKELIHOOD_ROWS, LIKELIHOOD_SAMPLES = 1000, 200
# Number of test rows in the figure of the models, and its widths, unless none of them was trained.
PLOTTED_ROWS, SHOWN_WIDTHS = 200, (5, 20, 500)

INFORMATION, ERROR, ACCURACY, NLL = "I(x; z), nats", "RMSE", "5-NN accuracy", "NLL, nats"
NOTES = {
    "layers": "two linear layers with tanh in between, in the encoder and in the decoder, as in the published code",
    INFORMATION: f"KSG with k = {NEIGHBORS} between the test rows and one sample of z for each",
    ERROR: "root mean square error per coordinate of the reconstructed test rows",
    NLL: f"importance sampling, {LIKELIHOOD_SAMPLES} samples of z for each of {LIKELIHOOD_ROWS} test rows",
}


def cases(models, widths):
    """Each model for each number of hidden units, with one recipe for all, so that they differ only in the loss."""
    training = {"epochs": 30, "warm_up_epochs": 3, "schedule": "constant-then-linear"}
    for width in widths:
        for model in models:
            settings = {"objective": OBJECTIVES[model], "hidden": [width]}
            configuration = Configuration.of("mim", DATA, latent_dim=2, model_settings=settings, **training)
            yield {"hidden units": width, "model": model}, configuration


def measure(model, parts):
    """Measure I(x; z) by KSG, RMSE, 5-NN accuracy and importance-sampled NLL on the test rows."""
    train, test = parts["train"], parts["test"]
    x = test.values(slice(None))
    z = model.encode(x)
    train_codes = model.encode(train.values(slice(None)))
    accuracy = metrics.knn_accuracy(train_codes, train.labels, z, test.labels, k=min(NEIGHBORS, len(train)))
    rows = x[:LIKELIHOOD_ROWS]
    return {
        INFORMATION: float(mutual_information(x.double(), z.double(), k=NEIGHBORS)),
        ERROR: (model.decode(z) - x).square().mean().sqrt().item(),
        ACCURACY: accuracy,
        NLL: metrics.importance_nll(model, rows, draws=LIKELIHOOD_SAMPLES, max_batch_size=50_000),
    }


def draw(names, table, models, test):
    """The measures against the width, and the data space and the latent space of the models of these names."""
    trained = table.index.unique(0)
    widths = [width for width in trained if width in SHOWN_WIDTHS] or trained
    first, shown, insets = table.xs("first", axis=1, level=1), {}, {}
    for width, name in itertools.product(widths, names):
        title, values = f"{name}, {width} units", first.loc[width, name]
        shown[title] = models[width, name]
        insets[title] = f"MI = {values[INFORMATION]:.1f}", f"RMSE = {values[ERROR]:.2g}"
    planes = figures.planes(shown, test.values(slice(PLOTTED_ROWS)), MIXTURES[DATA], insets)
    return {"measures.png": figures.trends(table), "models.png": planes}


def comparison(name, description, models, shown):
    """The experiment that compares these models, and shows some of them."""
    arguments = functools.partial(cases, models), measure, functools.partial(draw, shown), NOTES
    return Experiment(name, description, *arguments, options={"widths": WIDTHS})


EXPERIMENT = comparison("mim-mixture", __doc__, ("VAE", "A-MIM", "MIM"), shown=("VAE", "A-MIM", "MIM"))

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
