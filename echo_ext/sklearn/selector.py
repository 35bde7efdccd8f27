"""Greedy selection of features by the information that they add about a target."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from echo_ext._native import num_threads
from echo_ext.sklearn.information import Features
from echo_ext.sklearn.scores import (
    DiscreteFeatures,
    Numbers,
    RandomState,
    check_neighbors,
    discrete_mask,
    is_positive_int,
    separate,
)

__all__ = ["Criterion", "MutualInformationSelector"]

Criterion: TypeAlias = Literal["mi", "mrmr", "jmi", "jmim", "cmim"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

# Of each criterion, the estimate for features and a selected one, and how the estimates for all selected ones (S, p)
# make its value.
TERMS: dict[Criterion, tuple[Callable[[Features, Sequence[int], int], Numbers], Callable[[Numbers], Numbers]]] = {
    "mrmr": (Features.redundancy, lambda terms: -terms.mean(0)),  # added to the relevance
    "jmi": (Features.joint, lambda terms: terms.sum(0)),
    "jmim": (Features.joint, lambda terms: terms.min(0)),
    "cmim": (Features.conditional, lambda terms: terms.min(0)),
}


class MutualInformationSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Select features one after another by the information about the target that each adds to those before it.

    The first feature is the one with the largest mutual information I(x_j; y). Each next one has the largest value of
    the criterion, where s runs over the features selected so far:

    * "mi": ``I(x_j; y)``: the best single features, which may all say the same.
    * "mrmr": ``I(x_j; y) - mean_s I(x_j; x_s)`` (Peng et al. 2005). It penalizes redundancy, whether or not it concerns
      the target, and does not see features that tell something only together.
    * "jmi": ``sum_s I(x_j, x_s; y)`` (Yang and Moody 1999). It sees such pairs; the usual choice where features
      interact.
    * "jmim": ``min_s I(x_j, x_s; y)`` (Bennasar et al. 2015).
    * "cmim": ``min_s I(x_j; y | x_s)`` (Fleuret 2004). I(x_j; y) is not among the minima, since it would exclude
      features that tell something only together.

    Continuous variables are scaled and separated as in :func:`mutual_info_regression`. Relevance I(x_j; y) and
    redundancy I(x_j; x_s) are its values and those of :func:`mutual_info_classif`, whichever fits the second variable.
    The other terms are estimated in the same way, but are not clipped at 0, so that features which add nothing are
    still ordered. Each is one estimate from one set of neighborhoods, not a difference of two estimates in spaces of
    different dimensions, whose biases would not cancel:

    * Continuous features and target: Kraskov et al. 2004 for "jmi" and "jmim", Frenzel and Pompe 2007 for "cmim".
    * Some of the three variables are discrete: the same formulas, where neighbors are sought among the samples with the
      same values of the discrete ones. For continuous features and classes, "jmi" thus has Ross 2014 in the plane.
    * All are discrete: the empirical distribution. Its bias grows with the number of distinct values, so features with
      many values look better than they are.

    Estimates are noisy: a standard deviation of 0.02 nats is usual with 1000 samples. If more features are selected
    than matter, the order of the others is random.

    Args:
        n_features_to_select: How many features to select. If there are fewer, all are kept, with a warning.
        criterion: "mi", "mrmr", "jmi", "jmim" or "cmim", as above.
        discrete_features: Which features are discrete: "auto" (none), a bool for all of them, a mask, or indices.
        n_neighbors: The number of neighbors, at least 1. A larger number reduces the variance of the estimates and
            increases their bias.
        n_jobs: The number of threads. None is 1, and -1 is all.
        random_state: The seed or generator of the noise that is added to continuous variables.

    Attributes:
        selected_: The indices of the selected features in the order of their selection (n_selected,).
        support_: Which features are selected (n_features,).
        scores_: The value of the criterion, in nats (n_features,): that with which a feature was selected; for
            features that were not, that in the last step, which another won. The first feature's is I(x_j; y).
        ranking_: The rank of each feature (n_features,): 1 for the first selected, 2 for the second and so on, then
            the others by their score. Of equal scores, the feature with the lower index comes first.
        relevance_: I(x_j; y) of each feature (n_features,), at least 0.
        discrete_target_: Whether the target was taken as classes, which scikit-learn's ``type_of_target`` decides: it
            is if it has no fractions. Where whole numbers are a quantity, add noise, however little, to ``y``.
        n_features_in_: The number of features.
        feature_names_in_: Their names, if X has any.

    Example:
        >>> import numpy as np
        >>> from echo_ext.sklearn import MutualInformationSelector
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((1000, 4))
        >>> X[:, 1] = X[:, 0] + 0.5 * X[:, 1]  # tells less than the first feature, and nothing else
        >>> y = X[:, 0] + 0.5 * X[:, 2]
        >>> selector = MutualInformationSelector(2, criterion="jmi", random_state=0).fit(X, y)
        >>> selector.selected_
        array([0, 2])
        >>> selector.transform(X).shape
        (1000, 2)
    """

    def __init__(
        self,
        n_features_to_select: int = 10,
        *,
        criterion: Criterion = "mrmr",
        discrete_features: DiscreteFeatures = "auto",
        n_neighbors: int = 3,
        n_jobs: int | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.n_features_to_select = n_features_to_select
        self.criterion = criterion
        self.discrete_features = discrete_features
        self.n_neighbors = n_neighbors
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> MutualInformationSelector:
        """Select features.

        Args:
            X: Features (n_samples, n_features), dense.
            y: The target (n_samples,): class labels, or continuous.

        Returns:
            The selector itself.

        Raises:
            ValueError, TypeError: A parameter is not as described, X is sparse or not finite, there are no more samples
                than neighbors, or whatever else scikit-learn refuses.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        self.discrete_target_ = type_of_target(y, input_name="y") != "continuous"
        if self.discrete_target_:
            check_classification_targets(y)
        else:
            y = y.astype(np.float64, copy=False)
        discrete = discrete_mask(self.discrete_features, X)
        if not (self.discrete_target_ and discrete.all()):
            check_neighbors(self.n_neighbors, len(X))
        X, y = separate(X, y, discrete, self.discrete_target_, self.random_state)
        features = Features(X, discrete, y, self.discrete_target_, self.n_neighbors)
        with num_threads(effective_n_jobs(self.n_jobs)):
            self._select(features, self._number_to_select())
        return self

    def _check_parameters(self) -> None:
        for name in ("n_features_to_select", "n_neighbors"):
            if not is_positive_int(getattr(self, name)):
                self._refuse(name, "an int in the range [1, inf)")
        if self.criterion not in CRITERIA:
            self._refuse("criterion", f"one of {', '.join(map(repr, CRITERIA))}")

    def _refuse(self, name: str, right: str) -> None:
        value, own = getattr(self, name), type(self).__name__
        raise ValueError(f"The {name!r} parameter of {own} must be {right}. Got {value!r} instead.")

    def _number_to_select(self) -> int:
        if self.n_features_to_select > self.n_features_in_:
            warnings.warn(
                f"n_features_to_select={self.n_features_to_select} is greater than n_features={self.n_features_in_}. "
                "All the features will be selected.",
                stacklevel=3,
            )
        return int(min(self.n_features_to_select, self.n_features_in_))

    def _select(self, features: Features, number: int) -> None:
        self.relevance_ = features.relevance()
        scores = self.relevance_.copy()
        selected: list[int] = []
        terms: list[Numbers] = []  # of each selected feature, with all others
        while True:
            remaining = np.setdiff1d(np.arange(len(scores)), selected)
            selected.append(int(remaining[np.argmax(scores[remaining])]))
            if len(selected) == number:
                break
            remaining = remaining[remaining != selected[-1]]
            if self.criterion in TERMS:
                estimate, combine = TERMS[self.criterion]
                terms.append(np.zeros(len(scores)))
                terms[-1][remaining] = estimate(features, remaining, selected[-1])
                scores[remaining] = combine(np.array(terms)[:, remaining])
                if self.criterion == "mrmr":
                    scores[remaining] += self.relevance_[remaining]
        self.selected_ = np.array(selected)
        self.support_ = np.zeros(len(scores), dtype=bool)
        self.support_[selected] = True
        self.scores_ = scores
        others = np.flatnonzero(~self.support_)
        others = others[np.argsort(-scores[others], kind="stable")]
        self.ranking_ = np.empty(len(scores), dtype=np.int64)
        self.ranking_[np.concatenate([self.selected_, others])] = np.arange(1, len(scores) + 1)

    def _get_support_mask(self) -> npt.NDArray[np.bool_]:
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
