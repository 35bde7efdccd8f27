"""Recipes: short functions that compose the models of the papers from parts, each under a name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from echo_ext import _checks
from echo_ext.echo.channel import EchoChannel, EchoMatrixChannel
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianChannel, IAFChannel
from echo_ext.models.likelihoods import BernoulliLikelihood, find_likelihood
from echo_ext.models.mim import MIM, OBJECTIVES
from echo_ext.models.mutual_autoencoder import MutualAutoencoder
from echo_ext.models.networks import Split, architecture_for, make_decoder, make_encoder, mlp
from echo_ext.models.objectives import LearnedWeight
from echo_ext.models.priors import MAF, AggregatePosterior, GaussianMixture, Prior, StandardNormal, VampPrior
from echo_ext.models.regularizers import MMDRegularizer, TotalCorrelationRegularizer
from echo_ext.models.stacked_corex import CategoricalLayer, GaussianLayer, StackedCorEx
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

__all__ = ["FOLLOW_BATCH", "RECIPES", "Recipe", "build", "find", "recipes"]

# Groups of settings that recipes share, with their defaults.
NETWORKS: dict[str, Any] = {
    "likelihood": None,  # one of likelihoods.LIKELIHOODS; None means "bernoulli" for images and "gaussian" for vectors
    "likelihood_std": 1.0,  # the standard deviation of likelihood "mse"
    "architecture": None,  # one of networks.ARCHITECTURES; None means the convolutions for this image size, or "mlp"
    "hidden": None,  # widths of the hidden layers of an MLP encoder; the decoder has them in reverse order
    "activation": "relu",  # one of networks.ACTIVATIONS
}
WEIGHTED: dict[str, Any] = {**NETWORKS, "beta": 1.0}  # beta is the weight of the rate
AUTOENCODER: dict[str, Any] = {**WEIGHTED, "target_rate": None, "target_distortion": None}  # in nats; beta is learned
FLOW: dict[str, Any] = {"flow_steps": 4, "flow_hidden": (640, 640, 640)}
CHANNEL: dict[str, Any] = {
    **{"bound": 1.0, "activation_scale": 16.0, "bank_size": None, "gain": "auto"},
    "initial_std": None,  # None means 1 for an MLP, 3 for convolutions, and 0.1 for a multiplicative channel
}
SCALAR: dict[str, Any] = {**CHANNEL, "sampling": "permutation", "multiplicative": False, "sync": False}
ECHO: dict[str, Any] = {"num_terms": None, **SCALAR}  # one less than the rows of a batch
MATRIX: dict[str, Any] = {"min_other_rows": None, **CHANNEL}  # one less than the rows of a batch
# Settings whose value, if they are None, is the number of rows with which a row shares its batch.
FOLLOW_BATCH = ("num_terms", "min_other_rows")
DISCRIMINATOR: dict[str, Any] = {"tc_weight": 20.0, "discriminator_width": 1000}

# Groups of settings of a training run.
CONSTANT_RATE: dict[str, Any] = {"learning_rate": 1e-3, "schedule": "constant"}
MIM_RUN: dict[str, Any] = {**CONSTANT_RATE, "batch_size": 128, "epochs": 50, "warm_up_epochs": 10}
TWO_LEVEL_RUN: dict[str, Any] = {
    **CONSTANT_RATE,
    **{"learning_rate": 5e-4, "epochs": 2000, "warm_up_epochs": 100, "patience": 50, "normalize_gradients": True},
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model under a name.

    Attributes:
        summary: A one-line description.
        make: The function that composes the model, ``make(data_shape, latent_dim, **model_settings)``.
        model_settings: The settings that ``make`` accepts, with their defaults.
        train_settings: The settings of a training run that differ from the defaults of
            :class:`echo_ext.training.Configuration`.
        latent_dim: The default number of latents, as in the paper of the recipe.
    """

    summary: str
    make: Callable[..., Model]
    model_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latent_dim: int = 32

    def settings_for(self, data_shape: Sequence[int]) -> dict[str, Any]:
        """The training settings for data of this shape; images of 64 x 64 have those of the Echo paper."""
        if architecture_for(data_shape) != "conv64":
            return dict(self.train_settings)
        return {**self.train_settings, "learning_rate": 1e-4, "schedule": "constant", "batch_size": 64}


RECIPES: dict[str, Recipe] = {}


def recipes() -> dict[str, str]:
    """Return the names that :func:`build` accepts, each with a one-line summary.

    Example:
        >>> echo_ext.models.recipes()["echo"]
        'Echo noise, whose rate is exact and needs no prior'
    """
    return {name: recipe.summary for name, recipe in RECIPES.items()}


