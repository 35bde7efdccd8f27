"""Brute-force definitions of the estimators over all pairs of samples, written from their docstrings."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from scipy.special import ndtri

UNITS = {"nats": 1.0, "bits": 1 / math.log(2)}
KINDS = ("normal", "ties", "constant", "lattice", "duplicates", "huge", "subnormal", "heavy", "offset", "line")
CELL_METHODS = ("plug-in", "miller-madow")
LAYOUTS = ("contiguous", "fortran", "reversed", "strided", "read-only")

# The digamma function of integers: psi(n) = -gamma + H_{n-1}.
_PSI = np.concatenate([[-np.inf], -np.euler_gamma + np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 2000))])])


def psi(n):
    return _PSI[np.asarray(n)]


# ---- Data ------------------------------------------------------------------------------------------------------------


def sample(rng, kind, shape, dtype):
    """Return a (..., N, d) array of finite values of one kind."""
    normal = rng.standard_normal(shape)
    with np.errstate(over="ignore"):
        if kind == "ties":
            normal = np.round(normal)
        elif kind == "constant":
            normal = np.full(shape, 2.5)
        elif kind == "lattice":
            normal = rng.integers(0, 4, shape) * 0.25
        elif kind == "duplicates":
            n = shape[-2]
            normal = normal[..., rng.integers(0, max(n // 3, 1), n), :]
        elif kind == "huge":
            normal = normal * (1e300 if dtype == np.float64 else 1e30)
        elif kind == "subnormal":
            normal = normal * (1e-310 if dtype == np.float64 else 1e-40)
        elif kind == "heavy":  # differences and their squares overflow
            limit = float(np.finfo(dtype).max)
            power = rng.choice([0.45, 0.52, 0.8, 1.0]) * math.log10(limit)
            normal = np.clip(np.sign(normal) * 10 ** np.minimum(power * np.abs(normal), 308), -limit, limit)
        elif kind == "offset":
            normal = normal + 1e5
        elif kind == "line":
            normal = np.repeat(normal[..., :1], shape[-1], -1)
    return normal.astype(dtype)


def laid_out(values, layout):
    if layout == "fortran":
        return np.asfortranarray(values)
    if layout == "reversed":
        return np.ascontiguousarray(values[..., ::-1, :])[..., ::-1, :]
    if layout == "strided":
        return np.repeat(values, 2, -1)[..., ::2]
    if layout == "read-only":
        values = values.copy()
        values.flags.writeable = False
    return values


def transformed(values, transform):
    """Transform each column of (N, d); the k-th smallest value has rank k - 1, equal ones in the order of rows."""
    if transform is None or len(values) == 0:
        return values
    result = np.zeros(values.shape)
    for i, column in enumerate(values.astype(np.float64).T):
        if transform == "standardize":
            if column.max() > column.min():
                unit = column / np.abs(column).max()
                unit = unit - unit.mean()
                result[:, i] = unit / np.sqrt((unit**2).mean())
            continue
        for place, row in enumerate(sorted(range(len(column)), key=lambda row: (column[row], row))):
            result[row, i] = place
    if transform == "normal":
        low = np.minimum(result, len(values) - 1 - result)
        score = ndtri((low + 0.5) / len(values))
        result = np.where(2 * result < len(values), score, -score)
    return result.astype(values.dtype)


# ---- Distances -------------------------------------------------------------------------------------------------------


def distances(points, queries=None, euclidean=False):
    """Return (M, N) distances in the precision of the points; Euclidean ones are squared, summed column by column."""
    queries = points if queries is None else queries
    result = np.zeros((len(queries), len(points)), points.dtype)
    with np.errstate(over="ignore", under="ignore"):
        for column in range(points.shape[1]):
            difference = queries[:, column, None] - points[None, :, column]
            result = result + difference * difference if euclidean else np.maximum(result, np.abs(difference))
    return result


def allowed(n, window, rows=None):
    """Return an (N, N) mask of the samples that may be neighbors of each sample."""
    rows = np.arange(n) if rows is None else rows
    return (np.abs(rows[:, None] - rows) > window) & ~np.eye(n, dtype=bool)


def nearest(distance, usable, k):
    """Return the (M, k) indices of the k nearest usable samples; ties are ordered by index."""
    order = np.argsort(distance, 1, kind="stable")
    keep = np.take_along_axis(usable, order, 1)
    # Move unusable samples to the end and keep the order of the others.
    return np.take_along_axis(order, np.argsort(~keep, 1, kind="stable"), 1)[:, :k]


def kth_distance(distance, neighbors):
    return np.take_along_axis(distance, neighbors[:, -1:], 1)


def log_ball(dim):
    return 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)


# ---- Estimators: N local values in nats, for one sample and one k ----------------------------------------------------


class Sample:
    """One sample of several (N, d) variables, with distances cached for all k and methods."""

    def __init__(self, variables, window, rows=None):
        self.variables = variables
        self.n = len(variables[0])
        self.usable = allowed(self.n, window, rows)
        self.others = self.usable.sum(1)
        self._distances = {}

    def distance(self, which, euclidean=False):
        """Return distances in the joint space of the given variables."""
        key = (which, euclidean)
        if key not in self._distances:
            joint = np.concatenate([self.variables[i] for i in which], 1)
            self._distances[key] = distances(joint, euclidean=euclidean)
        return self._distances[key]

    def neighbors(self, k, euclidean=False):
        everything = tuple(range(len(self.variables)))
        distance = self.distance(everything, euclidean)
        neighbors = nearest(distance, self.usable, k)
        return neighbors, kth_distance(distance, neighbors)

    def count(self, which, radius, inclusive=False, euclidean=False):
        distance = self.distance(which, euclidean)
        near = distance <= radius if inclusive else distance < radius
        return (near & self.usable).sum(1)

    def reach(self, variable, neighbors):
        """Return the maximum distance to the given neighbors in one variable."""
        return np.take_along_axis(self.distance((variable,)), neighbors, 1).max(1, keepdims=True)


def mutual_information(sample, k, method):
    if method == "ksg1":
        return total_correlation(sample, k, "ksg1")
    if method == "ksg2":
        return total_correlation(sample, k, "ksg2")
    if method == "bi-ksg":
        _, radius = sample.neighbors(k, euclidean=True)
        dims = [v.shape[1] for v in sample.variables]
        value = psi(k) + np.log(sample.others + 1) + sum(map(log_ball, dims)) - log_ball(sum(dims))
        for i in (0, 1):
            value = value - np.log(sample.count((i,), radius, inclusive=True, euclidean=True))
        return value
    return total_correlation(sample, k, method)


def frequencies(sample, which, method):
    """Return the local values of the entropy of the frequencies of rows, in some variables together."""
    joint = np.concatenate([sample.variables[i] for i in which], 1) + 0.0  # no zero has a sign
    rows = [row.tobytes() for row in joint]
    counts = Counter(rows)
    sizes = np.array([counts[row] for row in rows])
    correction = (1 / sizes - 1 / sample.n) / 2 if method == "miller-madow" else 0
    return math.log(sample.n) - np.log(sizes) + correction


def mixed(sample, k):
    everything = tuple(range(len(sample.variables)))
    _, radius = sample.neighbors(k)
    tied = radius[:, 0] == 0
    value = np.where(tied, psi(sample.count(everything, radius, inclusive=True) + 1), psi(k))
    value = value + (len(everything) - 1) * np.log(sample.others + 1)
    for i in everything:
        inside = np.where(tied, sample.count((i,), radius, inclusive=True), sample.count((i,), radius))
        value = value - psi(inside + 1)
    return value


def total_correlation(sample, k, method):
    if method == "mixed":
        return mixed(sample, k)
    if method in CELL_METHODS:
        everything = tuple(range(len(sample.variables)))
        return sum(frequencies(sample, (i,), method) for i in everything) - frequencies(sample, everything, method)
    neighbors, radius = sample.neighbors(k)
    margins = len(sample.variables) - 1
    value = psi(k) + margins * psi(sample.others + 1)
    if method == "ksg2":
        value = value - margins / k
    for i in range(len(sample.variables)):
        if method == "ksg1":
            value = value - psi(sample.count((i,), radius) + 1)
        else:
            value = value - psi(sample.count((i,), sample.reach(i, neighbors), inclusive=True))
    return value


def conditional_mutual_information(sample, k, method):
    if method in CELL_METHODS:
        xz, yz, z, xyz = (frequencies(sample, which, method) for which in ((0, 2), (1, 2), (2,), (0, 1, 2)))
        return xz + yz - z - xyz
    neighbors, radius = sample.neighbors(k)
    if method == "ksg1":
        counts = (sample.count(which, radius) for which in ((2,), (0, 2), (1, 2)))
        nz, nxz, nyz = counts
        return psi(k) + psi(nz + 1) - psi(nxz + 1) - psi(nyz + 1)
    if method == "mixed":
        xyz, xz, yz, z = (sample.count(which, radius, inclusive=True) for which in ((0, 1, 2), (0, 2), (1, 2), (2,)))
        return psi(xyz) + psi(z) - psi(xz) - psi(yz)
    inside = [(sample.distance((i,)) <= sample.reach(i, neighbors)) & sample.usable for i in range(3)]
    nz, nxz, nyz = inside[2].sum(1), (inside[0] & inside[2]).sum(1), (inside[1] & inside[2]).sum(1)
    return psi(k) - 2 / k + psi(nz) - psi(nxz) + 1 / nxz - psi(nyz) + 1 / nyz


def entropy(sample, k, metric, method="knn"):
    if method in CELL_METHODS:
        return frequencies(sample, (0,), method)
    euclidean = metric == "euclidean"
    _, radius = sample.neighbors(k, euclidean)
    dim = sample.variables[0].shape[1]
    eps = radius[:, 0].astype(np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        if euclidean:
            return psi(sample.others + 1) - psi(k) + log_ball(dim) - dim * math.log(2) + dim * np.log(2 * np.sqrt(eps))
        return psi(sample.others + 1) - psi(k) + dim * np.log(2 * eps)


def mutual_information_discrete(x, labels, k, window, given=None):
    """Return local values of Ross's estimator, NaN for labels that occur only once where the conditions are equal."""
    n = len(x)
    if given is not None:
        values = np.full(n, np.nan)
        for stratum in np.unique(given):
            rows = np.flatnonzero(given == stratum)
            values[rows] = _ross(x[rows], labels[rows], k, allowed(n, window)[np.ix_(rows, rows)])
        return values
    return _ross(x, labels, k, allowed(n, window))


