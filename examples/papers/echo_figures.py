"""Echo noise and what its latents encode: figures 1, 4, 6 and 7 of the paper, after shortened training.

Brekelmans, Moyer, Galstyan & Ver Steeg 2019, section 2.1, section 5.3, appendices D.2 and D.3
"""

import figures
import matplotlib
import pandas as pd
import torch
from experiment import Experiment, main
from matplotlib.figure import Figure
from scipy import stats

from echo_ext import data, echo_noise, echo_sample, metrics
from echo_ext.data.dsprites import FACTOR_NAMES
from echo_ext.training import Configuration

# About 5,000 steps on MNIST and Omniglot, and 3,000 on dSprites.
EPOCHS = {"binary-mnist": 10, "omniglot": 22, "dsprites": 10}
LIMITS = {"dsprites": 30_000}
HIDDEN = (512, 512)
ROWS, GRID_ROWS = 5000, 50_000  # rows that are encoded: test rows, and rows of the grid of dSprites
DRAWS = 4  # samples of z for each row, for the densities of the latents
TESTED = 1000  # samples of z in the test for normality
HIGH, LOW = 9, 3  # latents in the figure of densities; the one with the minimum rate is added to them
SHOWN = 6  # latents in the figure of factors

SCALE = 0.5
NORMAL = f"latents of which {TESTED} samples pass for Gaussian"
RATE_ORDER = "rank correlation of the likelihood and the rate"
NORM_ORDER = "rank correlation of the likelihood and the norm of f(x)"
NOTES = {
    "shortened": "fully connected layers and few epochs; the published figures are for convolutions and 200 epochs, or "
    "300,000 steps for dSprites",
    NORMAL: "Anderson-Darling at 5 %; the paper pools 2000 samples for each test row",
    RATE_ORDER: f"Spearman, log p(x|z) on {ROWS} test rows; the paper: higher information where p(x|z) is high",
    "rate, distortion": "on the test rows, in nats per sample",
}


def cases():
    """Echo on each data set."""
    for name, epochs in EPOCHS.items():
        settings = {"architecture": "mlp", "hidden": HIDDEN}
        training = {"epochs": epochs, "learning_rate": 1e-3, "batch_size": 100, "limit": LIMITS.get(name)}
        latents = 10 if name == "dsprites" else 32
        yield {"data": name}, Configuration.of("echo", name, latent_dim=latents, model_settings=settings, **training)


def measure(model, parts):
    """Rate and distortion, the normality of the latents, and how rate and |f(x)| follow the likelihood."""
    found = metrics.rate_distortion(model, parts["test"])
    by_row = rows_by_likelihood(model, parts["test"].values(slice(ROWS)))
    order = by_row.corr("spearman")["log p(x|z)"]
    passed = (anderson_darling(encoded(model.encode, parts["test"].values(slice(TESTED)))) < 0.752).sum().item()
    return {
        **{"rate": found.rate, "distortion": found.distortion, "-ELBO": found.neg_elbo, NORMAL: passed},
        **{RATE_ORDER: order["rate"], NORM_ORDER: order["|f(x)|"]},
    }


def draw(table, models, tests):
    """The paper's figures: that of dSprites has its factors, those of the other data sets densities and likelihoods."""
    drawn = {"noise.png": noise(data.load("gmm2d")["train"].values(slice(2000)))}
    for name, model in models.items():
        if isinstance(tests[name], data.DSprites):
            drawn["factors.png"] = factors_and_latents(model, tests[name].whole())
        else:
            x = tests[name].values(slice(ROWS))
            drawn[f"densities-{name}.png"] = densities(model, x)
            drawn[f"likelihood-{name}.png"] = likelihood_order(model, x)
    return drawn


# ---- Figure 1: the noise ---------------------------------------------------------------------------------------------


def noise(x):
    """Points x (N, 2), and z = x + s eps for Echo noise and for Gaussian noise of the same variances.

    The rate of Echo is -2 log2 s: 2 bits for s = 1/2.
    """
    x = (x - x.mean(0)) / x.std(0)
    s = torch.full_like(x, SCALE)
    torch.manual_seed(0)
    eps = echo_noise(x, s, num_terms=40)
    torch.manual_seed(0)
    echo = echo_sample(x, s, num_terms=40)
    gaussian = eps.mean(0) + eps.std(0) * torch.randn_like(x)
    points = {
        "q(x)": x,
        "Echo noise": eps,
        "z = x + s eps, Echo": echo,
        "Gaussian noise": gaussian,
        "z = x + s eps, Gaussian": x + s * gaussian,
    }
    figure, by_title = figures.panels(list(points), (2.2, 2.4), columns=5)
    for title, axes in by_title.items():
        axes.scatter(*points[title].T.tolist(), s=3, alpha=0.3, linewidths=0)
        figures.hide_axes(axes)
    return figure


# ---- Figure 4: factors and latents -----------------------------------------------------------------------------------


