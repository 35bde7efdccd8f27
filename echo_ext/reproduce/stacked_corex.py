"""Stacked CorEx on MNIST: what each layer adds to the bound on the total correlation, and what the top one finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echo_ext import entropy
from echo_ext.data import LabelledDataset
from echo_ext.models import Model
from echo_ext.models import stacked_corex as model_of_two_layers
from echo_ext.reproduce.experiment import Bench, Case, Experiment, Outcome, run_name, stated
from echo_ext.training.running import load_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "matched_accuracy", "measure", "own_terms", "run"]

DATA = "mnist"
EPOCHS = 9
NEIGHBORS = 3
# Images of each state in the figure.
SHOWN = 10

MODEL = "model"
ACCURACY, MAJORITY = "accuracy, matched", "accuracy, majority"
LOWER, UPPER, BOUND = "lower layer's term, nats", "upper layer's term, nats", "bound on TC(x), nats"


def run(bench: Bench) -> Outcome:
    """Train the two layers, count the images in their right state, and take the bound apart."""
    configuration = bench.configuration("stacked-corex", DATA, epochs=EPOCHS, batch_size=200, learning_rate=1e-3)
    case: Case = ({MODEL: "stacked CorEx"}, configuration)
    rows = bench.rows([case], measure)
    settings = {
        "data": DATA,
        **stated(
            configuration, "latent_dim", "epochs", "limit", "batch_size", "learning_rate", "schedule", "warm_up_epochs"
        ),
        ACCURACY: "test rows in the state of their digit, each digit having a state of its own (Hungarian method)",
        MAJORITY: "test rows in a state where their digit is the most frequent one",
        LOWER: "sum_i H(x_i) + E log p(x|z) - (E log q(z|x) + sum_j h(z_j)), h(z_j) by k-NN with k = 3",
        UPPER: "sum_j h(z_j) + E log r(z|y) - E KL(q(y|z) | r(y)): at most TC(z)",
        BOUND: "their sum; pixels are the zeros and ones that gray levels are the probabilities of",
    }
    model = bench.model(run_name(case[0], bench.seeds[0])).cpu()
    x = load_data(configuration, bench.data_dir)["test"].values(slice(None))
    return Outcome(rows, {"states.png": _states(model, x)}, settings)


def measure(model: Model, parts: Mapping[str, LabelledDataset]) -> dict[str, float]:
    """The states beside the digits, and the bound's terms, on the test rows."""
    assert isinstance(model, model_of_two_layers.StackedCorEx)
    test = parts["test"]
    x = test.values(slice(None))
    found = model.cluster(x)
    terms = model.loss(x)
    return {
        ACCURACY: matched_accuracy(found, test.labels),
        MAJORITY: _counts(found, test.labels).amax(1).sum().item() / len(x),
        **own_terms(model, x),
        **{name.replace("_", " "): terms[name].item() for name in ("lower_rate", "upper_rate", "distortion")},
    }


def own_terms(model: model_of_two_layers.StackedCorEx, x: Tensor) -> dict[str, float]:
    """What each layer adds to ``sum_i H(x_i) - D - R_1 - R_2 <= TC(x)``, in nats, for pixels x in [0, 1].

    The lower layer's is what it would bound with independent z_j, ``sum_i H(x_i) - D - sum_j I(z_j; x)``; the upper
    layer's is the rate that knowing y spares it, less the rate of y (Gao et al. 2019). h(z_j) is a k-NN estimate.
    """
    sent = model.posterior(x)
    terms = model.loss(x)
    mean = x.flatten(1).double().mean(0)
    pixels = -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).sum().item()
    latents = torch.as_tensor(entropy(sent.z.double().T.unsqueeze(-1), k=NEIGHBORS)).sum().item()
    informed = sent.log_density.double().mean().item() + latents
    lower = pixels - terms["distortion"].item() - informed
    upper = informed - terms["rate_bound"].item()
    return {LOWER: lower, UPPER: upper, BOUND: lower + upper}


def matched_accuracy(found: Tensor, labels: Tensor) -> float:
    """The share of rows (N,) in the right state, where states and labels are paired one to one so that it is largest.

    Raises:
        ModuleNotFoundError: SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("matching states to labels needs SciPy: pip install 'echo-ext[train]'") from missing
    counts = _counts(found, labels).cpu().numpy()
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(found))


def _counts(found: Tensor, labels: Tensor) -> Tensor:
    """How many rows are in each state and have each label: int64 (states, labels)."""
    states, kinds = int(found.max()) + 1, int(labels.max()) + 1
    return torch.bincount(found * kinds + labels, minlength=states * kinds).view(states, kinds)


@torch.no_grad()
def _states(model: Model, x: Tensor) -> Figure:
    """For each state the first test images in it."""
    from echo_ext import plots

    assert isinstance(model, model_of_two_layers.StackedCorEx)
    found = model.cluster(x)
    of_each = {f"y = {state}": x[found == state][:SHOWN] for state in range(model.states)}
    return plots.rows({name: images for name, images in of_each.items() if len(images)})


EXPERIMENT = Experiment(
    summary="stacked CorEx on MNIST: each layer's own term of the bound, and digits found without labels",
    source="Gao, Brekelmans, Ver Steeg & Galstyan 2019 (stacking)",
    run=run,
)
