"""Recipes with Echo noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from echo_ext.echo.channel import EchoChannel, EchoMatrixChannel
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model
from echo_ext.models.networks import Split, architecture_for
from echo_ext.models.recipes.composition import (
    AUTOENCODER,
    DISCRIMINATOR,
    architecture,
    encoder_network,
    networks,
    rate_weight,
    tc_penalty,
)
from echo_ext.models.recipes.registry import recipe

__all__: list[str] = []

CHANNEL: dict[str, Any] = {
    **{"bound": 1.0, "activation_scale": 16.0, "bank_size": None, "gain": "auto"},
    "initial_std": None,  # None means 1 for an MLP, 3 for convolutions, and 0.1 for a multiplicative channel
}
SCALAR: dict[str, Any] = {**CHANNEL, "sampling": "permutation", "multiplicative": False, "sync": False}
ECHO: dict[str, Any] = {"num_terms": None, **SCALAR}  # one less than the rows of a batch
MATRIX: dict[str, Any] = {"min_other_rows": None, **CHANNEL}  # one less than the rows of a batch


def echo_parts(s: Any) -> dict[str, Any]:
    """The networks and the channel."""
    channel = EchoChannel(other_rows(s.num_terms, s.shape), **channel_options(s, SCALAR))
    return {**networks(s), "channel": channel, "beta": rate_weight(s)}


def other_rows(given: int | None, shape: Sequence[int]) -> int:
    """The given number of other rows, or all but one of a batch of the paper's experiments on data of this shape."""
    if given is not None:
        return given
    return 63 if architecture_for(shape) == "conv64" else 99


def channel_options(s: Any, names: Iterable[str]) -> dict[str, Any]:
    """The settings of a channel with these names; initial_std follows from the others if it is not given."""
    options = {name: getattr(s, name) for name in names}
    if s.initial_std is None:
        usual = 1.0 if architecture(s) == "mlp" else 3.0  # see docs/results/convolutions
        options["initial_std"] = 0.1 if options.get("multiplicative") else usual  # exp(z) then begins near 1
    return options


@recipe("echo", "Echo noise, whose rate is exact and needs no prior", **AUTOENCODER, **ECHO)
def echo(s: Any) -> Model:
    """Echo (Brekelmans et al. 2019): the rate is ``-E log|s|``, and the noise has the distribution of the codes."""
    return Autoencoder(**echo_parts(s))


@recipe("echo-matrix", "Echo noise whose dimensions are scaled by a matrix for each input", **AUTOENCODER, **MATRIX)
def echo_matrix(s: Any) -> Model:
    """Echo with a non-diagonal S(x) (Brekelmans et al. 2019, end of appendix C): the rate is ``-E log|det S|``."""
    channel = EchoMatrixChannel(s.latent_dim, other_rows(s.min_other_rows, s.shape), **channel_options(s, CHANNEL))
    outputs, parts = (s.latent_dim, channel.num_scale_features), networks(s)
    parts["encoder"] = Split(encoder_network(s, sum(outputs)), outputs)
    return Autoencoder(**parts, channel=channel, beta=rate_weight(s))


@recipe("echo-tc", "Echo with a penalty on the total correlation of z", **AUTOENCODER, **ECHO, **DISCRIMINATOR)
def echo_tc(s: Any) -> Model:
    """Echo with the penalty of FactorVAE (Kim & Mnih 2018)."""
    parts = echo_parts(s)
    return Autoencoder(**parts, regularizers=[tc_penalty(s, parts["channel"].without_gain)])
