"""The effect of the entropy of the encoder: added to the loss of the VAE, and subtracted from that of MIM."""

from __future__ import annotations

from echo_ext.reproduce.experiment import Experiment
from echo_ext.reproduce.mim_mixture import compare

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    summary="the entropy of the encoder, added to the loss of the VAE and subtracted from that of MIM, same mixture",
    source="Livne, Swersky & Fleet 2019, section 4 and supplement (VAE+H, MIM-H)",
    run=lambda context: compare(context, ("VAE", "VAE+H", "MIM-H", "MIM")),
)
