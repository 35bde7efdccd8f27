"""Encoder and decoder agree on one joint distribution of x and z for MIM, but not for the cross-entropy.

Livne, Swersky & Fleet 2019, appendix F.2, figure 12
"""

import math

import figures
from experiment import Experiment, main

from echo_ext import metrics, mutual_information
from echo_ext.data.mixtures import MIXTURES
from echo_ext.training import Configuration

DATA = "gmm1d"
# P(x) has three modes and P(z) two, so no simple function maps one to the other.
REFERENCE_MEANS, REFERENCE_STD = [[-1.0], [1.0]], 0.25
OBJECTIVES = {"CE": "cross-entropy", "MIM": "mim"}
# All distributions are mixtures of ten Gaussians.
MIXTURE_OF_TEN = {
    **{"prior": "mixture", "data_marginal": "mixture", "posterior": "mixture", "likelihood": "mixture"},
    **{"components": 10, "posterior_components": 10, "likelihood_components": 10},
}
NETWORKS = {"hidden": [10], "activation": "swish"}
# The minimum standard deviations of q(z|x) and p(x|z). The paper names none, and that of its code is as good as none:
# x and z then come to determine each other. With the larger one the joint distributions stay smooth.
NONE, SMOOTH = 1e-6, 0.05
NEIGHBORS = 5

NOTES = {
    "P(x)": "mixture of three normal distributions with standard deviation 0.25 at -1.5, 0 and 1.5",
    "P(z)": "mixture of two normal distributions with standard deviation 0.25 at -1 and 1",
    "q(x), p(z), q(z|x), p(x|z)": "learned mixtures of 10 normal distributions",
    "layers": "two fully connected layers with 10 units and swish in between, in the encoder and in the decoder",
    "L_MIM - CE": "for the same samples, half of P(x) q(z|x) and half of P(z) p(x|z); 0 if the two joints agree",
    "JSD": "Jensen-Shannon divergence, from samples of both joints; at most log 2 = 0.693",
}


def configured(loss, minimum_std=SMOOTH, **settings):
    """The configuration of a model of one column and one latent with this loss."""
    reference = {"reference_means": REFERENCE_MEANS, "reference_std": REFERENCE_STD}
    limits = {"min_log_variance": 2 * math.log(minimum_std)}
    chosen = {"objective": OBJECTIVES[loss], **MIXTURE_OF_TEN, **NETWORKS, **reference, **limits, **settings}
    return Configuration.of("mim", DATA, latent_dim=1, model_settings=chosen)


def cases():
    """Both losses, with the same networks and learned marginals."""
    for minimum_std in (NONE, SMOOTH):
        for loss in OBJECTIVES:
            yield {"minimum std": minimum_std, "loss": loss}, configured(loss, minimum_std)


def measure(model, parts):
    """The divergences of the joint distributions and of the learned marginals, and I(x; z) of the encoder."""
    x = parts["test"].values(slice(None))
    found = metrics.joint_statistics(model, x, MIXTURES[DATA])
    return {
        "L_MIM - CE, nats": found.regularizer,
        "JSD of the learned joints, nats": found.learned_jsd,
        "JSD of the sampled joints, nats": found.anchored_jsd,
        "KL(P(x) ‖ q(x)), nats": found.data_kl,
        "KL(P(z) ‖ p(z)), nats": found.prior_kl,
        "I(x; z), nats": float(mutual_information(x.double(), model.encode(x).double(), k=NEIGHBORS)),
    }


def draw(table, models, test):
    """The marginal distributions for each loss."""
    shown = {f"{loss}, std at least {minimum:g}": model for (minimum, loss), model in models.items()}
    return {"histograms.png": figures.histograms(shown, test.values(slice(None)), MIXTURES[DATA])}


EXPERIMENT = Experiment("consistency-1d", __doc__, cases, measure, draw, NOTES, seeds=6)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
