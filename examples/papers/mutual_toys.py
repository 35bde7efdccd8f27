"""The toys of the Mutual Autoencoder: z carries M nats about ten states or a normal variable.

Phuong, Welling, Kushman, Tomioka & Nowozin 2018, the toy experiments
"""

import math

import figures
import matplotlib
import torch
from experiment import Experiment, main
from torch.distributions import Normal

from echo_ext.models import CategoricalLikelihood
from echo_ext.training import Configuration

STATES, NORMAL = "ten-states", "normal"
TARGETS = (0.0, 0.5, 1.0, 1.5, 2.0)
MAXIMUM = math.log(10)  # another target for the ten states
LIKELIHOODS = {STATES: "categorical", NORMAL: "gaussian"}
# Quadrature uses the midpoints of this many equally likely intervals of p(z), and as many x from -LIMIT to LIMIT.
PLACES = 2000
LIMIT = 6.0
SAMPLES = 50_000
# Number of z whose curves figure 6 shows.
CURVES = 21

TOY, TARGET = "data", "M, nats"
EXACT, BOUND, ELBO, DIVERGENCE = "I_p(x; z), nats", "I_hat, nats", "-ELBO, nats", "KL from the data to p(x), nats"


def cases(targets):
    """Both toys for several targets M, and the states for the maximum too."""
    training = {"epochs": 120, "batch_size": 250, "learning_rate": 3e-3, "schedule": "constant-then-linear"}
    for toy, likelihood in LIKELIHOODS.items():
        for target in (*targets, MAXIMUM) if toy == STATES else targets:
            settings = {"information": target, "likelihood": likelihood, "penalty": 1.0}
            labels = {TOY: toy, TARGET: round(target, 3)}
            yield labels, Configuration.of("mutual-ae", toy, latent_dim=1, model_settings=settings, **training)


def measure(model, parts):
    """The exact information of the model, the bound that training uses, the -ELBO, and the divergence of p(x)."""
    x = parts["test"].values(slice(None))
    terms = model.loss(x)
    information, divergence = measure_exactly(model, quantiles(PLACES).to(x)[:, None])
    return {
        EXACT: information,
        BOUND: model.model_information(SAMPLES).item(),
        ELBO: (terms["rate_bound"] + terms["distortion"]).item(),
        DIVERGENCE: divergence,
    }


def measure_exactly(model, z):
    """The information I(x; z) of the model and the divergence of p(x) from the data, for equally likely z (places, 1).

    For one-hot x the data are uniform. For x of shape (1,) they are N(0, 1), and the information is h(x) - h(x|z),
    where the entropy of the Gaussian p(x|z) needs no quadrature.
    """
    given = observation(model, z)
    if isinstance(model.likelihood, CategoricalLikelihood):
        log_marginal = log_mean(given.logits)
        information = (given.probs * (given.logits - log_marginal)).sum(1).mean()
        return information.item(), (-math.log(len(log_marginal)) - log_marginal).mean().item()
    x = torch.linspace(-LIMIT, LIMIT, PLACES, dtype=torch.float64, device=z.device)
    log_marginal, log_data = log_density(given, x), Normal(0, 1).log_prob(x)
    step = 2 * LIMIT / (PLACES - 1)
    information = -(log_marginal.exp() * log_marginal).sum() * step - given.entropy().mean()
    return information.item(), ((log_data.exp() * (log_data - log_marginal)).sum() * step).item()


def observation(model, z):
    """The distribution p(x|z) in double precision."""
    return model.likelihood(model.decoder(z).double())


def log_density(given, x):
    """``log p(x)`` at each x, for equally likely Gaussian components of shape (places, 1): (len(x),)."""
    return log_mean(Normal(given.mean, given.stddev).log_prob(x))


def log_mean(log_values):
    """The logarithm of the mean of the rows."""
    return log_values.logsumexp(0) - math.log(len(log_values))


def gaussian_ceiling(intervals, places=1_000_000):
    """The maximum of ``I_hat`` in nats, if x is the index of the equally likely interval that contains z ~ N(0, 1).

    It is below the information, log(intervals), because r(z|x) is Gaussian and p(z|x), a truncated Gaussian, is not.
    """
    pieces = quantiles(places - places % intervals).view(intervals, -1)
    return -0.5 * pieces.var(1, correction=0).log().mean().item()


