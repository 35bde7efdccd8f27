"""How well encoding and decoding agree on one joint law, under the cross-entropy of their mixture and under MIM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from echo_ext import mutual_information
from echo_ext.data import LabelledDataset
from echo_ext.data.mixtures import MIXTURES
from echo_ext.models import Model
from echo_ext.models.marginals import GaussianMixture
from echo_ext.models.mim import MIM
from echo_ext.reproduce.experiment import Bench, Case, Experiment, Outcome, run_name, stated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "jensen_shannon", "measure", "run"]

DATA = "gmm1d"
# P(z) has two modes and P(x) three, so that no simple map makes one of the other.
ANCHOR, DEVIATION = [[-1.0], [1.0]], 0.25
LOSSES = {"CE": "cross-entropy", "MIM": "mim"}
COMPONENTS = 10
HIDDEN = 10
EPOCHS, WARM_UP = 60, 3
LEARNING_RATE = 3e-3
# A standard deviation of 0.05: where x and z can determine each other, MIM has no minimum without a least one.
MIN_LOG_VARIANCE = 2 * math.log(0.05)
NEIGHBORS = 5
DRAWN = 2000


def run(bench: Bench) -> Outcome:
    """Train under either loss, and compare the joint laws."""
    cases: list[Case] = [
        (
            {"loss": loss},
            bench.configuration(
                "mim",
                DATA,
                latent_dim=1,
                epochs=EPOCHS,
                learning_rate=LEARNING_RATE,
                warm_up_epochs=WARM_UP,
                schedule="constant-then-linear",
                model={
                    "objective": objective,
                    "prior": "mixture",
                    "marginal": "mixture",
                    "components": COMPONENTS,
                    "anchor": ANCHOR,
                    "anchor_std": DEVIATION,
                    "hidden": [HIDDEN],
                    "activation": "swish",
                    "min_log_variance": MIN_LOG_VARIANCE,
                },
            ),
        )
        for loss, objective in LOSSES.items()
    ]
    rows = bench.rows(cases, measure)
    _, configuration = cases[0]
    settings = {
        "P(x)": "mixture of three normal laws of deviation 0.25 at -1.5, 0 and 1.5",
        "P(z)": "mixture of two normal laws of deviation 0.25 at -1 and 1",
        "q(x), p(z)": f"learned mixtures of {COMPONENTS} normal laws",
        "layers": f"two linear layers with {HIDDEN} units and swish between, in encoder and in decoder",
        "least standard deviation": math.exp(MIN_LOG_VARIANCE / 2),
        **stated(configuration, "epochs", "limit", "batch_size", "learning_rate", "schedule", "warm_up_epochs"),
        "L_MIM - CE": "both of the same samples, half from P(x) q(z|x) and half from P(z) p(x|z); 0 if the laws agree",
        "JSD": "Jensen-Shannon divergence, from draws of both laws; at most log 2 = 0.693",
    }
    models = {loss: cast(MIM, bench.model(run_name({"loss": loss}, bench.seeds[0])).cpu()) for loss in LOSSES}
    return Outcome(rows, {"joints.png": _joints(models)}, settings)


def measure(model: Model, parts: Mapping[str, LabelledDataset]) -> dict[str, float]:
    """How far apart the joint laws are, how well the learned marginals fit, and I(x; z) of the encoding."""
    assert isinstance(model, MIM)
    x = parts["test"].values(slice(None))
    z = model.encode(x)
    drawn_z = model.draw_anchor(len(x))
    drawn_x, _ = model.draw_data(drawn_z)
    pairs = [(x, z), (drawn_x, drawn_z)]
    learned = [torch.stack(_log_joints(model, *pair)) for pair in pairs]
    gap = torch.cat([joint.logsumexp(0) - math.log(2) - joint.mean(0) for joint in learned]).mean().item()
    anchored = [torch.stack(_log_anchored(model, *pair)) for pair in pairs]
    own = [torch.stack(_log_joints(model, *pair)) for pair in (encoded(model, len(x)), decoded(model, len(x)))]
    assert isinstance(model.anchor, GaussianMixture)
    return {
        "L_MIM - CE, nats": gap,
        "JSD of the learned joints, nats": jensen_shannon(*own),
        "JSD of the sampled joints, nats": jensen_shannon(*anchored),
        "KL(P(x) ‖ q(x)), nats": (MIXTURES[DATA].log_prob(x) - _marginal(model).log_prob(x)).mean().item(),
        "KL(P(z) ‖ p(z)), nats": (model.anchor.log_prob(drawn_z) - model.log_prior(drawn_z)).mean().item(),
        "I(x; z), nats": float(mutual_information(x.double(), z.double(), k=NEIGHBORS)),
    }


def jensen_shannon(of_first: Tensor, of_second: Tensor) -> float:
    """The divergence of two laws, from draws of each: the log densities of both at them, (2, N) each, in nats."""
    mixtures = [densities.logsumexp(0) - math.log(2) for densities in (of_first, of_second)]
    return 0.5 * ((of_first[0] - mixtures[0]).mean() + (of_second[1] - mixtures[1]).mean()).item()


def encoded(model: MIM, n: int) -> tuple[Tensor, Tensor]:
    """``n`` draws (x, z) of q(x) q(z|x)."""
    x = _marginal(model).sample(n)
    return x, model.encode(x)


def decoded(model: MIM, n: int) -> tuple[Tensor, Tensor]:
    """``n`` draws (x, z) of p(z) p(x|z)."""
    z = model.draw_prior(n)
    return model.draw_data(z)[0], z


def _log_joints(model: MIM, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log q(x) q(z|x) and log p(z) p(x|z) at each pair: (N,) each."""
    return (
        _marginal(model).log_prob(x) + model.infer(x).log_prob(z),
        model.log_prior(z) + model.log_likelihood(x, z),
    )


def _log_anchored(model: MIM, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log P(x) q(z|x) and log P(z) p(x|z) at each pair: (N,) each."""
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
        drawn[f"{loss}: q(x) q(z|x)"] = torch.cat(encoded(model, DRAWN), 1)
        drawn[f"{loss}: p(z) p(x|z)"] = torch.cat(decoded(model, DRAWN), 1)
    return plots.clouds(drawn, columns=2, axes_names=("x", "z"))


EXPERIMENT = Experiment(
    summary="encoding and decoding agree on one joint law under MIM, and need not under the cross-entropy",
    source="Livne, Swersky & Fleet 2019, section 4 and supplement (1-D)",
    run=run,
    seeds=6,
)
