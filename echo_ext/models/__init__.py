"""Generative models with a latent variable, composed of parts: build one by name, or put your own parts together."""

from echo_ext.echo.channel import ChannelOutput, EchoChannel
from echo_ext.models.autoencoder import Autoencoder
from echo_ext.models.base import LatentModel, Model
from echo_ext.models.channels import GaussianChannel, IAFChannel, MixtureChannel
from echo_ext.models.flows import MADE, ShiftFlow
from echo_ext.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    FixedGaussianLikelihood,
    GaussianLikelihood,
    MixtureLikelihood,
)
from echo_ext.models.mim import MIM
from echo_ext.models.mutual_autoencoder import MutualAutoencoder
from echo_ext.models.networks import make_decoder, make_encoder, mlp
from echo_ext.models.objectives import (
    LearnedWeight,
    rate_distortion_loss,
    score_function,
    total_correlation_bound,
)
from echo_ext.models.priors import MAF, AggregatePosterior, GaussianMixture, Prior, StandardNormal, VampPrior
from echo_ext.models.recipes import build, recipes
from echo_ext.models.regularizers import (
    MMDRegularizer,
    TCDiscriminator,
    TotalCorrelationRegularizer,
    mmd,
    permute_dimensions,
)
from echo_ext.models.stacked_corex import CategoricalLayer, GaussianLayer, Layer, StackedCorEx
from echo_ext.models.two_level import (
    PixelCNN,
    TwoLevelChannel,
    TwoLevelDecoder,
    TwoLevelEncoder,
    TwoLevelPrior,
    level_network,
)

__all__ = [
    "MADE",
    "MAF",
    "MIM",
    "AggregatePosterior",
    "Autoencoder",
    "BernoulliLikelihood",
    "CategoricalLayer",
    "CategoricalLikelihood",
    "ChannelOutput",
    "EchoChannel",
    "FixedGaussianLikelihood",
    "GaussianChannel",
    "GaussianLayer",
    "GaussianLikelihood",
    "GaussianMixture",
    "IAFChannel",
    "LatentModel",
    "Layer",
    "LearnedWeight",
    "MMDRegularizer",
    "MixtureChannel",
    "MixtureLikelihood",
    "Model",
    "MutualAutoencoder",
    "PixelCNN",
    "Prior",
    "ShiftFlow",
    "StackedCorEx",
    "StandardNormal",
    "TCDiscriminator",
    "TotalCorrelationRegularizer",
    "TwoLevelChannel",
    "TwoLevelDecoder",
    "TwoLevelEncoder",
    "TwoLevelPrior",
    "VampPrior",
    "build",
    "level_network",
    "make_decoder",
    "make_encoder",
    "mlp",
    "mmd",
    "permute_dimensions",
    "rate_distortion_loss",
    "recipes",
    "score_function",
    "total_correlation_bound",
]


def __dir__() -> list[str]:
    return sorted(__all__)
