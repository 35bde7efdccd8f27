"""What features tell about a target, alone and in pairs, where each of them is continuous or discrete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import mutual_info_score

from echo_ext.estimators._backend import digamma
from echo_ext.estimators.discrete import group_labels
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.pairs import BLOCK
from echo_ext.sklearn.scores import Numbers, estimate_each

__all__ = ["Features", "Variable", "estimate_information"]

Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Variable:
    """A random variable with continuous and discrete columns, or a batch of p of them that differ in the continuous.

    Attributes:
        points: The continuous columns, float64 (p, N, d) or (1, N, d); d may be 0.
        codes: int64 (N,): samples with the same code have the same values in all discrete columns.
    """

    points: Numbers
    codes: Integers

    def join(self, other: Variable) -> Variable:
        """Return the variable that has the columns of both."""
        batch = max(len(self.points), len(other.points))
        points = [np.broadcast_to(each.points, (batch, *each.points.shape[1:])) for each in (self, other)]
        codes = self.codes * (other.codes.max(initial=0) + 1) + other.codes
        return Variable(np.concatenate(points, -1), np.unique(codes, return_inverse=True)[1].astype(np.int64))


def estimate_information(a: Variable, b: Variable, given: Variable | None, n_neighbors: int) -> Numbers:
    """Estimate I(a; b), or I(a; b | given), of each of the batch: (p,), not clipped.

    Samples with different codes are infinitely far apart. So the k_i = min(k, M_i - 1) nearest neighbors of sample i
    are among the M_i samples with its own codes; where M_i is 1, the sample is left out of the whole estimate. The
    distance to the last of them is the radius of all counts: ``<psi(k_i) + psi(nz + 1) - psi(naz + 1) - psi(nbz + 1)>``
    over the M samples that are left, with nz = M - 1 if nothing is given. Where no column is discrete, this is the
    estimate of Kraskov et al. 2004 or of Frenzel and Pompe 2007, and that of Ross 2014 where one of two variables is
    discrete. Where all columns are discrete, it is the information of the empirical distribution.
    """
    nothing = Variable(np.empty((1, len(a.codes), 0)), np.zeros(len(a.codes), np.int64))
    z = nothing if given is None else given
    az, bz = a.join(z), b.join(z)
    joint = az.join(b)
    if joint.points.shape[-1] == 0:
        return np.array([mutual_info_score(az.codes, b.codes) - mutual_info_score(z.codes, b.codes)])
    groups = [group.rows.numpy() for group in group_labels(torch.from_numpy(joint.codes))]
    if not groups:  # nothing repeats, so nothing is known
        return np.zeros(len(joint.points))
    rows = np.concatenate(groups)
    k = np.concatenate([np.full(len(own), min(n_neighbors, len(own) - 1)) for own in groups])
    radii = np.concatenate([_kth_distances(joint.points[:, own], min(n_neighbors, len(own) - 1)) for own in groups], 1)
    values = np.broadcast_to(_psi(k), radii.shape).copy()
    for margin, sign in ((z, 1), (az, -1), (bz, -1)):
        values += sign * _psi(_count_nearer(margin, rows, radii) + 1)
    return np.asarray(values.mean(-1))


def _kth_distances(points: Numbers, k: int) -> Numbers:
    found = PointSet(torch.from_numpy(np.ascontiguousarray(points))).search_distances(k)
    return np.asarray(found[..., -1].numpy())


def _count_nearer(variable: Variable, rows: Integers, radii: Numbers) -> Integers:
    """Count the samples with the same codes that are strictly nearer: (p, M) for the M rows, of which radii are."""
    points, counts = variable.points[:, rows], np.empty(radii.shape, np.int64)
    for group in group_labels(torch.from_numpy(variable.codes[rows])):
        own = group.rows.numpy()
        if points.shape[-1] == 0:
            counts[:, own] = len(own) - 1
        else:
            alike = PointSet(torch.from_numpy(np.ascontiguousarray(points[:, own])))
            counts[:, own] = alike.count(torch.from_numpy(radii[None, :, own]))[0].numpy()
    return counts


def _psi(counts: Integers) -> Numbers:
    return np.asarray(digamma(torch.from_numpy(counts)).numpy())


class Features:
    """The features and the target of a data set, and estimates of the information between them.

    Args:
        X: (N, p) float64, scaled and without ties where it is continuous.
        discrete: Which columns of X are discrete (p,).
        y: The target (N,), scaled and without ties if it is continuous.
        discrete_target: Whether it is discrete.
        n_neighbors: The number of neighbors.
    """

    def __init__(
        self,
        X: Numbers,
        discrete: npt.NDArray[np.bool_],
        y: npt.NDArray[np.generic],
        discrete_target: bool,
        n_neighbors: int,
    ) -> None:
        codes = [np.unique(column, return_inverse=True)[1] for column in X[:, discrete].T]
        self._X = X.copy()
        self._X[:, discrete] = np.array(codes).T.reshape(len(X), -1)
        self._discrete = discrete
        self._y = np.unique(y, return_inverse=True)[1] if discrete_target else y
        self._discrete_target = discrete_target
        self._target = self._variable(np.asarray(self._y, np.float64)[:, None], discrete_target)
        self._n_neighbors = n_neighbors

    def relevance(self) -> Numbers:
        """Estimate I(x_j; y) of each feature, as mutual_info_regression and mutual_info_classif do."""
        return estimate_each(self._X, self._discrete, self._y, self._discrete_target, self._n_neighbors)

    def redundancy(self, features: Sequence[int], selected: int) -> Numbers:
        """Estimate I(x_j; x_s) of some features and a selected one, in the same way."""
        s, is_discrete = self._X[:, selected], bool(self._discrete[selected])
        y = s.astype(np.int64) if is_discrete else s
        return estimate_each(self._X[:, features], self._discrete[features], y, is_discrete, self._n_neighbors)

    def joint(self, features: Sequence[int], selected: int) -> Numbers:
        """Estimate I(x_j, x_s; y) of some features and a selected one."""
        return self._of_each(
            features,
            lambda x, s: estimate_information(x.join(s), self._target, None, self._n_neighbors),
            selected,
        )

    def conditional(self, features: Sequence[int], selected: int) -> Numbers:
        """Estimate I(x_j; y | x_s) of some features and a selected one."""
        return self._of_each(
            features, lambda x, s: estimate_information(x, self._target, s, self._n_neighbors), selected
        )

    def _of_each(
        self, features: Sequence[int], estimate: Callable[[Variable, Variable], Numbers], selected: int
    ) -> Numbers:
        """Estimate for each discrete feature, and for the continuous ones in blocks that fit into the caches."""
        chosen = np.asarray(features, np.int64)
        s = self._variable(self._X[:, [selected]], bool(self._discrete[selected]))
        continuous = np.flatnonzero(~self._discrete[chosen])
        step = max(1, BLOCK // (len(self._X) * (self._n_neighbors + 3)))
        blocks = [continuous[i : i + step] for i in range(0, len(continuous), step)]
        values = np.empty(len(chosen))
        for block in [*blocks, *np.flatnonzero(self._discrete[chosen])[:, None]]:
            values[block] = estimate(self._variable(self._X[:, chosen[block]], block[0] not in continuous), s)
        return values

    @staticmethod
    def _variable(columns: Numbers, discrete: bool) -> Variable:
        """Return one discrete variable, or a batch of continuous ones, from columns (N, p)."""
        n = len(columns)
        if discrete:
            return Variable(np.empty((1, n, 0)), columns[:, 0].astype(np.int64))
        return Variable(columns.T[:, :, None], np.zeros(n, np.int64))
