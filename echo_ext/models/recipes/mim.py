"""The recipes of MIM."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from echo_ext import _checks
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianChannel, MixtureChannel
from echo_ext.models.mim import MIM
from echo_ext.models.networks import Split
from echo_ext.models.priors import MAF, GaussianMixture, Prior, StandardNormal, VampPrior
from echo_ext.models.recipes.composition import FLOW, NETWORKS, encoder_network, networks, vamp_prior
from echo_ext.models.recipes.registry import recipe, variant

__all__ = ["MIM_TERMS"]

# The distributions p(z) and q(x) by name.
MARGINALS = {
    "standard-normal": "N(0, I)",
    "normal": "a learned Gaussian with a diagonal covariance",
    "mixture": "a learned mixture of such Gaussians",
    "flow": "a masked autoregressive flow over a learned Gaussian",
    "vamp": "a VampPrior: the mixture of q(z|u) over learned u, or of p(x|v) over learned v",
}
IMPORTANCE = "importance"  # the q(x) that is the marginal of the decoder, estimated by importance sampling
POSTERIORS = ("gaussian", "mixture")

# The experiment in two dimensions (Livne et al. 2019, section 5.1).
RUN: dict[str, Any] = {
    **{"learning_rate": 1e-3, "schedule": "inverse-square-root", "batch_size": 128},
    **{"epochs": 200, "warm_up_epochs": 3, "patience": 3},
}
LAYERS: dict[str, Any] = {
    **{**NETWORKS, "architecture": "mlp", "hidden": (500,), "activation": "tanh", "initialization": "torch"},
    **{"posterior": "gaussian", "posterior_components": 10, "min_log_variance": -27.6},  # a standard deviation of 1e-6
}
MIM_TERMS: dict[str, Any] = {"joint_entropy": "model", "warm_up": "decoding", "reuses_latents": False}
DISTRIBUTIONS: dict[str, Any] = {
    **{"prior": "standard-normal", "data_marginal": IMPORTANCE, "components": 10, "pseudo_inputs": 500, **FLOW},
    **{"reference_means": None, "reference_std": 0.25},  # of a fixed P(z), a mixture of Gaussians; None means N(0, I)
    **{"data_means": None, "data_std": 0.25},  # of the known P(x), a mixture of Gaussians, for mim-h
}
MIXED_HALVES = "Mutual Information Machine, trained on encoder and decoder samples, half of each"


@recipe("mim", MIXED_HALVES, 2, RUN, objective="mim", **MIM_TERMS, **DISTRIBUTIONS, **LAYERS)
def mim(s: Any) -> Model:
    """MIM (Livne et al. 2019), by default as in the experiment in two dimensions.

    Decoder samples start from N(0, I), or from the mixture with the means (components, latent_dim) that are given, also
    if p(z) is learned; only with a VampPrior they start from p(z).
    """
    _checks.choice("prior", s.prior, MARGINALS)
    _checks.choice("data_marginal", s.data_marginal, (IMPORTANCE, *MARGINALS))
    _checks.choice("posterior", s.posterior, POSTERIORS)
    if s.data_marginal != IMPORTANCE and len(s.shape) != 1:
        raise ValueError(
            f"data_shape must be (columns,) for data_marginal {s.data_marginal!r}, got {tuple(s.shape)}; images allow "
            f"{IMPORTANCE!r}"
        )
    parts = networks(s, s.min_log_variance)
    channel: nn.Module = GaussianChannel(s.min_log_variance)
    if s.posterior == "mixture":
        channel = MixtureChannel(s.posterior_components, s.min_log_variance)
        widths = [s.latent_dim * s.posterior_components] * 3
        parts["encoder"] = Split(encoder_network(s, sum(widths)), widths)
    if s.prior == "vamp":
        prior: Prior = vamp_prior(s, parts["encoder"], channel)
    else:
        prior = marginal(s, s.prior, s.latent_dim)
    reference = None
    if s.reference_means is not None:
        reference = fixed_mixture(s, "reference", s.latent_dim)
    elif s.prior not in ("standard-normal", "vamp"):
        reference = StandardNormal(s.latent_dim)
    if s.data_marginal == "vamp":
        width = s.shape[0] * parts["likelihood"].parameters_per_value
        data_marginal: Prior | None = decoded_mixture(s, Split(parts["decoder"], [width]), parts["likelihood"])
    else:
        data_marginal = None if s.data_marginal == IMPORTANCE else marginal(s, s.data_marginal, s.shape[0])
    return MIM(
        **parts,
        **mim_terms(s),
        channel=channel,
        prior=prior,
        reference_prior=reference,
        data_marginal=data_marginal,
        data_distribution=None if s.data_means is None else fixed_mixture(s, "data", s.shape[0]),
    )


def mim_terms(s: Any) -> dict[str, Any]:
    """The objective and how its terms are estimated."""
    return {name: getattr(s, name) for name in ("objective", *MIM_TERMS)}


def marginal(s: Any, name: str, width: int) -> Prior:
    """The distribution of this name of vectors of this width."""
    if name == "standard-normal":
        return StandardNormal(width)
    if name == "flow":
        return MAF(width, s.flow_steps, s.flow_hidden, base=GaussianMixture(width, 1))
    return GaussianMixture(width, 1 if name == "normal" else s.components)


def decoded_mixture(s: Any, decoder: nn.Module, likelihood: Any) -> Prior:
    """The q(x) that is the mean of p(x|v) over learned v, which start as samples of N(0, I)."""
    found = VampPrior(decoder, likelihood, (s.latent_dim,), s.pseudo_inputs, limits=None)
    nn.init.normal_(found.pseudo_inputs)
    return found


def fixed_mixture(s: Any, name: str, width: int) -> Prior:
    """The fixed mixture of Gaussians with the means and the standard deviation of the settings of this name."""
    given, std = getattr(s, f"{name}_means"), _checks.number(f"{name}_std", getattr(s, f"{name}_std"), above=0)
    means = torch.tensor(given, dtype=torch.get_default_dtype())
    if means.ndim != 2 or means.shape[1] != width:
        what = "latent" if name == "reference" else "column"
        wanted = f"a sequence of means with {width} numbers each, one per {what}"
        raise ValueError(f"{name}_means must be {wanted}, got {_checks.brief(given)}")
    return GaussianMixture.fixed(means, std)


variant("a-mim", "MIM trained on encoder samples only", of="mim", objective="a-mim")
variant("mim-h", "MIM minus the joint entropy of its samples in the loss", of="mim", objective="mim-h")
variant(
    "vae-h",
    "VAE plus the joint entropy of the encoding in the loss, after the warm-up the same as a-mim",
    of="mim",
    objective="vae-h",
    joint_entropy="anchored",
)
