"""MIM, A-MIM and VAE with two levels of latents on images: likelihood, 5-NN accuracy, reconstructions, samples, t-SNE.

Livne, Swersky & Fleet 2019, sections 5.2 and 5.3, figures 4 to 8 and 16 to 25
"""

import torch
from experiment import Experiment, main

from echo_ext import metrics, plots
from echo_ext.training import Configuration
from echo_ext.training.evaluation import encoded, evenly_spaced, pixel_progress

DATA = ("fashion-mnist", "mnist", "omniglot")
ARCHITECTURES = ("convhvae-s", "convhvae-vp", "pixelhvae-s", "pixelhvae-vp")
# Drawing decoder samples of a PixelHVAE in every step is too slow, so the paper has no full MIM of it.
LOSSES = {"convhvae": ("MIM", "A-MIM", "VAE"), "pixelhvae": ("A-MIM", "VAE")}
NEIGHBORS = 5
# Numbers of rows in the figures.
RECONSTRUCTED, SAMPLED, EMBEDDED = 12, 36, 2000

NLL, ELBO, ACCURACY, DRAWS = "NLL, nats", "-ELBO, nats", "5-NN accuracy", "effective draws, median"
NOTES = {
    NLL: "importance sampling with --draws samples of z for each of --rows test rows, a tenth of them from wider "
    "distributions than q(z|x)",
    ELBO: "one sample of z for each of the same rows",
    DRAWS: "number of equally weighted samples that are worth as much as the --draws samples",
    ACCURACY: "of the codes without noise, with all training rows",
}


def cases(data, architectures):
    """The losses of each architecture on each data set."""
    for name, known, given in (("data", DATA, data), ("architectures", ARCHITECTURES, architectures)):
        if unknown := [each for each in given if each not in known]:
            raise ValueError(f"{name} must be some of {', '.join(known)}, got {', '.join(unknown)}")
    for each in data:
        for architecture in architectures:
            for loss in LOSSES[architecture.partition("-")[0]]:
                labels = {"data": each, "architecture": architecture, "loss": loss}
                recipe = f"{architecture}-{loss.lower()}"
                yield labels, Configuration.of(recipe, each, latent_dim=80, binarization="dynamic")


def measure(model, parts, draws, rows):
    """Measure the likelihood of test rows and the accuracy of a nearest-neighbor classifier of the codes."""
    train, test = parts["train"], parts["test"]
    chosen = test.select(slice(rows))
    estimate = metrics.importance_estimate(model, chosen, draws=draws)
    found = {
        NLL: estimate.nll,
        DRAWS: estimate.effective_draws.median().item(),
        ELBO: metrics.rate_distortion(model, chosen, draws=1).neg_elbo,
    }
    if int(test.labels.min()) >= 0:
        codes = (
            *(encoded(model.encode_mean, train, "codes of training rows"), train.labels),
            *(encoded(model.encode_mean, test, "codes of test rows"), test.labels),
        )
        found[ACCURACY] = metrics.knn_accuracy(*codes, k=min(NEIGHBORS, len(train)))
    return found


def draw(table, models, tests):
    """Reconstructions and samples of the losses of each architecture on each data set, and the codes of each model."""
    figures = {}
    for data, architecture in table.index.droplevel("loss").unique():
        shown = {loss: models[data, architecture, loss] for loss in table.loc[data, architecture].index}
        test = tests[data, architecture, next(iter(shown))]
        x, reconstructed, drawn = evenly_spaced(test, RECONSTRUCTED), {}, {}
        known = test.labels[:EMBEDDED] if int(test.labels.min()) >= 0 else None
        for loss, model in shown.items():
            torch.manual_seed(0)
            with pixel_progress(model):
                reconstructed[loss], drawn[loss] = model.reconstruct(x), model.sample(SAMPLED)
            codes = metrics.tsne(encoded(model.encode_mean, test.select(slice(EMBEDDED)), "codes to embed"))
            figure = plots.embedding(codes, known, title=f"{loss}, {architecture}, {data}")
            figures[f"embedding-{data}-{architecture}-{loss.lower()}.png"] = figure
        figures[f"reconstructions-{data}-{architecture}.png"] = plots.reconstructions(x, reconstructed)
        figures[f"samples-{data}-{architecture}.png"] = plots.samples(drawn, columns=6)
    return figures


EXPERIMENT = Experiment(
    "mim-images",
    __doc__,
    cases,
    measure,
    draw,
    NOTES,
    options={"data": DATA, "architectures": ARCHITECTURES},
    measure_options={"draws": 5000, "rows": 10_000},
    seeds=10,
    all_tests=True,
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
