"""A conditional-independence test for causal-learn's PC and other constraint-based searches.

This module needs causal-learn: ``pip install causal-learn``. Importing it registers the test under the name "cmiknn".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from echo_ext import _checks

_checks.installed("causallearn", purpose="echo_ext.causallearn", install="causal-learn")

from causallearn.utils.cit import CIT_Base, register_ci_test  # noqa: E402

from echo_ext._cmiknn import CMIknnTest, CMIknnTransform, NullFit, Numbers, Permute  # noqa: E402

__all__ = ["CMIknn"]

NAME = "cmiknn"


def __dir__() -> list[str]:
    return sorted(__all__)


class CMIknn(CIT_Base):  # type: ignore[misc]  # causal-learn has no types
    """Test conditional independence by conditional mutual information and local permutations (Runge 2018).

    A search takes the test by its name, and its arguments as keywords: ``pc(data, 0.05, "cmiknn", knn=0.1)``.

    Args:
        data: The variables (n_samples, n_features), all of them continuous.
        cache_path: A JSON file for the p-values, as in causal-learn's other tests.
        knn: The number of neighbors, or a fraction of the rows in (0, 1).
        shuffle_neighbors: The number of nearest rows in the conditions, the row itself among them, with which
            surrogates exchange a row.
        transform: What is done to each column first: "ranks", "standardize", "uniform" or False. "uniform" gives the
            estimates of "ranks".
        workers: The number of threads. -1 is the number that PyTorch uses.
        sig_samples: The number of surrogates.
        null_fit: None takes the p-value from the surrogates' ranks, "normal" or "gamma" from a distribution fitted to
            them, for which some tens of surrogates suffice.
        permute: Which variable surrogates permute, "Y" or "X". X is the one with the smaller index.
        early_stopping: A significance level, which should be that of the search. A test stops as soon as so many
            surrogates have reached the estimate that independence can no longer be rejected at this level. None makes
            all surrogates.
        seed: The seed of the surrogates. A p-value depends on it, on the variables and on the data alone.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value.

    Example:
        >>> import numpy as np
        >>> from causallearn.search.ConstraintBased.PC import pc
        >>> import echo_ext.causallearn
        >>> rng = np.random.default_rng(0)
        >>> cause = rng.standard_normal(300)
        >>> effects = np.abs(cause) + 0.3 * rng.standard_normal((2, 300))
        >>> data = np.column_stack([cause, *effects])
        >>> echo_ext.causallearn.CMIknn(data, sig_samples=100)(1, 2, [0]) > 0.05  # the effects, given their cause
        True
        >>> graph = pc(data, 0.05, "cmiknn", sig_samples=100, show_progress=False)
        >>> sorted({tuple(sorted(map(int, pair))) for pair in graph.find_adj()})
        [(0, 1), (0, 2)]
    """

    def __init__(
        self,
        data: Numbers,
        cache_path: str | None = None,
        *,
        knn: int | float = 0.2,
        shuffle_neighbors: int = 5,
        transform: CMIknnTransform = "ranks",
        workers: int = -1,
        sig_samples: int = 500,
        null_fit: NullFit | None = None,
        permute: Permute = "Y",
        early_stopping: float | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__(data, cache_path)
        self._test = CMIknnTest(knn, shuffle_neighbors, transform, workers, null_fit, permute, early_stopping)
        self._sig_samples = self._test.check_samples(sig_samples)
        self._seed = _checks.whole("seed", seed)
        settings = f"{knn} {shuffle_neighbors} {transform} {sig_samples} {null_fit} {permute} {early_stopping} {seed}"
        self.check_cache_method_consistent(NAME, hashlib.sha256(settings.encode()).hexdigest())
        self.assert_input_data_is_valid()

    def __call__(self, X: int, Y: int, condition_set: Iterable[int] | None = None) -> float:
        """Return the p-value of X and Y given the condition set, all of them column indices."""
        xs, ys, zs, key = self.get_formatted_XYZ_and_cachekey(X, Y, condition_set)
        if key not in self.pvalue_cache:
            x, y, z = (self.data[:, columns] for columns in (xs, ys, zs))
            # A seed of its own for each test, so that p-values do not depend on the order of the tests.
            digest = hashlib.sha256(f"{self._seed} {key}".encode()).digest()
            seed = int.from_bytes(digest[:7], "little")
            self.pvalue_cache[key] = self._test.test(x, y, z, num_surrogates=self._sig_samples, seed=seed)[0]
        return float(self.pvalue_cache[key])


register_ci_test(NAME, CMIknn)
