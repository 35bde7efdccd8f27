"""The tasks of the "beyond normal" benchmark of mutual information, from their definitions (Czyz et al. 2023).

A task draws pairs of variables whose information is known: that of a normal, uniform or Student distribution by its
formula, and of smooth, invertible functions of its x and of its y the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, gammaln, ndtr

CORRELATION = 0.75


@dataclass(frozen=True)
class Task:
    name: str
    columns: tuple[int, int]
    truth: float  # in nats
    draw: Callable  # takes a generator and n; returns x and y, (n, columns) each


# ---- Distributions ---------------------------------------------------------------------------------------------------


def normal_information(covariance, columns):
    """I(x; y) of jointly normal variables, of which x is the first columns."""
    parts = covariance[:columns, :columns], covariance[columns:, columns:], covariance
    x, y, joint = (np.linalg.slogdet(each)[1] for each in parts)
    return float(x + y - joint) / 2


def normal(name, covariance):
    d = len(covariance) // 2
    root = np.linalg.cholesky(covariance)

    def draw(rng, n):
        values = rng.standard_normal((n, 2 * d)) @ root.T
        return values[:, :d], values[:, d:]

    return Task(name, (d, d), normal_information(covariance, d), draw)


def bivariate_normal():
    return normal("Bivariate normal 1 x 1", np.array([[1, CORRELATION], [CORRELATION, 1]]))


def dense(d):
    """All columns are correlated by 0.5."""
    return normal(f"Multinormal {d} x {d} (dense)", 0.5 + 0.5 * np.eye(2 * d))


def two_pairs(d):
    """The first two columns of x are correlated with those of y by 0.8, and the others are independent."""
    covariance = np.eye(2 * d)
    covariance[[0, 1, d, d + 1], [d, d + 1, 0, 1]] = 0.8
    return normal(f"Multinormal {d} x {d} (2-pair)", covariance)


def additive(epsilon):
    """A uniform variable, and the same with uniform noise between -epsilon and epsilon."""

    def draw(rng, n):
        x = rng.random((n, 1))
        return x, x + rng.uniform(-epsilon, epsilon, (n, 1))

    truth = 1 / (4 * epsilon) if epsilon > 0.5 else epsilon - np.log(2 * epsilon)
    return Task(f"Uniform 1 x 1 (additive noise={epsilon})", (1, 1), float(truth), draw)


def student_entropy(columns, freedom):
    """The entropy of a standard multivariate Student distribution (Arellano-Valle et al. 2013)."""
    half = (freedom + columns) / 2
    scale = gammaln(freedom / 2) - gammaln(half) + columns / 2 * np.log(freedom * np.pi)
    return scale + half * (digamma(half) - digamma(freedom / 2))


def student(d, freedom):
    """Uncorrelated columns that depend on each other through their common scale."""

    def draw(rng, n):
        scale = np.sqrt(rng.chisquare(freedom, (n, 1)) / freedom)
        values = rng.standard_normal((n, 2 * d)) / scale
        return values[:, :d], values[:, d:]

    truth = 2 * student_entropy(d, freedom) - student_entropy(2 * d, freedom)
    return Task(f"Student-t {d} x {d} (dof={freedom})", (d, d), float(truth), draw)


# ---- Functions of the variables --------------------------------------------------------------------------------------


def transformed(name, task, of_x, of_y):
    def draw(rng, n):
        x, y = task.draw(rng, n)
        return of_x(x), of_y(y)

    columns = tuple(of(np.zeros((1, d))).shape[1] for of, d in zip((of_x, of_y), task.columns, strict=True))
    return Task(name, columns, task.truth, draw)


def both(name, task, of):
    return transformed(f"{name} @ {task.name}", task, of, of)


def half_cube(x):
    return x * np.sqrt(np.abs(x))


def wiggly_x(x):
    return x + 0.4 * np.sin(x) + 0.2 * np.sin(1.7 * x + 1) + 0.03 * np.sin(3.3 * x - 2.5)


def wiggly_y(y):
    return y - 0.4 * np.sin(0.4 * y) + 0.17 * np.sin(1.3 * y + 3.5) + 0.02 * np.sin(4.3 * y - 2.5)


def bimodal(weight, first, second):
    """The increasing function that makes of a normal variable a mixture of two, whose first has this weight."""

    def of(x):
        wanted = ndtr(x)
        low, high = np.full(x.shape, -10.0), np.full(x.shape, 10.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = weight * ndtr(middle - first) + (1 - weight) * ndtr(middle - second) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    return of


def swiss_roll(x):
    """A plane spiral of a variable from 0 to 1."""
    t = 1.5 * np.pi * (1 + 2 * x)
    return np.hstack([t * np.cos(t), t * np.sin(t)]) / 21


def spiral(i, j):
    """The function that rotates columns i and j by the squared norm of all columns, divided by their number."""

    def of(x):
        angle = (x**2).sum(1) / x.shape[1]
        rotated = x.copy()
        rotated[:, i] = np.cos(angle) * x[:, i] - np.sin(angle) * x[:, j]
        rotated[:, j] = np.sin(angle) * x[:, i] + np.cos(angle) * x[:, j]
        return rotated

    return of


# ---- The benchmark ---------------------------------------------------------------------------------------------------


def tasks():
    """The 40 tasks, in the order of the paper's figure."""
    base, heavy = bivariate_normal(), student(1, 1)
    uniform = both("Normal CDF", base, ndtr)
    yield from (base, uniform, additive(0.1), additive(0.75))
    yield transformed("Bimodal 1 x 1", base, bimodal(0.3, 0, 5), bimodal(0.5, -1, 3))
    yield transformed(f"Wiggly @ {base.name}", base, wiggly_x, wiggly_y)
    yield from (both("Half-cube", base, half_cube), heavy, both("Asinh", heavy, np.arcsinh))
    yield transformed("Swiss roll 2 x 1", uniform, swiss_roll, lambda y: y)
    yield from map(dense, (2, 3, 5, 25, 50))
    yield from map(two_pairs, (2, 3, 5, 25))
    yield from (student(d, freedom) for d, freedom in ((2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3)))
    pairs = [two_pairs(d) for d in (3, 5, 25)]
    uniforms = [both("Normal CDF", task, ndtr) for task in pairs]
    yield from uniforms
    yield from (both("Half-cube", task, half_cube) for task in pairs)
    for task in (*pairs, *uniforms):
        yield transformed(f"Spiral @ {task.name}", task, spiral(0, 1), spiral(1, 2))
    yield from (both("Asinh", student(d, freedom), np.arcsinh) for d, freedom in ((2, 1), (3, 2), (5, 2)))


def normal_estimate(x, y):
    """I(x; y) of normal variables with the canonical correlations of the sample."""
    x, y = (np.linalg.qr(each - each.mean(0))[0] for each in (x, y))
    correlations = np.linalg.svd(x.T @ y, compute_uv=False)
    return float(-0.5 * np.log1p(-(correlations**2)).sum())
