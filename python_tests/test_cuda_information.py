"""Estimates on CUDA tensors: compared with the reference (the oracle) and with the CPU; on the tensors' device."""

import pytest
import torch
from device_cases import DEVICES, draw, estimates, gradients, on_devices, poisoned_memory

import echo_ext
from echo_ext import reference
from echo_ext.estimators import discrete, evaluation, pairs

METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed", "plug-in", "miller-madow")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}

# Data of some kinds are tied, which the estimators warn of.
pytestmark = pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")


def check(estimate, device, *tensors, tolerance=1e-12, **options):
    """Compare an estimate with that of the CPU."""
    expected = estimate(*tensors, **options)
    found = estimate(*(tensor.to(device) for tensor in tensors), **options)
    assert found.device.type == device
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_all_close(found, expected, tolerance):
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        theirs = torch.as_tensor(theirs, dtype=ours.dtype)
        torch.testing.assert_close(
            ours.cpu(), theirs, rtol=tolerance, atol=tolerance, msg=lambda text, i=index: f"result {i}: {text}"
        )


@on_devices("n", cpu=[61], cuda=[61, 200])
@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_every_kernel_agrees_with_the_oracle(device, n, dim, kind):
    x, y = draw(n, dim, dim, kind)
    with poisoned_memory():
        found = list(estimates(echo_ext, x.to(device), y.to(device)))
    assert_all_close(found, estimates(reference, x, y), 1e-12)


@on_devices("n", cpu=[61, 200], cuda=[61, 3000])
@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_every_kernel_agrees_with_the_cpu(device, n, dim, dtype, kind):
    x, y = draw(n, dim, dim, kind, dtype)
    on_device = x.to(device), y.to(device)
    with poisoned_memory():
        found = [*estimates(echo_ext, *on_device), *gradients(*on_device)]
    assert_all_close(found, [*estimates(echo_ext, x, y), *gradients(x, y)], TOLERANCES[dtype])


@on_devices("n", cpu=[200], cuda=[1777])
@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates", "heavy"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dims", [(1, 1), (2, 3), (5, 5)])
@pytest.mark.filterwarnings("ignore:method 'bi-ksg' is for at most 4 columns")
def test_mutual_information(device, n, method, kind, dims):
    x, y = draw(n, *dims, kind)
    check(echo_ext.mutual_information, device, x, y, k=[1, 3, 40], method=method, local=True)
    check(echo_ext.mutual_information, device, x, y, method=method, exclude_within=5)
    check(echo_ext.mutual_information, device, x.float(), y.float(), method=method, tolerance=1e-5)


@on_devices("n", cpu=[100], cuda=[900])
@pytest.mark.parametrize("method", ["ksg1", "ksg2", "mixed", "plug-in", "miller-madow"])
def test_conditional_and_total(device, n, method):
    x, y = draw(n, 2, 1)
    z = draw(n)[0]
    check(echo_ext.conditional_mutual_information, device, x, y, z, method=method, local=True)
    check(echo_ext.total_correlation, device, torch.cat([x, y, z], -1), method=method, groups=[[0, 1], [2], [3]])


@on_devices("n", cpu=[100], cuda=[1200])
@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
def test_entropy_knn_and_labels(device, n, metric):
    x, y = draw(n, 3, 3)
    check(echo_ext.entropy, device, x, metric=metric, k=[1, 5])
    check(echo_ext.mutual_information_discrete, device, x, (y[:, 0] > 0).long())
    for queries in (None, y[:77]):
        on_cpu = echo_ext.knn(x, queries, 5, metric=metric)
        on_device = echo_ext.knn(x.to(device), None if queries is None else queries.to(device), 5, metric=metric)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(on_device, on_cpu, strict=True))


@on_devices("n", cpu=[60], cuda=[400])
def test_batches_and_matrix(device, n):
    x = torch.randn(3, n, 5, dtype=torch.float64)
    check(echo_ext.mutual_information_matrix, device, x)
    check(echo_ext.mutual_information, device, x.unsqueeze(1), torch.randn(2, n, 1, dtype=torch.float64))
    check(echo_ext.transfer_entropy, device, x[0, :, 0], x[0, :, 1])


@on_devices("n", cpu=[1000], cuda=[1_000_000])
def test_many_points(device, n):
    check(echo_ext.mutual_information, device, *draw(n))


@pytest.mark.cuda
def test_more_neighbors_than_a_kernel_keeps():
    x, y = draw(5000)
    check(echo_ext.mutual_information, "cuda", x, y, k=[3, 4000])
    check(echo_ext.knn, "cuda", x[:3000], k=2900, exclude_within=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["normal", "ties"])
@pytest.mark.parametrize("dims", [(1, 1), (2, 3)])
def test_gradients(device, dims, kind):
    data = draw(300, *dims, kind)
    found = []
    for place in ("cpu", device):
        x, y = (v.clone().to(place).requires_grad_() for v in data)
        loss = echo_ext.mutual_information(x, y, k=[3, 40]).sum()
        if kind == "normal":
            loss = loss + echo_ext.entropy(x)
        loss.backward()
        found.append([x.grad.cpu(), y.grad.cpu()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which torch calls a prototype
@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_between_the_checks(method, monkeypatch):
    monkeypatch.setattr("echo_ext.estimators.samples.check_finite", lambda *_: None)
    monkeypatch.setattr(evaluation, "warn_if_tied", lambda *_: None)
    monkeypatch.setattr(pairs, "_warn_if_tied", lambda *_, **__: None)
    monkeypatch.setattr(pairs, "_may_be_tied", lambda *_: False)
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
