"""Recipes: short functions that compose the models of the papers from parts, each under a name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from echo_ext import _checks
from echo_ext.echo._arguments import Sampling
from echo_ext.echo.channel import EchoChannel
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianChannel, IAFChannel
from echo_ext.models.likelihoods import BernoulliLikelihood, Likelihood, find_likelihood
from echo_ext.models.mim import MIM, OBJECTIVES
from echo_ext.models.mutual_autoencoder import MutualAutoencoder
from echo_ext.models.networks import architecture_for, make_decoder, make_encoder, mlp
from echo_ext.models.priors import MAF, AggregatePosterior, GaussianMixture, Prior, StandardNormal, VampPrior
from echo_ext.models.regularizers import MMDRegularizer, TotalCorrelationRegularizer
from echo_ext.models.stacked_corex import CategoricalLayer, StackedCorEx
from echo_ext.models.two_level import (
    PixelCNN,
    PixelMaps,
    TwoLevelChannel,
    TwoLevelDecoder,
    TwoLevelEncoder,
    TwoLevelPrior,
    feature_width,
    initialize,
    level_channel,
    level_network,
)

__all__ = ["RECIPES", "Recipe", "build", "find", "recipes"]

Make = TypeVar("Make", bound="Callable[..., Model]")
Ints: TypeAlias = Sequence[int]

FLOW = (640, 640, 640)  # widths of the hidden layers of each step of a flow

CONSTANT_RATE: dict[str, Any] = {"learning_rate": 1e-3, "schedule": "constant"}
MIM_TRAINING = {**CONSTANT_RATE, "batch_size": 128, "epochs": 50, "warm_up_epochs": 10}
TWO_LEVEL_TRAINING = {
    **CONSTANT_RATE,
    **{"learning_rate": 5e-4, "epochs": 2000, "warm_up_epochs": 100, "patience": 50, "normalize_gradients": True},
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model under a name.

    Attributes:
        summary: A one-line description.
        make: The function that composes the model, ``make(data_shape, latent_dim, **model_settings)``.
        train_settings: The settings of a training run that differ from the defaults of
            :class:`echo_ext.training.Configuration`.
        latent_dim: The default number of latents, as in the paper of the recipe.
    """

    summary: str
    make: Callable[..., Model]
    train_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latent_dim: int = 32

    @property
    def model_settings(self) -> dict[str, Any]:
        """The names of the settings that ``make`` accepts, with their defaults."""
        settings: dict[str, Any] = {}
        for parameter in inspect.signature(self.make).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                settings[parameter.name] = parameter.default
            elif parameter.kind is parameter.VAR_KEYWORD:
                settings |= {name: None for name in Net.__annotations__ if name not in settings}
        return settings

    def settings_for(self, data_shape: Ints) -> dict[str, Any]:
        """The training settings for data of this shape; images of 64 x 64 have those of the Echo paper."""
        if architecture_for(data_shape) != "conv64":
            return dict(self.train_settings)
        return {**self.train_settings, "learning_rate": 1e-4, "batch_size": 64}


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


def build(recipe: str, data_shape: Ints, *, latent_dim: int = 32, **model_settings: Any) -> Model:
    """Build the model of a recipe.

    Args:
        recipe: One of :func:`recipes`.
        data_shape: Ints of one x: (channels, height, width) for an image, (columns,) for a vector.
        latent_dim: Number of dimensions of z.
        model_settings: Settings of the recipe's function that replace its defaults, such as ``beta=0.5``.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The recipe or a setting is unknown, or a value is out of range.

    Example:
        >>> model = echo_ext.models.build("echo", (1, 8, 8), latent_dim=4, beta=0.5, num_terms=31)
        >>> model.encode(torch.rand(50, 1, 8, 8)).shape
        torch.Size([50, 4])
    """
    chosen = find(recipe)
    known = chosen.model_settings
    for name in model_settings:
        if name not in known:
            raise _checks.unknown("setting", name, list(known), owner=f"recipe {recipe!r}")
    return chosen.make(
        _checks.data_shape(data_shape), _checks.whole("latent_dim", latent_dim, minimum=1), **model_settings
    )


def recipe(name: str, summary: str, latent_dim: int = 32, **train_settings: Any) -> Callable[[Make], Make]:
    """Register a function under a name, with its default latent_dim and its settings of a training run."""

    def register(make: Make) -> Make:
        RECIPES[name] = Recipe(summary, make, train_settings, latent_dim)
        return make

    return register


