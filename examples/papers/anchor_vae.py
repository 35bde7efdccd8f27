"""Five latents of AnchorVAE with half the rate weight carry the most information about Fashion-MNIST.

Gao, Brekelmans, Ver Steeg & Galstyan 2019 (AnchorVAE), where the data are CelebA
"""

import figures
import torch
from experiment import Experiment, main

from echo_ext import metrics, plots
from echo_ext.training import Configuration

DATA = "fashion-mnist"
# CorEx is trained as a VAE and differs only in the distribution that it is sampled from.
RECIPES = {"CorEx": "corex", "AnchorVAE": "anchor-vae"}
CHEAP = 5  # the latents with half the rate weight
# Test rows; the mixture of their posteriors estimates q(z_j). I(z_j; x) is at most log(ROWS) = 8.5 nats.
ROWS = 5000
SAMPLES = 12
SEEDS = 5  # test images whose latents are varied

WIDE, BOUND = "share of latents with a variance above 2", "bound on TC(x), nats"
NOTES = {
    WIDE: "of a sample of z for each row",
    BOUND: "sum_i H(x_i) - D - sum_j KL(q(z_j|x) | N(0, 1)), for pixels with the gray levels as probabilities",
    "layers": "784-512-512-32 and back, ReLU",
    "rate weights": f"half for the first {CHEAP} latents of AnchorVAE",
    "formula": f"E KL(q(z_j|x) | q(z_j)), where q(z_j) is the mixture over {ROWS} test rows; mean over the latents",
    "k-NN": "KSG with k = 3 between z_j and the mean and standard deviation of q(z_j|x), for the same rows",
}


def cases():
    """The model with equal weights of the rates, and with smaller ones for some latents."""
    settings = {"architecture": "mlp", "hidden": [512, 512]}
    training = {"latent_dim": 32, "epochs": 5, "batch_size": 200, "learning_rate": 1e-3}
    for name, recipe in RECIPES.items():
        yield {"model": name}, Configuration.of(recipe, DATA, model_settings=settings, **training)


def measure(model, parts):
    """The information of the first and of the other latents about x by two methods, and the rate and distortion."""
    x = parts["test"].values(slice(ROWS))
    found = metrics.rate_distortion(model, parts["test"])
    values = {}
    for name, method in {"formula": "formula", "k-NN": "knn"}.items():
        information = metrics.latent_information(model, x, method=method)
        values[f"latents 0 to {CHEAP - 1}, {name}"] = information[:CHEAP].mean().item()
        values[f"the best others, {name}"] = information[CHEAP:].topk(CHEAP).values.mean().item()
    values[WIDE] = (model.encode(x).var(0) > 2).double().mean().item()
    values[BOUND] = metrics.layer_terms(model, x).sum().item()
    return {**values, "rate bound": found.rate, "distortion": found.distortion, "-ELBO": found.neg_elbo}


def draw(table, models, test):
    """The information of each latent, samples of both distributions of z, and traversals (figures 4 to 8)."""
    x = test.values(slice(ROWS))
    formula, knn = (
        {name: metrics.latent_information(model, x, method=method) for name, model in models.items()}
        for method in ("formula", "knn")
    )
    samples = {}
    for name, model in models.items():
        samples[f"{name}, z from prod_j q(z_j)"] = model.sample(SAMPLES)
        samples[f"{name}, z from N(0, I)"] = model.decode(model.prior.sample(SAMPLES))
    variances = {name: model.encode(x).var(0) for name, model in models.items()}
    # Figure 5 varies the latents with half the rate weight, figure 6 the two most informed ones of a VAE.
    varied = {"AnchorVAE": range(CHEAP), "CorEx": formula["CorEx"].topk(2).indices.tolist()}
    steps = torch.linspace(-3, 3, 7)
    drawn = {
        f"traversals-{name.lower()}.png": plots.traversals(
            models[name], models[name].encode_mean(x[:SEEDS]), dict.fromkeys(latents, steps)
        )
        for name, latents in varied.items()
    }
    return {
        **drawn,
        "latents.png": figures.bars(formula, highlighted={"AnchorVAE": CHEAP}, dots=knn, name="k-NN"),
        "samples.png": plots.rows(samples),
        "variances.png": plots.variances_against_information(variances, formula),
    }


EXPERIMENT = Experiment("anchor-vae", __doc__, cases, measure, draw, NOTES)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
