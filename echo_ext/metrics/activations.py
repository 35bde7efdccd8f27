"""Descriptions of codes: marginal distributions, rates and activations, and an embedding in the plane."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from echo_ext._types import TensorOrArray
from echo_ext.metrics._inputs import Data, measure_rows, read_codes, refuse_constant_columns
from echo_ext.metrics.information import echo_signal
from echo_ext.models.base import Model

__all__ = ["MarginalStatistics", "marginal_statistics", "rates_and_activations", "tsne"]


class MarginalStatistics(NamedTuple):
    """Moments of each column, and the statistic and p-value of its normality test; each is float64 (d,).

    ``excess_kurtosis`` is 0 for a normal distribution. A small ``p_value`` is evidence against one.
    """

    mean: Tensor
    std: Tensor
    skewness: Tensor
    excess_kurtosis: Tensor
    statistic: Tensor
    p_value: Tensor


def marginal_statistics(codes: TensorOrArray) -> MarginalStatistics:
    """Compute the moments of each column of codes and test it for normality (D'Agostino and Pearson 1973).

    Args:
        codes: (N, d) with at least 20 rows, float64 or float32, tensor or array.

    Raises:
        ModuleNotFoundError: SciPy is missing.
        TypeError: The codes are not float64 or float32.
        ValueError: Values are not finite, a column is constant, or there are fewer than 20 rows.
    """
    try:
        from scipy import stats
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("the normality test needs SciPy: pip install 'echo-ext[train]'") from missing
    points = read_codes("codes", codes, minimum=20).double().cpu()
    refuse_constant_columns("codes", points)
    values = points.numpy()
    test = stats.normaltest(values, axis=0)
    columns = (values.mean(0), values.std(0), stats.skew(values), stats.kurtosis(values), test.statistic, test.pvalue)
    return MarginalStatistics(*(torch.as_tensor(column, dtype=torch.float64, device="cpu") for column in columns))


def rates_and_activations(model: Model, x: Data, *, batch_size: int = 100) -> tuple[Tensor, Tensor]:
    """Compute the exact rate of each row under an Echo model, in nats, and the Euclidean norm of f(x): (N,) each.

    Args:
        model: A model with an :class:`~echo_ext.EchoChannel`.
        x: As ``data`` in :func:`echo_ext.metrics.rate_distortion`.
        batch_size: The number of rows that are encoded at once.

    Raises:
        TypeError: The model has no Echo channel, or several.
        ValueError: There are no rows.
    """
    _, f, _, rate = measure_rows(model, x, batch_size, lambda batch: echo_signal(model, batch))
    return rate.sum(1), f.norm(dim=1)


def tsne(codes: TensorOrArray, *, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Embed codes in the plane by scikit-learn's t-SNE (van der Maaten and Hinton 2008): (N, 2), float32.

    Args:
        codes: (N, d), float64 or float32, tensor or array. A few thousand rows take a minute.
        perplexity: The effective number of neighbors of each point, less than N. Larger values preserve more of the
            global structure, smaller ones more of the local structure.
        seed: The seed of the embedding.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        TypeError: The codes are not float64 or float32.
        ValueError: Values are not finite, or the perplexity is not between 0 and N.
    """
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("t-SNE needs scikit-learn: pip install 'echo-ext[demo]'") from missing
    points = read_codes("codes", codes, minimum=2)
    if not 0 < perplexity < len(points):
        raise ValueError(f"perplexity must be above 0 and below the number of rows, {len(points)}, got {perplexity}")
    # Starting along the main axes keeps the large distances meaningful; that needs two of them.
    start = "pca" if points.shape[1] > 1 else "random"
    embedding = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(points.cpu().numpy())
    return torch.as_tensor(embedding, dtype=torch.float32, device="cpu")
