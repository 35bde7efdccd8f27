"""How well the joint distributions of encoder and decoder agree, for MIM and for the cross-entropy of their mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from echo_ext import mutual_information
from echo_ext.data import LabeledDataset
from echo_ext.data.mixtures import MIXTURES
from echo_ext.models import Model
from echo_ext.models.marginals import GaussianMixture
from echo_ext.models.mim import MIM
from echo_ext.reproduce.experiment import Case, Context, Experiment, Result, run_name, selected_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "jensen_shannon", "measure", "run"]

DATA = "gmm1d"
# P(z) has two modes and P(x) three, so no simple function maps one to the other.
ANCHOR, ANCHOR_STD = [[-1.0], [1.0]], 0.25
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
                    "marginal": "mixture",
                    "components": COMPONENTS,
                    "anchor": ANCHOR,
                    "anchor_std": ANCHOR_STD,
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
    drawn_z = model.draw_anchor(len(x))
    drawn_x, _ = model.draw_data(drawn_z)
    pairs = [(x, z), (drawn_x, drawn_z)]
    learned = [torch.stack(_log_joints(model, *pair)) for pair in pairs]
    gap = torch.cat([joint.logsumexp(0) - math.log(2) - joint.mean(0) for joint in learned]).mean().item()
    anchored = [torch.stack(_log_anchored(model, *pair)) for pair in pairs]
    joints = [torch.stack(_log_joints(model, *pair)) for pair in (encoded(model, len(x)), decoded(model, len(x)))]
    assert isinstance(model.anchor, GaussianMixture)
    return {
        "L_MIM - CE, nats": gap,
        "JSD of the learned joints, nats": jensen_shannon(*joints),
        "JSD of the sampled joints, nats": jensen_shannon(*anchored),
        "KL(P(x) ‖ q(x)), nats": (MIXTURES[DATA].log_prob(x) - _marginal(model).log_prob(x)).mean().item(),
        "KL(P(z) ‖ p(z)), nats": (model.anchor.log_prob(drawn_z) - model.log_prior(drawn_z)).mean().item(),
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
    z = model.draw_prior(n)
    return model.draw_data(z)[0], z


def _log_joints(model: MIM, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log densities log q(x) q(z|x) and log p(z) p(x|z) at each pair: (N,) each."""
    return (
        _marginal(model).log_prob(x) + model.infer(x).log_prob(z),
        model.log_prior(z) + model.log_likelihood(x, z),
    )


def _log_anchored(model: MIM, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log densities log P(x) q(z|x) and log P(z) p(x|z) at each pair: (N,) each."""
    assert isinstance(model.anchor, GaussianMixture)
    return (
        MIXTURES[DATA].log_prob(x) + model.infer(x).log_prob(z),
        model.anchor.log_prob(z) + model.log_likelihood(x, z),
    )


def _marginal(model: MIM) -> GaussianMixture:
    assert isinstance(model.marginal, GaussianMixture)
    return model.marginal


@torch.no_grad()
def _joints(models: Mapping[str, MIM]) -> Figure:
    from echo_ext import plots

    torch.manual_seed(0)
    drawn = {}
    for loss, model in models.items():
        drawn[f"{loss}: q(x) q(z|x)"] = torch.cat(encoded(model, PLOTTED_SAMPLES), 1)
        drawn[f"{loss}: p(z) p(x|z)"] = torch.cat(decoded(model, PLOTTED_SAMPLES), 1)
    return plots.scatters(drawn, columns=2, axes_names=("x", "z"))


EXPERIMENT = Experiment(
    summary="encoder and decoder agree on one joint distribution for MIM, but not for the cross-entropy",
    source="Livne, Swersky & Fleet 2019, section 4 and supplement (1-D)",
    run=run,
    seeds=6,
)
