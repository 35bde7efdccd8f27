import math

import numpy as np
import pytest
import torch
from knn_cases import KINDS, fresh, sample

import echo_ext
from echo_ext import reference

METRICS = ("chebyshev", "euclidean")
# Data of some kinds are tied, which the estimators warn of.
pytestmark = pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_meets_the_oracle(kind, metric, dtype):
    rng = fresh()
    for w in (0, 2):
        n, d = int(rng.integers(12, 150)), int(rng.integers(1, 6))
        x = sample(rng, n, d, kind, dtype)
        options = dict(k=[1, 3, 6], metric=metric, local=True, exclude_within=w)
        tolerance = 1e-12 if dtype == np.float64 else 1e-6
        np.testing.assert_allclose(
            echo_ext.entropy(x, **options), reference.entropy(x, **options), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_closed_forms(d, metric):
    rng = fresh()
    n = 20_000
    normal = rng.standard_normal((n, d))
    assert echo_ext.entropy(normal, metric=metric) == pytest.approx(d * 0.5 * math.log(2 * math.pi * math.e), abs=0.06)
    assert echo_ext.entropy(rng.exponential(2.0, (n, d)), metric=metric) == pytest.approx(
        d * (1 + math.log(2)), abs=0.1
    )
    assert echo_ext.entropy(rng.random((n, d)), metric=metric) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("metric", METRICS)
def test_scaling_adds_its_logarithm(metric):
    x = torch.randn(300, 4, dtype=torch.float64)
    for scale in (1e-9, 3.7, 1e6):
        shifted = echo_ext.entropy(scale * x, metric=metric) - echo_ext.entropy(x, metric=metric)
        assert shifted.item() == pytest.approx(4 * math.log(scale), abs=1e-10)


def test_units_and_local_values():
    x = torch.randn(2, 100, 2, dtype=torch.float64)
    nats = echo_ext.entropy(x)
    assert nats.shape == (2,)
    torch.testing.assert_close(echo_ext.entropy(x, unit="bits"), nats / math.log(2))
    torch.testing.assert_close(echo_ext.entropy(x, local=True).mean(-1), nats)
    assert echo_ext.entropy(x, k=(2, 5)).shape == (2, 2)
    assert isinstance(echo_ext.entropy(x[0].numpy()), float)


def test_repeated_samples_have_no_density():
    x = np.repeat(sample(fresh(), 10, 2), 4, axis=0)
    assert echo_ext.entropy(x, k=3) == -math.inf
    assert math.isfinite(echo_ext.entropy(x, k=4))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 3])
def test_gradient_is_exact(d, metric):
    # No distance is small compared with gradcheck's step, within which the logarithm must be straight.
    grid = torch.stack([torch.stack([torch.randperm(25) for _ in range(d)], -1) for _ in range(2)])
    x = (grid + 0.5 * torch.rand(2, 25, d, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: echo_ext.entropy(x, metric=metric, k=[1, 3]), (x,))
    assert torch.autograd.gradcheck(lambda x: echo_ext.entropy(x, metric=metric, local=True), (x,))
    assert torch.autograd.gradcheck(lambda x: echo_ext.entropy(x, metric=metric, exclude_within=2), (x,))


def test_gradient_keeps_dtype_and_is_blind_to_shifts():
    x = torch.randn(200, 3, requires_grad=True)
    echo_ext.entropy(x).backward()
    assert x.grad.dtype == torch.float32
    assert x.grad.sum(0).abs().max() < 1e-4
    # H(a x) = H(x) + d log a: the derivative along x itself is d.
    assert (x.grad * x.detach()).sum().item() == pytest.approx(3.0, abs=1e-3)
