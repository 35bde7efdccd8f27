"""scikit-learn's mutual_info_regression and mutual_info_classif, with its signatures, values and errors."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from joblib import effective_n_jobs
from scipy.sparse import issparse
from scipy.special import digamma
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import scale
from sklearn.utils import check_array, check_random_state, check_X_y
from sklearn.utils.multiclass import check_classification_targets

from echo_ext._native import num_threads
from echo_ext.estimators import mutual_information_matrix
from echo_ext.estimators.discrete import count_by_ross, group_labels
from echo_ext.estimators.neighbors import PointSet

__all__ = [
    "DiscreteFeatures",
    "Numbers",
    "RandomState",
    "check_neighbors",
    "discrete_mask",
    "estimate_each",
    "is_positive_int",
    "mutual_info_classif",
    "mutual_info_regression",
    "separate",
]

Numbers: TypeAlias = npt.NDArray[np.float64]
DiscreteFeatures: TypeAlias = Literal["auto"] | bool | npt.ArrayLike
RandomState: TypeAlias = int | np.random.RandomState | None


def mutual_info_regression(
    X: Any,
    y: npt.ArrayLike,
    *,
    discrete_features: DiscreteFeatures = "auto",
    n_neighbors: int = 3,
    copy: bool = True,
    random_state: RandomState = None,
    n_jobs: int | None = None,
) -> Numbers:
    """Estimate the mutual information of each feature with a continuous target, in nats.

    Args:
        X: Features (n_samples, n_features): dense, or sparse if every feature is discrete.
        y: The target (n_samples,).
        discrete_features: Which features are discrete: "auto" (none if X is dense, all if it is sparse), a bool for
            all of them, a mask, or indices.
        n_neighbors: The number of neighbors, at least 1. A larger number reduces the variance of the estimates and
            increases their bias.
        copy: False allows X to be overwritten.
        random_state: The seed or generator of the noise that is added to continuous variables.
        n_jobs: The number of threads. None is 1, and -1 is all.

    Returns:
        The estimates (n_features,), which are at least 0. They are those of Kraskov et al. 2004 for continuous features
        and those of Ross 2014 for discrete ones.

    Raises:
        ValueError, TypeError: As scikit-learn's function of this name raises them.

    Example:
        >>> import numpy as np
        >>> from echo_ext.sklearn import mutual_info_regression
        >>> X = np.random.default_rng(0).standard_normal((500, 3))
        >>> mutual_info_regression(X, X[:, 0] ** 2 + 0.1 * X[:, 1], random_state=0).round(1)
        array([1.8, 0.1, 0. ])
    """
    return _estimate(X, y, False, discrete_features, n_neighbors, copy, random_state, n_jobs, "mutual_info_regression")


def mutual_info_classif(
    X: Any,
    y: npt.ArrayLike,
    *,
    discrete_features: DiscreteFeatures = "auto",
    n_neighbors: int = 3,
    copy: bool = True,
    random_state: RandomState = None,
    n_jobs: int | None = None,
) -> Numbers:
    """Estimate the mutual information of each feature with a discrete target, in nats.

    Args:
        X, discrete_features, n_neighbors, copy, random_state, n_jobs: As in :func:`mutual_info_regression`.
        y: The class labels (n_samples,).

    Returns:
        The estimates (n_features,), which are at least 0. They are those of Ross 2014 for continuous features and the
        mutual information of the empirical distribution for discrete ones.

    Raises:
        ValueError, TypeError: As scikit-learn's function of this name raises them.

    Example:
        >>> import numpy as np
        >>> from echo_ext.sklearn import mutual_info_classif
        >>> X = np.random.default_rng(0).standard_normal((500, 3))
        >>> mutual_info_classif(X, X[:, 0] > 0, random_state=0).round(1)
        array([0.7, 0. , 0. ])
    """
    check_classification_targets(y)
    return _estimate(X, y, True, discrete_features, n_neighbors, copy, random_state, n_jobs, "mutual_info_classif")


def _estimate(
    X: Any,
    y: Any,
    discrete_target: bool,
    discrete_features: DiscreteFeatures,
    n_neighbors: int,
    copy: bool,
    random_state: RandomState,
    n_jobs: int | None,
    name: str,
) -> Numbers:
    if not is_positive_int(n_neighbors):
        raise ValueError(
            f"The 'n_neighbors' parameter of {name} must be an int in the range [1, inf). Got {n_neighbors!r} instead."
        )
    X, y = check_X_y(X, y, accept_sparse="csc", y_numeric=not discrete_target)
    discrete = discrete_mask(discrete_features, X)
    if issparse(X) and not discrete.all():
        raise ValueError("Sparse matrix `X` can't have continuous features.")
    X, y = separate(X, y, discrete, discrete_target, random_state, copy=copy)
    with num_threads(effective_n_jobs(n_jobs)):
        return estimate_each(X, discrete, y, discrete_target, n_neighbors)


def separate(
    X: Any,
    y: Any,
    discrete: npt.NDArray[np.bool_],
    discrete_target: bool,
    random_state: RandomState,
    *,
    copy: bool = True,
) -> tuple[Any, Any]:
    """Scale the continuous ones of the columns of X and y, and add the noise that separates repeated values."""
    # The noise has to come from the generator in the order in which scikit-learn draws it.
    generator = check_random_state(random_state)
    continuous = ~discrete
    if continuous.any():
        X = X.astype(np.float64, copy=copy)
        X[:, continuous] = _add_noise(scale(X[:, continuous], with_mean=False, copy=False), generator)
    if not discrete_target:
        y = _add_noise(scale(y, with_mean=False), generator)
    return X, y


def estimate_each(X: Any, discrete: npt.NDArray[np.bool_], y: Any, discrete_target: bool, n_neighbors: int) -> Numbers:
    """Estimate the mutual information of each column of X with y, as they are; negative estimates become 0."""
    continuous = ~discrete
    values = np.zeros(X.shape[1])
    for i in np.flatnonzero(discrete):
        column = X[:, [i]].toarray().ravel() if issparse(X) else X[:, i]
        values[i] = mutual_info_score(column, y) if discrete_target else _ross(y[None], column, n_neighbors)[0]
    if continuous.any() and discrete_target:
        values[continuous] = _ross(X[:, continuous].T, y, n_neighbors)
    elif continuous.any():
        check_neighbors(n_neighbors, len(y))
        values[continuous] = np.ravel(mutual_information_matrix(X[:, continuous], y, k=n_neighbors))
    return np.maximum(values, 0.0)


def is_positive_int(value: object) -> bool:
    """Return whether a parameter is a whole number of at least 1."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def discrete_mask(discrete_features: DiscreteFeatures, X: Any) -> npt.NDArray[np.bool_]:
    """Return which columns of X the parameter ``discrete_features`` makes discrete."""
    if isinstance(discrete_features, str):
        if discrete_features != "auto":
            raise ValueError("Invalid string value for discrete_features.")
        discrete_features = issparse(X)
    if isinstance(discrete_features, bool | np.bool_):
        return np.full(X.shape[1], bool(discrete_features))
    chosen = check_array(discrete_features, ensure_2d=False)
    if chosen.dtype == np.bool_:
        return np.asarray(chosen)
    mask = np.zeros(X.shape[1], dtype=bool)
    mask[chosen] = True
    return mask


