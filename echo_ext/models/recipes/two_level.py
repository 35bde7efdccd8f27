"""The recipes of two-level models of images."""

from __future__ import annotations

from typing import Any

from torch import nn

from echo_ext import _checks
from echo_ext.models.base import Model
from echo_ext.models.likelihoods import BernoulliLikelihood
from echo_ext.models.mim import MIM, OBJECTIVES
from echo_ext.models.priors import Prior, StandardNormal, VampPrior
from echo_ext.models.recipes.mim import MIM_TERMS, mim_terms
from echo_ext.models.recipes.registry import CONSTANT_RATE, recipe
from echo_ext.models.two_level import (
    PixelCNN,
    TwoLevelChannel,
    TwoLevelEncoder,
    TwoLevelPrior,
    convolutional_decoder,
    feature_width,
    initialize,
    level_channel,
    level_network,
    pixel_maps,
)

__all__: list[str] = []

RUN: dict[str, Any] = {
    **CONSTANT_RATE,
    **{"learning_rate": 5e-4, "epochs": 2000, "warm_up_epochs": 100, "patience": 50, "normalize_gradients": True},
}


def two_level(s: Any) -> Model:
    """A two-level model (Tomczak & Welling 2018), trained by MIM (Livne et al. 2019); latent_dim counts both levels."""
    _checks.choice("decoder", s.decoder, ("convolutional", "autoregressive"))
    _checks.choice("objective", s.objective, [name for name in OBJECTIVES if name != "cross-entropy"])
    _checks.choice("prior", s.prior, ("standard-normal", "vamp"))
    if s.latent_dim % 2:
        raise ValueError(f"latent_dim must be even, one half for each level, got {s.latent_dim}")
    level = s.latent_dim // 2
    encoder, channel = TwoLevelEncoder(s.shape, level), TwoLevelChannel(feature_width(s.shape), level)
    lower: nn.Module = level_network(level)
    upper: Prior = StandardNormal(level)
    if s.prior == "vamp":
        upper = VampPrior(encoder.upper, level_channel(), s.shape, s.pseudo_inputs)
    parts: dict[str, Any] = {"prior": TwoLevelPrior(lower, upper), "data_shape": s.shape, **mim_terms(s)}
    if s.decoder == "convolutional":
        parts |= {"decoder": convolutional_decoder(s.shape, level), "likelihood": BernoulliLikelihood()}
    else:
        likelihood = PixelCNN(2, hides_maps=s.hides_maps)
        parts |= {"decoder": pixel_maps(s.shape, level), "likelihood": likelihood}
    initialize(encoder, channel, lower, parts["decoder"])
    return MIM(encoder=encoder, channel=channel, **parts)


for _short, _decoder in {"convhvae": "convolutional", "pixelhvae": "autoregressive"}.items():
    for _letters, _prior in {"s": "standard-normal", "vp": "vamp"}.items():
        for _objective in ("vae", "a-mim", "mim"):
            _settings: dict[str, Any] = {
                **{"decoder": _decoder, "objective": _objective, "prior": _prior, "pseudo_inputs": 500},
                **MIM_TERMS,
                **({"hides_maps": False} if _decoder == "autoregressive" else {}),
            }
            _summary = f"two-level model, {_prior} prior, {_decoder} decoder, {_objective.upper()} loss"
            recipe(f"{_short}-{_letters}-{_objective}", _summary, 80, RUN, **_settings)(two_level)
