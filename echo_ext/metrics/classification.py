"""How well codes tell the labels apart."""

from __future__ import annotations

import torch

from echo_ext import _checks
from echo_ext.estimators._samples import ArrayLike
from echo_ext.estimators.knn import knn
from echo_ext.metrics._inputs import read_codes, read_integers

__all__ = ["knn_accuracy"]


def knn_accuracy(
    train_codes: ArrayLike,
    train_labels: ArrayLike,
    test_codes: ArrayLike,
    test_labels: ArrayLike,
    *,
    k: int = 5,
) -> float:
    """The share of test rows whose label is the most frequent one among their k nearest training rows (Euclidean).

    Of equally frequent labels the smallest is taken, as by scikit-learn's KNeighborsClassifier; of equally near
    training rows those that come first are among the k.

    Args:
        train_codes: (N, d), float64 or float32, tensor or array.
        train_labels: (N,) integers.
        test_codes: (M, d), of the kind of train_codes.
        test_labels: (M,) integers.
        k: number of neighbours, at most N.

    Raises:
        TypeError: codes that are not float64 or float32, labels that are not integers.
        ValueError: values that are not finite, shapes that do not go together, a k out of range.
    """
    train, test = read_codes("train_codes", train_codes), read_codes("test_codes", test_codes)
    known = read_integers("train_labels", train_labels, rows=len(train)).to(train.device)
    wanted = read_integers("test_labels", test_labels, rows=len(test)).to(train.device)
    k = _checks.whole("k", k, minimum=1)
    if k > len(train):
        raise ValueError(f"k must be at most the number of training rows, {len(train)}, got {k}")
    if test.shape[1] != train.shape[1]:
        raise ValueError(f"test_codes must have the {train.shape[1]} columns of train_codes, got {test.shape[1]}")
    nearest = knn(train, test, k, metric="euclidean")[1]
    assert isinstance(nearest, torch.Tensor)
    labels, codes = torch.unique(known, return_inverse=True)
    votes = codes[nearest]
    counts = votes.new_zeros(len(test), len(labels)).scatter_add_(1, votes, torch.ones_like(votes))
    return float((labels[counts.argmax(1)] == wanted).double().mean())
