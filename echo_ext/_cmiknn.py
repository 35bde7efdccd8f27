"""The conditional-independence test that the classes for tigramite and causal-learn share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from echo_ext import _checks
from echo_ext._native import num_threads
from echo_ext._types import Surrogate, Transform
from echo_ext.estimators import conditional_mutual_information, independence_test, mutual_information
from echo_ext.estimators.independence import FEWEST_TO_FIT

CMIknnTransform: TypeAlias = Literal["ranks", "standardize", "uniform", False]
NullFit: TypeAlias = Literal["normal", "gamma"]
Permute: TypeAlias = Literal["X", "Y"]
Numbers: TypeAlias = npt.NDArray[np.float64]

# Ranks and uniform values differ by a factor, which is the same for all columns and so changes no neighborhood.
TRANSFORMS: dict[object, Transform | None] = {
    "ranks": "rank",
    "standardize": "standardize",
    "uniform": "rank",
    False: None,
}
TIE_NOISE = 1e-6  # in standard deviations


@dataclass(frozen=True)
class CMIknnTest:
    """The settings of the test, checked; the classes that have them as arguments say what they mean."""

    knn: int | float
    shuffle_neighbors: int
    transform: CMIknnTransform
    workers: int
    null_fit: NullFit | None
    permute: Permute
    early_stopping: float | None

    def __post_init__(self) -> None:
        if _checks.number("knn", self.knn, above=0) >= 1 and self.knn != int(self.knn):
            raise ValueError(f"knn must be an int or a fraction in (0, 1), got {_checks.brief(self.knn)}")
        _checks.whole("shuffle_neighbors", self.shuffle_neighbors, minimum=2)
        _checks.choice("transform", self.transform, TRANSFORMS)
        if _checks.whole("workers", self.workers, minimum=-1) == 0:
            raise ValueError("workers must be a number of threads, or -1, got 0")
        _checks.choice("null_fit", self.null_fit, (None, "normal", "gamma"))
        _checks.choice("permute", self.permute, ("X", "Y"))
        if self.early_stopping is not None and self.null_fit is not None:
            raise ValueError(f"early_stopping needs null_fit=None, got {self.null_fit!r}")

    def check_samples(self, sig_samples: object) -> int:
        """Return the number of surrogates; refuse one from which no p-value follows."""
        return _checks.whole("sig_samples", sig_samples, minimum=1 if self.null_fit is None else FEWEST_TO_FIT)

    def num_neighbors(self) -> int | float:
        """Return the number of neighbors, or the fraction of the rows."""
        return int(self.knn) if self.knn >= 1 else float(self.knn)

    def threads(self) -> AbstractContextManager[None]:
        """Run on the threads of ``workers``."""
        return nullcontext() if self.workers == -1 else num_threads(self.workers)

    def estimate(self, x: Numbers, y: Numbers, z: Numbers) -> float:
        """Return the conditional mutual information of x and y given z, (N, d) each; z may have no columns."""
        x, y, z = _prepare(x, y, z)
        if min(x.shape[1], y.shape[1]) == 0:
            return 0.0
        k, transform = self.num_neighbors(), TRANSFORMS[self.transform]
        with self.threads():
            if z.shape[1] == 0:
                return float(mutual_information(x, y, k=k, transform=transform))
            return float(conditional_mutual_information(x, y, z, k=k, transform=transform))

    def test(
        self, x: Numbers, y: Numbers, z: Numbers, *, num_surrogates: int, block_length: int = 1, seed: int
    ) -> tuple[float, Numbers]:
        """Return the p-value and the estimates with surrogates.

        Args:
            x, y, z: As in :meth:`estimate`.
            num_surrogates: The number of surrogates.
            block_length: The number of rows in a block of a surrogate without z.
            seed: The seed of the surrogates.
        """
        x, y, z = _prepare(x, y, z)
        if min(x.shape[1], y.shape[1]) == 0:
            return 1.0, np.zeros(num_surrogates)
        if self.permute == "X":
            x, y = y, x
        surrogate: Surrogate = "local" if z.shape[1] > 0 else "block" if block_length > 1 else "shuffle"
        with self.threads():
            found = independence_test(
                x,
                y,
                z if z.shape[1] > 0 else None,
                k=self.num_neighbors(),
                n_resamples=num_surrogates,
                surrogate=surrogate,
                shuffle_neighbors=self.shuffle_neighbors,
                block_length=block_length if surrogate == "block" else None,
                null="empirical" if self.null_fit is None else self.null_fit,
                early_stopping=self.early_stopping,
                transform=TRANSFORMS[self.transform],
                seed=seed,
            )
        return float(found.pvalue), np.asarray(found.null_distribution)


def _prepare(*variables: Numbers) -> Sequence[Numbers]:
    """Return the variables without constant columns, which depend on nothing, and with equal values separated.

    The noise is the same in each call, so that estimates of the same variables are equal.
    """
    generator = np.random.default_rng(0)
    found = []
    for variable in variables:
        values = np.array(variable, dtype=np.float64)
        noise = generator.standard_normal(values.shape)
        ordered = np.sort(values, axis=0)
        tied = (ordered[1:] == ordered[:-1]).any(axis=0)
        values[:, tied] += TIE_NOISE * values[:, tied].std(axis=0) * noise[:, tied]
        found.append(values[:, ordered[0] < ordered[-1]])
    return found
