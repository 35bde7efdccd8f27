"""scikit-learn's mutual_info_regression and mutual_info_classif, with its signatures, values and errors, faster.

Needs scikit-learn. As there, continuous variables are scaled to unit variance and a little noise, drawn from
``random_state``, parts repeated values; negative estimates become 0. The functions of `echo_ext` itself do neither.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeAlias

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

from .estimators import mutual_information_matrix
from .estimators._neighbours import count, search

__all__ = ["mutual_info_classif", "mutual_info_regression"]

Numbers: TypeAlias = npt.NDArray[np.float64]


def mutual_info_regression(
    X: Any,
    y: Any,
    *,
    discrete_features: Any = "auto",
    n_neighbors: int = 3,
    copy: bool = True,
    random_state: Any = None,
    n_jobs: int | None = None,
) -> Numbers:
    """Mutual information, in nats, of each feature with a continuous target (n_features,).

    Args:
        X: (n_samples, n_features), dense, or sparse if every feature is discrete.
        y: (n_samples,).
        discrete_features: "auto" (none if X is dense, all if sparse), a bool, a mask or indices.
        n_neighbors: k, at least 1.
        copy: False allows X to be overwritten.
        random_state: Seed or generator of the noise.
        n_jobs: Number of threads; None is 1, -1 all.

    Returns:
        Estimates of Kraskov et al. (2004) for continuous features and of Ross (2014) for discrete ones, at least 0.

    Raises:
        ValueError, TypeError: As scikit-learn's function of this name.
    """
    return _estimate(X, y, False, discrete_features, n_neighbors, copy, random_state, n_jobs, "mutual_info_regression")


def mutual_info_classif(
    X: Any,
    y: Any,
    *,
    discrete_features: Any = "auto",
    n_neighbors: int = 3,
    copy: bool = True,
    random_state: Any = None,
    n_jobs: int | None = None,
) -> Numbers:
    """Mutual information, in nats, of each feature with a discrete target (n_features,).

    Args, Returns, Raises: As `mutual_info_regression`, with class labels for y.
    """
    check_classification_targets(y)
    return _estimate(X, y, True, discrete_features, n_neighbors, copy, random_state, n_jobs, "mutual_info_classif")


def _estimate(
    X: Any,
    y: Any,
    discrete_target: bool,
    discrete_features: Any,
    n_neighbors: int,
    copy: bool,
    random_state: Any,
    n_jobs: int | None,
    name: str,
) -> Numbers:
    if not _is_positive_int(n_neighbors):
        raise ValueError(
            f"The 'n_neighbors' parameter of {name} must be an int in the range [1, inf). Got {n_neighbors!r} instead."
        )
    X, y = check_X_y(X, y, accept_sparse="csc", y_numeric=not discrete_target)
    discrete = _discrete_mask(discrete_features, X)
    if issparse(X) and not discrete.all():
        raise ValueError("Sparse matrix `X` can't have continuous features.")

    # The noise has to come from the generator in the order in which scikit-learn draws it.
    generator = check_random_state(random_state)
    continuous = ~discrete
    if continuous.any():
        X = X.astype(np.float64, copy=copy)
        X[:, continuous] = _parted(scale(X[:, continuous], with_mean=False, copy=False), generator)
    if not discrete_target:
        y = _parted(scale(y, with_mean=False), generator)

    threads = torch.get_num_threads()
    torch.set_num_threads(effective_n_jobs(n_jobs))
    try:
        values = np.zeros(X.shape[1])
        for i in np.flatnonzero(discrete):
            column = X[:, [i]].toarray().ravel() if issparse(X) else X[:, i]
            values[i] = mutual_info_score(column, y) if discrete_target else _ross(y[None], column, n_neighbors)[0]
        if continuous.any() and discrete_target:
            values[continuous] = _ross(X[:, continuous].T, y, n_neighbors)
        elif continuous.any():
            _check_neighbours(n_neighbors, len(y))
            values[continuous] = np.ravel(mutual_information_matrix(X[:, continuous], y, k=n_neighbors))
    finally:
        torch.set_num_threads(threads)
    return np.maximum(values, 0.0)


def _is_positive_int(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def _discrete_mask(discrete_features: Any, X: Any) -> npt.NDArray[np.bool_]:
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


def _parted(values: Numbers, generator: np.random.RandomState) -> Numbers:
    """Values of unit variance with so little noise that only repeated ones notice."""
    size = np.maximum(1, np.mean(np.abs(values), axis=0))
    return np.asarray(values + 1e-10 * size * generator.standard_normal(size=values.shape))


def _check_neighbours(n_neighbors: int, n_samples: int) -> None:
    if n_neighbors >= n_samples:
        raise ValueError(
            "Expected n_neighbors < n_samples_fit, but n_neighbors = "
            f"{n_neighbors}, n_samples_fit = {n_samples}, n_samples = {n_samples}"
        )


def _ross(columns: Numbers, labels: Any, n_neighbors: int) -> Numbers:
    """Ross's estimate between each row of `columns` (p, N) and the labels (N,)."""
    _, label_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    ks = np.minimum(n_neighbors, sizes - 1)
    points = torch.from_numpy(np.ascontiguousarray(columns)).unsqueeze(-1)
    radii = points.new_empty(columns.shape)
    ends = np.cumsum(sizes)
    for k, rows in zip(ks, np.split(np.argsort(label_of, kind="stable"), ends[:-1]), strict=True):
        if k >= 1:
            radii[:, rows] = _distance_to_kth(points[:, rows], int(k))
    kept = np.flatnonzero(sizes[label_of] > 1)
    if len(kept) == 0:
        raise ValueError("Found array with 0 sample(s): every label occurs only once.")
    near = count(points[:, kept], radii[None, :, kept])[0].numpy()
    constant = digamma(len(kept)) + digamma(ks[label_of[kept]]).mean() - digamma(sizes[label_of[kept]]).mean()
    return np.asarray(constant - digamma(near + 1).mean(-1))


def _distance_to_kth(points: torch.Tensor, k: int) -> torch.Tensor:
    """(p, n) from (p, n, 1)."""
    if k < points.shape[1] // 2:
        return search(points, k)[0][..., -1]
    # Here scikit-learn multiplies matrices instead of subtracting, and its rounding decides what is strictly nearer.
    each = [NearestNeighbors(n_neighbors=k).fit(column).kneighbors()[0][:, -1] for column in points.numpy()]
    return torch.from_numpy(np.stack(each))
