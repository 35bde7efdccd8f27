"""The total correlation of the Echo noise, whose dimensions are dependent, after shortened training.

Brekelmans, Moyer, Galstyan & Ver Steeg 2019, appendix C and table 3
"""

import figures
from experiment import Experiment, main

from echo_ext import metrics
from echo_ext.training import Configuration

PUBLISHED = {"binary-mnist": 7.3, "omniglot": 18.8, "fashion-mnist": 30.2}
# About 5,000 steps on each data set.
EPOCHS = {"binary-mnist": 10, "omniglot": 22, "fashion-mnist": 10}
HIDDEN = (512, 512)
SAMPLES = 100_000

CORRELATION, PRINTED = "TC of the noise, nats", "-log det corr of the noise, nats"
NOTES = {
    "shortened": "fully connected layers and few epochs; the published values are for convolutions and 200 epochs",
    "layers": "784-512-512-32 and back, ReLU",
    CORRELATION: f"-1/2 log det of the correlation matrix of {SAMPLES} samples of the noise: that of a Gaussian",
    PRINTED: "the formula that the paper prints for its values, which has no factor 1/2",
    "rate, distortion": "on the test rows, in nats per sample",
}


def cases():
    """Echo on each data set."""
    settings = {"architecture": "mlp", "hidden": HIDDEN}
    for data, published in PUBLISHED.items():
        labels = {"data": data, "published TC": published}
        training = {"epochs": EPOCHS[data], "learning_rate": 1e-3}
        yield labels, Configuration.of("echo", data, model_settings=settings, **training)


def measure(model, parts):
    """The total correlation of the noise, and the rate, distortion and -ELBO of the test rows."""
    found = metrics.rate_distortion(model, parts["test"])
    correlation = metrics.gaussian_total_correlation(noise(model))
    losses = {"rate": found.rate, "distortion": found.distortion, "-ELBO": found.neg_elbo}
    return {CORRELATION: correlation, PRINTED: 2 * correlation, **losses}


def noise(model):
    """Samples of the noise, which has the same distribution as z: (SAMPLES, latent_dim)."""
    return model.channel.sample(SAMPLES)


def draw(table, models, test):
    """The correlation matrix of the noise on each data set."""
    return {"correlations.png": figures.correlations({data: noise(model) for (data, _), model in models.items()})}


EXPERIMENT = Experiment("noise-tc", __doc__, cases, measure, draw, NOTES)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
