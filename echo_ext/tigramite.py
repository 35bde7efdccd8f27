"""A conditional-independence test for tigramite, with the arguments and estimates of its CMIknn, but faster.

This module needs tigramite: ``pip install tigramite``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from echo_ext import _checks

_checks.installed("tigramite", purpose="echo_ext.tigramite", install="tigramite")

from tigramite.independence_tests.independence_tests_base import CondIndTest  # noqa: E402

from echo_ext._cmiknn import CMIknnTest, CMIknnTransform, NullFit, Numbers, Permute  # noqa: E402
from echo_ext.estimators import knn as nearest_neighbors  # noqa: E402

__all__ = ["CMIknn"]

LONGEST_BLOCK = 0.1  # of the rows


def __dir__() -> list[str]:
    return sorted(__all__)


class CMIknn(CondIndTest):  # type: ignore[misc]  # tigramite has no types
    """Test conditional independence by conditional mutual information and local permutations (Runge 2018).

    The estimates are those of tigramite's CMIknn. Variables may have several columns, and masks and missing values are
    treated as by tigramite's other tests.

    Args:
        knn: The number of neighbors, or a fraction of the rows in (0, 1).
        shuffle_neighbors: The number of nearest rows in Z, the row itself among them, with which surrogates exchange a
            row.
        significance: "shuffle_test" or "fixed_thres".
        transform: What is done to each column first: "ranks", "standardize", "uniform" or False. "uniform" gives the
            estimates of "ranks".
        workers: The number of threads. -1 is the number that PyTorch uses.
        model_selection_folds: The number of folds of :meth:`get_model_selection_criterion`.
        null_fit: None takes the p-value from the surrogates' ranks, "normal" or "gamma" from a distribution fitted to
            them, for which some tens of surrogates suffice.
        permute: Which variable surrogates permute, "Y" or "X".
        early_stopping: A significance level, which should be that of the decisions. A test stops as soon as so many
            surrogates have reached the estimate that independence can no longer be rejected at this level. None makes
            all surrogates.
        **kwargs: What tigramite's CondIndTest takes, among them ``seed``, ``sig_samples``, ``sig_blocklength``,
            ``mask_type``, ``confidence`` and ``verbosity``. If Z is empty, surrogates permute blocks of
            ``sig_blocklength`` rows; the default follows from the variable's autocorrelation (Carlstein 1986).

    Raises:
        TypeError, ValueError: An argument has the wrong type or value.

    Example:
        >>> import numpy as np
        >>> from tigramite.data_processing import DataFrame
        >>> from tigramite.pcmci import PCMCI
        >>> from echo_ext.tigramite import CMIknn
        >>> data = np.random.default_rng(0).standard_normal((300, 2))
        >>> data[1:, 1] += 1.5 * np.abs(data[:-1, 0])  # variable 0 drives variable 1
        >>> test = CMIknn(sig_samples=100)
        >>> found = PCMCI(DataFrame(data), test, verbosity=0).run_pcmci(tau_max=1, pc_alpha=0.05)
        >>> (found["p_matrix"][:, :, 1] < 0.05).tolist()  # from the row, to the column
        [[False, True], [False, False]]
    """

    def __init__(
        self,
        knn: int | float = 0.2,
        shuffle_neighbors: int = 5,
        significance: str = "shuffle_test",
        transform: CMIknnTransform = "ranks",
        workers: int = -1,
        model_selection_folds: int = 3,
        null_fit: NullFit | None = None,
        permute: Permute = "Y",
        *,
        early_stopping: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._test = CMIknnTest(knn, shuffle_neighbors, transform, workers, null_fit, permute, early_stopping)
        self.model_selection_folds = _checks.whole("model_selection_folds", model_selection_folds, minimum=2)
        self.two_sided = False
        self.residual_based = False
        super().__init__(significance=significance, **kwargs)
        self._test.check_samples(self.sig_samples)

    @property
    def measure(self) -> str:
        """The name of the measure, as tigramite knows it."""
        return "cmi_knn"

    def get_dependence_measure(
        self, array: Numbers, xyz: npt.NDArray[np.int_], data_type: npt.NDArray[np.int_] | None = None
    ) -> float:
        """Return the conditional mutual information in nats.

        Args:
            array: The variables (dim, T).
            xyz: Which of them belong to X (0), Y (1) and Z (2), (dim,).
            data_type: 0 where a value is continuous.

        Raises:
            NotImplementedError: A value is discrete.
        """
        return self._test.estimate(*_split(array, xyz, data_type))

    def get_shuffle_significance(
        self,
        array: Numbers,
        xyz: npt.NDArray[np.int_],
        value: float,
        data_type: npt.NDArray[np.int_] | None = None,
        return_null_dist: bool = False,
    ) -> float | tuple[float, Numbers]:
        """Return the p-value, and with ``return_null_dist`` also the estimates with surrogates.

        Args:
            array, xyz, data_type: As in :meth:`get_dependence_measure`.
            value: The estimate. It is computed again along with the surrogates, so this argument is not used.
            return_null_dist: Whether to return the estimates with surrogates.
        """
        x, y, z = _split(array, xyz, data_type)
        length = self.sig_blocklength
        if length is None:
            length = _block_length(y if self._test.permute == "Y" else x)
        p, null = self._test.test(
            x,
            y,
            z,
            num_surrogates=self.sig_samples,
            block_length=length,
            seed=int(self.random_state.integers(2**63 - 1)),
        )
        return (p, null) if return_null_dist else p

    def get_model_selection_criterion(self, j: int, parents: list[tuple[int, int]], tau_max: int = 0) -> float:
        """Return how badly the parents predict a variable from nearest neighbors: minus the mean cross-validated R².

        Args:
            j: The variable.
            parents: Its parents: variables and lags, such as [(0, -1), (2, -2)].
            tau_max: The largest lag of all models that are compared.
        """
        array, _, _ = self.dataframe.construct_array(
            X=[(j, 0)], Y=[(j, 0)], Z=parents, tau_max=tau_max, mask_type=self.mask_type
        )
        target, predictors = array[0], np.ascontiguousarray(array[2:].T)
        predictors = (predictors - predictors.mean(0)) / np.maximum(predictors.std(0), np.finfo(float).tiny)
        k = self._test.num_neighbors()
        k = max(1, int(k * len(target))) if isinstance(k, float) else k
        scores = []
        for fold in np.array_split(np.arange(len(target)), self.model_selection_folds):
            rest = np.delete(np.arange(len(target)), fold)
            predicted = target[rest].mean()
            if parents:
                neighbors = nearest_neighbors(predictors[rest], predictors[fold], k=k, metric="euclidean")[1]
                predicted = target[rest][neighbors].mean(-1)
            error, spread = (np.square(target[fold] - each).sum() for each in (predicted, target[fold].mean()))
            scores.append(1 - error / spread)
        return -float(np.mean(scores))


def _split(
    array: Numbers, xyz: npt.NDArray[np.int_], data_type: npt.NDArray[np.int_] | None
) -> tuple[Numbers, Numbers, Numbers]:
    """Return X, Y and Z, (T, d) each."""
    if data_type is not None and np.any(data_type):
        raise NotImplementedError("data_type must be 0 everywhere: CMIknn is a test for continuous variables")
    x, y, z = (array[np.asarray(xyz) == which].T for which in range(3))
    return x, y, z


def _block_length(values: Numbers) -> int:
    """Return the best length of blocks for autoregressive processes of order 1 like these columns (Carlstein 1986)."""
    n = len(values)
    centered = values - values.mean(0)
    variance = np.maximum(np.square(centered).sum(0), np.finfo(float).tiny)
    correlation = float(np.abs((centered[1:] * centered[:-1]).sum(0) / variance).max())
    length = (2 * correlation / (1 - min(correlation**2, 1 - 1 / n))) ** (2 / 3) * n ** (1 / 3)
    return int(max(1, min(round(length), LONGEST_BLOCK * n)))
