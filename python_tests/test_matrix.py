"""Echo noise with a scale matrix for each row: values, gradients, distribution, and the channel with bounded norms."""

import math

import pytest
import torch
from echo_cases import relative_error, signal_and_scale
from scipy import stats
from torch.nn import functional

import echo_ext
from echo_ext import EchoMatrixChannel, echo_rate_matrix, echo_sample_matrix, reference

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def signal_and_matrix(rows, dim, dtype=torch.float64, norm=0.9):
    f = torch.randn(rows, dim, dtype=torch.float64).tanh()
    S = torch.randn(rows, dim, dim, dtype=torch.float64)
    S = norm * torch.rand(rows, 1, 1, dtype=torch.float64) * S / torch.linalg.matrix_norm(S, 2)[:, None, None]
    return f.to(dtype).requires_grad_(), S.to(dtype).requires_grad_()


def circle(rows, seed):
    return echo_ext.echo_indices(1, sampling="ring", seed=seed, bank_size=rows)[0]


# The kernel splits the circle into arcs of 512 rows: 513 and 1030 rows need two and three arcs.
@pytest.mark.parametrize(("rows", "dim"), [(2, 1), (2, 3), (7, 5), (40, 33), (20, 64), (513, 4), (1030, 3)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients_match_reference(rows, dim, dtype):
    # On a circle of two rows a rounding error returns every second step, so a smaller norm must damp it.
    f, S = signal_and_matrix(rows, dim, dtype, norm=0.5 if rows == 2 else 0.9)
    seed = int(torch.randint(2**62, ()))
    weights = torch.randn(rows, dim, dtype=torch.float64).to(dtype).double()
    z = echo_sample_matrix(f, S, seed=seed)
    wide = [t.detach().double().requires_grad_() for t in (f, S)]
    expected = reference.echo_matrix_circle(*wide, circle(rows, seed))
    assert z.dtype == dtype
    assert relative_error(z, expected) < TOLERANCE[dtype]
    actual = torch.autograd.grad((z * weights).sum(), (f, S))
    for ours, theirs in zip(actual, torch.autograd.grad((expected * weights).sum(), wide), strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("norm", [0.0, 0.999])
def test_zero_and_near_unit_norms_match_reference(norm):
    f, S = signal_and_matrix(600, 4)
    S = (norm * torch.linalg.qr(S.detach()).Q).requires_grad_()  # orthogonal matrices: every direction keeps its length
    z = echo_sample_matrix(f, S, seed=1)
    assert relative_error(z, reference.echo_matrix_circle(f, S, circle(600, 1))) < 1e-11
    two_f, two_S = f[:2], S[:2]  # thousands of turns around the circle
    z = echo_sample_matrix(two_f, two_S, seed=1)
    assert relative_error(z, reference.echo_matrix_circle(two_f, two_S, circle(2, 1))) < 1e-10


@pytest.mark.parametrize(("rows", "dim"), [(2, 64), (9, 33), (600, 4)])
@pytest.mark.parametrize("norm", [0.97, 0.999])
def test_fixed_point_iteration_terminates(rows, dim, norm):
    """Rounding limits the fixed point to about eps / (1 - norm); a stricter stopping rule might never be met."""
    f, S = signal_and_matrix(rows, dim, torch.float32)
    S = norm * torch.linalg.qr(S.detach()).Q
    z = echo_sample_matrix(f, S, seed=3)
    exact = echo_sample_matrix(f.double(), S.double(), seed=3)
    assert relative_error(z, exact) < 16 * torch.finfo(torch.float32).eps / (1 - norm)


@pytest.mark.parametrize(("rows", "dim"), [(2, 2), (5, 3)])
def test_gradcheck(rows, dim):
    assert torch.autograd.gradcheck(
        lambda f, S: echo_sample_matrix(f, S, seed=1), signal_and_matrix(rows, dim, norm=0.7)
    )


def test_diagonal_matrices_match_ring_sampling():
    """The two differ only in the terms after the first B - 1, which are negligible here."""
    f, s = signal_and_scale((90, 5), largest_scale=0.6)
    z = echo_sample_matrix(f, torch.diag_embed(s), seed=7)
    assert relative_error(z, echo_ext.echo_sample(f, s, sampling="ring", seed=7)) < 1e-12


def test_triangular_first_dimension_matches_scalar_echo():
    f, S = signal_and_matrix(50, 3, norm=0.5)
    z = echo_sample_matrix(f, S.tril(), seed=2)
    alone = echo_sample_matrix(f[:, :1], S.tril()[:, :1, :1], seed=2)
    assert relative_error(z[:, :1], alone) < 1e-12


def test_output_distribution_is_normal():
    """For f ~ N(0, I) and constant S, z ~ N(0, C) with C = I + S C S^T."""
    torch.manual_seed(int(torch.randint(2**31, ())))
    S = torch.tensor([[0.6, 0.3], [-0.4, 0.5]], dtype=torch.float64)
    f = torch.randn(40_000, 2, dtype=torch.float64)
    z = echo_sample_matrix(f, S.expand(len(f), 2, 2))
    covariance = torch.linalg.solve(
        torch.eye(4, dtype=torch.float64) - torch.kron(S, S), torch.eye(2, dtype=torch.float64).reshape(4)
    ).reshape(2, 2)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), z.T, upper=False).T
    far_apart = whitened[torch.randperm(len(z))[:1000]]  # neighbors on the ring are dependent
    assert stats.kstest(far_apart.flatten().numpy(), stats.norm().cdf).pvalue > 1e-6
    assert torch.allclose(z.T.cov(), covariance, atol=0.15)


def test_rate_is_negative_log_determinant():
    """I(x; z) = 1/2 log det C - 1/2 log det S C S^T = -log|det S|."""
    S = 0.5 * torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert float(echo_rate_matrix(S)) == pytest.approx(3 * math.log(2))
    assert echo_rate_matrix(S.expand(4, 3, 3)).shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("position", [0, 510, 1022, 300, 1030 - 1024, 1030 - 512])
def test_infinite_matrix_entry_reaches_every_row(dtype, position):
    """Every position except 300 ends an arc of the kernel, in the forward or backward pass.

    The state that such an arc passes on is infinite in one dimension only.
    """
    f, S = (t.detach() for t in signal_and_matrix(1030, 3, dtype, norm=0.5))
    S[circle(1030, 1)[position], 2, 0] = math.inf
    z = echo_sample_matrix(f.requires_grad_(), S, seed=1)
    (gradient,) = torch.autograd.grad(z.sum(), f)
    for reached in (z, gradient):
        assert reached.isfinite().any(1).sum() <= 1


@pytest.mark.parametrize("rows", [2, 20, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nonfinite_results_terminate(rows, dtype):
    f, S = (t.detach() for t in signal_and_matrix(rows, 3, dtype, norm=0.5))
    f[rows // 2, 1] = math.nan
    assert echo_sample_matrix(f, S).isnan().all()  # every noise depends on every row
    for growth in (1.05, 1.5, 20.0):
        growing = growth * torch.linalg.qr(S).Q
        assert not echo_sample_matrix(f.nan_to_num(), growing).isfinite().all()


def test_opcheck():
    f, S = signal_and_matrix(6, 3)
    seed = torch.tensor(3)
    for name, arguments in (
        ("echo_matrix", (f, S, seed)),
        ("echo_matrix_backward", (torch.randn_like(f), S.detach(), f.detach(), seed)),
    ):
        results = torch.library.opcheck(getattr(torch.ops.echo_ext, name), arguments, test_utils=OPCHECKS)
        assert set(results.values()) == {"SUCCESS"}


def test_noncontiguous_inputs_give_equal_results():
    f, S = (t.detach() for t in signal_and_matrix(9, 4))
    z = echo_sample_matrix(f, S, seed=1)
    assert torch.equal(echo_sample_matrix(f.T.contiguous().T, S.mT.contiguous().mT, seed=1), z)


def test_double_backward_raises():
    f, S = signal_and_matrix(5, 2)
    grads = torch.autograd.grad(echo_sample_matrix(f, S).sum(), (f, S), create_graph=True)
    with pytest.raises(RuntimeError, match="has no double backward"):
        grads[0].sum().backward()


@pytest.mark.parametrize(
    ("f", "S", "error", "message"),
    [
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            ValueError,
            r"shapes \(B, d\) and \(B, d, d\), got \(3, 2\) and \(3, 2\)",
        ),
        (torch.zeros(1, 2), torch.zeros(1, 2, 2), ValueError, "f must have at least 2 rows"),
        (torch.zeros(3, 65), torch.zeros(3, 65, 65), ValueError, "f must have at most 64 columns, got 65"),
        (torch.zeros(3, 2), torch.zeros(3, 2, 2).double(), TypeError, "f and S must have the same dtype"),
        (torch.zeros(3, 2).int(), torch.zeros(3, 2, 2), TypeError, "f must be one of float64"),
    ],
)
def test_invalid_inputs_raise(f, S, error, message):
    with pytest.raises(error, match=message):
        echo_sample_matrix(f, S)


# ---- The channel -----------------------------------------------------------------------------------------------------


def channel_and_input(rows=40, dim=4, min_other_rows=20, spread=3.0, **options):
    channel = EchoMatrixChannel(dim, min_other_rows, bank_size=50, **options)
    return channel, torch.randn(rows, dim), spread * torch.randn(rows, channel.num_scale_features)


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_spectral_norms_stay_below_bound(spread):
    channel, _, s_raw = channel_and_input(rows=200, dim=6, spread=spread)
    scale, _ = channel.scale_and_rate(s_raw.double())
    assert torch.linalg.matrix_norm(scale, 2).max() <= channel.scale * (1 + 1e-6)
    assert channel.scale == echo_ext.max_scale(20, bound=math.sqrt(6))


def test_rate_matches_log_determinant():
    channel, f_raw, s_raw = channel_and_input(spread=1.0)
    scale, rate = channel.scale_and_rate(s_raw.double())
    assert torch.allclose(rate.sum(1), echo_rate_matrix(scale), rtol=1e-10)
    assert torch.allclose(channel(f_raw, s_raw).rate, rate.float(), rtol=1e-4)


def test_rate_is_exact_when_scales_underflow():
    channel, _, s_raw = channel_and_input()
    s_raw = torch.zeros_like(s_raw)
    s_raw[:, :4] = -1000.0
    assert torch.allclose(channel.scale_and_rate(s_raw)[1], torch.tensor(1000.0 - math.log(channel.scale)))


def test_diagonal_features_give_diagonal_matrix():
    channel, _, s_raw = channel_and_input(dim=3)
    s_raw[:, 3:] = 0
    scale, _ = channel.scale_and_rate(s_raw)
    expected = channel.scale * functional.logsigmoid(2 * s_raw[:, :3]).div(2).exp()
    assert torch.allclose(scale, torch.diag_embed(expected), atol=1e-6)


def test_training_sampling_and_state_dict():
    channel, f_raw, s_raw = channel_and_input(spread=1.0)
    f_raw.requires_grad_()
    s_raw.requires_grad_()
    z, rate = channel(f_raw, s_raw)
    assert z.shape == rate.shape == (40, 4)
    (z.square().sum() + rate.sum()).backward()
    assert f_raw.grad.abs().min() > 0
    assert s_raw.grad.abs().min() > 0
    assert channel(f_raw[:3], s_raw[:3]).z.shape == (3, 4)  # a small batch draws from the bank
    assert channel.sample(120).shape == (120, 4)
    restored = EchoMatrixChannel(4, 20, bank_size=50)
    restored.load_state_dict(channel.state_dict())
    restored.eval()
    assert restored(f_raw[:1], s_raw[:1]).z.shape == (1, 4)


def test_sample_matches_latent_distribution():
    channel = EchoMatrixChannel(3, 60, bank_size=2000, activation_scale=1.0)
    z = channel(torch.randn(2000, 3), torch.randn(2000, 6)).z
    draws = channel.sample(20_000)
    assert torch.allclose(draws.mean(0), z.mean(0), atol=0.12)
    assert torch.allclose(draws.T.cov(), z.T.cov(), atol=0.15)


def test_channel_rejects_invalid_inputs():
    with pytest.raises(ValueError, match="dim must be at most 64, got 65"):
        EchoMatrixChannel(65)
    channel, f_raw, s_raw = channel_and_input()
    with pytest.raises(ValueError, match=r"s_raw must have shape \(B, 10\), got \(40, 9\)"):
        channel(f_raw, s_raw[:, 1:])
    with pytest.raises(ValueError, match="at least 21 rows for min_other_rows=20 while the bank is still empty, got 5"):
        channel(f_raw[:5], s_raw[:5])
    with pytest.raises(ValueError, match="train a batch first"):
        channel.eval()(f_raw[:5], s_raw[:5])
