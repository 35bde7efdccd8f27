"""NumPy definitions of the distributed calls, on the concatenated rows of all ranks."""

import math

import numpy as np
from scipy.special import digamma

import echo_ext
from echo_ext.distributed.echo import SEED_STEP


def own_seed(seed, rank):
    """Return the seed that a rank derives from the common one, with int64 wraparound."""
    return (seed + rank * SEED_STEP + 2**63) % 2**64 - 2**63


# ---- Echo noise ------------------------------------------------------------------------------------------------------


def circle(sizes, seeds):
    """Return the row at each position of the circle: rank after rank, each in its own random order."""
    parts, first = [], 0
    for rank, (size, seed) in enumerate(zip(sizes, seeds, strict=True)):
        if size > 0:
            order = echo_ext.echo_indices(1, sampling="ring", seed=own_seed(seed, rank), bank_size=size)
            parts.append(first + order[0].numpy())
        first += size
    return np.concatenate(parts)


def ring(f, s, order, weights):
    """Return z_p = f_p + s_p z_{p+1} around the circle, and the gradients of sum(weights * z) for f and s."""
    f, s, weights = (array[order].astype(np.longdouble) for array in (f, s, weights))
    z = _around(f, s)
    # v_p = w_p + s_{p-1} v_{p-1}: the same recurrence in the other direction.
    v = _around(weights[::-1], np.roll(s, 1, 0)[::-1])[::-1]
    back = np.argsort(order)
    return z[back], v[back], (v * np.roll(z, -1, 0))[back]


def _around(f, s):
    turn, scale = np.zeros_like(f[0]), np.ones_like(f[0])
    for row in range(len(f) - 1, -1, -1):
        turn, scale = f[row] + s[row] * turn, s[row] * scale
    z = np.empty_like(f)
    following = turn / (1 - scale)
    for row in range(len(f) - 1, -1, -1):
        following = z[row] = f[row] + s[row] * following
    return z


def gathered(f, s, sizes, seeds, sampling, num_terms, weights):
    """Return z where each row draws from all ranks, and the gradients of sum(weights * z) for f and s."""
    total = len(f)
    num_terms = total - 1 if num_terms is None else num_terms
    z, grad_f, grad_s = (np.zeros(f.shape, np.longdouble) for _ in range(3))
    f, s = f.astype(np.longdouble), s.astype(np.longdouble)
    starts = np.cumsum([0, *sizes])
    for rank, size in enumerate(sizes):
        if size == 0:
            continue
        own = np.arange(starts[rank], starts[rank + 1])
        order = np.concatenate([own, np.delete(np.arange(total), own)])  # all rows, with those of this rank first
        drawn = echo_ext.echo_indices(
            total, num_terms=num_terms, sampling=sampling, seed=own_seed(seeds[rank], rank)
        ).numpy()[:size]
        indices = order[drawn]
        assert (indices != own[:, None]).all()
        g = weights[own]
        weight, weighted = np.ones_like(g), [None] * num_terms
        noise = np.zeros_like(g)
        for term in range(num_terms):
            weighted[term] = weight
            noise = noise + weight * f[indices[:, term]]
            weight = weight * s[indices[:, term]]
        z[own] = f[own] + s[own] * noise
        grad_f[own] += g
        grad_s[own] += g * noise
        through, rest = g * s[own], np.zeros_like(g)
        for term in range(num_terms - 1, -1, -1):
            column = indices[:, term]
            np.add.at(grad_f, column, through * weighted[term])
            np.add.at(grad_s, column, through * weighted[term] * rest)
            rest = f[column] + s[column] * rest
    return z, grad_f, grad_s


# ---- Mutual information ----------------------------------------------------------------------------------------------

CELL_METHODS = ("plug-in", "miller-madow")  # of discrete variables, without neighbors


def mutual_information(x, y, *, k=3, method="ksg1", exclude_within=0, unit="nats"):
    """Return local values (K, *batch, N) for (*batch, N, d) arrays, computed from all pairwise distances."""
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = (np.broadcast_to(v, batch + v.shape[-2:]) for v in (x, y))
    ks = [k] if np.ndim(k) == 0 else k
    values = [[_local(x[item], y[item], one, method, exclude_within) for item in np.ndindex(batch)] for one in ks]
    factor = {"nats": 1.0, "bits": 1 / math.log(2)}[unit]
    return factor * np.array(values, np.float64).reshape(len(ks), *batch, x.shape[-2])


def _local(x, y, k, method, window):
    n = len(x)
    usable = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) > window
    others = usable.sum(1)
    if method == "bi-ksg":
        differences = [np.square(v[:, None] - v[None]) for v in (x, y)]
        in_x, in_y = (square.sum(-1) for square in differences)
        joint = np.concatenate(differences, -1).sum(-1)
    else:
        in_x, in_y = (np.abs(v[:, None] - v[None]).max(-1) for v in (x, y))
        joint = np.maximum(in_x, in_y)
    if method in CELL_METHODS:
        nx, ny, nxy = ((distance == 0).sum(1) for distance in (in_x, in_y, joint))
        correction = (1 / nx + 1 / ny - 1 / nxy - 1 / n) / 2 if method == "miller-madow" else 0
        return np.log(n * nxy / (nx * ny)) + correction
    nearest = np.argsort(np.where(usable, joint, np.inf), axis=1, kind="stable")[:, :k]
    radius = np.take_along_axis(joint, nearest[:, -1:], 1)

    def count(distance, reach, inclusive):
        return (usable & ((distance <= reach) if inclusive else (distance < reach))).sum(1)

    if method == "ksg1":
        nx, ny = (count(distance, radius, False) for distance in (in_x, in_y))
        return digamma(k) + digamma(others + 1) - digamma(nx + 1) - digamma(ny + 1)
    if method == "ksg2":
        nx, ny = (count(v, np.take_along_axis(v, nearest, 1).max(1, keepdims=True), True) for v in (in_x, in_y))
        return digamma(k) - 1 / k + digamma(others + 1) - digamma(nx) - digamma(ny)
    if method == "bi-ksg":
        nx, ny = (count(distance, radius, True) for distance in (in_x, in_y))
        volumes = _log_ball(x.shape[1]) + _log_ball(y.shape[1]) - _log_ball(x.shape[1] + y.shape[1])
        return digamma(k) + np.log(others + 1) + volumes - np.log(nx) - np.log(ny)
    tied = radius[:, 0] == 0
    counts = [np.where(tied, count(v, radius, True), count(v, radius, False)) for v in (in_x, in_y)]
    equal = np.where(tied, count(joint, radius, True) + 1, k)
    return digamma(equal) + np.log(others + 1) - digamma(counts[0] + 1) - digamma(counts[1] + 1)


def _log_ball(dim):
    return dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
