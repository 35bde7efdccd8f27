"""Training by the cross-entropy and then by MIM, and the other way around: which optimum is consistent.

Livne, Swersky & Fleet 2019, appendix F.4, figure 14
"""

import consistency_1d
import figures
from experiment import Experiment, main

from echo_ext.data.mixtures import MIXTURES

FIRST, LOSS = "first", "then"
NONE = "-"


def cases():
    """Each loss from the start, and then from the weights of the other."""
    for loss, other in (("CE", "MIM"), ("MIM", "CE")):
        yield {FIRST: NONE, LOSS: loss}, consistency_1d.configured(loss)
        yield {FIRST: loss, LOSS: other}, consistency_1d.configured(other)


def start(labels):
    """The run whose weights a case starts from."""
    return None if labels[FIRST] == NONE else {FIRST: NONE, LOSS: labels[FIRST]}


def draw(table, models, test):
    """The marginals of reconstructions, and of samples that start from q(x) and p(z)."""
    shown = {loss if first == NONE else f"{first}, then {loss}": model for (first, loss), model in models.items()}
    x, data = test.values(slice(None)), MIXTURES[consistency_1d.DATA]
    return {"histograms.png": figures.histograms(shown, x, data, procedures=("reconstruction", "priors"))}


EXPERIMENT = Experiment(
    "consistency-order", __doc__, cases, consistency_1d.measure, draw, consistency_1d.NOTES, start=start, seeds=6
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