def find(name: str) -> Recipe:
    """Return the recipe of this name, or raise a ValueError that suggests similar names."""
    if name not in RECIPES:
        raise _checks.unknown("recipe", name, sorted(RECIPES))
    return RECIPES[name]


def build(recipe: str, data_shape: Sequence[int], *, latent_dim: int = 32, **model_settings: Any) -> Model:
    """Build the model of a recipe.

    Args:
        recipe: One of :func:`recipes`.
        data_shape: Shape of one x: (channels, height, width) for an image, (columns,) for a vector.
        latent_dim: Number of dimensions of z.
        model_settings: Settings of the recipe that replace its defaults, such as ``beta=0.5``.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The recipe or a setting is unknown, or a value is out of range.

    Example:
        >>> model = echo_ext.models.build("echo", (1, 8, 8), latent_dim=4, beta=0.5, num_terms=31)
        >>> model.encode(torch.rand(50, 1, 8, 8)).shape
        torch.Size([50, 4])
    """
    chosen = find(recipe)
    for name in model_settings:
        if name not in chosen.model_settings:
            raise _checks.unknown("setting", name, list(chosen.model_settings), owner=f"recipe {recipe!r}")
    latent_dim = _checks.whole("latent_dim", latent_dim, minimum=1)
    return chosen.make(_checks.data_shape(data_shape), latent_dim, **{**chosen.model_settings, **model_settings})


# ---- Composition -----------------------------------------------------------------------------------------------------


def recipe(
    name: str, summary: str, latent_dim: int = 32, run: Mapping[str, Any] = MappingProxyType({}), **settings: Any
) -> Callable[[Callable[[Any], Model]], Callable[[Any], Model]]:
    """Register a function that composes a model of a namespace: shape, latent_dim and the settings of the recipe.

    Args:
        name: The name of the recipe.
        summary: A one-line description.
        latent_dim: The default number of latents.
        run: The settings of a training run that differ from the defaults.
        settings: The settings of the model with their defaults.
    """

    def register(compose: Callable[[Any], Model]) -> Callable[[Any], Model]:
        def make(shape: Sequence[int], latent_dim: int, **given: Any) -> Model:
            return compose(SimpleNamespace(shape=shape, latent_dim=latent_dim, **given))

        RECIPES[name] = Recipe(summary, make, settings, run, latent_dim)
        return compose

    return register


def variant(name: str, summary: str, *, of: str, **settings: Any) -> None:
    """Register a recipe with other defaults under a name of its own."""
    changed = {**RECIPES[of].model_settings, **settings}
    RECIPES[name] = dataclasses.replace(RECIPES[of], summary=summary, model_settings=changed)


def networks(s: Any, min_log_variance: float = -math.inf) -> dict[str, Any]:
    """The encoder, with two outputs for each latent, the decoder, the likelihood and the shape of the data."""
    likelihood = find_likelihood(s.likelihood, s.shape, min_log_variance=min_log_variance, std=s.likelihood_std)
    encoder, settings = encoder_network(s), {"hidden": s.hidden, "activation": s.activation}
    outputs = likelihood.parameters_per_value
    decoder = make_decoder(architecture(s), s.shape, s.latent_dim, outputs=outputs, **settings)
    return {"encoder": encoder, "decoder": decoder, "likelihood": likelihood, "data_shape": s.shape}


def encoder_network(s: Any, outputs: int | None = None) -> nn.Module:
    """An encoder with this many outputs, or two for each latent."""
    width = 2 * s.latent_dim if outputs is None else outputs
    return make_encoder(architecture(s), s.shape, width, hidden=s.hidden, activation=s.activation)


def architecture(s: Any) -> str:
    """The given architecture, or that for this image size."""
    return s.architecture or architecture_for(s.shape)


def rate_weight(s: Any) -> float | LearnedWeight:
    """The weight of the rate, beta, or one that is learned so that the rate or the distortion meets a target."""
    if s.target_rate is None and s.target_distortion is None:
        return s.beta
    if s.beta != 1:
        raise ValueError(f"beta must be 1, since a target determines the weight of the rate, got {s.beta}")
    return LearnedWeight(target_rate=s.target_rate, target_distortion=s.target_distortion)


# ---- Echo ------------------------------------------------------------------------------------------------------------


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


def tc_penalty(s: Any, units: Callable[[Tensor], Tensor] | None = None) -> TotalCorrelationRegularizer:
    """The penalty on the total correlation of z."""
    weight = _checks.number("tc_weight", s.tc_weight, minimum=0)
    return TotalCorrelationRegularizer(s.latent_dim, weight, s.discriminator_width, units)