def _ross(x, labels, k, usable):
    n, distance = len(x), distances(x)
    same = labels[:, None] == labels
    kept = same.sum(1) > 1
    values = np.full(n, np.nan)
    for i in np.flatnonzero(kept):
        own = np.sort(distance[i][same[i] & usable[i]])
        k_i = min(k, len(own))
        others = usable[i] & kept
        nearer = (distance[i][others] < own[k_i - 1]).sum()
        values[i] = psi(others.sum() + 1) + psi(k_i) - psi(len(own) + 1) - psi(nearer + 1)
    return values


def embedding(source, target, given=None, *, history, source_history, lag, given_history=0):
    """Return target values, source past, and the pasts of target and given, at the times where all exist."""
    times = range(max(history, lag + source_history - 1, given_history), len(target))
    future = np.stack([target[t] for t in times])
    driver = np.stack([np.concatenate([source[t - lag - i] for i in range(source_history)]) for t in times])
    past = np.stack([np.concatenate([target[t - 1 - i] for i in range(history)]) for t in times])
    if given is not None:
        others = [np.concatenate([given[t - 1 - i] for i in range(given_history)]) for t in times]
        past = np.concatenate([past, np.stack(others)], 1)
    return future, driver, past


# ---- Gradients of a weighted sum of local values ---------------------------------------------------------------------


