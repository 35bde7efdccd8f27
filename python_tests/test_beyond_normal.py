"""The tasks of benchmarks/beyond_normal.py: their true values from their densities, and what their functions do."""

import math
import sys

import numpy as np
import pytest
from gpu_stand_ins import BENCHMARKS

pytest.importorskip("scipy")
from scipy import stats
from scipy.integrate import quad
from scipy.special import ndtr

import echo_ext

sys.path.insert(0, str(BENCHMARKS))
try:
    import beyond_normal
finally:
    sys.path.pop(0)

TASKS = {task.name: task for task in beyond_normal.tasks()}
ONE_COLUMN = [name for name, task in TASKS.items() if max(task.columns) < 3 and "Student-t 2" not in name]


def log_ratio(joint, of_x, of_y):
    return lambda x, y: joint.logpdf(np.hstack([x, y])) - of_x.logpdf(x) - of_y.logpdf(y)


def of_normal(covariance):
    d = len(covariance) // 2
    parts = covariance, covariance[:d, :d], covariance[d:, d:]
    return log_ratio(*(stats.multivariate_normal(np.zeros(len(part)), part) for part in parts))


def of_student(d, freedom):
    return log_ratio(*(stats.multivariate_t(np.zeros(c), np.eye(c), df=freedom) for c in (2 * d, d, d)))


def of_additive(epsilon):
    return lambda x, y: -np.log(np.minimum(1, y + epsilon) - np.maximum(0, y - epsilon)).squeeze(1)


def two_pair_covariance(d):
    matrix = np.eye(2 * d)
    for i in (0, 1):
        matrix[i, d + i] = matrix[d + i, i] = 0.8
    return matrix


DENSITIES = {
    "Bivariate normal 1 x 1": of_normal(np.array([[1, 0.75], [0.75, 1]])),
    "Multinormal 3 x 3 (dense)": of_normal(np.full((6, 6), 0.5) + 0.5 * np.eye(6)),
    "Multinormal 5 x 5 (2-pair)": of_normal(two_pair_covariance(5)),
    **{f"Uniform 1 x 1 (additive noise={epsilon})": of_additive(epsilon) for epsilon in (0.1, 0.75)},
    **{f"Student-t {d} x {d} (dof={dof})": of_student(d, dof) for d, dof in ((1, 1), (2, 1), (3, 2), (5, 3))},
}


@pytest.mark.parametrize("name", DENSITIES)
def test_truth_is_the_mean_log_ratio_of_densities(name):
    task = TASKS[name]
    values = DENSITIES[name](*task.draw(np.random.default_rng(0), 200_000))
    error = values.std() / math.sqrt(len(values))
    assert error < 0.01
    assert abs(values.mean() - task.truth) < 4 * error


@pytest.mark.parametrize("epsilon", [0.1, 0.75])
def test_truth_of_additive_noise_by_quadrature(epsilon):
    def integrand(y):
        density = (min(1, y + epsilon) - max(0, y - epsilon)) / (2 * epsilon)
        return -density * math.log(density) if density > 0 else 0.0

    kinks = sorted((epsilon, 1 - epsilon))
    entropy = quad(integrand, -epsilon, 1 + epsilon, points=kinks, epsabs=1e-10)[0]
    assert TASKS[f"Uniform 1 x 1 (additive noise={epsilon})"].truth == pytest.approx(entropy - math.log(2 * epsilon))


@pytest.mark.parametrize(("d", "freedom"), [(1, 1), (2, 1), (2, 2), (3, 3), (5, 2)])
def test_truth_of_student_by_quadrature(d, freedom):
    """Over the norms of x and y, on which the densities depend alone."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    angle = (nodes + 1) * math.pi / 4
    radius, weight = np.tan(angle), weights * math.pi / 4 / np.cos(angle) ** 2
    surface = d * math.pi ** (d / 2) / math.gamma(d / 2 + 1) * radius ** (d - 1) * weight

    def log_density(square, columns):
        norm = (
            math.lgamma((freedom + columns) / 2) - math.lgamma(freedom / 2) - columns / 2 * math.log(freedom * math.pi)
        )
        return norm - (freedom + columns) / 2 * np.log1p(square / freedom)

    joint = log_density(radius[:, None] ** 2 + radius**2, 2 * d)
    single = log_density(radius**2, d)
    measure = np.exp(joint) * surface[:, None] * surface
    assert measure.sum() == pytest.approx(1, abs=1e-4)
    found = (measure * (joint - single[:, None] - single)).sum()
    assert found == pytest.approx(TASKS[f"Student-t {d} x {d} (dof={freedom})"].truth, abs=1e-3)


@pytest.mark.parametrize("name", ONE_COLUMN)
def test_large_samples_approach_the_truth(name):
    task = TASKS[name]
    x, y = task.draw(np.random.default_rng(0), 20_000)
    assert (x.shape[1], y.shape[1]) == task.columns
    if name.startswith("Student-t"):  # whose tails need the normal scores that the benchmark has
        x, y = (stats.norm.ppf(stats.rankdata(v, axis=0) / (len(v) + 1)) for v in (x, y))
    assert echo_ext.mutual_information(x, y, k=5) == pytest.approx(task.truth, abs=0.03)


def test_functions_are_invertible():
    grid = np.linspace(-6, 6, 100_001)
    for of in (beyond_normal.half_cube, beyond_normal.wiggly_x, beyond_normal.wiggly_y):
        assert (np.diff(of(grid)) > 0).all()
    inside = grid[abs(grid) < 4]
    mixture = beyond_normal.bimodal(0.3, 0, 5)(inside)
    np.testing.assert_allclose(0.3 * ndtr(mixture) + 0.7 * ndtr(mixture - 5), ndtr(inside), atol=1e-12)
    roll = beyond_normal.swiss_roll(np.linspace(0, 1, 1000)[:, None])
    np.testing.assert_allclose(np.linalg.norm(roll, axis=1), np.linspace(1.5, 4.5, 1000) * math.pi / 21)


def test_spiral_is_a_rotation_by_the_norm():
    x = np.random.default_rng(0).standard_normal((50, 4))
    rotated = beyond_normal.spiral(1, 2)(x)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(x, axis=1))
    np.testing.assert_array_equal(rotated[:, [0, 3]], x[:, [0, 3]])
    turned = (rotated[:, 1] + 1j * rotated[:, 2]) / (x[:, 1] + 1j * x[:, 2])
    np.testing.assert_allclose(turned, np.exp(1j * (x**2).sum(1) / 4))


def test_there_are_forty_tasks():
    assert len(TASKS) == len(list(beyond_normal.tasks())) == 40
    for task in TASKS.values():
        x, y = task.draw(np.random.default_rng(0), 7)
        assert (x.shape, y.shape) == ((7, task.columns[0]), (7, task.columns[1]))


def test_canonical_correlations_give_the_information_of_normal_variables():
    x, y = TASKS["Multinormal 3 x 3 (dense)"].draw(np.random.default_rng(0), 500)
    covariance = np.cov(np.hstack([x, y]).T)
    found = beyond_normal.normal_estimate(x, y)
    assert found == pytest.approx(beyond_normal.normal_information(covariance, 3))
    assert found == pytest.approx(beyond_normal.normal_estimate(x @ np.triu(np.ones((3, 3))) + 5, -2 * y))
