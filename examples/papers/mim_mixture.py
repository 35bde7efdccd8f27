"""MIM compared with a VAE on a two-dimensional mixture: z stays informative where the VAE collapses.

Livne, Swersky & Fleet 2019, section 5.1, figures 1 and 2
"""

import functools
import itertools

import figures
from experiment import Experiment, main

from echo_ext import metrics, mutual_information
from echo_ext.data.mixtures import MIXTURES
from echo_ext.training import Configuration

DATA = "gmm2d"
WIDTHS = (5, 20, 50, 100, 200, 300, 400, 500)
# The settings of each model that the others do not share.
MODELS = {name: {"objective": name.lower()} for name in ("VAE", "A-MIM", "MIM")}
MODELS["MIM code"] = {"objective": "mim", "warm_up": "encoding"}  # with the warm-up of the authors' code
NEIGHBORS = 5
# Number of test rows for the importance-sampled likelihood, and number of samples of z for each.
LIKELIHOOD_ROWS, LIKELIHOOD_SAMPLES = 1000, 200
# Number of test rows in the figure of the models, and its widths, unless none of them was trained.
PLOTTED_ROWS, SHOWN_WIDTHS = 200, (5, 20, 500)
# Models with a larger -ELBO have diverged, and would hide all others in the figure of the measures.
DIVERGED = 100.0

INFORMATION, ERROR, ACCURACY = "I(x; z), nats", "RMSE", "5-NN accuracy"
ELBO, NLL = "-ELBO, nats", "NLL, nats"
NOTES = {
    "layers": "two fully connected layers with tanh in between, in the encoder and in the decoder",
    INFORMATION: f"KSG with k = {NEIGHBORS} between the test rows and one sample of z for each; for 10,000 rows it "
    "cannot exceed psi(10000) - psi(5) = 7.70",
    ERROR: "root mean square error per coordinate of the reconstructed test rows",
    ACCURACY: "of samples of z, with all training rows",
    ELBO: "one sample of z for each test row: the NLL of the paper, -E log q(x) under the encoder",
    NLL: f"importance sampling, {LIKELIHOOD_SAMPLES} samples of z for each of {LIKELIHOOD_ROWS} test rows, a tenth of "
    "them from wider distributions than q(z|x)",
}


def cases(models, widths):
    """Each model for each number of hidden units, with one recipe for all, so that they differ only in the loss."""
    for width in widths:
        for name, settings in models.items():
            yield {"hidden units": width, "model": name}, configured(DATA, 2, width, settings)


def configured(data, latent_dim, width, settings):
    """The configuration of a model with this many latents and hidden units, and these settings."""
    from_zero = settings.get("warm_up") != "encoding"  # the warm-up of the authors' code begins above zero
    chosen = {"hidden": [width], **settings}
    return Configuration.of("mim", data, latent_dim=latent_dim, model_settings=chosen, warm_up_from_zero=from_zero)


def measure(model, parts):
    """Measure I(x; z) by KSG, RMSE, 5-NN accuracy, -ELBO and importance-sampled NLL on the test rows."""
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
        ELBO: -model.log_weight(x).mean().item(),
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
        insets[title] = f"MI = {values[INFORMATION]:.1f}", f"RMSE = {values[ERROR]:#.2g}"
    planes = figures.planes(shown, test.values(slice(PLOTTED_ROWS)), MIXTURES[DATA], insets)
    diverged = table[ELBO, "mean"].groupby(level=1).max() > DIVERGED
    kept = table[~table.index.get_level_values(1).map(diverged)]
    return {"measures.png": figures.trends(kept), "models.png": planes}


def comparison(name, description, models, *, shown):
    """The experiment that compares these models, and shows those of these names."""
    parts = functools.partial(cases, models), measure, functools.partial(draw, shown), NOTES
    return Experiment(name, description, *parts, options={"widths": WIDTHS}, seeds=10)


EXPERIMENT = comparison("mim-mixture", __doc__, MODELS, shown=("VAE", "MIM"))

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