def pull(gradient, points, i, j, weight, euclidean=False):
    """Add weight times the gradient of the distance between samples i and j, which is 0 if they are equal."""
    difference = (points[j] - points[i]).astype(np.float64)
    if euclidean:
        length = np.sqrt((difference**2).sum())
        slope = difference / length if length > 0 else np.zeros_like(difference)
    else:  # ties go to the first of the largest coordinates
        slope = np.zeros_like(difference)
        largest = np.abs(difference).argmax()
        slope[largest] = np.sign(difference[largest])
    gradient[j] += weight * slope
    gradient[i] -= weight * slope


def entropy_gradient(sample, k, metric, weights):
    (points,) = sample.variables
    euclidean = metric == "euclidean"
    neighbors, radius = sample.neighbors(k, euclidean)
    eps = np.sqrt(radius[:, 0].astype(np.float64)) if euclidean else radius[:, 0].astype(np.float64)
    gradient = np.zeros(points.shape)
    for i in range(sample.n):
        pull(gradient, points, i, neighbors[i, -1], weights[i] * points.shape[1] / eps[i], euclidean)
    return [gradient]


def mutual_information_gradient(sample, k, width, weights):
    """Return the flux through the boundaries of the marginal balls minus that of the joint ball."""
    neighbors, radius = sample.neighbors(k)
    joint = np.concatenate(sample.variables, 1)
    whole = np.zeros(joint.shape)
    parts = [np.zeros(v.shape) for v in sample.variables]
    for i in range(sample.n):
        eps, last = float(radius[i, 0]), neighbors[i, -1]
        if eps == 0:
            continue
        pull(whole, joint, i, last, -weights[i] * joint.shape[1] / eps)
        for which, (variable, part) in enumerate(zip(sample.variables, parts, strict=True)):
            distance = sample.distance((which,))[i]
            candidates = [j for j in np.flatnonzero(sample.usable[i]) if j != last]
            inside = sorted((j for j in candidates if distance[j] < radius[i, 0]), key=lambda j: (-distance[j], j))
            outside = sorted((j for j in candidates if distance[j] >= radius[i, 0]), key=lambda j: (distance[j], j))
            near = inside[:width] + outside[: width + 1]
            for j in near:
                pull(part, variable, i, j, weights[i] * variable.shape[1] / eps / len(near))
    cut = sample.variables[0].shape[1]
    return [parts[0] + whole[:, :cut], parts[1] + whole[:, cut:]]
