"""Unusual tensors and arrays are read correctly or rejected with a one-line error."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import echo_ext
import echo_ext.data
from echo_ext import (
    conditional_mutual_information,
    echo_indices,
    echo_noise,
    echo_sample,
    echo_sample_matrix,
    entropy,
    independence_test,
    knn,
    max_scale,
    metrics,
    mutual_information,
    mutual_information_discrete,
    mutual_information_matrix,
    reference,
    total_correlation,
    transfer_entropy,
    with_standard_error,
)
from echo_ext.echo.ops import FEW_ROWS

F, S = torch.randn(6, 3), 0.9 * torch.rand(6, 3)
MATRICES = 0.3 * torch.rand(6, 3, 3)
SAMPLINGS = ("permutation", "replacement", "ring")


def negated(tensor):
    """Return an equal tensor with the negative bit set, whose memory holds the negated values."""
    return torch._neg_view(-tensor)


def zeros(*shape):
    return torch._efficientzerotensor(shape)


def gradients(run, grad, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(run(*inputs), inputs, grad)


# ---- Negative bit and zero tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_negative_bit_is_honored(sampling):
    z = echo_sample(F, S, sampling=sampling, seed=-1)
    assert torch.equal(echo_sample(negated(F), negated(S), sampling=sampling, seed=negated(torch.tensor(-1))), z)
    options = dict(num_terms=4, sampling=sampling, seed=3)
    assert torch.equal(
        echo_sample(negated(F), negated(S), bank=(negated(F), negated(S)), **options),
        echo_sample(F, S, bank=(F, S), **options),
    )
    assert torch.equal(
        echo_indices(6, sampling=sampling, seed=negated(torch.tensor(5))), echo_indices(6, sampling=sampling, seed=5)
    )


def test_imaginary_part_of_conjugate():
    f = torch.tensor([[1 + 2j]]).conj().imag  # a single element is contiguous and has the negative bit set
    bank = (torch.ones(4, 1), torch.zeros(4, 1))
    assert echo_sample(f, torch.zeros(1, 1), num_terms=1, bank=bank, seed=1).item() == -2.0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("own_bank", [True, False])
def test_negative_bit_and_zero_tensor_gradients(sampling, own_bank):
    def run(f, s):
        return echo_sample(f, s, num_terms=4, sampling=sampling, seed=1, bank=None if own_bank else (f, s))

    grad = torch.randn(6, 3)
    plain = gradients(run, grad, F, S)
    assert all(map(torch.equal, gradients(run, negated(grad), F, S), plain))
    assert all(map(torch.equal, gradients(run, grad, negated(F), negated(S)), plain))
    assert not any(x.any() for x in gradients(run, zeros(6, 3), F, S))


def test_negative_bit_and_zero_tensor_matrices():
    def run(f, s):
        return echo_sample_matrix(f, s, seed=1)

    grad = torch.randn(6, 3)
    assert torch.equal(run(negated(F), negated(MATRICES)), run(F, MATRICES))
    assert all(map(torch.equal, gradients(run, negated(grad), F, MATRICES), gradients(run, grad, F, MATRICES)))
    assert not any(x.any() for x in gradients(run, zeros(6, 3), F, MATRICES))


def test_zero_tensors_equal_dense_zeros():
    assert torch.equal(echo_sample(zeros(6, 3), S, seed=1), torch.zeros(6, 3))
    assert torch.equal(echo_sample(F, zeros(6, 3), seed=1), F)
    assert torch.equal(echo_sample_matrix(F, zeros(6, 3, 3), seed=1), F)
    assert mutual_information(zeros(20, 1), torch.randn(20, 1)).isfinite()


def test_vmap_honors_negative_bit():
    z = torch.func.vmap(lambda f: echo_sample(f, S, seed=1))(negated(torch.stack([F, 2 * F])))
    assert torch.equal(z[0], echo_sample(F, S, seed=1))


def test_estimators_honor_negative_bit():
    x, y = torch.randn(2, 40, 1, dtype=torch.float64)
    assert torch.equal(mutual_information(negated(x), negated(y)), mutual_information(x, y))
    assert torch.equal(entropy(negated(x)), entropy(x))
    labels = torch.arange(40) % 3
    assert torch.equal(mutual_information_discrete(x, negated(labels)), mutual_information_discrete(x, labels))
    for estimate, inputs in ((entropy, (x,)), (mutual_information, (x, y))):
        one = torch.ones((), dtype=torch.float64)
        assert all(map(torch.equal, gradients(estimate, negated(one), *inputs), gradients(estimate, one, *inputs)))
        assert not any(g.any() for g in gradients(estimate, zeros().double(), *inputs))


def test_forward_mode_ad_raises():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(F, torch.ones_like(F))
        for call in (lambda: echo_sample(dual, S), lambda: echo_sample_matrix(dual, MATRICES), lambda: entropy(dual)):
            with pytest.raises(NotImplementedError):
                call()


# ---- Other layouts ---------------------------------------------------------------------------------------------------

LAYOUTS = {
    "sparse_coo": lambda: F.to_sparse(),
    "sparse_csr": lambda: F.to_sparse_csr(),
    "mkldnn": lambda: F.to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([F, F]),
}


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors):UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_non_dense_layouts_raise(layout):
    other = LAYOUTS[layout]()
    for name, call in (
        ("f", lambda: echo_sample(other, S)),
        ("s", lambda: echo_sample(F, other)),
        (r"bank\[0\]", lambda: echo_noise(None, None, size=2, bank=(other, S))),
        ("seed", lambda: echo_sample(F, S, seed=other)),
        ("f", lambda: echo_sample_matrix(other, MATRICES)),
        ("f_raw", lambda: echo_ext.EchoChannel(num_terms=2)(other, S)),
        ("x", lambda: mutual_information(other, F)),
        ("labels", lambda: mutual_information_discrete(F, other)),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got {layout}"):
            call()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_labels_raise():
    labels = torch.quantize_per_tensor(torch.ones(6), 1.0, 0, torch.qint8)
    with pytest.raises(TypeError, match="labels must be a dense tensor, got quantized"):
        mutual_information_discrete(F, labels)


def test_sparse_gradients_raise():
    for run, inputs in ((echo_sample, (F, S)), (echo_sample_matrix, (F, MATRICES))):
        with pytest.raises(TypeError, match="the gradient of z must be a dense tensor, got sparse_coo"):
            gradients(run, F.to_sparse(), *inputs)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_few_draws_from_huge_expanded_bank(sampling):
    rows = 2**30  # 4 GiB each if copied
    bank = (torch.tensor([0.5]).expand(rows), torch.tensor([0.25]).expand(rows))
    options = dict(num_terms=3, bank=bank, sampling=sampling, seed=1)
    eps = echo_noise(None, None, size=2, **options)
    torch.testing.assert_close(eps, torch.full((2,), 0.5 * (1 + 0.25 + 0.25**2)))
    f = torch.randn(4)
    torch.testing.assert_close(echo_sample(f, f, **options), f + f * eps[0])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_gathered_bank_rows_match_contiguous_bank(sampling):
    rows = 6 * 4 * FEW_ROWS + 1
    bank = [torch.rand(3, rows, dtype=torch.float64).T for _ in range(2)]
    leaves = [each.clone(memory_format=torch.preserve_format).requires_grad_() for each in bank]
    options = dict(num_terms=4, sampling=sampling, seed=1)
    f, s = F.double(), S.double()
    z = echo_sample(f, s, bank=tuple(leaves), **options)
    contiguous = [each.contiguous().requires_grad_() for each in bank]
    expected = echo_sample(f, s, bank=tuple(contiguous), **options)
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(z.square().sum(), leaves)
    theirs = torch.autograd.grad(expected.square().sum(), contiguous)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# ---- Default device and dtype ----------------------------------------------------------------------------------------


def public_results(form):
    """Yield the results of the public functions on tensors or arrays."""
    rng = np.random.default_rng(5)
    x, y, z = (form(rng.standard_normal((60, 2))) for _ in range(3))
    labels, factors = form(rng.integers(0, 3, 60)), form(rng.integers(0, 3, (60, 2)))
    for w in (0, 2):
        for method in ("ksg1", "ksg2", "bi-ksg", "mixed"):
            yield mutual_information(x, y, k=[2, 3], method=method, exclude_within=w)
        for method in ("ksg1", "ksg2"):
            yield conditional_mutual_information(x, y, z, method=method, exclude_within=w)
            yield total_correlation(x, method=method, exclude_within=w)
        for metric in ("chebyshev", "euclidean"):
            yield entropy(x, metric=metric, exclude_within=w, local=True)
        yield mutual_information_discrete(x, labels, k=[1, 3], exclude_within=w)
        yield transfer_entropy(x, y, exclude_within=w)
        yield mutual_information_matrix(x, exclude_within=w)
        yield with_standard_error(mutual_information, x, y, seed=1, exclude_within=w, parts=2)[1]
    yield from independence_test(x, y, n_resamples=5, seed=1)
    yield from independence_test(x, y, z, n_resamples=5, seed=1)
    yield from knn(x, y)
    yield metrics.mig(x, factors)
    yield metrics.mig(x, factors, method="knn")
    yield metrics.knn_accuracy(x, labels, y, labels)
    yield metrics.gaussian_total_correlation(x)
    yield metrics.factor_vae_score(x, factors, train_votes=20, test_votes=20, seed=1)
    yield metrics.marginal_statistics(x).statistic
    f = torch.from_numpy(rng.standard_normal((8, 3))).requires_grad_()
    s = torch.from_numpy(rng.uniform(0, 0.3, (8, 3)))
    for sampling in SAMPLINGS:
        yield echo_sample(f, s, sampling=sampling, seed=1)
        yield torch.autograd.grad(echo_sample(f, s, sampling=sampling, seed=1).square().sum(), f)[0]
        yield echo_indices(8, sampling=sampling, seed=1, device="cpu")
        yield echo_noise(None, None, size=3, bank=(f, s), sampling=sampling, seed=1)
    yield echo_sample_matrix(f, torch.diag_embed(s), seed=1)
    yield torch.autograd.grad(echo_sample_matrix(f, torch.diag_embed(s), seed=1).square().sum(), f)[0]
    yield max_scale(9)
    if form is torch.from_numpy:
        inputs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        yield from torch.autograd.grad(mutual_information(*inputs) + entropy(inputs[0]), inputs)


@pytest.mark.parametrize("form", [torch.from_numpy, np.asarray])
def test_default_device_does_not_affect_results(form):
    expected = list(public_results(form))
    with torch.device("meta"):
        found = list(public_results(form))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(*(v.detach() if isinstance(v, torch.Tensor) else v for v in (one, other)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_default_dtype_does_not_affect_results(dtype):
    expected = list(public_results(torch.from_numpy))
    torch.set_default_dtype(dtype)
    try:
        found = list(public_results(torch.from_numpy))
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        assert torch.equal(one.double(), other.double())


@pytest.mark.parametrize("name", ["gmm2d", "ten-states", "digits"])
def test_default_device_does_not_affect_data(name):
    expected = echo_ext.data.load(name)["valid"].values(torch.arange(5))
    with torch.device("meta"):
        part = echo_ext.data.load(name)["valid"]
    assert torch.equal(part.values(torch.arange(5)), expected)


# ---- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "two",
    [
        [1e19, 3e19],
        [2.0**60, 2.0**60 + 256],
        np.array([2**64 - 1, 5], np.uint64),
        np.array([2**53, 2**53 + 1]),
        torch.tensor([2**62, 2**62 + 1]),
        np.array([2**63, 2**63 + 1], np.uint64),
        np.array([-0.0, 1.0], ">f8"),
        np.array([1, 2], ">i4"),
        np.ma.masked_array([1, 2], [False, False]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    ],
)
def test_distinct_labels_stay_distinct(two):
    order = torch.arange(40) % 2
    x = order + 0.1 * torch.rand(40)
    labels = two[order] if isinstance(two, torch.Tensor) else np.ma.asanyarray(two)[order.numpy()]
    assert mutual_information_discrete(x, labels) == mutual_information_discrete(x, order)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.ma.masked_array([1, 2] * 5, [0] * 9 + [1]), ValueError, "labels must have no masked values, got 1"),
        (np.array([1, 2] * 5, complex), TypeError, "labels must be .* got dtype complex128"),
        (torch.ones(10, dtype=torch.complex64), TypeError, "labels must be .* got torch.complex64"),
        (np.ones(10, np.longdouble), TypeError, "labels must be integers, booleans, strings or dates, got dtype"),
        (torch.tensor([1.0, math.nan] * 5), ValueError, "labels must be finite, got 5 NaN"),
    ],
)
def test_invalid_labels_raise(labels, error, message):
    with pytest.raises(error, match=message):
        mutual_information_discrete(np.arange(10.0), labels)


def test_metrics_validate_integer_labels():
    codes, labels = torch.randn(12, 2), np.array([2**63, 1] * 6, np.uint64)
    for form in (labels, torch.from_numpy(labels)):
        with pytest.raises(ValueError, match=r"train_labels must be below 2\*\*63, but 6 of them are not"):
            metrics.knn_accuracy(codes, form, codes, form)
    for form in (labels.astype(">i8"), np.ma.masked_array([1, 2] * 6, False)):
        metrics.knn_accuracy(codes, form, codes, form)
    with pytest.raises(ValueError, match="train_labels must have no masked values"):
        metrics.knn_accuracy(codes, np.ma.masked_array([1, 2] * 6, True), codes, labels)


# ---- Arrays ----------------------------------------------------------------------------------------------------------


def test_equivalent_arrays_give_equal_estimates():
    x = np.random.default_rng(1).standard_normal((40, 2))
    locked = x.copy()
    locked.flags.writeable = False
    for form in (
        x.astype(">f8"),
        np.asfortranarray(x),
        locked,
        np.ma.masked_array(x, False),
        np.repeat(x, 2, axis=0)[::2],
        x[::-1][::-1],
        x.tolist(),
    ):
        assert entropy(form) == entropy(x)
    assert entropy(x.astype(">f4")) == entropy(x.astype("f4"))
    wide = np.broadcast_to(x[:, :1], (40, 2))
    assert mutual_information(wide, x[:, 1]) == mutual_information(wide.copy(), x[:, 1])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ma.masked_array(np.arange(10.0), [1] * 2 + [0] * 8), ValueError, "x must have no masked values, got 2"),
        (np.arange(10) + 2**53, ValueError, r"x must hold integers of at most 2\*\*53, .* got 9007199254740993"),
        (np.arange(10) - 2**60, ValueError, r"x must hold integers of at most 2\*\*53"),
        (np.full(10, 2**63, np.uint64), ValueError, r"x must hold integers of at most 2\*\*53"),
        (np.ones(10, np.float16), TypeError, "x must be float64 or float32, got float16"),
        (np.ones(10, np.longdouble), TypeError, "x must be float64 or float32, got"),
        (np.array(3.0), ValueError, "x must have shape"),
        (torch.ones(10).to("meta"), ValueError, "x must be on the CPU or on a CUDA device, got meta"),
    ],
)
def test_invalid_arrays_raise(x, error, message):
    with pytest.raises(error, match=message):
        entropy(x)


# ---- Scalar arguments ------------------------------------------------------------------------------------------------

X, Y = np.random.default_rng(2).standard_normal((2, 60))
uncertain = partial(with_standard_error, mutual_information, X, Y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: with_standard_error(mutual_information, X, Y, k=[3]),
            TypeError,
            r"k must be a single number, got \[3\]",
        ),
        (
            lambda: with_standard_error(mutual_information, X, Y, k=np.array([3])),
            TypeError,
            "k must be a single number",
        ),
        (lambda: uncertain(k=True), TypeError, "k must be an int, a fraction .* got True"),
        (lambda: uncertain(parts=2.0), TypeError, "parts must be an int, got 2.0"),
        (
            lambda: with_standard_error(mutual_information, X, Y, repeats=True),
            TypeError,
            "repeats must be an int, got True",
        ),
        (lambda: independence_test(X, Y, k=[3, 4]), TypeError, r"k must be one int or fraction, got \(3, 4\)"),
        (lambda: independence_test(X, Y, k=(3,)), TypeError, r"k must be one int or fraction, got \(3,\)"),
        (lambda: independence_test(X, Y, k=3.0), ValueError, r"k must be an int or a fraction in \(0, 1\), got 3.0"),
        (lambda: independence_test(X, Y, n_resamples=2.0), TypeError, "n_resamples must be an int, got 2.0"),
        (lambda: independence_test(X, Y, seed=1.0), TypeError, "seed must be an int, got 1.0"),
        (lambda: independence_test(X, Y, seed=2**63), ValueError, "seed must be at most 9223372036854775807"),
        (
            lambda: mutual_information(X, Y, k=np.array([[3]])),
            TypeError,
            "k must be an int, a fraction in .* or a sequence of these",
        ),
        (
            lambda: mutual_information(X, Y, k=[]),
            TypeError,
            r"k must be an int, a fraction in .* or a sequence of these, got \[\]",
        ),
        (
            lambda: mutual_information(X, Y, k=np.array(3.0)),
            TypeError,
            "k must be an int, a fraction in .* or a sequence of these",
        ),
        (lambda: mutual_information(X, Y, method=np.array(["ksg1"])), ValueError, "method must be one of"),
        (lambda: echo_sample(F, S, sampling=np.array(["ring"])), ValueError, "sampling must be one of"),
        (lambda: max_scale(1, bound=1e308, tol=1e-308), ValueError, r"tol must be larger for num_terms=1 and bound"),
        (lambda: max_scale(1, bound=True), TypeError, "bound must be a finite number above 0, got True"),
        (lambda: max_scale(1, tol="small"), TypeError, "tol must be a finite number above 0, got 'small'"),
        (lambda: max_scale(1, bound=10**400), ValueError, "bound must be a finite number above 0, got 1000"),
        (lambda: echo_ext.EchoMatrixChannel(2.0), TypeError, "dim must be an int, got 2.0"),
    ],
)
def test_invalid_scalar_arguments_raise(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_numpy_integers_are_accepted():
    three = np.int64(3)
    assert torch.equal(echo_sample(F, S, num_terms=three, seed=three), echo_sample(F, S, num_terms=3, seed=3))
    repeated = independence_test(X, Y, n_resamples=np.int32(4), k=three, seed=three)
    assert repeated.pvalue == independence_test(X, Y, n_resamples=4, seed=3).pvalue
    assert mutual_information(X, Y, k=np.array([2, 3]))[1] == mutual_information(X, Y)


def test_max_scale_at_extreme_float_values():
    for bound, tol, terms in ((1e308, 1e-308, 99), (1e-308, 1e308, 1), (5e-324, 5e-324, 9), (1.7e308, 1.7e308, 2)):
        scale = max_scale(terms, bound=bound, tol=tol)
        assert 0 < scale < 1
        distance = terms * math.log(scale) - math.log1p(-scale) - (math.log(tol) - math.log(bound))
        assert distance == pytest.approx(0, abs=1e-9) or scale == math.nextafter(1, 0)


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**127])
@pytest.mark.parametrize("where", ["f", "s"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rows", [7, 200])
def test_nonfinite_values_stay_in_their_column(sampling, where, bad, rows):
    f, s = torch.randn(rows, 5), 0.9 * torch.rand(rows, 5)
    if math.isfinite(bad):  # with powers of two, overflow does not depend on rounding
        f[:, 2], s[:, 2] = torch.exp2(torch.randint(-3, 4, (rows,))), torch.exp2(torch.randint(-4, 0, (rows,)))
    corrupted = {"f": f.clone(), "s": s.clone()}
    corrupted[where][rows // 2, 2] = bad
    others = [0, 1, 3, 4]
    options = dict(sampling=sampling, num_terms=5, seed=1)
    z = echo_sample(corrupted["f"], corrupted["s"], **options)
    assert torch.equal(z[:, others], echo_sample(f, s, **options)[:, others])
    if sampling != "ring":
        expected = reference.echo_sample(corrupted["f"], corrupted["s"], echo_indices(rows, **options))
        assert torch.equal(z.isfinite(), expected.isfinite())
        assert torch.equal(z.isnan(), expected.isnan())
