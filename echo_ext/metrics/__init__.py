"""Metrics of models and their codes: bounds, likelihood, information per latent, disentanglement, distributions."""

from echo_ext.metrics.codes import MarginalStatistics, knn_accuracy, marginal_statistics, rates_and_activations, tsne
from echo_ext.metrics.disentanglement import factor_information, factor_vae_score, mig
from echo_ext.metrics.information import gaussian_total_correlation, latent_information, layer_terms
from echo_ext.metrics.joint import JointStatistics, joint_statistics
from echo_ext.metrics.likelihood import (
    ImportanceEstimate,
    RateDistortion,
    importance_estimate,
    importance_nll,
    rate_distortion,
)

__all__ = [
    "ImportanceEstimate",
    "JointStatistics",
    "MarginalStatistics",
    "RateDistortion",
    "factor_information",
    "factor_vae_score",
    "gaussian_total_correlation",
    "importance_estimate",
    "importance_nll",
    "joint_statistics",
    "knn_accuracy",
    "latent_information",
    "layer_terms",
    "marginal_statistics",
    "mig",
    "rate_distortion",
    "rates_and_activations",
    "tsne",
]


def __dir__() -> list[str]:
    return sorted(__all__)