def mmd_penalty(s: Any) -> MMDRegularizer:
    """The penalty on the MMD between z and N(0, I)."""
    return MMDRegularizer(_checks.number("mmd_weight", s.mmd_weight, minimum=0))


# ---- Gaussian and IAF channels, with a prior -------------------------------------------------------------------------


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


def vamp_prior(s: Any, encoder: nn.Module, channel: nn.Module) -> VampPrior:
    """A VampPrior, whose pseudo-inputs have the range of pixels if the data are images."""
    limits = (0.0, 1.0) if len(s.shape) == 3 else None
    return VampPrior(encoder, channel, s.shape, s.pseudo_inputs, limits=limits)


@recipe("factor-vae", "VAE with a penalty on the total correlation of z", **AUTOENCODER, **DISCRIMINATOR)
def factor_vae(s: Any) -> Model:
    """FactorVAE (Kim & Mnih 2018): the VAE, with a discriminator that estimates TC(z)."""
    parts, prior, penalty = networks(s), StandardNormal(s.latent_dim), tc_penalty(s)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=rate_weight(s), regularizers=[penalty])


COREX: dict[str, Any] = {"cheap_latents": 0, "cheap_weight": 0.5, "aggregate_rows": 1024}


@recipe("corex", "VAE sampled from the product of the marginals q(z_j) of its codes", **WEIGHTED, **COREX)
def corex(s: Any) -> Model:
    """CorEx and AnchorVAE (Gao et al. 2019), where the first ``cheap_latents`` have a smaller weight of their rate."""
    cheap = _checks.whole("cheap_latents", s.cheap_latents, minimum=0, maximum=s.latent_dim)
    weight = _checks.number("cheap_weight", s.cheap_weight, minimum=0, maximum=1)
    beta = _checks.number("beta", s.beta, minimum=0)
    betas = [weight * beta] * cheap + [beta] * (s.latent_dim - cheap)
    parts, prior = networks(s), StandardNormal(s.latent_dim)
    aggregate = AggregatePosterior(s.latent_dim, _checks.row_count("aggregate_rows", s.aggregate_rows, minimum=1))
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=betas, aggregate=aggregate)


variant("anchor-vae", "corex with half the rate weight on five latents", of="corex", cheap_latents=5)


# ---- Two layers, and a prescribed information ------------------------------------------------------------------------


STACK: dict[str, Any] = {
    "layers": (10,),  # widths of the layers above z, from the lowest to the top
    "top": "categorical",  # or "gaussian", with an N(0, I) prior
    "upper_hidden": (32, 32, 16, 16),  # widths of the hidden layers of each encoder above z; decoders reverse them
    "initial_lower_weight": 1.0,  # of the lower rates, at the start of a warm-up
    "layerwise_steps": 1000,  # steps of each layer on the codes of that below, before all are trained together
}


@recipe(
    "stacked-corex",
    "VAE with more layers above z, by default one of ten states",
    latent_dim=64,
    run=CONSTANT_RATE,
    **{**WEIGHTED, **STACK, "architecture": "mlp"},
)
def stacked_corex(s: Any) -> Model:
    """Stacked CorEx (Gao et al. 2019): 784-512-512-64 layers, and 64-32-32-16-16-10 above them."""
    _checks.choice("top", s.top, ("categorical", "gaussian"))
    widths = [s.latent_dim, *_checks.widths("layers", s.layers)]
    parts = networks(s)
    prior: Prior = StandardNormal(widths[-1])
    for level in range(len(widths) - 1, 0, -1):
        below, width = widths[level - 1 : level + 1]
        is_categorical = level == len(widths) - 1 and s.top == "categorical"
        up = mlp(below, *s.upper_hidden, width if is_categorical else 2 * width, activation=s.activation)
        down = mlp(width, *reversed(s.upper_hidden), 2 * below, activation=s.activation)
        prior = CategoricalLayer(up, down, width) if is_categorical else GaussianLayer(up, down, prior)
    start = {"initial_lower_weight": s.initial_lower_weight, "layerwise_steps": s.layerwise_steps}
    return StackedCorEx(**parts, channel=GaussianChannel(), prior=prior, beta=s.beta, **start)


PRESCRIBED: dict[str, Any] = {"information": 1.0, "penalty": 1.0, "inverse": "tied", "draws": None}


