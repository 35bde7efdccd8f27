import math

import numpy as np
import pytest
import torch
from knn_cases import KINDS, fresh, related, sample
from scipy.special import digamma

import echo_ext
from echo_ext import reference

CONTINUOUS = ("ksg1", "ksg2", "bi-ksg", "mixed")
CELLS = ("plug-in", "miller-madow")
METHODS = (*CONTINUOUS, *CELLS)
MULTIVARIATE = ("ksg1", "ksg2", "mixed", *CELLS)
# Data of some kinds are tied, which the estimators warn of.
pytestmark = pytest.mark.filterwarnings("ignore::echo_ext.DegenerateDataWarning")


def published(d):
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal((1000, d)), rng.standard_normal((1000, d))
    return x, 0.6 * x + 0.8 * e


@pytest.mark.parametrize(
    ("d", "k", "method", "value", "digits"),
    [
        (1, 3, "ksg1", 0.224813349996343, 1e-14),
        (1, 3, "ksg2", 0.228536184315, 1e-12),
        (1, 3, "bi-ksg", 0.233645503467, 1e-12),
        (5, 5, "ksg1", 0.737297256646912, 1e-14),
        (5, 5, "ksg2", 0.761285782336572, 1e-14),
        (5, 5, "bi-ksg", 1.07249769087, 5e-12),
    ],
)
@pytest.mark.filterwarnings("ignore:method 'bi-ksg' is for at most 4 columns")
def test_reference_values(d, k, method, value, digits):
    assert echo_ext.mutual_information(*published(d), k=k, method=method) == pytest.approx(value, abs=1e-12 + digits)