def variant(name: str, summary: str, of: str, **model_settings: Any) -> None:
    """Register a recipe with other settings under a name of its own."""
    RECIPES[name] = dataclasses.replace(
        RECIPES[of], summary=summary, make=functools.partial(RECIPES[of].make, **model_settings)
    )


# ---- Networks --------------------------------------------------------------------------------------------------------


class Net(TypedDict, total=False):
    """The settings of the networks, which most recipes accept."""

    likelihood: str | None  # one of likelihoods.LIKELIHOODS; by default "bernoulli" for images, "gaussian" for vectors
    architecture: str | None  # one of networks.ARCHITECTURES; by default the convolutions for this image size, or "mlp"
    hidden: Ints | None  # widths of the hidden layers of an MLP encoder; the decoder has them in reverse order
    activation: str  # one of networks.ACTIVATIONS


class Parts(TypedDict):
    """The parts of a model that data of one shape need."""

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Likelihood
    data_shape: Ints


def networks(shape: Ints, latent_dim: int, *, min_log_variance: float = -math.inf, **nets: Unpack[Net]) -> Parts:
    """Build an encoder with two outputs for each latent, and a decoder with a likelihood."""
    likelihood = find_likelihood(nets.get("likelihood"), shape, min_log_variance=min_log_variance)
    architecture = nets.get("architecture") or architecture_for(shape)
    layers: dict[str, Any] = {"hidden": nets.get("hidden"), "activation": nets.get("activation", "relu")}
    encoder = make_encoder(architecture, shape, 2 * latent_dim, **layers)
    decoder = make_decoder(architecture, shape, latent_dim, outputs=likelihood.parameters_per_value, **layers)
    return {"encoder": encoder, "decoder": decoder, "likelihood": likelihood, "data_shape": shape}


# ---- Echo ------------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A decoder of ``gain * z``. The z of an untrained Echo channel are small, and without a gain it learns slowly."""

    def __init__(self, decoder: nn.Module, gain: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.gain = _checks.number("decoder_gain", gain, above=0)

    def forward(self, z: Tensor) -> Tensor:
        """Decode z (B, latent_dim)."""
        return self.decoder(self.gain * z)


@recipe("echo", "Echo noise, whose rate is exact and needs no prior")
def echo(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1.0,
    num_terms: int | None = None,
    sampling: Sampling = "permutation",
    activation_scale: float = 16.0,
    bank_size: int | None = None,
    decoder_gain: float = 64.0,
    tc_weight: float = 0.0,
    discriminator_width: int = 1000,
    **nets: Unpack[Net],
) -> Model:
    """Echo (Brekelmans et al. 2019): the rate is ``-E log|s|``, and the noise has the distribution of the codes."""
    parts = networks(shape, latent_dim, **nets)
    parts["decoder"] = Scaled(parts["decoder"], decoder_gain)
    if num_terms is None:  # one less than the batch size of the paper's experiments
        num_terms = 63 if architecture_for(shape) == "conv64" else 99
    channel = EchoChannel(num_terms, sampling=sampling, activation_scale=activation_scale, bank_size=bank_size)
    penalties = [TotalCorrelationRegularizer(latent_dim, tc_weight, discriminator_width)] if tc_weight > 0 else []
    return Autoencoder(**parts, channel=channel, beta=beta, regularizers=penalties)


variant("echo-tc", "Echo with a penalty on the total correlation of z", of="echo", tc_weight=20.0)


# ---- Gaussian and IAF channels, with a prior -------------------------------------------------------------------------


@recipe("vae", "variational autoencoder with a Gaussian channel and an N(0, I) prior")
def vae(shape: Ints, latent_dim: int, *, beta: float = 1.0, **nets: Unpack[Net]) -> Model:
    """VAE (Kingma & Welling 2014): the rate bound is KL(q(z|x) | N(0, I))."""
    parts = networks(shape, latent_dim, **nets)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=StandardNormal(latent_dim), beta=beta)


variant("beta-vae", "VAE with a rate weight of beta = 4", of="vae", beta=4.0)


@recipe("infovae", "VAE with a penalty on the MMD between z and N(0, I)")
def infovae(
    shape: Ints, latent_dim: int, *, beta: float = 1.0, mmd_weight: float = 999.0, **nets: Unpack[Net]
) -> Model:
    """InfoVAE (Zhao et al. 2019): the VAE, with the distribution of all z kept close to N(0, I)."""
    parts, penalty = networks(shape, latent_dim, **nets), MMDRegularizer(mmd_weight)
    prior = StandardNormal(latent_dim)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=beta, regularizers=[penalty])


