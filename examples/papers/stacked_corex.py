"""Stacked CorEx on MNIST: each layer's term of the bound on total correlation, and clustering by the upper layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from experiment import Case, Context, Experiment, Result, main, run_name, selected_settings
from torch import Tensor

from echo_ext import entropy, plots
from echo_ext.data import LabeledDataset
from echo_ext.models import Model, StackedCorEx

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DATA = "mnist"
EPOCHS = 9
NEIGHBORS = 3
# Number of images for each state in the figure.
IMAGES = 10

MODEL = "model"
ACCURACY, MAJORITY = "accuracy, matched", "accuracy, majority"
LOWER, UPPER, BOUND = "lower layer's term, nats", "upper layer's term, nats", "bound on TC(x), nats"


def run(context: Context) -> Result:
    """Train the two layers, and measure the accuracy of the states and the terms of the bound."""
    configuration = context.configuration("stacked-corex", DATA, epochs=EPOCHS, batch_size=200, learning_rate=1e-3)
    case: Case = ({MODEL: "stacked CorEx"}, configuration)
    rows = context.rows([case], measure)
    settings = {
        "data": DATA,
        **selected_settings(
            configuration, "latent_dim", "epochs", "limit", "batch_size", "learning_rate", "schedule", "warm_up_epochs"
        ),
        ACCURACY: "share of test rows in the state of their digit, with digits matched to states (Hungarian method)",
        MAJORITY: "share of test rows whose digit is the most frequent one in their state",
        LOWER: "sum_i H(x_i) + E log p(x|z) - (E log q(z|x) + sum_j h(z_j)), with h(z_j) by k-NN, k = 3",
        UPPER: "sum_j h(z_j) + E log r(z|y) - E KL(q(y|z) | r(y)), which is at most TC(z)",
        BOUND: "the sum of both terms, for binary pixels whose probabilities are the gray levels",
    }
    model = context.model(run_name(case[0], context.seeds[0])).cpu()
    x = configuration.load_data(context.data_dir)["test"].values(slice(None))
    return Result(rows, {"states.png": _states(model, x)}, settings)


def measure(model: Model, parts: Mapping[str, LabeledDataset]) -> dict[str, float]:
    """The agreement of states with digits and the terms of the bound, on the test rows."""
    assert isinstance(model, StackedCorEx)
    test = parts["test"]
    x = test.values(slice(None))
    found = model.cluster(x)
    terms = model.loss(x)
    return {
        ACCURACY: matched_accuracy(found, test.labels),
        MAJORITY: _counts(found, test.labels).amax(1).sum().item() / len(x),
        **bound_terms(model, x),
        **{name.replace("_", " "): terms[name].item() for name in ("lower_rate", "upper_rate", "distortion")},
    }


def bound_terms(model: StackedCorEx, x: Tensor) -> dict[str, float]:
    """The terms of both layers in ``sum_i H(x_i) - D - R_1 - R_2 <= TC(x)``, in nats, for pixels x in [0, 1].

    The term of the lower layer is the bound for independent z_j, ``sum_i H(x_i) - D - sum_j I(z_j; x)``. That of the
    upper layer is the reduction of the lower rate by y, minus the rate of y (Gao et al. 2019). The entropies h(z_j) are
    k-NN estimates.
    """
    q = model.posterior(x)
    z, terms = q.rsample(), model.loss(x)
    mean = x.flatten(1).double().mean(0)
    pixels = -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).sum().item()
    latents = torch.as_tensor(entropy(z.double().T.unsqueeze(-1), k=NEIGHBORS)).sum().item()
    information = q.log_prob(z).double().mean().item() + latents
    lower = pixels - terms["distortion"].item() - information
    upper = information - terms["rate_bound"].item()
    return {LOWER: lower, UPPER: upper, BOUND: lower + upper}


def matched_accuracy(found: Tensor, labels: Tensor) -> float:
    """The share of rows (N,) in the state of their label, for the one-to-one matching that maximizes it.

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
    """The number of rows for each state and label: int64, (states, labels)."""
    states, kinds = int(found.max()) + 1, int(labels.max()) + 1
    return torch.bincount(found * kinds + labels, minlength=states * kinds).view(states, kinds)


@torch.no_grad()
def _states(model: Model, x: Tensor) -> Figure:
    """The first test images of each state."""
    assert isinstance(model, StackedCorEx)
    found = model.cluster(x)
    by_state = {f"y = {state}": x[found == state][:IMAGES] for state in range(model.prior.states)}
    return plots.rows({name: images for name, images in by_state.items() if len(images)})


EXPERIMENT = Experiment(
    summary="stacked CorEx on MNIST: the bound on total correlation by layer, and digits clustered without labels",
    source="Gao, Brekelmans, Ver Steeg & Galstyan 2019 (stacking)",
    run=run,
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