def test_bi_ksg_warns_of_many_columns():
    x, y = np.random.default_rng(0).standard_normal((2, 3000, 10))
    with pytest.warns(UserWarning, match="at most 4 columns in each variable, got 4 and 5: it reads") as caught:
        echo_ext.mutual_information(x[:, :4], y[:, :5], method="bi-ksg")
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="got 10 and 10"):
        assert echo_ext.mutual_information(x, y, method="bi-ksg") == pytest.approx(1.7, abs=0.1)
    assert abs(echo_ext.mutual_information(x[:, :3], y[:, :3], method="bi-ksg")) < 0.05
    for method in ("ksg1", "ksg2", "mixed"):
        assert abs(echo_ext.mutual_information(x, y, method=method)) < 0.05


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_meets_the_oracle(kind, method, dtype):
    rng = fresh()
    for w in (0, 0, 3):
        x, y = related(rng, int(rng.integers(20, 160)), *rng.integers(1, 4, 2).tolist(), kind, dtype)
        options = dict(k=[1, 3, 8], method=method, local=True, exclude_within=w)
        tolerance = 1e-12 if dtype == np.float64 else 2e-6  # float32 results are rounded, its counts are not
        np.testing.assert_allclose(
            echo_ext.mutual_information(x, y, **options),
            reference.mutual_information(x, y, **options),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("method", MULTIVARIATE)
@pytest.mark.parametrize("kind", KINDS)
def test_conditional_meets_the_oracle(kind, method):
    rng = fresh()
    for w in (0, 2):
        n = int(rng.integers(20, 120))
        x, y = related(rng, n, *rng.integers(1, 3, 2).tolist(), kind)
        z = sample(rng, n, int(rng.integers(1, 3)), kind)
        options = dict(k=[1, 4], method=method, local=True, exclude_within=w)
        np.testing.assert_allclose(
            echo_ext.conditional_mutual_information(x, y, z, **options),
            reference.conditional_mutual_information(x, y, z, **options),
            rtol=1e-12,
            atol=1e-12,
        )


@pytest.mark.parametrize("method", MULTIVARIATE)
@pytest.mark.parametrize("kind", KINDS)
def test_total_correlation_meets_the_oracle(kind, method):
    rng = fresh()
    x = sample(rng, 100, 5, kind)
    for groups in (None, [[0, 3], [1], [2, 4]], [[4], [0]]):
        options = dict(k=[2, 3], method=method, groups=groups, local=True, exclude_within=1)
        np.testing.assert_allclose(
            echo_ext.total_correlation(x, **options), reference.total_correlation(x, **options), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("method", METHODS)
def test_matrix_holds_the_pairs(method):
    rng = fresh()
    x, y = sample(rng, 60, 4), sample(rng, 60, 3)
    y[:, 1] = x[:, 0]
    matrix = echo_ext.mutual_information_matrix(x, y, method=method)
    np.testing.assert_allclose(matrix, reference.mutual_information_matrix(x, y, method=method), rtol=1e-12, atol=1e-12)
    own = echo_ext.mutual_information_matrix(torch.from_numpy(x), k=[2, 3], method=method)
    assert own.shape == (2, 4, 4)
    assert torch.equal(own, own.mT)
    for i in range(4):
        for j in range(4):
            alone = echo_ext.mutual_information(x[:, i], x[:, j], method=method)
            assert own[1, i, j].item() == pytest.approx(alone, abs=1e-12)


def test_matrix_in_blocks_and_batches(monkeypatch):
    from echo_ext.estimators import pairs

    x = torch.randn(2, 50, 5, dtype=torch.float64)
    whole = echo_ext.mutual_information_matrix(x)
    monkeypatch.setattr(pairs, "BLOCK", 1)
    torch.testing.assert_close(echo_ext.mutual_information_matrix(x), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(echo_ext.mutual_information_matrix(x[1]), whole[1], rtol=0, atol=1e-13)


# ---- What must hold exactly ------------------------------------------------------------------------------------------


def test_information_of_a_variable_about_itself():
    for n, k in ((1000, 3), (50, 1), (333, 10)):
        x = fresh().standard_normal(n)
        assert echo_ext.mutual_information(x, x, k=k) == pytest.approx(digamma(n) - digamma(k), abs=1e-12)
    assert echo_ext.mutual_information(*[fresh().standard_normal(1000)] * 2) == pytest.approx(
        5.984470860550346, abs=1e-12
    )


def test_a_constant_tells_nothing():
    x = sample(fresh(), 500, 2)
    assert echo_ext.mutual_information(x, np.full(500, 3.0)) == pytest.approx(0.0, abs=1e-12)
    z = np.zeros(500)
    conditional = echo_ext.conditional_mutual_information(x[:, 0], x[:, 1], z)
    assert conditional == pytest.approx(echo_ext.mutual_information(x[:, 0], x[:, 1]), abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_invariances(method):
    rng = fresh()
    x, y = related(rng, 200, 2, 1)
    value = echo_ext.mutual_information(x, y, method=method)
    order = rng.permutation(200)
    for a, b in (
        (y, x),
        (x[order], y[order]),
        (-x, y),
        (x[:, ::-1], y),
        (2.0**-30 * x, 2.0**-30 * y),
        (2.0**20 * x, 2.0**20 * y),
    ):
        assert echo_ext.mutual_information(a, b, method=method) == pytest.approx(value, abs=1e-12)


def test_ranks_are_all_that_a_monotone_map_may_keep():
    # With one neighbor more than ties the counts depend on order alone along a curve: y = g(x) gives psi(N) - psi(k)
    # whatever the increasing g, if x and y are then scaled alike.
    x = np.sort(fresh().standard_normal(300))
    for g in (np.exp, np.tanh, np.cbrt):
        value = echo_ext.mutual_information(g(x), g(x))
        assert value == pytest.approx(digamma(300) - digamma(3), abs=1e-12)


def test_groups_of_two_are_mutual_information():
    x, y = related(fresh(), 150, 2, 3)
    both = np.hstack([x, y])
    for method in MULTIVARIATE:
        total = echo_ext.total_correlation(both, groups=[[0, 1], [2, 3, 4]], method=method)
        assert total == pytest.approx(echo_ext.mutual_information(x, y, method=method), abs=1e-12)


# ---- What must hold within the estimator's error ---------------------------------------------------------------------


def meets(x, y, truth, **options):
    estimate, error = echo_ext.with_standard_error(echo_ext.mutual_information, x, y, **options)
    assert estimate == pytest.approx(truth, abs=6 * error + 0.02)


@pytest.mark.parametrize("method", CONTINUOUS)
def test_gaussian(method):
    x, y = related(fresh(), 5000)
    meets(x, y, -0.5 * math.log(1 - 0.36), method=method)


def test_sum_of_uniforms():
    rng = fresh()
    for width in (0.1, 0.5, 1.0):
        x = rng.random(5000)
        meets(x, x + width * rng.random(5000), width / 2 - math.log(width))


def test_sum_of_gammas():
    rng = fresh()

    def gamma_entropy(a):
        return a + math.lgamma(a) + (1 - a) * float(digamma(a))

    for a, b in ((1.0, 1.0), (2.0, 0.7)):  # the first pair is exponential: the information is Euler's constant
        x = rng.gamma(a, size=5000)
        meets(x, x + rng.gamma(b, size=5000), gamma_entropy(a + b) - gamma_entropy(b))
    assert gamma_entropy(2.0) - gamma_entropy(1.0) == pytest.approx(np.euler_gamma)


def test_discrete_plus_uniform():
    rng = fresh()
    x = rng.integers(0, 5, 5000).astype(float)
    y = x + 2 * rng.random(5000)
    truth = math.log(5) - 4 * math.log(2) / 5
    assert echo_ext.mutual_information(x, y, method="mixed") == pytest.approx(truth, abs=0.08)
    assert echo_ext.mutual_information_discrete(y, x) == pytest.approx(truth, abs=0.08)


def test_echo_channel_carries_minus_log_s():
    rng = fresh()
    f = rng.random(6000) - 0.5  # any source
    for s in (0.3, 0.6, 0.8):
        terms = f[rng.integers(0, len(f), (80, len(f)))]
        z = f + s * (s ** np.arange(80) @ terms)
        meets(f, z, -math.log(s))


def test_conditional_gaussian():
    rng = fresh()
    z = rng.standard_normal(8000)
    x = z + rng.standard_normal(8000)
    y = z + 0.8 * rng.standard_normal(8000) + 0.6 * (x - z)
    for method in ("ksg1", "ksg2", "mixed"):
        value = echo_ext.conditional_mutual_information(x, y, z, method=method)
        assert value == pytest.approx(-0.5 * math.log(1 - 0.36), abs=0.08)


# ---- Batches, several k, forms of input ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_batches_broadcast(method):
    x, y = torch.randn(3, 1, 60, 2, dtype=torch.float64), torch.randn(4, 60, 1, dtype=torch.float64)
    values = echo_ext.mutual_information(x, y, k=[1, 5], method=method)
    assert values.shape == (2, 3, 4)
    for i in range(3):
        for j in range(4):
            for at, k in enumerate((1, 5)):
                alone = echo_ext.mutual_information(x[i, 0], y[j], k=k, method=method)
                torch.testing.assert_close(values[at, i, j], alone, rtol=0, atol=1e-13)


def test_gradient_of_a_batch_in_another_memory_order():
    rows = torch.randn(30, 2, 1, dtype=torch.float64).transpose(0, 1).requires_grad_()
    other = torch.randn(30, 1, dtype=torch.float64)
    for estimate in (lambda x: echo_ext.mutual_information(x, other), echo_ext.entropy):
        strided = torch.autograd.grad(estimate(rows).sum(), rows)[0]
        dense = rows.detach().contiguous().requires_grad_()
        assert torch.equal(strided, torch.autograd.grad(estimate(dense).sum(), dense)[0])


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_has_no_estimates(method):
    x = torch.randn(0, 9, 2)
    assert echo_ext.mutual_information(x, x, method=method).shape == (0,)
    assert echo_ext.mutual_information(x, x, method=method, k=[1, 2], local=True).shape == (2, 0, 9)
    if method == "ksg1":
        echo_ext.mutual_information(x.requires_grad_(), x.detach()).sum().backward()
        assert x.grad.shape == x.shape


def test_local_values_and_units():
    x, y = related(fresh(), 100)
    nats = echo_ext.mutual_information(x, y)
    assert isinstance(nats, float)
    assert echo_ext.mutual_information(x, y, unit="bits") == pytest.approx(nats / math.log(2))
    local = echo_ext.mutual_information(x, y, local=True)
    assert local.shape == (100,)
    assert local.mean() == pytest.approx(nats)
    assert echo_ext.mutual_information(x, y, local=True, k=[3, 4]).shape == (2, 100)


def test_tensors_come_back_as_tensors():
    x, y = (torch.from_numpy(v) for v in related(fresh(), 100))
    value = echo_ext.mutual_information(x, y)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert value.item() == echo_ext.mutual_information(x.numpy(), y.numpy())
    assert echo_ext.mutual_information(x.float(), y.float()).dtype == torch.float32
    integers = [list(range(20)), list(range(20))]
    assert echo_ext.mutual_information(*integers) == pytest.approx(reference.mutual_information(*integers), abs=1e-12)


def test_float32_with_an_offset_loses_nothing():
    # Differences are taken of the values as they are, and those of near float32 are exact.
    x, y = related(fresh(), 500, kind="offset", dtype=np.float32)
    exact = echo_ext.mutual_information(x.astype(np.float64), y.astype(np.float64))
    assert echo_ext.mutual_information(x, y) == pytest.approx(exact, abs=1e-6)


# ---- The gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "rho", "k"), [(1, 0.6, 3), (1, 0.9, 3), (3, 0.6, 5)])
def test_gradient_is_that_of_the_expectation(d, rho, k):
    many, n, step = (300 if d == 1 else 60), 500, 0.02
    x, v = torch.randn(2, many, n, d, dtype=torch.float64)
    correlation = torch.full((many, 1, 1), rho, dtype=torch.float64, requires_grad=True)

    def estimate(r):
        return echo_ext.mutual_information(x, r * x + (1 - r**2).sqrt() * v, k=k)

    estimate(correlation).sum().backward()
    slopes = correlation.grad.flatten()
    with torch.no_grad():
        differences = (estimate(correlation + step) - estimate(correlation - step)) / (2 * step)
    apart = slopes - differences
    assert abs(apart.mean()) < 4 * apart.std() / math.sqrt(many) + 0.05 * abs(differences.mean())


def test_gradient_knows_the_estimate_s_symmetries():
    x = torch.randn(400, 2, dtype=torch.float64, requires_grad=True)
    y = (0.7 * x.detach()[:, :1] + torch.randn(400, 1, dtype=torch.float64)).requires_grad_()
    echo_ext.mutual_information(x, y, k=[3, 5]).sum().backward()
    for v in (x, y):
        assert v.grad.shape == v.shape
        assert v.grad.sum(0).abs().max() < 1e-9  # shifts change nothing
    batch = torch.randn(2, 300, 1, dtype=torch.float64, requires_grad=True)
    shared = torch.randn(300, 1, dtype=torch.float64, requires_grad=True)
    echo_ext.mutual_information(batch, shared).sum().backward()
    assert shared.grad.shape == (300, 1)
    echo_ext.mutual_information(torch.ones(30, 1, requires_grad=True), torch.randn(30)).backward()


@pytest.mark.parametrize("method", METHODS[1:])
def test_methods_without_a_gradient_say_so(method):
    x = torch.randn(50, requires_grad=True)
    value = echo_ext.mutual_information(x, torch.randn(50), method=method)
    with pytest.raises(NotImplementedError, match=f"'{method}' has no gradient.*entropy and mutual_information"):
        value.backward()
    with pytest.raises(NotImplementedError, match="total_correlation has no gradient"):
        echo_ext.total_correlation(torch.randn(50, 2, requires_grad=True)).backward()


# ---- Bad input -------------------------------------------------------------------------------------------------------


def spoiled(where, value):
    x = np.ones((10, 2))
    x[where] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(x=spoiled((4, 1), np.nan)),
            ValueError,
            r"x must be finite, got 1 NaN in 1 rows, the first at \[4, 1\]; nan_policy='omit'",
        ),
        (dict(x=spoiled(slice(7, None), np.inf)), ValueError, r"got 6 NaN or infinite values, the first at \[7, 0\]"),
        (dict(y=np.array([1.0] * 9 + [np.nan])), ValueError, r"y must be finite, .* the first at \[9\]"),
        (dict(k=10), ValueError, "k must be less than the number of samples, got 10 of 10"),
        (dict(k=[3, 0]), ValueError, "k must be at least 1, got 0"),
        (dict(k=[]), TypeError, "k must be an int, a fraction in .* or a sequence of these"),
        (dict(k=True), TypeError, "k must be an int, a fraction in .* or a sequence of these, got True"),
        (dict(k="3"), TypeError, "k must be an int, a fraction in .* or a sequence of these, got '3'"),
        (dict(y=np.ones(9)), ValueError, "x and y must have the same number of samples, got 10 and 9"),
        (dict(x=np.ones((10, 0))), ValueError, r"x must have at least one column, got shape \(10, 0\)"),
        (dict(x=np.float64(3)), ValueError, "x must have shape"),
        (
            dict(x=np.ones((2, 10, 1)), y=np.ones((3, 10, 1))),
            ValueError,
            r"must broadcast, got x \(2,\), y \(3,\)",
        ),
        (dict(k=1.0), ValueError, r"k must be an int or a fraction in \(0, 1\), got 1.0"),
        (dict(k=[3, -0.5]), ValueError, r"k must be an int or a fraction in \(0, 1\), got -0.5"),
        (dict(nan_policy="drop"), ValueError, "nan_policy must be one of 'raise', 'omit', got 'drop'"),
        (dict(transform="ranks"), ValueError, "transform must be one of None, 'standardize', 'rank', 'normal', got"),
        (dict(y=torch.ones(10)), TypeError, "x and y must be both tensors or both arrays"),
        (dict(x=torch.ones(10), y=torch.ones(10).half()), TypeError, "y must be float64 or float32, got float16"),
        (dict(x=np.array(["a"] * 10)), TypeError, "x must be numeric, got strings; encode"),
        (dict(x=np.array([None] * 10)), TypeError, r"x must be numeric, got objects; .* astype\(float\)"),
        (dict(method="ksg3"), ValueError, "method must be one of 'ksg1', .* 'plug-in', 'miller-madow', got 'ksg3'"),
        (dict(unit="dits"), ValueError, "unit must be one of 'nats', 'bits', got 'dits'"),
        (dict(exclude_within=-1), ValueError, "exclude_within must be at least 0, got -1"),
        (
            dict(exclude_within=4, k=3),
            ValueError,
            "k must be at most 1, the number of neighbors that exclude_within=4 leaves to some .* got 3",
        ),
        (dict(boundary_width=0), ValueError, "boundary_width must be at least 1, got 0"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        echo_ext.mutual_information(**{"x": np.ones((10, 2)), "y": np.ones(10), **arguments})


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [0, 1]], [[0], []], [[0], [3]]])
def test_bad_groups(groups):
    with pytest.raises(ValueError, match="groups must"):
        echo_ext.total_correlation(np.ones((10, 3)), groups=groups)


@pytest.mark.parametrize("groups", [3, "ab", [[0.5], [1]], [0, 1]])
def test_groups_that_are_not_column_numbers(groups):
    with pytest.raises(TypeError, match="groups must be sequences of column numbers, got"):
        echo_ext.total_correlation(np.ones((10, 3)), groups=groups)


def test_ragged_rows():
    with pytest.raises(ValueError, match="x must be one array, but its parts have different shapes"):
        echo_ext.entropy([[1.0], [1.0, 2.0]])
