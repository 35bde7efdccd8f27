"""The estimators' whole CUDA path on the CPU: its glue, the package's own bindings, and the kernels on the shim."""

import numpy as np
import pytest
import torch
from knn_cases import fresh, related, sample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import echo_ext
from echo_ext._native import constants
from echo_ext.estimators import _all_pairs, discrete, evaluation, ksg, pairs, samples
from echo_ext.estimators._backend import BACKENDS
from echo_ext.estimators._backend_cuda import Cuda
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import read_options

METHODS = ("ksg1", "ksg2", "bi-ksg", "mixed", "plug-in", "miller-madow")

# Data of some kinds are tied, which the estimators warn of.
pytestmark = pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")


@pytest.fixture
def native(emulated_module):
    return emulated_module


# What reads a tensor's values on the host, in addition to operators that do it within.
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "repeat_interleave")


class NoWaiting(TorchDispatchMode):
    """Refuses operators that would wait for a device to know values or shapes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        masks = name.startswith(("index.", "index_put")) and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1])
        )
        assert not name.lstrip("_").startswith(tuple(word.lstrip("_") for word in WAITING)), f"{name} waits"
        assert not masks, f"{name} with a mask waits"
        return function(*args, **(kwargs or {}))


class EmulatedCuda(Cuda):
    """The CUDA backend, with the emulated kernels and a stream of the test's choice."""

    def __init__(self, native, stream=0):
        self.core, self.stream = native, stream

    def place(self, tensor):
        return {"device": 0, "stream": self.stream}


