"""The two toy experiments of the Mutual Autoencoder, ten states and a normal distribution, for several targets M."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import figures
import torch
from experiment import Case, Context, Experiment, Result, Row, main, run_name, selected_settings
from torch import Tensor
from torch.distributions import Normal

from echo_ext.data import LabeledDataset
from echo_ext.models import CategoricalLikelihood, Model, MutualAutoencoder

if TYPE_CHECKING:
    from figures import Line
    from matplotlib.figure import Figure


STATES = "ten-states"
NORMAL = "normal"
TARGETS = {STATES: (0.0, 0.5, 1.0, 1.5, 2.0, math.log(10)), NORMAL: (0.0, 0.5, 1.0, 1.5, 2.0)}
EPOCHS = 40
HIDDEN = 100
# Quadrature uses the midpoints of this many equally likely intervals of p(z), and as many x from -LIMIT to LIMIT.
PLACES = 2000
LIMIT = 6.0
STANDARD_NORMAL = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
SAMPLES = 50_000

TOY, TARGET = "data", "M, nats"
EXACT, BOUND, ELBO, DIVERGENCE = "I_p(x; z), nats", "I_hat, nats", "-ELBO, nats", "KL from the data to p(x), nats"


def run(context: Context) -> Result:
    """Train both toys for several targets M, and measure the information that they reach."""
    cases: list[Case] = [
        ({TOY: toy, TARGET: round(target, 3)}, _configuration(context, toy, target))
        for toy, targets in TARGETS.items()
        for target in targets
    ]
    rows = context.rows(cases, measure)
    _, configuration = cases[0]
    settings = {
        **selected_settings(configuration, "latent_dim", "epochs", "limit", "batch_size", "learning_rate", "schedule"),
        "model_settings": {
            name: value for name, value in configuration.model_settings.items() if name != "information"
        },
        EXACT: f"for the joint distribution of the model, by quadrature over {PLACES} equally likely intervals of z",
        BOUND: f"the bound that training keeps close to M, from {SAMPLES} samples",
        "maximum of I_hat for ten equally likely intervals, nats": gaussian_ceiling(10),
    }
    trained = {
        toy: {
            f"M = {labels[TARGET]:g}": context.model(run_name(labels, context.seeds[0])).cpu()
            for labels, _ in cases
            if labels[TOY] == toy
        }
        for toy in TARGETS
    }
    drawn = {
        "information.png": _information(rows),
        "states.png": _states(trained[STATES]),
        "normal.png": _normal(trained[NORMAL]),
        "density.png": _density(trained[NORMAL]),
    }
    return Result(rows, drawn, settings)


def measure(model: Model, parts: Mapping[str, LabeledDataset]) -> dict[str, float]:
    """The exact information of the model, the bound that training uses, the -ELBO, and the divergence of p(x)."""
    assert isinstance(model, MutualAutoencoder)
    x = parts["test"].values(slice(None))
    terms = model.loss(x)
    z = quantiles(PLACES).to(x)[:, None]
    measure_toy = _measure_states if isinstance(model.likelihood, CategoricalLikelihood) else _measure_density
    information, divergence = measure_toy(model, z)
    return {
        EXACT: information,
        BOUND: model.model_information(SAMPLES).item(),
        ELBO: (terms["rate_bound"] + terms["distortion"]).item(),
        DIVERGENCE: divergence,
    }


def gaussian_ceiling(intervals: int, places: int = 1_000_000) -> float:
    """The maximum of ``I_hat`` in nats, if x is the index of the equally likely interval that contains z ~ N(0, 1).

    It is below the information, log(intervals), because r(z|x) is Gaussian and p(z|x), a truncated Gaussian, is not.
    """
    pieces = quantiles(places - places % intervals).view(intervals, -1)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    return entropy - (entropy + 0.5 * pieces.var(1, correction=0).log()).mean().item()


def quantiles(places: int) -> Tensor:
    """The medians of this many equally likely intervals of N(0, 1): float64, (places,)."""
    probability = (torch.arange(places, dtype=torch.float64) + 0.5) / places
    z: Tensor = torch.special.ndtri(probability)
    return z


def _configuration(context: Context, toy: str, target: float) -> Any:
    likelihood = "categorical" if toy == STATES else "gaussian"
    model = {"information": target, "penalty": 1.0, "likelihood": likelihood, "hidden": [HIDDEN, HIDDEN]}
    return context.configuration(
        "mutual-ae",
        toy,
        latent_dim=1,
        epochs=EPOCHS,
        batch_size=250,
        learning_rate=3e-3,
        schedule="constant-then-linear",
        model_settings=model,
    )


def _measure_states(model: MutualAutoencoder, z: Tensor) -> tuple[float, float]:
    """The information I(x; z) and KL(uniform | p(x)) for one-hot x and equally likely z (places, 1)."""
    log_given = model.decoder(z).double().log_softmax(1)
    log_marginal = log_mean_exp(log_given, dim=0)
    information = (log_given.exp() * (log_given - log_marginal)).sum(1).mean()
    return information.item(), (-math.log(log_given.shape[1]) - log_marginal).mean().item()


def _measure_density(model: MutualAutoencoder, z: Tensor) -> tuple[float, float]:
    """The information I(x; z) and KL(N(0, 1) | p(x)) for x of shape (1,) and equally likely z (places, 1).

    The information is h(x) - h(x|z), where the entropy of the Gaussian p(x|z) needs no quadrature.
    """
    p, x = _observation(model, z), _grid()
    log_marginal = _log_density(p, x)
    step = (x[1] - x[0]).item()
    entropy = -(log_marginal.exp() * log_marginal).sum().item() * step
    given = p.entropy().mean().item()
    normal = STANDARD_NORMAL.log_prob(x)
    return entropy - given, ((normal.exp() * (normal - log_marginal)).sum() * step).item()


def _observation(model: Model, z: Tensor) -> Normal:
    """The distribution p(x|z) of each z (places, 1): float64, with the batch (places,)."""
    assert isinstance(model, MutualAutoencoder)
    p = model.observation(z.float())
    return Normal(p.mean[:, 0].double(), p.stddev[:, 0].double())


def _grid() -> Tensor:
    return torch.linspace(-LIMIT, LIMIT, PLACES, dtype=torch.float64)


def _log_density(p: Normal, x: Tensor) -> Tensor:
    """``log p(x)`` at each x, for equally likely Gaussian components: (len(x),)."""
    return log_mean_exp(p.log_prob(x[:, None]).T, dim=0)


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """``log(mean(exp(x)))`` over one dimension, without overflow."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


