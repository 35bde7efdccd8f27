"""MIM with learned and with fixed marginals p(z) and q(x): learned ones make encoder and decoder agree better.

Livne, Swersky & Fleet 2019, appendix F.3, figure 13
"""

import consistency_1d
import figures
from experiment import Experiment, main

from echo_ext.data.mixtures import MIXTURES

LEARNED, FIXED = "mixture", "standard-normal"
MARGINALS = {LEARNED: "learned", FIXED: "fixed"}

NOTES = {
    **consistency_1d.NOTES,
    "q(x), p(z), q(z|x), p(x|z)": "mixtures of 10 normal distributions, but a fixed marginal is N(0, 1). The paper "
    "calls all marginals of this figure normal; the learned ones are here as in figure 12",
}


def cases():
    """The four combinations of learned and fixed marginals."""
    for data_marginal, prior in ((LEARNED, LEARNED), (FIXED, LEARNED), (LEARNED, FIXED), (FIXED, FIXED)):
        labels = {"q(x)": MARGINALS[data_marginal], "p(z)": MARGINALS[prior]}
        yield labels, consistency_1d.configured("MIM", data_marginal=data_marginal, prior=prior)


def draw(table, models, test):
    """The marginals of samples that start from q(x) and p(z)."""
    shown = {f"q(x) {of_x}, p(z) {of_z}": model for (of_x, of_z), model in models.items()}
    x, data = test.values(slice(None)), MIXTURES[consistency_1d.DATA]
    return {"histograms.png": figures.histograms(shown, x, data, procedures=("priors",))}


EXPERIMENT = Experiment("prior-expressiveness", __doc__, cases, consistency_1d.measure, draw, NOTES, seeds=6)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
