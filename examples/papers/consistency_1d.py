"""Encoder and decoder agree on one joint distribution of x and z for MIM, but not for the cross-entropy.

Livne, Swersky & Fleet 2019, section 4 and supplement (1-D)
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
# A standard deviation of 0.05. Without a minimum the loss of MIM is unbounded, since x and z can determine each other.
MIN_LOG_VARIANCE = 2 * math.log(0.05)
NEIGHBORS = 5

NOTES = {
    "P(x)": "mixture of three normal distributions with standard deviation 0.25 at -1.5, 0 and 1.5",
    "P(z)": "mixture of two normal distributions with standard deviation 0.25 at -1 and 1",
    "q(x), p(z)": "learned mixtures of 10 normal distributions",
    "layers": "two linear layers with 10 units and swish in between, in the encoder and in the decoder",
    "minimum standard deviation": math.exp(MIN_LOG_VARIANCE / 2),
    "L_MIM - CE": "for the same samples, half of P(x) q(z|x) and half of P(z) p(x|z); 0 if the two joints agree",
    "JSD": "Jensen-Shannon divergence, from samples of both joints; at most log 2 = 0.693",
}


def cases():
    """Both losses, with the same networks and learned marginals."""
    settings = {
        **{"prior": "mixture", "data_marginal": "mixture", "components": 10},
        **{"reference_means": REFERENCE_MEANS, "reference_std": REFERENCE_STD},
        **{"hidden": [10], "activation": "swish", "min_log_variance": MIN_LOG_VARIANCE},
    }
    training = {"epochs": 60, "learning_rate": 3e-3, "warm_up_epochs": 3, "schedule": "constant-then-linear"}
    for loss, objective in OBJECTIVES.items():
        chosen = {"objective": objective, **settings}
        yield {"loss": loss}, Configuration.of("mim", DATA, latent_dim=1, model_settings=chosen, **training)


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
    return {"histograms.png": figures.histograms(models, test.values(slice(None)), MIXTURES[DATA])}


EXPERIMENT = Experiment("consistency-1d", __doc__, cases, measure, draw, NOTES, seeds=6)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
