"""How well the joint distributions of encoder and decoder agree, for MIM and for the cross-entropy of their mixture."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import figures
import torch
from experiment import Case, Context, Experiment, Result, main, run_name, selected_settings
from torch import Tensor

from echo_ext import mutual_information
from echo_ext.data import LabeledDataset
from echo_ext.data.mixtures import MIXTURES
from echo_ext.models import MIM, Model, Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DATA = "gmm1d"
# P(z) has two modes and P(x) three, so no simple function maps one to the other.
REFERENCE_MEANS, REFERENCE_STD = [[-1.0], [1.0]], 0.25
LOSSES = {"CE": "cross-entropy", "MIM": "mim"}
COMPONENTS = 10
HIDDEN = 10
EPOCHS, WARM_UP = 60, 3
LEARNING_RATE = 3e-3
# A standard deviation of 0.05. Without a minimum the loss of MIM is unbounded, since x and z can determine each other.
MIN_LOG_VARIANCE = 2 * math.log(0.05)
NEIGHBORS = 5
PLOTTED_SAMPLES = 2000


def run(context: Context) -> Result:
    """Train with both losses, and compare the joint distributions."""
    cases: list[Case] = [
        (
            {"loss": loss},
            context.configuration(
                "mim",
                DATA,
                latent_dim=1,
                epochs=EPOCHS,
                learning_rate=LEARNING_RATE,
                warm_up_epochs=WARM_UP,
                schedule="constant-then-linear",
                model_settings={
                    "objective": objective,
                    "prior": "mixture",
                    "data_marginal": "mixture",
                    "components": COMPONENTS,
                    "reference_means": REFERENCE_MEANS,
                    "reference_std": REFERENCE_STD,
                    "hidden": [HIDDEN],
                    "activation": "swish",
                    "min_log_variance": MIN_LOG_VARIANCE,
                },
            ),
        )
        for loss, objective in LOSSES.items()
    ]
    rows = context.rows(cases, measure)
    _, configuration = cases[0]
    settings = {
        "P(x)": "mixture of three normal distributions with standard deviation 0.25 at -1.5, 0 and 1.5",
        "P(z)": "mixture of two normal distributions with standard deviation 0.25 at -1 and 1",
        "q(x), p(z)": f"learned mixtures of {COMPONENTS} normal distributions",
        "layers": f"two linear layers with {HIDDEN} units and swish in between, in the encoder and in the decoder",
        "minimum standard deviation": math.exp(MIN_LOG_VARIANCE / 2),
        **selected_settings(
            configuration, "epochs", "limit", "batch_size", "learning_rate", "schedule", "warm_up_epochs"
        ),
        "L_MIM - CE": "for the same samples, half of P(x) q(z|x) and half of P(z) p(x|z); 0 if the two joints agree",
        "JSD": "Jensen-Shannon divergence, from samples of both joints; at most log 2 = 0.693",
    }
    models = {loss: cast(MIM, context.model(run_name({"loss": loss}, context.seeds[0])).cpu()) for loss in LOSSES}
    return Result(rows, {"joints.png": _joints(models)}, settings)


def measure(model: Model, parts: Mapping[str, LabeledDataset]) -> dict[str, float]:
    """The divergences of the joint distributions and of the learned marginals, and I(x; z) of the encoder."""
    assert isinstance(model, MIM)
    x = parts["test"].values(slice(None))
    z = model.encode(x)
    drawn_z = _reference(model).sample(len(x))
    pairs = [(x, z), (model.observation(drawn_z).sample(), drawn_z)]
    learned = [torch.stack(_log_joints(model, *pair)) for pair in pairs]
    gap = torch.cat([joint.logsumexp(0) - math.log(2) - joint.mean(0) for joint in learned]).mean().item()
    sampled = [torch.stack(_log_sampled(model, *pair)) for pair in pairs]
    joints = [torch.stack(_log_joints(model, *pair)) for pair in (encoded(model, len(x)), decoded(model, len(x)))]
    return {
        "L_MIM - CE, nats": gap,
        "JSD of the learned joints, nats": jensen_shannon(*joints),
        "JSD of the sampled joints, nats": jensen_shannon(*sampled),
        "KL(P(x) ‖ q(x)), nats": (MIXTURES[DATA].log_prob(x) - _marginal(model).log_prob(x)).mean().item(),
        "KL(P(z) ‖ p(z)), nats": (_reference(model).log_prob(drawn_z) - model.prior.log_prob(drawn_z)).mean().item(),
        "I(x; z), nats": float(mutual_information(x.double(), z.double(), k=NEIGHBORS)),
    }


def jensen_shannon(at_first: Tensor, at_second: Tensor) -> float:
    """Estimate the Jensen-Shannon divergence of two distributions in nats, from samples of each.

    Args:
        at_first: The log densities of both distributions at samples of the first, (2, N).
        at_second: The log densities of both distributions at samples of the second, (2, N).
    """
    mixtures = [densities.logsumexp(0) - math.log(2) for densities in (at_first, at_second)]
    return 0.5 * ((at_first[0] - mixtures[0]).mean() + (at_second[1] - mixtures[1]).mean()).item()


def encoded(model: MIM, n: int) -> tuple[Tensor, Tensor]:
    """``n`` samples (x, z) of q(x) q(z|x)."""
    x = _marginal(model).sample(n)
    return x, model.encode(x)


def decoded(model: MIM, n: int) -> tuple[Tensor, Tensor]:
    """``n`` samples (x, z) of p(z) p(x|z)."""
    z = model.prior.sample(n)
    return model.observation(z).sample(), z


def _log_joints(model: MIM, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log densities log q(x) q(z|x) and log p(z) p(x|z) at each pair: (N,) each."""
    return (
        _marginal(model).log_prob(x) + model.posterior(x).log_prob(z),
        model.prior.log_prob(z) + model.observation(z).log_prob(x),
    )


def _log_sampled(model: MIM, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log densities log P(x) q(z|x) and log P(z) p(x|z) at each pair: (N,) each."""
    return (
        MIXTURES[DATA].log_prob(x) + model.posterior(x).log_prob(z),
        _reference(model).log_prob(z) + model.observation(z).log_prob(x),
    )


def _marginal(model: MIM) -> Prior:
    """The learned q(x)."""
    assert model.data_marginal is not None
    return model.data_marginal


def _reference(model: MIM) -> Prior:
    """The fixed P(z)."""
    assert model.reference_prior is not None
    return model.reference_prior


@torch.no_grad()
def _joints(models: Mapping[str, MIM]) -> Figure:
    torch.manual_seed(0)
    drawn = {}
    for loss, model in models.items():
        drawn[f"{loss}: q(x) q(z|x)"] = torch.cat(encoded(model, PLOTTED_SAMPLES), 1)
        drawn[f"{loss}: p(z) p(x|z)"] = torch.cat(decoded(model, PLOTTED_SAMPLES), 1)
    return figures.scatters(drawn, columns=2, axes_names=("x", "z"))


EXPERIMENT = Experiment(
    summary="encoder and decoder agree on one joint distribution for MIM, but not for the cross-entropy",
    source="Livne, Swersky & Fleet 2019, section 4 and supplement (1-D)",
    run=run,
    seeds=6,
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
