"""Descriptions of codes: marginal distributions, rates and activations, labels, and an embedding in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext._types import TensorOrArray
from echo_ext.estimators.knn import knn
from echo_ext.metrics._inputs import Data, measure_rows, read_codes, read_integers, refuse_constant_columns
from echo_ext.metrics.information import echo_signal
from echo_ext.models.base import Model

__all__ = [
    "MIN_NORMALITY_ROWS",
    "MarginalStatistics",
    "knn_accuracy",
    "marginal_statistics",
    "rates_and_activations",
    "tsne",
]

MIN_NORMALITY_ROWS = 20  # the test of normality is an approximation for large samples


class MarginalStatistics(NamedTuple):
    """Moments of each column, and the statistic and p-value of its normality test; each is float64 (d,).

    Attributes:
        mean: The mean.
        std: The standard deviation.
        skewness: The skewness, 0 for a symmetric distribution.
        excess_kurtosis: The kurtosis minus 3, 0 for a normal distribution.
        statistic: The statistic of the test of D'Agostino and Pearson.
        p_value: Its p-value. A small one is evidence against a normal distribution.

    Example:
        >>> codes = torch.stack([torch.randn(1000), torch.randn(1000).exp()], dim=1)
        >>> found = echo_ext.metrics.marginal_statistics(codes)
        >>> found.p_value < 1e-3  # the second column is not normal
        tensor([False,  True])
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

    Example:
        >>> found = echo_ext.metrics.marginal_statistics(torch.arange(1000.0).unsqueeze(1))  # a uniform distribution
        >>> found.mean, found.excess_kurtosis.round(decimals=2)
        (tensor([499.5000], dtype=torch.float64), tensor([-1.2000], dtype=torch.float64))
    """
    _checks.installed("scipy", purpose="the normality test")
    from scipy import stats

    points = read_codes("codes", codes, minimum=MIN_NORMALITY_ROWS).double().cpu()
    refuse_constant_columns("codes", points)
    values = points.numpy()
    test = stats.normaltest(values, axis=0)
    columns = (values.mean(0), values.std(0), stats.skew(values), stats.kurtosis(values), test.statistic, test.pvalue)
    return MarginalStatistics(*(torch.as_tensor(column, dtype=torch.float64, device="cpu") for column in columns))


def rates_and_activations(model: Model, x: Data, *, batch_size: int = 100) -> tuple[Tensor, Tensor]:
    """Compute the exact rate of each row under an Echo model, in nats, and the Euclidean norm of ``gain * f(x)``.

    Args:
        model: A model with an :class:`~echo_ext.EchoChannel`.
        x: As ``data`` in :func:`echo_ext.metrics.rate_distortion`.
        batch_size: The number of rows that are encoded at once.

    Raises:
        TypeError: The model has no Echo channel, or several.
        ValueError: There are no rows.

    Example:
        >>> model = echo_ext.models.build("echo", (1, 8, 8), latent_dim=4, num_terms=31)
        >>> x = torch.rand(100, 1, 8, 8)
        >>> rates, activations = echo_ext.metrics.rates_and_activations(model, x)
        >>> rates.shape, activations.shape
        (torch.Size([100]), torch.Size([100]))
    """
    _, f, _, rate = measure_rows(model, x, batch_size, lambda batch: echo_signal(model, batch))
    return rate.sum(1), f.norm(dim=1)


@overload
def knn_accuracy(
    train_codes: TensorOrArray,
    train_labels: TensorOrArray,
    test_codes: TensorOrArray,
    test_labels: TensorOrArray,
    *,
    k: int = 5,
) -> float: ...
@overload
def knn_accuracy(
    train_codes: TensorOrArray,
    train_labels: TensorOrArray,
    test_codes: TensorOrArray,
    test_labels: TensorOrArray,
    *,
    k: Sequence[int],
) -> list[float]: ...
def knn_accuracy(
    train_codes: TensorOrArray,
    train_labels: TensorOrArray,
    test_codes: TensorOrArray,
    test_labels: TensorOrArray,
    *,
    k: int | Sequence[int] = 5,
) -> float | list[float]:
    """Measure the accuracy of a classifier by k nearest neighbors (Euclidean) on the codes.

    The predicted label of a test row is the most frequent one among its k nearest training rows. Of equally frequent
    labels the smallest is taken, as by scikit-learn's KNeighborsClassifier; of equally near training rows, the first.

    Args:
        train_codes: (N, d), float64 or float32, tensor or array.
        train_labels: Integers (N,).
        test_codes: (M, d), of the same kind as train_codes.
        test_labels: Integers (M,).
        k: The number of neighbors, at most N, or several numbers. A larger k makes the decision smoother.

    Returns:
        The share of test rows whose label is predicted correctly, or a list with that for each k.

    Raises:
        TypeError: Codes are not float64 or float32, or labels are not integers.
        ValueError: Values are not finite, shapes do not match, or k is out of range.

    Example:
        >>> labels = torch.arange(100) % 2
        >>> codes = labels.unsqueeze(1) + 0.1 * torch.randn(100, 1)
        >>> echo_ext.metrics.knn_accuracy(codes[:50], labels[:50], codes[50:], labels[50:], k=[1, 5])
        [1.0, 1.0]
    """
    train, test = read_codes("train_codes", train_codes), read_codes("test_codes", test_codes)
    known = read_integers("train_labels", train_labels, rows=len(train)).to(train.device)
    wanted = read_integers("test_labels", test_labels, rows=len(test)).to(train.device)
    sizes = [_checks.whole("k", each, minimum=1) for each in (k if isinstance(k, Sequence) else (k,))]
    if not sizes:
        raise ValueError("k must have at least one number, got none")
    if max(sizes) > len(train):
        raise ValueError(f"k must be at most the number of training rows, {len(train)}, got {max(sizes)}")
    if test.shape[1] != train.shape[1]:
        raise ValueError(f"test_codes must have the {train.shape[1]} columns of train_codes, got {test.shape[1]}")
    nearest = knn(train, test, max(sizes), metric="euclidean")[1]
    labels, codes = torch.unique(known, return_inverse=True)
    votes = codes[nearest]

    def accuracy(size: int) -> float:
        ones = torch.ones_like(votes[:, :size])
        counts = votes.new_zeros(len(test), len(labels)).scatter_add_(1, votes[:, :size], ones)
        return float((labels[counts.argmax(1)] == wanted).double().mean())

    accuracies = [accuracy(size) for size in sizes]
    return accuracies if isinstance(k, Sequence) else accuracies[0]


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

    Example:
        >>> echo_ext.metrics.tsne(torch.randn(50, 8), perplexity=10).shape
        torch.Size([50, 2])
    """
    _checks.installed("sklearn", purpose="t-SNE", extra="demo")
    from sklearn.manifold import TSNE

    points = read_codes("codes", codes, minimum=2)
    if not 0 < perplexity < len(points):
        raise ValueError(f"perplexity must be above 0 and below the number of rows, {len(points)}, got {perplexity}")
    # Starting along the main axes keeps the large distances meaningful; that needs two of them.
    start = "pca" if points.shape[1] > 1 else "random"
    embedding = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(points.cpu().numpy())
    return torch.as_tensor(embedding, dtype=torch.float32, device="cpu")
