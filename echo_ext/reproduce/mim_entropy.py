"""The entropy of the encoding as the cause: added to the VAE's loss, taken from MIM's."""

from __future__ import annotations

from echo_ext.reproduce.experiment import Experiment
from echo_ext.reproduce.mim_mixture import compare

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    summary="the joint entropy of the encoding, added to the VAE's loss and taken from MIM's, on the same mixture",
    source="Livne, Swersky & Fleet 2019, section 4 and supplement (VAE+H, MIM-H)",
    run=lambda bench: compare(bench, ("VAE", "VAE+H", "MIM-H", "MIM")),
)