# ---- Figures ---------------------------------------------------------------------------------------------------------


def _information(rows: Sequence[Row]) -> Figure:
    def line(toy: str, quantity: str) -> Line:
        selected = [row for row in rows if row.labels[TOY] == toy]
        mean, error = (torch.tensor([getattr(row, name)(quantity) for row in selected]) for name in ("mean", "error"))
        return figures.Line(torch.tensor(TARGETS[toy]), mean, error.nan_to_num(), marked=True)

    ends = torch.tensor([0.0, math.log(10)])
    panels = {
        toy: {
            "I_p(x; z) of the model": line(toy, EXACT),
            "I_hat, which training keeps close to M": line(toy, BOUND),
            "M": figures.Line(ends, ends, reference=True),
        }
        for toy in TARGETS
    }
    return figures.lines(panels, xlabel="M (nats)", ylabel="information (nats)")


@torch.no_grad()
def _states(trained: Mapping[str, Model]) -> Figure:
    z = torch.linspace(-3, 3, 601)
    panels = {
        title: {f"x = {state}": figures.Line(z, given) for state, given in enumerate(model.decode(z[:, None]).T)}
        for title, model in trained.items()
    }
    return figures.lines(panels, xlabel="z", ylabel="p(x | z)")


@torch.no_grad()
def _normal(trained: Mapping[str, Model]) -> Figure:
    z = torch.linspace(-3, 3, 301)
    observations = {title: _observation(model, z[:, None]) for title, model in trained.items()}
    panels = {
        title: {"mean of p(x|z) plus and minus one standard deviation": figures.Line(z, p.mean, p.stddev)}
        for title, p in observations.items()
    }
    return figures.lines(panels, xlabel="z", ylabel="x")


@torch.no_grad()
def _density(trained: Mapping[str, Model]) -> Figure:
    x, z = torch.linspace(-4, 4, 401, dtype=torch.float64), quantiles(PLACES)[:, None]
    panels = {
        title: {
            "p(x)": figures.Line(x, _log_density(_observation(model, z), x).exp()),
            "N(0, 1)": figures.Line(x, STANDARD_NORMAL.log_prob(x).exp(), reference=True),
        }
        for title, model in trained.items()
    }
    return figures.lines(panels, xlabel="x", ylabel="density")


EXPERIMENT = Experiment(
    summary="the toys of the Mutual Autoencoder: z carries M nats about ten states or a normal variable",
    source="Phuong, Welling, Kushman, Tomioka & Nowozin 2018, the toy experiments",
    run=run,
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
