"""Estimates on CUDA tensors: the CPU's values, on the tensors' device."""

import pytest
import torch
from knn_cases import fresh, related

import echo_ext
from echo_ext.estimators import discrete

pytestmark = pytest.mark.cuda

METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed")


def draw(n, dx=1, dy=1, kind="normal", dtype=torch.float64):
    return [torch.from_numpy(v).to(dtype) for v in related(fresh(), n, dx, dy, kind)]


def check(estimate, *tensors, tolerance=1e-12, **options):
    expected = estimate(*tensors, **options)
    found = estimate(*(t.cuda() for t in tensors), **options)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "heavy"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dims", [(1, 1), (2, 3), (5, 5)])
def test_mutual_information(method, kind, dims):
    x, y = draw(1777, *dims, kind)
    check(echo_ext.mutual_information, x, y, k=[1, 3, 40], method=method, local=True)
    check(echo_ext.mutual_information, x, y, method=method, exclude_within=5)
    check(echo_ext.mutual_information, x.float(), y.float(), method=method, tolerance=1e-5)


@pytest.mark.parametrize("method", ["ksg1", "ksg2"])
def test_conditional_and_total(method):
    x, y = draw(900, 2, 1)
    z = draw(900)[0]
    check(echo_ext.conditional_mutual_information, x, y, z, method=method, local=True)
    check(echo_ext.total_correlation, torch.cat([x, y, z], -1), method=method, groups=[[0, 1], [2], [3]])


@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
def test_entropy_knn_and_labels(metric):
    x, y = draw(1200, 3, 3)
    check(echo_ext.entropy, x, metric=metric, k=[1, 5])
    check(echo_ext.mutual_information_discrete, x, (y[:, 0] > 0).long())
    for queries in (None, y[:77]):
        on_cpu = echo_ext.knn(x, queries, 5, metric=metric)
        on_gpu = echo_ext.knn(x.cuda(), None if queries is None else queries.cuda(), 5, metric=metric)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(on_gpu, on_cpu, strict=True))


def test_batches_and_matrix():
    x = torch.randn(3, 400, 5, dtype=torch.float64)
    check(echo_ext.mutual_information_matrix, x)
    check(echo_ext.mutual_information, x.unsqueeze(1), torch.randn(2, 400, 1, dtype=torch.float64))
    check(echo_ext.transfer_entropy, x[0, :, 0], x[0, :, 1])


def test_a_million_points():
    check(echo_ext.mutual_information, *draw(1_000_000))


def test_too_large_a_k_names_the_limit():
    x, y = draw(5000)
    with pytest.raises(ValueError, match="k must be at most"):
        echo_ext.mutual_information(x.cuda(), y.cuda(), k=4000)


@pytest.mark.parametrize("kind", ["normal", "ties"])
@pytest.mark.parametrize("dims", [(1, 1), (2, 3)])
def test_gradients(dims, kind):
    data = draw(300, *dims, kind)
    gradients = []
    for device in ("cpu", "cuda"):
        x, y = (v.clone().to(device).requires_grad_() for v in data)
        loss = echo_ext.mutual_information(x, y, k=[3, 40]).sum()
        if kind == "normal":
            loss = loss + echo_ext.entropy(x)
        loss.backward()
        gradients.append([x.grad.cpu(), y.grad.cpu()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which torch calls a prototype
@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_after_the_check_of_the_input(method, monkeypatch):
    monkeypatch.setattr("echo_ext.estimators.samples.check_finite", lambda *_: None)
    x, y = (v.cuda() for v in draw(500, 1, 2))
    labels = (x[:, 0] > 0).long()
    groups = discrete._read_groups(labels, 0)
    monkeypatch.setattr(discrete, "_read_groups", lambda *_: groups)
    echo_ext.mutual_information(x, y, method=method)
    torch.cuda.set_sync_debug_mode("error")
    try:
        echo_ext.mutual_information(x, y, method=method)
        echo_ext.mutual_information_matrix(y, method=method)
        echo_ext.mutual_information_discrete(x, labels)
        echo_ext.entropy(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
