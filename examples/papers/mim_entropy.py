"""The entropy of the encoder, added to the loss of the VAE and subtracted from that of MIM, on the same mixture.

Livne, Swersky & Fleet 2019, section 4 and supplement (VAE+H, MIM-H)
"""

from experiment import main
from mim_mixture import comparison

EXPERIMENT = comparison("mim-entropy", __doc__, ("VAE", "VAE+H", "MIM-H", "MIM"), shown=("VAE+H", "MIM-H"))

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