@recipe("vae-maf", "VAE with an autoregressive flow as prior")
def vae_maf(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1,
    flow_steps: int = 4,
    flow_hidden: Ints = FLOW,
    **nets: Unpack[Net],
) -> Model:
    """VAE-MAF: the prior is a masked autoregressive flow (Papamakarios et al. 2017)."""
    parts = networks(shape, latent_dim, **nets)
    prior = MAF(latent_dim, flow_steps, flow_hidden)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=beta)


@recipe("vae-vamp", "VAE with a VampPrior, a mixture of encoded pseudo-inputs")
def vae_vamp(
    shape: Ints, latent_dim: int, *, beta: float = 1.0, pseudo_inputs: int = 750, **nets: Unpack[Net]
) -> Model:
    """VAE-Vamp: the prior is the mean of q(z|u_k) over pseudo-inputs (Tomczak & Welling 2018)."""
    parts, channel = networks(shape, latent_dim, **nets), GaussianChannel()
    prior = VampPrior(parts["encoder"], channel, shape, pseudo_inputs, limits=_pixel_range(shape))
    return Autoencoder(**parts, channel=channel, prior=prior, beta=beta)


@recipe("iaf-prior", "inverse autoregressive channel and N(0, I) prior")
def iaf_prior(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1.0,
    mmd_weight: float = 0.0,
    flow_steps: int = 4,
    flow_hidden: Ints = FLOW,
    **nets: Unpack[Net],
) -> Model:
    """IAF-Prior: z is a Gaussian sample moved by an inverse autoregressive flow (Kingma et al. 2016)."""
    parts, channel = networks(shape, latent_dim, **nets), IAFChannel(latent_dim, flow_steps, flow_hidden)
    penalties = [MMDRegularizer(mmd_weight)] if mmd_weight > 0 else []
    prior = StandardNormal(latent_dim)
    return Autoencoder(**parts, channel=channel, prior=prior, beta=beta, regularizers=penalties)


variant("iaf-mmd", "iaf-prior with a penalty on the MMD between z and N(0, I)", of="iaf-prior", mmd_weight=999.0)


@recipe("iaf-maf", "inverse autoregressive channel and flow prior")
def iaf_maf(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1,
    flow_steps: int = 4,
    flow_hidden: Ints = FLOW,
    **nets: Unpack[Net],
) -> Model:
    """IAF-MAF: one flow in the channel, and one in the prior."""
    parts, channel = networks(shape, latent_dim, **nets), IAFChannel(latent_dim, flow_steps, flow_hidden)
    return Autoencoder(**parts, channel=channel, prior=MAF(latent_dim, flow_steps, flow_hidden), beta=beta)


@recipe("iaf-vamp", "inverse autoregressive channel and VampPrior")
def iaf_vamp(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1.0,
    pseudo_inputs: int = 750,
    flow_steps: int = 4,
    flow_hidden: Ints = FLOW,
    **nets: Unpack[Net],
) -> Model:
    """IAF-Vamp: the components of the prior are moved by the flow of the channel."""
    parts, channel = networks(shape, latent_dim, **nets), IAFChannel(latent_dim, flow_steps, flow_hidden)
    prior = VampPrior(parts["encoder"], channel, shape, pseudo_inputs, limits=_pixel_range(shape))
    return Autoencoder(**parts, channel=channel, prior=prior, beta=beta)


@recipe("factor-vae", "VAE with a penalty on the total correlation of z")
def factor_vae(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1.0,
    tc_weight: float = 20.0,
    discriminator_width: int = 1000,
    **nets: Unpack[Net],
) -> Model:
    """FactorVAE (Kim & Mnih 2018): the VAE, with a discriminator that estimates TC(z)."""
    parts, prior = networks(shape, latent_dim, **nets), StandardNormal(latent_dim)
    penalty = TotalCorrelationRegularizer(latent_dim, tc_weight, discriminator_width)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=beta, regularizers=[penalty])


