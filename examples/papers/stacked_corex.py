"""Stacked CorEx on MNIST: the bound on total correlation by layer, and digits clustered without labels.

Gao, Brekelmans, Ver Steeg & Galstyan 2019 (stacking)
"""

import torch
from experiment import Experiment, main

from echo_ext import metrics, plots
from echo_ext.training import Configuration

DATA = "mnist"
# Test rows for I(x; z_j), which is at most log(ROWS).
ROWS = 5000
# Number of images for each state in the figure.
IMAGES = 10

ACCURACY, MAJORITY = "accuracy, matched", "accuracy, majority"
LOWER, UPPER, BOUND = "lower layer's term, nats", "upper layer's term, nats", "bound on TC(x), nats"
INFORMED, SECOND = "I(x; z_a), nats", "I(x; z_b), nats"
NOTES = {
    INFORMED: "E KL(q(z_j|x) | q(z_j)) of the most informed latent, with q(z_j) the mixture over 5,000 test rows",
    SECOND: "the same of the second most informed latent",
    ACCURACY: "share of test rows in the state of their digit, with digits matched to states (Hungarian method)",
    MAJORITY: "share of test rows whose digit is the most frequent one in their state",
    LOWER: "sum_i H(x_i) + E log p(x|z) - (E log q(z|x) + sum_j h(z_j)), with h(z_j) by k-NN, k = 3",
    UPPER: "sum_j h(z_j) + E log r(z|y) - E KL(q(y|z) | r(y)), which is at most TC(z)",
    BOUND: "the sum of both terms, for binary pixels whose probabilities are the gray levels",
}


def cases():
    """The two layers on MNIST."""
    training = {"epochs": 5, "batch_size": 200, "learning_rate": 1e-3}
    yield {"model": "stacked CorEx"}, Configuration.of("stacked-corex", DATA, **training)


def measure(model, parts):
    """The agreement of states with digits and the terms of the bound, on the test rows."""
    x, labels = parts["test"][:]
    found = model.cluster(x)
    losses = model.loss(x)
    first, second = metrics.latent_information(model, x[:ROWS]).topk(2).values.tolist()
    lower, upper = metrics.layer_terms(model, x).tolist()
    return {
        ACCURACY: matched_accuracy(found, labels),
        MAJORITY: counts(found, labels).amax(1).sum().item() / len(x),
        **{INFORMED: first, SECOND: second},
        **{LOWER: lower, UPPER: upper, BOUND: lower + upper},
        **{name.replace("_", " "): losses[name].item() for name in ("rate_1", "rate_2", "distortion")},
    }


def matched_accuracy(found, labels):
    """The share of rows (N,) in the state of their label, for the one-to-one matching that maximizes it."""
    from scipy.optimize import linear_sum_assignment

    table = counts(found, labels).cpu().numpy()
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(found))


def counts(found, labels):
    """The number of rows for each state and label: int64, (states, labels)."""
    states, kinds = int(found.max()) + 1, int(labels.max()) + 1
    return torch.bincount(found * kinds + labels, minlength=states * kinds).view(states, kinds)


def draw(table, models, test):
    """The first test images of each state, and images along the two most informed latents of z (figure 3)."""
    (model,) = models.values()
    x = test.values(slice(None))
    found = model.cluster(x)
    by_state = {f"y = {state}": x[found == state][:IMAGES] for state in range(model.layers[-1].states)}
    mean, log_variance = model.layers[-1].levels().chunk(2, dim=1)
    latents = metrics.latent_information(model, x[:ROWS]).topk(2).indices.tolist()
    steps = torch.linspace(-2, 2, 9)
    values = {each: mean[:, each, None] + (0.5 * log_variance[:, each, None]).exp() * steps for each in latents}
    return {
        "states.png": plots.rows({name: images for name, images in by_state.items() if len(images)}),
        "traversals.png": plots.traversals(model, mean, values),
    }


EXPERIMENT = Experiment("stacked-corex", __doc__, cases, measure, draw, NOTES)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
