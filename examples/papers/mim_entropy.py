"""The joint entropy, added to the loss of the VAE and subtracted from that of MIM, on the same mixture.

Livne, Swersky & Fleet 2019, appendix F.1, figures 10 and 11
"""

from experiment import main
from mim_mixture import DATA, comparison

from echo_ext.data.mixtures import MIXTURES

# By the formulas of the paper, the entropies are those of P(x) q(z|x) and of M_S, and P(x) is known.
KNOWN = {"joint_entropy": "anchored", "data_means": MIXTURES[DATA].means.tolist(), "data_std": MIXTURES[DATA].sigma}
# By the authors' code, q(x) stands for P(x), and the entropies have their full weight during the warm-up.
CODE = {"joint_entropy": "model", "warm_up": "encoding"}
MODELS = {
    "VAE+H": {"objective": "vae-h", **KNOWN},
    "MIM-H": {"objective": "mim-h", **KNOWN},
    "VAE+H code": {"objective": "vae-h", **CODE},
    "MIM-H code": {"objective": "mim-h", **CODE},
}

EXPERIMENT = comparison("mim-entropy", __doc__, MODELS, shown=("VAE+H", "MIM-H"))

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