def _add_noise(values: Numbers, generator: np.random.RandomState) -> Numbers:
    """Add so little noise to values of unit variance that it changes the order of repeated values alone."""
    size = np.maximum(1, np.mean(np.abs(values), axis=0))
    return np.asarray(values + 1e-10 * size * generator.standard_normal(size=values.shape))


def check_neighbors(n_neighbors: int, n_samples: int) -> None:
    """Raise scikit-learn's error where there are too few samples for so many neighbors."""
    if n_neighbors >= n_samples:
        raise ValueError(
            "Expected n_neighbors < n_samples_fit, but n_neighbors = "
            f"{n_neighbors}, n_samples_fit = {n_samples}, n_samples = {n_samples}"
        )


def _ross(columns: Numbers, labels: Any, n_neighbors: int) -> Numbers:
    """Return the estimate of Ross 2014 between each row of ``columns`` (p, N) and the labels (N,)."""
    labels = np.asarray(labels)
    codes = labels if labels.dtype.kind in "biu" else np.unique(labels, return_inverse=True)[1]
    groups = group_labels(torch.from_numpy(codes.astype(np.int64)))
    if not groups:
        raise ValueError("Found array with 0 sample(s): every label occurs only once.")
    points = torch.from_numpy(np.ascontiguousarray(columns)).unsqueeze(-1)
    counts = count_by_ross(points, groups, [n_neighbors], search=_search_distances)
    own_k, own_size, nearer = counts.own_k[0].numpy(), counts.own_others.numpy() + 1, counts.nearer[0].numpy()
    constant = digamma(len(counts.rows)) + digamma(own_k).mean() - digamma(own_size).mean()
    return np.asarray(constant - digamma(nearer + 1).mean(-1))


def _search_distances(points: torch.Tensor, k: int) -> torch.Tensor:
    """Return the distances (p, n, k) of points (p, n, 1) to their k nearest, rounded as scikit-learn rounds them."""
    if k < points.shape[1] // 2:
        return PointSet(points).search_distances(k)
    # Here scikit-learn multiplies matrices instead of subtracting, and its rounding decides what is strictly nearer.
    each = [NearestNeighbors(n_neighbors=k).fit(column).kneighbors()[0] for column in points.numpy()]
    return torch.from_numpy(np.stack(each))
