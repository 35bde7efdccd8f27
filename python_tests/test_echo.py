"""The Echo ops compared with the reference implementation, and the statistical properties of Echo noise."""

import math
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from echo_cases import (
    DTYPES,
    SAMPLINGS,
    TOLERANCE,
    check_against_oracle,
    oracle,
    relative_error,
    results,
    signal_and_scale,
)

import echo_ext
from echo_ext import _C, reference
from echo_ext._native import num_threads

SHAPES = [(2, 1), (2, 33), (3, 5), (16, 16), (17, 1), (66, 67), (101, 129), (257, 31), (100, 32), (11, 2, 3, 5)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, sampling):
    for largest_scale in (0.05, 0.6, 0.97):
        for num_terms in {None, 1, shape[0] // 2}:
            check_against_oracle("cpu", shape, dtype, sampling, num_terms, largest_scale)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "bank_rows"), [((1, 3), 1), ((1, 40), 70), ((9, 17), 5), ((67, 4), 131), ((300, 5), 33)]
)
def test_bank_matches_reference(shape, bank_rows, dtype, sampling):
    for num_terms in {None, 1, bank_rows // 2 + 1}:
        check_against_oracle("cpu", shape, dtype, sampling, num_terms, 0.8, bank_rows=bank_rows)
    check_against_oracle("cpu", shape, dtype, sampling, None, 0.8, bank_rows=bank_rows, size=3 * bank_rows + 1)


def test_every_small_bank_size_matches_reference():
    """Permutations of at most 256 rows are drawn by a different algorithm than longer ones."""
    for bank_rows in range(1, 260):
        f = torch.randn(bank_rows, 1, dtype=torch.float64)
        s = 0.9 + 0.1 * torch.rand(bank_rows, 1, dtype=torch.float64)  # no term is negligible
        indices = echo_ext.echo_indices(5, seed=bank_rows, bank_size=bank_rows)
        noise = echo_ext.echo_noise(None, None, size=5, bank=(f, s), seed=bank_rows)
        assert relative_error(noise, reference.echo_noise(f, s, indices)) < 1e-12, bank_rows


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_realistic_batch_size_matches_reference(sampling):
    for dtype in (torch.float32, torch.float64):
        for largest_scale in (0.97, 1.0):
            check_against_oracle("cpu", (512, 128), dtype, sampling, None, largest_scale)


def recurrence(f, s, order):
    """Return the noise of the window starting at every position of the circle.

    The recurrence runs around the circle twice; earlier terms are negligible.
    """
    noises, noise = [], torch.zeros_like(f[0])
    f_rows, s_rows = f.unbind(), s.unbind()  # indexing f[row] would allocate a gradient of f's size for every row
    for row in (order.tolist() * 2)[::-1]:
        noise = f_rows[row] + s_rows[row] * noise
        noises.append(noise)
    return torch.stack(noises[-1 : -len(order) - 1 : -1])


@pytest.mark.parametrize("slow_stretch", [0, 4500], ids=["decaying", "slow stretch"])
@pytest.mark.parametrize(
    ("dtype", "width", "rows", "num_terms"),
    [
        (torch.float64, 3, None, None),
        (torch.float64, 3, None, 8000),
        (torch.float64, 3, 6007, None),  # fewer rows than the bank
        (torch.float64, 3, 12_000, 8000),  # more rows than the bank: a second circle
        (torch.float32, 3, None, None),
        (torch.float32, 40, 6007, 8000),
        (torch.bfloat16, 3, None, 8000),
        (torch.bfloat16, 40, 12_000, None),
    ],
)
def test_long_ring_matches_recurrence(dtype, width, rows, slow_stretch, num_terms):
    """The ring is long enough to be processed in segments that pass their state on.

    The product of scales underflows over some segments but not over others. Few rows have a nonzero gradient, and some
    scales are zero.
    """
    bank_rows, seed = 9001, int(torch.randint(2**62, ()))
    circles = -(-(rows or 1) // bank_rows)
    starts = echo_ext.echo_indices(circles * bank_rows, num_terms=1, sampling="ring", seed=seed, bank_size=bank_rows)
    orders = starts.view(circles, bank_rows)  # window i starts at position i of its circle
    f, s = (tensor.detach() for tensor in signal_and_scale((bank_rows, width), dtype))
    s[torch.rand(bank_rows) < 0.001] = 0
    s[orders[0, 2000 : 2000 + slow_stretch]] = 1 - 2**-20 if dtype != torch.bfloat16 else 1 - 2**-8
    weights = torch.where(torch.rand(rows or bank_rows, 1) < 0.01, torch.randn(rows or bank_rows, width), 0)
    weights = weights.to(dtype).double()
    options = {"sampling": "ring", "seed": seed, "num_terms": num_terms}

    def ours(f, s):
        return echo_ext.echo_noise(f, s, size=rows, bank=None if rows is None else (f, s), **options)

    def expected(f, s):
        noises = torch.cat([recurrence(f, s, order) for order in orders])
        if rows is not None:
            return noises[:rows]
        return noises.roll(-1, 0)[orders[0].argsort()]  # the row at position p uses the window that starts at p + 1

    tensors = f.requires_grad_(), s.requires_grad_()
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    # Slow decay accumulates thousands of rounding errors. bfloat16 results are rounded only once.
    tolerance = TOLERANCE[dtype] * (100 if slow_stretch and dtype != torch.bfloat16 else 1)
    for actual, theirs in zip(results(ours, tensors, weights), results(expected, wide, weights), strict=True):
        assert relative_error(actual, theirs) < tolerance


@pytest.mark.parametrize(
    ("dtype", "slow", "num_terms"),
    [
        pytest.param(torch.float64, 0, None, marks=pytest.mark.slow),
        pytest.param(torch.float64, 10_000, None, marks=pytest.mark.slow),
        (torch.float64, 27_000, None),  # the terms of one segment reach beyond a whole chunk
        (torch.float64, 27_000, 25_000),
        pytest.param(torch.float32, 10_000, None, marks=pytest.mark.slow),
        (torch.bfloat16, 0, None),
    ],
)
def test_multi_chunk_ring_matches_recurrence(dtype, slow, num_terms):
    """The ring spans two chunks whose gradients depend on each other; `slow` positions after 15,000 hardly decay."""
    rows, seed = 40_000, int(torch.randint(2**62, ()))
    f, s = (tensor.detach() for tensor in signal_and_scale((rows, 2), dtype))
    order = echo_ext.echo_indices(rows, num_terms=1, sampling="ring", seed=seed, bank_size=rows)[:, 0]
    s[order.roll(-15_000)[:slow]] = 1 - 2**-20
    weights = torch.where(torch.rand(rows, 1) < 0.01, torch.randn(rows, 2), 0).to(dtype).double()

    def ours(f, s):
        return echo_ext.echo_noise(f, s, sampling="ring", seed=seed, num_terms=num_terms)

    def expected(f, s):
        noises = recurrence(f, s, order)
        if num_terms is not None:  # subtract the terms beyond each window
            inside = torch.cat([s[order], s[order]]).log().cumsum(0)
            reach = torch.cat([inside.new_zeros(1, 2), inside])
            noises = noises - (reach[num_terms : num_terms + rows] - reach[:rows]).exp() * noises.roll(-num_terms, 0)
        return noises.roll(-1, 0)[order.argsort()]

    tensors = f.requires_grad_(), s.requires_grad_()
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    tolerance = TOLERANCE[dtype] * (100 if slow else 1)
    if num_terms is not None:
        tolerance *= 1000  # the expected value subtracts sums of many logarithms
    for actual, theirs in zip(results(ours, tensors, weights), results(expected, wide, weights), strict=True):
        assert relative_error(actual, theirs) < tolerance


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_bank_has_zero_gradients(dtype, sampling):
    bank, empty = signal_and_scale((70, 9), dtype), torch.empty(0, 9, dtype=dtype)
    leftovers = [torch.full((70, 9), 7, dtype=dtype) for _ in range(50)]
    del leftovers  # uninitialized memory then contains sevens
    z = echo_ext.echo_sample(empty, empty, bank=bank, sampling=sampling)
    for gradient in torch.autograd.grad(z.sum(), bank):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shape", [(2, 0), (40, 3, 0)])
def test_zero_width_rows(sampling, shape):
    f, s = signal_and_scale(shape)
    z = echo_ext.echo_sample(f, s, sampling=sampling)
    assert z.shape == shape
    assert all(gradient.shape == shape for gradient in torch.autograd.grad(z.sum(), (f, s)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_early_stopping_without_decay(sampling):
    """With scales near or above 1 and random signs, no row may stop summing early."""
    for scale in (0.999, 1.0, 1.02):
        f = torch.randn(130, 9, dtype=torch.float64)
        s = scale * torch.randn(130, 9, dtype=torch.float64).sign()
        indices = echo_ext.echo_indices(130, sampling=sampling, seed=1)
        expected = reference.echo_noise(f, s, indices)
        assert relative_error(echo_ext.echo_noise(f, s, sampling=sampling, seed=1), expected) < 1e-12


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_zero_scale_includes_later_terms(sampling, dtype):
    """A zero scale removes all later terms from the noise, but the gradient of that scale depends on them."""
    f, s = signal_and_scale((150, 20), dtype)
    s = (s.detach() * (torch.rand(150, 20) > 0.3)).requires_grad_()
    indices = echo_ext.echo_indices(150, sampling=sampling, seed=2)
    weights = torch.randn(150, 20, dtype=torch.float64)
    actual = results(lambda f, s: echo_ext.echo_sample(f, s, sampling=sampling, seed=2), (f, s), weights)
    expected = oracle("echo_sample", (f, s), indices, weights, with_bank=False)
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("magnitude", [1e-12, 1e12])
def test_precision_with_outliers_and_extreme_magnitudes(magnitude):
    """Early stopping loses nothing relative to the magnitude of each column, even if one row is huge."""
    f = torch.randn(200, 8, dtype=torch.float64) * magnitude
    f[17] *= 1e9
    s = 0.9 * torch.rand(200, 8, dtype=torch.float64)
    indices = echo_ext.echo_indices(200, seed=3)
    actual, expected = echo_ext.echo_noise(f, s, seed=3), reference.echo_noise(f, s, indices)
    terms = reference.echo_noise(f.abs(), s, indices)  # rounding errors are relative to the sum of magnitudes
    assert ((actual - expected).abs() / terms).max() < 1e-13


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_noncontiguous_inputs_give_equal_results(sampling):
    f, s = signal_and_scale((40, 21))
    expected = echo_ext.echo_sample(f, s, sampling=sampling, seed=4)
    strided = echo_ext.echo_sample(
        f.detach().T.contiguous().T, torch.stack([s.detach(), s.detach()], 2)[..., 1], sampling=sampling, seed=4
    )
    assert torch.equal(strided, expected)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_expanded_upstream_gradient(sampling):
    """The upstream gradient of a sum is a single expanded number with strides of zero."""
    f, s = signal_and_scale((30, 7))
    summed = torch.autograd.grad(echo_ext.echo_sample(f, s, sampling=sampling, seed=5).sum(), (f, s))
    z = echo_ext.echo_sample(f, s, sampling=sampling, seed=5)
    weighted = torch.autograd.grad((z * torch.ones(30, 7)).sum(), (f, s))
    assert all(map(torch.equal, summed, weighted))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_gradcheck(sampling):
    f, s = signal_and_scale((6, 3))
    bank = signal_and_scale((5, 3))
    options = {"sampling": sampling, "seed": 6}
    assert torch.autograd.gradcheck(lambda f, s: echo_ext.echo_sample(f, s, **options), (f, s))
    assert torch.autograd.gradcheck(lambda f, s: echo_ext.echo_noise(f, s, num_terms=3, **options), (f, s))
    assert torch.autograd.gradcheck(lambda f, s, *b: echo_ext.echo_sample(f, s, bank=b, **options), (f, s, *bank))
    assert torch.autograd.gradcheck(lambda *b: echo_ext.echo_noise(None, None, size=11, bank=b, **options), bank)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_saved_tensors_hooks_may_change_strides(sampling):
    f, s = signal_and_scale((40, 21))
    expected = torch.autograd.grad(echo_ext.echo_sample(f, s, sampling=sampling, seed=4).sum(), (f, s))

    def transposed(x):
        return x.mT.contiguous() if x.ndim == 2 else x

    with torch.autograd.graph.saved_tensors_hooks(transposed, lambda x: x.mT if x.ndim == 2 else x):
        z = echo_ext.echo_sample(f, s, sampling=sampling, seed=4)
    assert all(map(torch.equal, torch.autograd.grad(z.sum(), (f, s)), expected))


def test_gradient_of_f_alone():
    f, s = signal_and_scale((8, 2))
    s = s.detach()
    (grad_f,) = torch.autograd.grad(echo_ext.echo_sample(f, s, seed=7).sum(), f)
    both = torch.autograd.grad(echo_ext.echo_sample(f, s.requires_grad_(), seed=7).sum(), (f, s))
    assert torch.equal(grad_f, both[0])


def test_double_backward_raises():
    f, s = signal_and_scale((4, 2))
    (grad,) = torch.autograd.grad(echo_ext.echo_sample(f, s, seed=8).sum(), f, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        torch.autograd.grad(grad.sum(), s)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_inputs_are_not_modified(sampling):
    f, s = signal_and_scale((20, 3))
    copies = f.clone(), s.clone()
    versions = f._version, s._version
    echo_ext.echo_sample(f, s, sampling=sampling).sum().backward()
    assert torch.equal(f, copies[0])
    assert torch.equal(s, copies[1])
    assert versions == (f._version, s._version)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_nan_reaches_only_rows_that_draw_it(sampling):
    f, s = (tensor.detach() for tensor in signal_and_scale((40, 5)))
    f[11, 2] = torch.nan
    indices = echo_ext.echo_indices(40, num_terms=6, sampling=sampling, seed=9)
    noise = echo_ext.echo_noise(f, s, num_terms=6, sampling=sampling, seed=9)
    reached = (indices == 11).any(dim=1)
    expected = torch.zeros(40, 5, dtype=torch.bool)
    expected[:, 2] = reached
    assert torch.equal(noise.isnan(), expected)


def test_opposite_infinities_give_nan():
    f, s = torch.zeros(40, 5), torch.full((40, 5), 0.9)
    f[3], f[7] = torch.inf, -torch.inf
    assert echo_ext.echo_noise(f, s, seed=9).isnan()[[i for i in range(40) if i not in (3, 7)]].all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_with_zero_signal(sampling, dtype):
    f, s = torch.zeros(60, 5, dtype=dtype), torch.rand(60, 5, dtype=dtype)
    tensors = (f.requires_grad_(), s.requires_grad_())
    weights = torch.randn(60, 5, dtype=torch.float64)
    indices = echo_ext.echo_indices(60, sampling=sampling, seed=3)
    actual = results(lambda f, s: echo_ext.echo_sample(f, s, sampling=sampling, seed=3), tensors, weights.to(dtype))
    expected = oracle("echo_sample", tensors, indices, weights.to(dtype), with_bank=False)
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shape", [(100, 32), (1, 7, 3), (300, 130), (1024, 16)])
def test_results_are_equal_for_any_thread_count(sampling, shape):
    check_thread_counts(sampling, *signal_and_scale((shape[0] + 1, *shape[1:]), torch.float32))


def test_long_ring_is_equal_for_any_thread_count():
    f, s = signal_and_scale((40_000, 5), torch.float32)
    with torch.no_grad():
        s[7, 1] = torch.nan  # a column that never converges
    check_thread_counts("ring", f, s)


def check_thread_counts(sampling, f, s):
    shape = f.shape
    outcomes = []
    for count in (1, 2, 3, 8):
        with num_threads(count):
            outcomes.append(
                results(lambda f, s: echo_ext.echo_sample(f, s, sampling=sampling, seed=10), (f, s), torch.ones(shape))
            )
    for outcome in outcomes[1:]:
        for one, other in zip(outcome, outcomes[0], strict=True):
            assert one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


@pytest.mark.parametrize("isa", _C.supported_isas())
def test_every_instruction_set_matches_reference(isa):
    """Run the kernels of each instruction set, selected in a child process by ECHO_EXT_ISA."""
    tests = [
        "test_echo.py::test_every_small_bank_size_matches_reference",
        "test_echo.py::test_matches_reference[shape5-dtype0-permutation]",
        "test_echo.py::test_matches_reference[shape5-dtype1-ring]",
        "test_echo.py::test_matches_reference[shape6-dtype1-permutation]",
        "test_echo.py::test_matches_reference[shape6-dtype2-replacement]",
    ]
    script = (
        "import sys, pytest, echo_ext._C as core\n"
        f"assert core.isa() == {isa!r}\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", script, *tests], cwd=here, env={**os.environ, "ECHO_EXT_ISA": isa}, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()


def _noise_in_child(connection, f, s):
    # Send bytes, because torch's own threads do not survive a fork and the child must not run other torch ops.
    connection.send_bytes(echo_ext.echo_sample(f, s, seed=11).numpy().tobytes())


def test_fork_after_parent_used_thread_pool():
    f, s = (tensor.detach() for tensor in signal_and_scale((300, 200)))
    expected = echo_ext.echo_sample(f, s, seed=11)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_noise_in_child, args=(sender, f, s))
    child.start()
    try:
        assert receiver.poll(60), "the child process does not respond"
        assert receiver.recv_bytes() == expected.numpy().tobytes()
    finally:
        child.kill()
        child.join()


def _encode(batch):
    f = torch.stack(batch)
    return echo_ext.echo_sample(f, torch.full_like(f, 0.5))


def test_data_loader_workers():
    data = list(torch.randn(64, 3).tanh())
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2, collate_fn=_encode, timeout=60)
    batches = list(loader)
    assert len(batches) == 4
    assert all(batch.shape == (16, 3) and batch.isfinite().all() for batch in batches)


# ---- Seeds -----------------------------------------------------------------------------------------------------------


def test_manual_seed_reproduces_samples():
    f, s = signal_and_scale((10, 2))
    torch.manual_seed(12)
    first, second = echo_ext.echo_sample(f, s), echo_ext.echo_sample(f, s)
    torch.manual_seed(12)
    assert torch.equal(echo_ext.echo_sample(f, s), first)
    assert torch.equal(echo_ext.echo_sample(f, s), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_int_and_tensor_seeds_are_equivalent(seed):
    f, s = signal_and_scale((10, 2))
    assert torch.equal(echo_ext.echo_sample(f, s, seed=seed), echo_ext.echo_sample(f, s, seed=torch.tensor(seed)))
    assert not torch.equal(echo_ext.echo_sample(f, s, seed=seed), echo_ext.echo_sample(f, s, seed=seed ^ 1))


# ---- Statistical properties ------------------------------------------------------------------------------------------


def test_max_scale_solves_equation_with_known_roots():
    for num_terms, bound, root in [(99, 1.0, 0.83587), (99, 10.0, 0.8175), (64, 1.0, 0.7622)]:
        scale = echo_ext.max_scale(num_terms, bound=bound)
        assert scale == pytest.approx(root, abs=5e-5)
        assert bound * scale**num_terms / (1 - scale) == pytest.approx(2**-23, rel=1e-9)
    assert -math.log(echo_ext.max_scale(99)) == pytest.approx(0.179, abs=5e-4)
    assert echo_ext.max_scale(1, tol=1.0) == pytest.approx(0.5)
    assert echo_ext.max_scale(100_000) < 1


def test_rate_is_negative_log_scale():
    s = torch.tensor([0.5, -0.25, 1.0], dtype=torch.float64, requires_grad=True)
    rate = echo_ext.echo_rate(s)
    assert torch.allclose(rate, torch.tensor([math.log(2), math.log(4), 0.0], dtype=torch.float64), rtol=0, atol=1e-15)
    rate.sum().backward()
    assert torch.allclose(s.grad, -1 / s.detach())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_constant_channel_noise_is_geometric_series(sampling):
    f, s = torch.full((101, 3), 0.7, dtype=torch.float64), torch.full((101, 3), 0.6, dtype=torch.float64)
    noise = echo_ext.echo_noise(f, s, sampling=sampling)
    assert torch.allclose(noise, torch.full_like(noise, 0.7 * (1 - 0.6**100) / (1 - 0.6)), rtol=1e-14)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_output_and_noise_have_same_distribution(sampling):
    """z = f + s eps has the distribution of eps: for constant s, mean E f / (1 - s) and variance Var f / (1 - s^2)."""
    count, scale = 20_000, 0.8
    f = torch.rand(count, 4, dtype=torch.float64) - 0.3
    s = torch.full_like(f, scale)
    z = echo_ext.echo_sample(f, s, num_terms=200, sampling=sampling)
    noise = echo_ext.echo_noise(f, s, num_terms=200, sampling=sampling)
    for draws in (z, noise):
        # Neighbors on a ring share terms, so the variance of the mean is (1 + s) / (1 - s) = 9 times that of
        # independent samples.
        error = 6 * math.sqrt(9 / count)
        assert torch.allclose(draws.mean(0), f.mean(0) / (1 - scale), atol=error * 0.5)
        assert torch.allclose(draws.var(0), f.var(0) / (1 - scale**2), rtol=error)


@pytest.mark.parametrize("sampling", ["permutation", "ring"])
def test_batch_rows_are_exchangeable(sampling):
    """Averaged over seeds, the noise of a row is the mean of the other rows times the geometric series."""
    f = torch.arange(5, dtype=torch.float64)[:, None]
    s = torch.full_like(f, 0.5)
    noise = torch.stack([echo_ext.echo_noise(f, s, sampling=sampling, seed=q) for q in range(4000)]).mean(0)
    others = (f.sum() - f) / 4
    assert torch.allclose(noise, others * (1 - 0.5**4) / 0.5, atol=0.15)