class Device:
    """Calls estimators with CPU tensors that the CUDA backend computes with."""

    def __init__(self, native):
        self.native = native

    def pretend(self, patch):
        patch.setitem(BACKENDS, "cpu", EmulatedCuda(self.native))

    def __call__(self, estimate, *arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            self.pretend(patch)
            return estimate(*arguments, **options)

    def without_waiting(self, estimate, *arguments, **options):
        """What is refused is all that would wait for a device, but for the checks of the input and of ties."""

        def refuse(*_):
            raise AssertionError("this waits for the device")

        with pytest.MonkeyPatch.context() as patch:
            self.pretend(patch)
            patch.setattr(samples, "check_finite", lambda *_: None)
            patch.setattr(evaluation, "warn_if_tied", lambda *_: None)
            patch.setattr(pairs, "warn_if_pairs_are_tied", lambda *_, **__: None)
            patch.setattr(pairs, "_may_be_tied", lambda *_: False)
            if estimate is echo_ext.mutual_information_discrete:
                settings = read_options(len(arguments[1]), k=1, exclude_within=options.get("exclude_within", 0))
                groups = discrete._read_groups(settings, arguments[1])
                patch.setattr(discrete, "_read_groups", lambda *_: groups)
            for name in READS:
                patch.setattr(torch.Tensor, name, refuse)
            with NoWaiting():
                return estimate(*arguments, **options)

    def check(self, estimate, *tensors, tolerance=1e-12, **options):
        expected = estimate(*tensors, **options)
        found = self(estimate, *tensors, **options)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


class Recorder:
    """The native module, that keeps the name and the stream of each call into a kernel."""

    def __init__(self, native, **instead):
        self.native, self.instead, self.calls = native, instead, []

    def __getattr__(self, name):
        found = self.instead.get(name, getattr(self.native, name))

        def call(*arguments, **options):
            self.calls.append((name, options.get("stream")))
            return found(*arguments, **options)

        return call if name.startswith("knn_cuda_") and callable(found) else found


@pytest.fixture
def device(native):
    return Device(native)


def draw(n, *dims, kind="normal", dtype=torch.float64, batch=()):
    rng = fresh()
    count = int(torch.Size(batch).numel())
    return [
        torch.from_numpy(np.stack([sample(rng, n, d, kind) for _ in range(count)])).to(dtype).reshape(*batch, n, d)
        for d in dims
    ]


@pytest.mark.parametrize("kind", ["normal", "ties", "duplicates"])
@pytest.mark.parametrize("method", METHODS)
def test_mutual_information(device, method, kind):
    for dims in ((1, 1), (2, 3)):
        x, y = (torch.from_numpy(v) for v in related(fresh(), 101, *dims, kind))
        device.check(echo_ext.mutual_information, x, y, k=[1, 3, 40], method=method, local=True)
        device.check(echo_ext.mutual_information, x, y, method=method, exclude_within=4, unit="bits")
        device.check(echo_ext.mutual_information, x.float(), y.float(), method=method, tolerance=1e-5)


@pytest.mark.parametrize("method", ["ksg1", "ksg2"])
def test_conditional_and_total(device, method):
    for kind, window in (("normal", 0), ("ties", 3)):
        x, y, z = draw(97, 2, 1, 2, kind=kind)
        options = dict(method=method, exclude_within=window, local=True, k=[2, 5])
        device.check(echo_ext.conditional_mutual_information, x, y, z, **options)
        device.check(echo_ext.total_correlation, torch.cat([x, y, z], -1), groups=[[0, 1], [2], [3, 4]], **options)


@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_entropy_and_neighbors(device, metric, dtype):
    for dim in (1, 3):
        x, queries = draw(110, dim, dim, dtype=dtype)
        device.check(
            echo_ext.entropy, x, metric=metric, k=[1, 5, 33], tolerance=1e-12 if x.dtype.itemsize == 8 else 1e-5
        )
        for asked in (None, queries[:37], queries[:0]):
            on_device = device(echo_ext.knn, x, asked, 5, metric=metric)
            assert all(map(torch.equal, on_device, echo_ext.knn(x, asked, 5, metric=metric)))


@pytest.mark.parametrize("window", [0, 3])
def test_labels(device, window):
    (x,) = draw(120, 2)
    labels = torch.randint(4, (120,))
    labels[17] = 99  # alone
    device.check(echo_ext.mutual_information_discrete, x, labels, k=[3, 9], exclude_within=window, local=True)
    both = torch.stack([labels, labels.flip(0)])
    device.check(echo_ext.mutual_information_discrete, x, both, exclude_within=window)


def test_batches_broadcast(device):
    (x,), (y,) = draw(60, 2, batch=(3, 1)), draw(60, 1, batch=(2,))
    device.check(echo_ext.mutual_information, x, y, k=[1, 4])
    device.check(echo_ext.conditional_mutual_information, x, y, y[0].flip(0))
    device.check(echo_ext.mutual_information, x[:0], y)
    many = torch.randn(2, 50, 6, dtype=torch.float64)
    device.check(echo_ext.mutual_information_matrix, many, k=[1, 3])
    device.check(echo_ext.mutual_information_matrix, many, many[0, :, :2], method="mixed")


def test_many_tiles(device):
    x, y = (torch.from_numpy(v) for v in related(fresh(), 1100, 1, 2))
    device.check(echo_ext.mutual_information, x, y, local=True)


def test_any_strides(device):
    x, y = (v.flip(0).mT.contiguous().mT for v in draw(80, 2, 3))
    device.check(echo_ext.mutual_information, x, y)
    device.check(echo_ext.mutual_information, x[::2, 1], y[::2])
    device.check(echo_ext.transfer_entropy, x[:, 0], y[:, 1], history=2)
    device.check(echo_ext.transfer_entropy, x[:, 0], y[:, 1], given=y[:, ::2], given_history=2)
    device.check(echo_ext.delayed_mutual_information, x[:, 1], y, lags=[-3, 0, 5], groups=[0] * 30 + [1] * 50, k=[1, 4])


def test_uncertainty(device):
    x, y = (torch.from_numpy(v) for v in related(fresh(), 90))
    z = x + torch.randn_like(x)
    for given in ((x, y), (x, y, z)):
        for options in ({}, {"k": 0.2, "exclude_within": 2}, {"method": "mixed", "surrogate": "block"}):
            on_device = device(echo_ext.independence_test, *given, n_resamples=19, seed=3, **options)
            on_cpu = echo_ext.independence_test(*given, n_resamples=19, seed=3, **options)
            torch.testing.assert_close(tuple(on_device), tuple(on_cpu), rtol=1e-12, atol=1e-12)
            assert on_device.pvalue == on_cpu.pvalue
    uncertain = echo_ext.with_standard_error, echo_ext.mutual_information, x, y
    on_device = device(*uncertain, parts=3, seed=3)
    torch.testing.assert_close(tuple(on_device), tuple(uncertain[0](*uncertain[1:], parts=3, seed=3)))


@pytest.mark.parametrize("dims", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_gradients(device, dims, kind):
    data = draw(70, *dims, kind=kind, batch=(2,))
    gradients = []
    for call in (lambda estimate, *tensors, **options: estimate(*tensors, **options), device):
        x, y = (v.clone().requires_grad_() for v in data)

        def loss(x, y):
            loss = echo_ext.mutual_information(x, y, k=[2, 5], exclude_within=1, boundary_width=7).sum()
            if kind == "normal":
                loss = loss + echo_ext.entropy(x).sum()
            return torch.autograd.grad(loss, (x, y))

        gradients.append(call(loss, x, y))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", [0, 2])
def test_nothing_waits_between_the_checks(device, method, window):
    x, y, z = draw(50, 1, 2, 1)
    options = dict(k=[1, 3], exclude_within=window)
    device.without_waiting(echo_ext.mutual_information, x, y, method=method, **options)
    device.without_waiting(echo_ext.mutual_information_matrix, y, method=method, **options)
    if method in ksg.MULTIVARIATE_METHODS:
        device.without_waiting(echo_ext.conditional_mutual_information, x, y, z, method=method, **options)
        device.without_waiting(echo_ext.total_correlation, y, method=method, **options)
    device.without_waiting(echo_ext.entropy, y, **options)
    device.without_waiting(echo_ext.knn, x, k=3, exclude_within=window)
    device.without_waiting(echo_ext.mutual_information_discrete, x, torch.arange(50) % 3, **options)


def test_waiting_is_noticed(device):
    for waits in (lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: x.unique(), lambda x: bool(x.any())):
        with pytest.raises(AssertionError, match="wait"):
            device.without_waiting(waits, torch.randn(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["normal", "ties", "overflow"])
def test_more_neighbors_than_a_kernel_keeps(native, monkeypatch, kind, dtype):
    monkeypatch.setattr(_all_pairs, "BLOCK", 1000)  # several blocks
    device = Device(Recorder(native, knn_cuda_max_neighbors=lambda _: 32))
    x, y, z = (v.nan_to_num() for v in draw(80, 2, 1, 1, kind=kind, dtype=dtype, batch=(2,)))
    for metric in ("chebyshev", "euclidean"):
        for options in (dict(k=40), dict(k=60, exclude_within=4), dict(queries=y.expand(2, 80, 2)[:, :7], k=80)):
            device.check(echo_ext.knn, x, metric=metric, tolerance=0, **options)
    if kind == "overflow":
        return
    for method in METHODS:
        device.check(echo_ext.mutual_information, x, y, k=[2, 40, 70], method=method, exclude_within=3)
    device.check(echo_ext.conditional_mutual_information, x, y, z, k=[2, 40], method="ksg2")
    device.check(echo_ext.mutual_information_discrete, x[0], torch.arange(80) % 2, k=[3, 36], exclude_within=2)


def test_wider_boundaries_than_a_kernel_keeps(native):
    (x,) = draw(80, 2, kind="ties", batch=(2,))
    radii, skip = x.norm(dim=-1), torch.arange(80).roll(3).expand(2, 80).contiguous()

    def boundary(width):
        return PointSet(x).boundary(radii, skip, width=width, exclude_within=2).sort(-1).values

    for width in (33, 79, 90):
        found = Device(Recorder(native, knn_cuda_max_neighbors=lambda _: 32))(boundary, width)
        assert torch.equal(found, boundary(width))


def test_a_point_set_follows_the_current_stream(native, monkeypatch):
    recorder = Recorder(native)
    backend = EmulatedCuda(recorder)
    monkeypatch.setitem(BACKENDS, "cpu", backend)
    (points,) = draw(70, 2)
    point_set = PointSet(points)
    radii = torch.ones(1, 70, dtype=torch.float64)
    for backend.stream in (11, 12, 13):
        recorder.calls.clear()
        _, rows = point_set.search(3)
        point_set.count(radii)
        point_set.boundary(radii[0], rows[:, 2], width=2, exclude_within=0)
        assert {stream for _, stream in recorder.calls} == {backend.stream}
    assert [name for name, _ in recorder.calls] == ["knn_cuda_search", "knn_cuda_count", "knn_cuda_boundary"]


def test_constants_are_not_copied_from_the_host():
    names = set()

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function.__name__)
            return function(*args, **(kwargs or {}))

    with Operators():
        values = constants([0, 0, 1, 0, 2, 2], torch.int32, torch.device("cpu"))
    assert names <= {"full.default", "cat.default"}
    assert torch.equal(values, torch.tensor([0, 0, 1, 0, 2, 2], dtype=torch.int32))


def test_which_matrices_one_kernel_estimates(native):
    x, y = draw(50, 3, 2)
    most = native.knn_cuda_pairs_max_points(dtype=0, device=0)

    def kernels(*arguments, max_points=most, **options):
        recorder = Recorder(native, knn_cuda_pairs_max_points=lambda **_: max_points)
        Device(recorder).check(echo_ext.mutual_information_matrix, *arguments, **options)
        return [name for name, _ in recorder.calls if name != "knn_cuda_pairs_max_points"]

    assert kernels(x) == ["knn_cuda_pairs"]
    assert kernels(x, y, k=[2, 32], max_points=50) == ["knn_cuda_pairs"] * 2
    for options in (dict(k=33), dict(k=[1, 40]), dict(exclude_within=1), dict(method="ksg2"), dict(max_points=49)):
        assert "knn_cuda_pairs" not in kernels(x, y, **options)


@pytest.mark.parametrize("method", METHODS[:4])  # the others have no trees
def test_blocks_of_a_matrix_share_the_trees_of_its_columns(native, monkeypatch, method):
    monkeypatch.setattr(pairs, "BLOCK", 1)  # a block for each column of x
    x, y = draw(40, 3, 2, kind="ties", batch=(2,))
    for columns in ((x,), (x, y), (x[0], y[0])):
        recorder = Recorder(native)
        Device(recorder).check(echo_ext.mutual_information_matrix, *columns, method=method, exclude_within=1)
        builds = [name for name, _ in recorder.calls].count("knn_cuda_build")
        assert builds == 2 + 3  # and one for the pairs of each block


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_matrices(device, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for kind in ("normal", "ties", "constant", "duplicates", "heavy"):
        x, y = draw(130, 4, 3, kind=kind, dtype=dtype, batch=(2,))
        for options in (dict(k=[1, 5, 20]), dict(unit="bits"), dict(k=40), dict(exclude_within=2)):
            device.check(echo_ext.mutual_information_matrix, x, tolerance=tolerance, **options)
            device.check(echo_ext.mutual_information_matrix, x[0], y, tolerance=tolerance, **options)
    mostly_equal = torch.randn(200, 4, dtype=dtype).clamp(min=0.3)
    device.check(echo_ext.mutual_information_matrix, mostly_equal, tolerance=tolerance, k=[1, 3])
    for method in METHODS:
        device.check(echo_ext.mutual_information_matrix, x[:0], y[:0], method=method)
    device.check(echo_ext.mutual_information_matrix, x[0, :, 0], tolerance=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_missing_rows_and_trials(device, method):
    x, y = draw(90, 2, 1, batch=(2,))
    x[0, 3, 1], y[1, 40] = torch.nan, torch.nan
    options = dict(nan_policy="omit", groups=torch.arange(90) % 4, exclude_within=2, local=True)
    device.check(echo_ext.mutual_information, x, y, method=method, **options)
    options["transform"] = "normal"
    device.check(echo_ext.mutual_information_matrix, x, y, method=method, nan_policy="omit", exclude_within=1)
    device.check(echo_ext.mutual_information_matrix, x, method=method, nan_policy="omit")
    device.check(echo_ext.transfer_entropy, x, y, **options)
    device.check(echo_ext.entropy, x, **options)
    labels = torch.arange(90) % 3
    device.check(echo_ext.mutual_information_discrete, x, labels, nan_policy="omit", exclude_within=2, local=True)


def test_gradients_of_trials_with_missing_rows(device):
    data = draw(70, 2, 1)
    data[0][5, 0] = torch.nan
    trials = torch.arange(70) % 3
    gradients = []
    for call in (lambda function, *tensors: function(*tensors), device):
        x, y = (v.clone().requires_grad_() for v in data)

        def loss(x, y):
            options = dict(groups=trials, exclude_within=2, nan_policy="omit", transform="standardize")
            return torch.autograd.grad(
                echo_ext.mutual_information(x, y, **options) + echo_ext.entropy(x, **options), (x, y)
            )

        gradients.append(call(loss, x, y))
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-13)


def test_a_matrix_in_one_kernel_warns_of_ties(device):
    x = draw(100, 4)[0]
    x[:60, :2] = x[:60, :2].round()
    messages = []
    for call in (lambda estimate, *tensors: estimate(*tensors), device):
        with pytest.warns(echo_ext.DegenerateDataWarning) as caught:
            call(echo_ext.mutual_information_matrix, x)
        messages.append(str(caught[0].message))
    assert messages[0] == messages[1]
    assert "of the 10 pairs" in messages[0]


def test_counts_within(device):
    for dim in (1, 3):
        points, queries = draw(110, dim, dim)
        for options in (dict(metric="euclidean"), dict(inclusive=True)):
            device.check(echo_ext.count_within, points, 0.7, queries[:37], **options)
            device.check(echo_ext.count_within, points, torch.rand(2, 110), exclude_within=3, **options)