@recipe("corex", "VAE sampled from the product of the marginals q(z_j) of its codes")
def corex(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1.0,
    cheap_latents: int = 0,
    cheap_weight: float = 0.5,
    aggregate_rows: int = 1024,
    **nets: Unpack[Net],
) -> Model:
    """CorEx and AnchorVAE (Gao et al. 2019), where the first ``cheap_latents`` have a smaller weight of their rate."""
    parts, prior = networks(shape, latent_dim, **nets), StandardNormal(latent_dim)
    cheap_latents = _checks.whole("cheap_latents", cheap_latents, minimum=0, maximum=latent_dim)
    cheap_weight = _checks.number("cheap_weight", cheap_weight, minimum=0, maximum=1)
    betas = [cheap_weight * beta] * cheap_latents + [beta] * (latent_dim - cheap_latents)
    aggregate = AggregatePosterior(latent_dim, aggregate_rows)
    return Autoencoder(**parts, channel=GaussianChannel(), prior=prior, beta=betas, aggregate=aggregate)


variant("anchor-vae", "corex with half the rate weight on five latents", of="corex", cheap_latents=5)


def _pixel_range(shape: Ints) -> tuple[float, float] | None:
    """The range of pseudo-inputs: that of pixels, or none for vectors."""
    return (0.0, 1.0) if len(shape) == 3 else None


# ---- Two layers, and a prescribed information ------------------------------------------------------------------------

TWO_LAYERS = "VAE with a second layer: a categorical variable of ten states above z"


@recipe("stacked-corex", TWO_LAYERS, latent_dim=64, **CONSTANT_RATE, warm_up_epochs=6)
def stacked_corex(
    shape: Ints,
    latent_dim: int,
    *,
    beta: float = 1.0,
    states: int = 10,
    initial_lower_weight: float = 10.0,
    hidden: Ints = (512, 512),
    upper_hidden: Ints = (32, 32, 16, 16),
    likelihood: str | None = None,
    activation: str = "relu",
) -> Model:
    """Stacked CorEx (Gao et al. 2019): 784-512-512-64 layers, and 64-32-32-16-16-10 above them."""
    states = _checks.whole("states", states, minimum=1)
    nets: Net = {"likelihood": likelihood, "architecture": "mlp", "hidden": hidden, "activation": activation}
    parts = networks(shape, latent_dim, **nets)
    up = mlp(latent_dim, *upper_hidden, states, activation=activation)
    down = mlp(states, *reversed(upper_hidden), 2 * latent_dim, activation=activation)
    upper = CategoricalLayer(up, down, states)
    return StackedCorEx(
        **parts, channel=GaussianChannel(), prior=upper, beta=beta, initial_lower_weight=initial_lower_weight
    )


PRESCRIBED = "Mutual Autoencoder, a VAE with a prescribed I(x; z) of information=M nats"


@recipe("mutual-ae", PRESCRIBED, latent_dim=1, **CONSTANT_RATE)
def mutual_ae(
    shape: Ints,
    latent_dim: int,
    *,
    information: float = 1.0,
    penalty: float = 1.0,
    inverse: str = "tied",
    draws: int | None = None,
    min_log_variance: float = -10.0,
    architecture: str = "mlp",
    hidden: Ints | None = (100, 100),
    activation: str = "relu",
    likelihood: str | None = None,
) -> Model:
    """Mutual Autoencoder (Phuong et al. 2018), whose r(z|x) is "tied" to the encoder or a "separate" network."""
    _checks.choice("inverse", inverse, ("tied", "separate"))
    nets: Net = {"likelihood": likelihood, "architecture": architecture, "hidden": hidden, "activation": activation}
    parts = networks(shape, latent_dim, min_log_variance=min_log_variance, **nets)
    layers: dict[str, Any] = {"hidden": hidden, "activation": activation}
    return MutualAutoencoder(
        **parts,
        channel=GaussianChannel(min_log_variance),
        prior=StandardNormal(latent_dim),
        information=information,
        penalty=penalty,
        inverse=None if inverse == "tied" else make_encoder(architecture, shape, 2 * latent_dim, **layers),
        draws=draws,
    )


# ---- MIM -------------------------------------------------------------------------------------------------------------