@recipe(
    "mutual-ae",
    "Mutual Autoencoder, a VAE with a prescribed I(x; z) of information=M nats",
    latent_dim=1,
    run=CONSTANT_RATE,
    **{**NETWORKS, **PRESCRIBED, "architecture": "mlp", "hidden": (100, 100), "min_log_variance": -10.0},
)
def mutual_ae(s: Any) -> Model:
    """Mutual Autoencoder (Phuong et al. 2018), whose r(z|x) is "tied" to the encoder or a "separate" network."""
    _checks.choice("inverse", s.inverse, ("tied", "separate"))
    return MutualAutoencoder(
        **networks(s, s.min_log_variance),
        channel=GaussianChannel(s.min_log_variance),
        prior=StandardNormal(s.latent_dim),
        information=s.information,
        penalty=s.penalty,
        inverse=encoder_network(s) if s.inverse == "separate" else None,
        draws=s.draws,
    )


# ---- MIM -------------------------------------------------------------------------------------------------------------


MIM_NETWORKS: dict[str, Any] = {**NETWORKS, "architecture": "mlp", "hidden": (500, 500), "activation": "tanh"}
DISTRIBUTIONS: dict[str, Any] = {
    **{"prior": "standard-normal", "data_marginal": "importance", "components": 10},
    **{"reference_means": None, "reference_std": 0.25, "min_log_variance": -27.6},  # a standard deviation of 1e-6
}
MIXED_HALVES = "Mutual Information Machine, trained on encoder and decoder samples, half of each"


@recipe("mim", MIXED_HALVES, 2, MIM_RUN, objective="mim", **DISTRIBUTIONS, **MIM_NETWORKS)
def mim(s: Any) -> Model:
    """MIM (Livne et al. 2019), by default as in the experiment in two dimensions.

    The experiments in one dimension learn p(z) and q(x) as mixtures (``prior="mixture", data_marginal="mixture"``) and
    give the means (components, latent_dim) of a fixed P(z).
    """
    _checks.choice("prior", s.prior, ("standard-normal", "mixture"))
    _checks.choice("data_marginal", s.data_marginal, ("importance", "mixture"))
    if s.data_marginal == "mixture" and len(s.shape) != 1:
        raise ValueError(f"data_shape must be (columns,) for data_marginal 'mixture', got {tuple(s.shape)}")
    is_learned = s.prior == "mixture"
    prior = GaussianMixture(s.latent_dim, s.components) if is_learned else StandardNormal(s.latent_dim)
    return MIM(
        **networks(s, s.min_log_variance),
        channel=GaussianChannel(s.min_log_variance),
        prior=prior,
        objective=s.objective,
        reference_prior=None if s.reference_means is None else reference_prior(s),
        data_marginal=GaussianMixture(s.shape[0], s.components) if s.data_marginal == "mixture" else None,
    )


def reference_prior(s: Any) -> Prior:
    """The fixed mixture P(z) with these means."""
    means = torch.tensor(s.reference_means, dtype=torch.get_default_dtype())
    if means.ndim != 2 or means.shape[1] != s.latent_dim:
        wanted = f"a sequence of means with {s.latent_dim} numbers each, one per latent"
        raise ValueError(f"reference_means must be {wanted}, got {s.reference_means}")
    return GaussianMixture.fixed(means, _checks.number("reference_std", s.reference_std, above=0))


variant("a-mim", "MIM trained on encoder samples only", of="mim", objective="a-mim")
variant("mim-h", "MIM minus the entropy of the encoder in the loss", of="mim", objective="mim-h")
variant("vae-h", "VAE plus the entropy of the encoder in the loss", of="mim", objective="vae-h")


# ---- Two-level models ------------------------------------------------------------------------------------------------


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
    parts: dict[str, Any] = {"prior": TwoLevelPrior(lower, upper), "objective": s.objective, "data_shape": s.shape}
    if s.decoder == "convolutional":
        parts |= {"decoder": convolutional_decoder(s.shape, level), "likelihood": BernoulliLikelihood()}
    else:
        parts |= {"decoder": pixel_maps(s.shape, level), "likelihood": PixelCNN(2)}
    initialize(encoder, channel, lower, parts["decoder"])
    return MIM(encoder=encoder, channel=channel, **parts)


for _short, _decoder in {"convhvae": "convolutional", "pixelhvae": "autoregressive"}.items():
    for _letters, _prior in {"s": "standard-normal", "vp": "vamp"}.items():
        for _objective in ("vae", "a-mim", "mim"):
            _settings = {"decoder": _decoder, "objective": _objective, "prior": _prior, "pseudo_inputs": 500}
            _summary = f"two-level model, {_prior} prior, {_decoder} decoder, {_objective.upper()} loss"
            recipe(f"{_short}-{_letters}-{_objective}", _summary, 80, TWO_LEVEL_RUN, **_settings)(two_level)
