"""Recipes with a Gaussian or an inverse autoregressive channel, and a prior."""

from __future__ import annotations

from typing import Any

from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianChannel, IAFChannel
from echo_ext.models.priors import MAF, StandardNormal
from echo_ext.models.recipes.composition import (
    AUTOENCODER,
    DISCRIMINATOR,
    FLOW,
    mmd_penalty,
    networks,
    rate_weight,
    tc_penalty,
    vamp_prior,
)
from echo_ext.models.recipes.registry import recipe, variant

__all__: list[str] = []


@recipe("vae", "variational autoencoder with a Gaussian channel and an N(0, I) prior", **AUTOENCODER)
def vae(s: Any) -> Model:
    """VAE (Kingma & Welling 2014): the rate bound is KL(q(z|x) | N(0, I))."""
    return Autoencoder(
        **networks(s), channel=GaussianChannel(), prior=StandardNormal(s.latent_dim), beta=rate_weight(s)
    )


variant("beta-vae", "VAE with a rate weight of beta = 4", of="vae", beta=4.0)


@recipe("infovae", "VAE with a penalty on the MMD between z and N(0, I)", **AUTOENCODER, mmd_weight=999.0)
def infovae(s: Any) -> Model:
    """InfoVAE (Zhao et al. 2019): the VAE, with the distribution of all z kept close to N(0, I)."""
    parts, prior, penalty = networks(s), StandardNormal(s.latent_dim), mmd_penalty(s)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=rate_weight(s), regularizers=[penalty])


@recipe("vae-maf", "VAE with an autoregressive flow as prior", **AUTOENCODER, **FLOW)
def vae_maf(s: Any) -> Model:
    """VAE-MAF: the prior is a masked autoregressive flow (Papamakarios et al. 2017)."""
    parts, prior = networks(s), MAF(s.latent_dim, s.flow_steps, s.flow_hidden)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=rate_weight(s))


@recipe("vae-vamp", "VAE with a VampPrior, a mixture of encoded pseudo-inputs", **AUTOENCODER, pseudo_inputs=750)
def vae_vamp(s: Any) -> Model:
    """VAE-Vamp: the prior is the mean of q(z|u_k) over pseudo-inputs (Tomczak & Welling 2018)."""
    parts, channel = networks(s), GaussianChannel()
    return Autoencoder(**parts, channel=channel, prior=vamp_prior(s, parts["encoder"], channel), beta=rate_weight(s))


@recipe("iaf-prior", "inverse autoregressive channel and N(0, I) prior", **AUTOENCODER, **FLOW)
def iaf_prior(s: Any) -> Model:
    """IAF-Prior: z is a Gaussian sample moved by an inverse autoregressive flow (Kingma et al. 2016)."""
    return Autoencoder(**networks(s), channel=iaf_channel(s), prior=StandardNormal(s.latent_dim), beta=rate_weight(s))


@recipe("iaf-mmd", "iaf-prior with a penalty on the MMD between z and N(0, I)", **AUTOENCODER, **FLOW, mmd_weight=999.0)
def iaf_mmd(s: Any) -> Model:
    """IAF+MMD: IAF-Prior with the penalty of InfoVAE."""
    parts, channel, prior = networks(s), iaf_channel(s), StandardNormal(s.latent_dim)
    penalty = mmd_penalty(s)
    return Autoencoder(**parts, channel=channel, prior=prior, beta=rate_weight(s), regularizers=[penalty])


@recipe("iaf-maf", "inverse autoregressive channel and flow prior", **AUTOENCODER, **FLOW)
def iaf_maf(s: Any) -> Model:
    """IAF-MAF: one flow in the channel, and one in the prior."""
    parts, channel, prior = networks(s), iaf_channel(s), MAF(s.latent_dim, s.flow_steps, s.flow_hidden)
    return Autoencoder(**parts, channel=channel, prior=prior, beta=rate_weight(s))


@recipe("iaf-vamp", "inverse autoregressive channel and VampPrior", **AUTOENCODER, **FLOW, pseudo_inputs=750)
def iaf_vamp(s: Any) -> Model:
    """IAF-Vamp: the components of the prior are moved by the flow of the channel."""
    parts, channel = networks(s), iaf_channel(s)
    return Autoencoder(**parts, channel=channel, prior=vamp_prior(s, parts["encoder"], channel), beta=rate_weight(s))


def iaf_channel(s: Any) -> IAFChannel:
    """The channel of the IAF recipes."""
    return IAFChannel(s.latent_dim, s.flow_steps, s.flow_hidden)


@recipe("factor-vae", "VAE with a penalty on the total correlation of z", **AUTOENCODER, **DISCRIMINATOR)
def factor_vae(s: Any) -> Model:
    """FactorVAE (Kim & Mnih 2018): the VAE, with a discriminator that estimates TC(z)."""
    parts, prior, penalty = networks(s), StandardNormal(s.latent_dim), tc_penalty(s)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=rate_weight(s), regularizers=[penalty])
