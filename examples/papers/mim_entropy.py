"""The effect of the entropy of the encoder: added to the loss of the VAE, and subtracted from that of MIM."""

from __future__ import annotations

import sys

from experiment import Experiment, main
from mim_mixture import compare

EXPERIMENT = Experiment(
    summary="the entropy of the encoder, added to the loss of the VAE and subtracted from that of MIM, same mixture",
    source="Livne, Swersky & Fleet 2019, section 4 and supplement (VAE+H, MIM-H)",
    run=lambda context: compare(context, ("VAE", "VAE+H", "MIM-H", "MIM")),
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