def factors_and_latents(model, grid):
    """Mean f(x) of the latents with the highest rates: over x and y, and by scale and orientation for each shape."""
    rows = torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))[:GRID_ROWS]
    chosen = grid.select(rows)
    rates = metrics.latent_information(model, chosen.values(slice(ROWS)))
    latents = rates.argsort(descending=True)[:SHOWN].tolist()
    codes = torch.cat([encoded(model.encode_mean, chosen.values(each)) for each in torch.arange(len(rows)).split(2000)])
    columns = [*FACTOR_NAMES, *latents]
    found = pd.DataFrame(torch.cat([chosen.factors, codes[:, latents]], 1).tolist(), columns=columns)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.5, 1.7 * len(latents)))
        panels = figure.subplots(len(latents), 3, squeeze=False, sharex="col")
    for latent, (place, *lines) in zip(latents, panels, strict=True):
        means = found.pivot_table(latent, "y", "x")
        place.imshow(means.to_numpy(), cmap="RdBu_r", aspect="auto")
        place.grid(False)
        place.set(ylabel=f"latent {latent}\n{rates[latent]:.2f} nats\ny")
        for axes, factor in zip(lines, ("scale", "orientation"), strict=True):
            axes.plot(found.pivot_table(latent, factor, "shape"), label=["square", "ellipse", "heart"])
    for axes, name in zip(panels[-1], ("x", "scale", "orientation"), strict=True):
        axes.set(xlabel=name)
    handles, labels = panels[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


# ---- Figure 6: densities of the latents ------------------------------------------------------------------------------


def densities(model, x):
    """Kernel density estimates (Scott) of q(z_j) for latents with high, low and minimum rates, in three panels."""
    rates = metrics.latent_information(model, x)
    z = torch.cat([encoded(model.encode, x) for _ in range(DRAWS)]).double()
    order = rates.argsort(descending=True).tolist()
    groups = {"highest rates": order[:HIGH], "low rates": order[HIGH:-1][-LOW:], "minimum rate": order[-1:]}
    figure, by_title = figures.panels(list(groups), (3.4, 3), shared=False, xlabel="z", ylabel="density")
    for title, axes in by_title.items():
        for latent in groups[title]:
            values = z[:, latent].numpy()
            at = torch.linspace(z[:, latent].min(), z[:, latent].max(), 200).numpy()
            axes.plot(at, stats.gaussian_kde(values, "scott")(at), linewidth=1, label=f"{rates[latent]:.2f} nats")
        axes.legend(frameon=False, fontsize=7)
    return figure


def anderson_darling(codes):
    """The Anderson-Darling statistic A* of each column of codes (N, d) for a Gaussian whose moments are estimated.

    Its 5 % point is 0.752 (D'Agostino and Stephens 1986, table 4.7).
    """
    n = len(codes)
    ordered = ((codes - codes.mean(0)) / codes.std(0)).double().sort(0).values
    weights = torch.arange(1, 2 * n, 2, dtype=torch.float64).unsqueeze(1) / n
    log_probabilities = torch.special.log_ndtr(ordered) + torch.special.log_ndtr(-ordered.flip(0))
    return (-n - (weights * log_probabilities).sum(0)) * (1 + 0.75 / n + 2.25 / n**2)


# ---- Figure 7: rate, |f(x)| and the likelihood -----------------------------------------------------------------------


def likelihood_order(model, x):
    """The rate and |f(x)| of rows in the order of log p(x|z), with their means over a hundredth of the rows."""
    found = rows_by_likelihood(model, x)
    titles = {"rate": "-sum_j log s_j(x) (nats)", "|f(x)|": "|f(x)|"}
    options = {"columns": 2, "shared": False, "xlabel": "test rows, in the order of log p(x|z)"}
    figure, by_title = figures.panels(list(titles.values()), (3.6, 3), **options)
    for name, title in titles.items():
        by_title[title].plot(found[name].to_numpy(), ".", markersize=1, alpha=0.3, color=figures.GRAY)
        by_title[title].plot(found[name].rolling(max(len(found) // 100, 1), center=True).mean().to_numpy())
    return figure


def rows_by_likelihood(model, x):
    """log p(x|z) of one sample of z for each row, its rate and |f(x)|, in the order of log p(x|z)."""
    likelihoods = [model.observation(model.encode(rows)).log_prob(rows) for rows in x.split(1000)]
    rates, norms = metrics.rates_and_activations(model, x)
    columns = {"log p(x|z)": torch.cat(likelihoods), "rate": rates, "|f(x)|": norms}
    return pd.DataFrame({name: each.tolist() for name, each in columns.items()}).sort_values("log p(x|z)")


def encoded(encode, x):
    """The codes of the rows x, in batches."""
    return torch.cat([encode(rows) for rows in x.split(1000)])


EXPERIMENT = Experiment("echo-figures", __doc__, cases, measure, draw, NOTES, all_tests=True)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
