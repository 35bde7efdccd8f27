"""The stages of a campaign: the sweeps that train the papers' tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """The sweeps of one stage.

    Args:
        summary: One line for ``--help``.
        lanes: Lists of sweeps. Lanes run at the same time; the sweeps of one lane run one after the other, the most
            valuable first.
        measured: The recipes whose finished runs are evaluated.
        evaluation: More options of ``echo-ext evaluate``.
    """

    summary: str
    lanes: dict[str, list[list[str]]]
    measured: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()


TABLE_1 = ("echo", "vae", "infovae", "vae-maf", "vae-vamp", "iaf-prior", "iaf-mmd", "iaf-maf", "iaf-vamp")
TABLE_2 = ("echo", "vae", "echo-tc", "factor-vae")
IMAGES = ("binary-mnist", "omniglot", "fashion-mnist")
BETAS = ".05,.075,.1,.125,.15,.2,.25,.3,.4,.5,.6,.7,.8,.9,1,1.5,2,3,4,6"
DSPRITES = ("--beta", "1", "--latent-dim", "10", "--seeds", "0,1,2")
TWO_LEVELS = tuple(f"{kind}-{loss}" for kind in ("convhvae-s", "convhvae-vp") for loss in ("vae", "a-mim"))
PIXELS = tuple(f"{kind}-{loss}" for kind in ("pixelhvae-s", "pixelhvae-vp") for loss in ("vae", "a-mim"))
FULL_MIM = ("convhvae-s-mim", "convhvae-vp-mim")
HVAE = ("--binarization", "dynamic", "--latent-dim", "80", "--beta", "1", "--seeds", "0")
SMALL = ("--latent-dim", "4", "--set", "hidden=[32]")


def sweep(recipes, data, *options):
    return ["--recipe", *recipes, "--data", data, *options]


STAGES = {
    "table1": Stage(
        "Echo paper, table 1: rate, distortion and -ELBO on three data sets; echo and vae first",
        {
            data: [
                sweep(("echo", "vae"), data, "--beta", "1", "--seeds", "0,1,2"),
                sweep(TABLE_1, data, "--beta", "1", "--seeds", "0,1,2,3,4,5,6,7,8,9"),
            ]
            for data in IMAGES
        },
        measured=("echo",),
    ),
    "rate-distortion": Stage(
        "Echo paper, figures 2 and 3: rate-distortion curves of echo and vae",
        {data: [sweep(("echo", "vae"), data, "--beta", BETAS, "--seeds", "0,1,2")] for data in IMAGES},
    ),
    "table2": Stage(
        "Echo paper, table 2: disentanglement on dSprites, with and without a penalty on total correlation",
        {
            data: [sweep(TABLE_2, data, *DSPRITES, "--epochs", epochs)]
            for data, epochs in (("dsprites", "30"), ("dsprites-dependent", "200"))
        },
        measured=TABLE_2,
    ),
    "mim-images": Stage(
        "MIM paper, figures 4 and 6: NLL (of 1,000 test images) and 5-NN accuracy of two-level models",
        {
            data: [sweep(TWO_LEVELS + PIXELS, data, *HVAE), sweep(FULL_MIM, data, *HVAE)]
            for data in ("fashion-mnist", "mnist", "omniglot")
        },
        measured=TWO_LEVELS + PIXELS + FULL_MIM,
        evaluation=("--importance-draws", "5000", "--importance-rows", "1000"),
    ),
    "rehearsal": Stage(
        "no table: small models on scikit-learn's digits, to try the machinery in a minute",
        {
            folder: [sweep(("echo", "vae"), "digits", "--beta", beta, "--seeds", "0,1", *SMALL)]
            for folder, beta in (("digits", "1"), ("digits-low", "0.5"))
        },
        measured=("echo",),
    ),
}