@recipe("mim", "Mutual Information Machine, trained on encoder and decoder samples, half of each", 2, **MIM_TRAINING)
def mim(
    shape: Ints,
    latent_dim: int,
    *,
    objective: str = "mim",
    prior: str = "standard-normal",
    data_marginal: str = "importance",
    components: int = 10,
    reference_means: Sequence[Sequence[float]] | None = None,
    reference_std: float = 0.25,
    min_log_variance: float = -27.6,
    architecture: str = "mlp",
    hidden: Ints | None = (500, 500),
    activation: str = "tanh",
    likelihood: str | None = None,
) -> Model:
    """MIM (Livne et al. 2019), by default as in the experiment in two dimensions.

    The experiments in one dimension learn p(z) and q(x) as mixtures (``prior="mixture", data_marginal="mixture"``) and
    give the means (components, latent_dim) of a fixed P(z). The minimum of the log variances stands for a standard
    deviation of 1e-6.
    """
    _checks.choice("prior", prior, ("standard-normal", "mixture"))
    _checks.choice("data_marginal", data_marginal, ("importance", "mixture"))
    if data_marginal == "mixture" and len(shape) != 1:
        raise ValueError(f"data_shape must be (columns,) for data_marginal 'mixture', got {tuple(shape)}")
    nets: Net = {"likelihood": likelihood, "architecture": architecture, "hidden": hidden, "activation": activation}
    learned = GaussianMixture(latent_dim, components) if prior == "mixture" else StandardNormal(latent_dim)
    return MIM(
        **networks(shape, latent_dim, min_log_variance=min_log_variance, **nets),
        channel=GaussianChannel(min_log_variance),
        prior=learned,
        objective=objective,
        reference_prior=_reference_prior(reference_means, reference_std, latent_dim),
        data_marginal=GaussianMixture(shape[0], components) if data_marginal == "mixture" else None,
    )


def _reference_prior(means: Sequence[Sequence[float]] | None, std: float, latent_dim: int) -> Prior | None:
    if means is None:
        return None
    centers = torch.tensor(means, dtype=torch.get_default_dtype())
    if centers.ndim != 2 or centers.shape[1] != latent_dim:
        raise ValueError(
            f"reference_means must be a sequence of means with {latent_dim} numbers each, one per latent, got {means}"
        )
    return GaussianMixture.fixed(centers, _checks.number("reference_std", std, above=0))


variant("a-mim", "MIM trained on encoder samples only", of="mim", objective="a-mim")
variant("mim-h", "MIM minus the entropy of the encoder in the loss", of="mim", objective="mim-h")
variant("vae-h", "VAE plus the entropy of the encoder in the loss", of="mim", objective="vae-h")


# ---- Two-level models ------------------------------------------------------------------------------------------------


def two_level(
    shape: Ints,
    latent_dim: int,
    *,
    decoder: str = "convolutional",
    objective: str = "vae",
    prior: str = "standard-normal",
    pseudo_inputs: int = 500,
) -> Model:
    """A two-level model (Tomczak & Welling 2018), trained by MIM (Livne et al. 2019); latent_dim counts both levels."""
    _checks.choice("decoder", decoder, ("convolutional", "autoregressive"))
    _checks.choice("objective", objective, [name for name in OBJECTIVES if name != "cross-entropy"])
    _checks.choice("prior", prior, ("standard-normal", "vamp"))
    if latent_dim % 2:
        raise ValueError(f"latent_dim must be even, one half for each level, got {latent_dim}")
    level = latent_dim // 2
    encoder, channel = TwoLevelEncoder(shape, level), TwoLevelChannel(feature_width(shape), level)
    lower, upper = level_network(level), cast(Prior, StandardNormal(level))
    if prior == "vamp":
        upper = VampPrior(encoder.upper, level_channel(), shape, pseudo_inputs)
    parts: dict[str, Any] = {"prior": TwoLevelPrior(lower, upper), "objective": objective, "data_shape": shape}
    if decoder == "convolutional":
        parts |= {"decoder": TwoLevelDecoder(shape, level), "likelihood": BernoulliLikelihood()}
    else:
        parts |= {"decoder": PixelMaps(shape, level), "likelihood": PixelCNN(2)}
    initialize(encoder, channel, lower, parts["decoder"])
    return MIM(encoder=encoder, channel=channel, **parts)


for _short, _decoder in {"convhvae": "convolutional", "pixelhvae": "autoregressive"}.items():
    for _letters, _prior in {"s": "standard-normal", "vp": "vamp"}.items():
        for _objective in ("vae", "a-mim", "mim"):
            RECIPES[f"{_short}-{_letters}-{_objective}"] = Recipe(
                f"two-level model, {'VampPrior' if _letters == 'vp' else 'N(0, I) prior'}, {_decoder} decoder, "
                f"{_objective.upper()} loss",
                functools.partial(two_level, decoder=_decoder, objective=_objective, prior=_prior),
                TWO_LEVEL_TRAINING,
                latent_dim=80,
            )
