"""MIM compared with a VAE whose latent space is smaller than that of the data, or as large.

Livne, Swersky & Fleet 2019, section 5.1 and appendix F.5, figures 3 and 15
"""

import figures
import mim_mixture
from experiment import Experiment, main

from echo_ext.data import catalog

DATA = ("fashion-pca20", "gmm20d")
LATENT_DIMS = tuple(range(2, 21, 2))
MODELS = {name: mim_mixture.MODELS[name] for name in ("VAE", "MIM", "MIM code")}
WIDTH = 50


def cases(data, latent_dims):
    """The models for each data set and number of latent dimensions."""
    for each in data:
        if each not in DATA:
            raise ValueError(f"data must be one of {', '.join(DATA)}, got {each}")
        (columns,) = catalog.find(each).data_shape
        if (largest := max(latent_dims)) > columns:
            raise ValueError(
                f"latent_dims must be at most {columns}, the columns of {each}, for a bottleneck, got {largest}"
            )
        for latent_dim in latent_dims:
            for name, settings in MODELS.items():
                labels = {"data": each, "latent dimensions": latent_dim, "model": name}
                yield labels, mim_mixture.configured(each, latent_dim, WIDTH, settings)


def draw(table, models, test):
    """The measures against the number of latent dimensions, for each data set."""
    return {f"measures-{data}.png": figures.trends(table.loc[data]) for data in table.index.unique("data")}


EXPERIMENT = Experiment(
    "mim-bottleneck",
    __doc__,
    cases,
    mim_mixture.measure,
    draw,
    {**mim_mixture.NOTES, "layers": "two fully connected layers with 50 hidden units and tanh in between"},
    options={"data": DATA, "latent_dims": LATENT_DIMS},
    seeds=10,
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
