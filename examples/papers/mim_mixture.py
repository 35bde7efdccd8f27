"""MIM compared with a VAE on a two-dimensional mixture: z stays informative where the VAE collapses.

Livne, Swersky & Fleet 2019, section 5.1, figures 1 and 2
"""

import functools

import figures
from experiment import Experiment, main

from echo_ext import metrics, mutual_information
from echo_ext.training import Configuration

DATA = "gmm2d"
WIDTHS = (5, 20, 50, 100, 200, 300, 400, 500)
# The settings of each model that the others do not share.
MODELS = {name: {"objective": name.lower()} for name in ("VAE", "A-MIM", "MIM")}
NEIGHBORS = 5
# Number of test rows for the importance-sampled likelihood, and number of samples of z for each.
LIKELIHOOD_ROWS, LIKELIHOOD_SAMPLES = 1000, 200
# Number of test rows in the figure of the models.
PLOTTED_ROWS = 240

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
            training = {"warm_up_from_zero": settings.get("warm_up") != "encoding"}  # as in the authors' code
            chosen = {"hidden": [width], **settings}
            configuration = Configuration.of("mim", DATA, latent_dim=2, model_settings=chosen, **training)
            yield {"hidden units": width, "model": name}, configuration


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


def draw(table, models, test):
    """The measures against the width, and the codes of test rows for every case."""
    x, labels = test[:PLOTTED_ROWS]
    codes = {f"{name}, {width} hidden units": model.encode(x) for (width, name), model in models.items()}
    columns = len(table.index.unique("model"))
    return {
        "measures.png": figures.trends(table),
        "codes.png": figures.scatters(codes, labels=labels, columns=columns),
    }


def comparison(name, description, models):
    """The experiment that compares these models."""
    chosen = functools.partial(cases, models)
    return Experiment(name, description, chosen, measure, draw, NOTES, options={"widths": WIDTHS}, seeds=10)


EXPERIMENT = comparison("mim-mixture", __doc__, MODELS)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