def quantiles(places):
    """The medians of this many equally likely intervals of N(0, 1): float64, (places,)."""
    return torch.special.ndtri((torch.arange(places, dtype=torch.float64) + 0.5) / places)


# ---- Figures ---------------------------------------------------------------------------------------------------------


def draw(table, models, test):
    """The information against M, figures 5 and 6 of the poster, and the mean, the spread and p(x) of the normal toy."""
    by_toy = {toy: {f"M = {m:g}": model for (name, m), model in models.items() if name == toy} for toy in LIKELIHOODS}
    return {
        "information.png": draw_information(table),
        "states.png": draw_states(by_toy[STATES]),
        "curves.png": draw_curves(by_toy[NORMAL]),
        "normal.png": draw_normal(by_toy[NORMAL]),
        "density.png": draw_density(by_toy[NORMAL]),
    }


def draw_information(table):
    names = {EXACT: "I_p(x; z) of the model", BOUND: "I_hat, which training keeps close to M"}
    titles = list(table.index.unique(0))
    figure, panels = figures.panels(titles, (2.5, 2.3), xlabel="M (nats)", ylabel="information (nats)")
    for toy, axes in panels.items():
        rows = table.loc[toy]
        for quantity, name in names.items():
            mean, error = rows[quantity, "mean"], rows[quantity, "sem"].fillna(0)
            axes.errorbar(rows.index, mean, yerr=error, marker="o", markersize=4, capsize=2, label=name)
        axes.plot([0, math.log(10)], [0, math.log(10)], "--", color=figures.GRAY, label="M")
    figures.legend(figure, columns=1)
    return figure


def draw_states(models):
    z = torch.linspace(-3, 3, 601)
    figure, panels = figures.panels(list(models), (2.5, 1.9), xlabel="z", ylabel="p(x | z)")
    for title, axes in panels.items():
        for state, probability in enumerate(models[title].decode(z[:, None]).T):
            axes.plot(z.tolist(), probability.tolist(), label=f"x = {state}")
    figures.legend(figure)
    return figure


def draw_curves(models):
    """Figure 6: p(x|z) p(z) as a function of x, one Gaussian curve for each z of a grid."""
    x, grid = torch.linspace(-4, 4, 401, dtype=torch.float64), torch.linspace(-2.5, 2.5, CURVES)
    figure, panels = figures.panels(list(models), (2.5, 1.9), xlabel="x", ylabel="p(x | z) p(z)", shared=False)
    colors = matplotlib.colormaps["viridis"]
    for title, axes in panels.items():
        given = observation(models[title], grid[:, None])
        curves = Normal(given.mean, given.stddev).log_prob(x) + Normal(0, 1).log_prob(grid)[:, None]
        for number, curve in enumerate(curves.exp()):
            axes.plot(x.tolist(), curve.tolist(), color=colors(number / (CURVES - 1)))
    return figure


def draw_normal(models):
    z = torch.linspace(-3, 3, 301)
    figure, panels = figures.panels(list(models), (2.5, 1.9), xlabel="z", ylabel="x")
    for title, axes in panels.items():
        given = observation(models[title], z[:, None])
        mean, std = given.mean[:, 0], given.stddev[:, 0]
        axes.fill_between(z.tolist(), (mean - std).tolist(), (mean + std).tolist(), alpha=0.2, linewidth=0)
        axes.plot(z.tolist(), mean.tolist(), label="mean of p(x|z) plus and minus one standard deviation")
    figures.legend(figure)
    return figure


def draw_density(models):
    x, z = torch.linspace(-4, 4, 401, dtype=torch.float64), quantiles(PLACES).float()[:, None]
    figure, panels = figures.panels(list(models), (2.5, 1.9), xlabel="x", ylabel="density")
    for title, axes in panels.items():
        axes.plot(x.tolist(), log_density(observation(models[title], z), x).exp().tolist(), label="p(x)")
        axes.plot(x.tolist(), Normal(0, 1).log_prob(x).exp().tolist(), "--", color=figures.GRAY, label="N(0, 1)")
    figures.legend(figure)
    return figure


NOTES = {
    EXACT: f"for the joint distribution of the model, by quadrature over {PLACES} equally likely intervals of z",
    BOUND: f"the bound that training keeps close to M, from {SAMPLES} samples",
    "maximum of I_hat for ten equally likely intervals, nats": gaussian_ceiling(10),
}
EXPERIMENT = Experiment("mutual-toys", __doc__, cases, measure, draw, NOTES, options={"targets": TARGETS})

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
