"""How well codes separate labels."""

from __future__ import annotations

import torch

from echo_ext import _checks
from echo_ext._types import TensorOrArray
from echo_ext.estimators.knn import knn
from echo_ext.metrics._inputs import read_codes, read_integers

__all__ = ["knn_accuracy"]


def knn_accuracy(
    train_codes: TensorOrArray,
    train_labels: TensorOrArray,
    test_codes: TensorOrArray,
    test_labels: TensorOrArray,
    *,
    k: int = 5,
) -> float:
    """Measure the accuracy of a classifier by k nearest neighbors (Euclidean) on the codes.

    The predicted label of a test row is the most frequent one among its k nearest training rows. Of equally frequent
    labels the smallest is taken, as by scikit-learn's KNeighborsClassifier; of equally near training rows, the first.

    Args:
        train_codes: (N, d), float64 or float32, tensor or array.
        train_labels: Integers (N,).
        test_codes: (M, d), of the same kind as train_codes.
        test_labels: Integers (M,).
        k: The number of neighbors, at most N. A larger k makes the decision smoother.

    Returns:
        The share of test rows whose label is predicted correctly.

    Raises:
        TypeError: Codes are not float64 or float32, or labels are not integers.
        ValueError: Values are not finite, shapes do not match, or k is out of range.
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
    labels, codes = torch.unique(known, return_inverse=True)
    votes = codes[nearest]
    counts = votes.new_zeros(len(test), len(labels)).scatter_add_(1, votes, torch.ones_like(votes))
    return float((labels[counts.argmax(1)] == wanted).double().mean())
