"""EchoChannel: its parameterization, its bank, and its use inside a model."""

import copy
import math
import pickle

import pytest
import torch

import echo_ext
from echo_ext import EchoChannel


def trained(rows=30, shape=(4,), **options):
    channel = EchoChannel(**{"num_terms": 20, "bank_size": 50, **options})
    channel(torch.randn(rows, *shape), torch.randn(rows, *shape))
    return channel


def test_parameterization_matches_paper():
    """The channel follows the equations of the paper, with the same scale bound r in the noise and in the rate."""
    channel = EchoChannel(num_terms=20, bound=2.0, activation_scale=4.0, bank_size=30)
    f_raw, s_raw = torch.randn(30, 4, dtype=torch.float64) * 5, torch.randn(30, 4, dtype=torch.float64)
    torch.manual_seed(1)
    z, rate = channel(f_raw, s_raw)
    f = 2.0 * (f_raw / 4.0).tanh()
    s = echo_ext.max_scale(20, bound=2.0) * s_raw.sigmoid()
    torch.manual_seed(1)
    assert torch.allclose(z, echo_ext.echo_sample(f, s, num_terms=20), rtol=1e-12)
    assert torch.allclose(rate, -s.log(), rtol=1e-12)
    assert (rate > -math.log(channel.scale)).all()


def test_rate_is_exact_when_scales_underflow():
    channel = EchoChannel(num_terms=5)
    rate = channel(torch.zeros(6, 1), torch.full((6, 1), -1000.0)).rate
    assert torch.allclose(rate, torch.full((6, 1), 1000.0 - math.log(channel.scale)))


def test_multiplicative_output_is_exp_of_additive():
    plain, multiplicative = EchoChannel(5, bank_size=9), EchoChannel(5, bank_size=9, multiplicative=True)
    f_raw, s_raw = torch.randn(9, 3), torch.randn(9, 3)
    torch.manual_seed(2)
    expected = plain(f_raw, s_raw)
    torch.manual_seed(2)
    actual = multiplicative(f_raw, s_raw)
    assert torch.equal(actual.z, expected.z.exp())
    assert torch.equal(actual.rate, expected.rate)
    assert (multiplicative.sample(100) > 0).all()


def test_gradients_reach_both_inputs():
    channel = EchoChannel(num_terms=8)
    f_raw, s_raw = torch.randn(9, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    z, rate = channel(f_raw, s_raw)
    (z.square().sum() + rate.sum()).backward()
    assert f_raw.grad.abs().min() > 0
    assert s_raw.grad.abs().min() > 0


def test_bank_holds_newest_rows_first():
    channel = EchoChannel(num_terms=3, bank_size=7, activation_scale=1.0)
    batches = [torch.randn(5, 2) for _ in range(3)]
    for batch in batches:
        channel(batch, batch)
    newest = torch.cat([batches[2], batches[1]])[:7]
    assert torch.allclose(channel.bank_f, newest.tanh())
    assert torch.allclose(channel.bank_s, channel.scale * newest.sigmoid())
    assert not channel.bank_f.requires_grad


def test_first_batch_fills_bank():
    channel = trained(rows=21, bank_size=50)
    assert channel.bank_f.shape == (50, 4)
    assert torch.equal(channel.bank_f[:21], channel.bank_f[21:42])


@pytest.mark.parametrize("sampling", ["permutation", "replacement", "ring"])
def test_eval_encoding_is_independent_of_batch(sampling):
    channel = trained(sampling=sampling).eval()
    bank = channel.bank_f.clone()
    f_raw, s_raw = torch.randn(6, 4), torch.randn(6, 4)
    torch.manual_seed(3)
    alone = channel(f_raw[:1], s_raw[:1])
    torch.manual_seed(3)
    together = channel(f_raw, s_raw)
    assert torch.allclose(alone.z, together.z[:1], rtol=1e-6)
    assert torch.equal(channel.bank_f, bank)


def test_small_training_batch_draws_from_bank():
    channel = trained(num_terms=20, bank_size=50)
    f_raw = torch.randn(3, 4, requires_grad=True)
    z, rate = channel(f_raw, torch.zeros(3, 4))
    assert z.shape == rate.shape == (3, 4)
    z.sum().backward()
    assert f_raw.grad.abs().min() > 0


def test_sample_matches_latent_distribution():
    """Samples of the marginal q(z) and encodings of the rows in the bank agree in mean and variance."""
    channel = EchoChannel(num_terms=60, bank_size=2000, activation_scale=1.0).eval()
    channel.train()
    f_raw, s_raw = torch.randn(2000, 3), torch.randn(2000, 3)
    z = channel(f_raw, s_raw).z
    draws = channel.sample(20_000)
    assert draws.shape == (20_000, 3)
    assert torch.allclose(draws.mean(0), z.mean(0), atol=0.12)
    assert torch.allclose(draws.var(0), z.var(0), rtol=0.25)


def test_image_shaped_latents():
    channel = EchoChannel(num_terms=10)
    z, rate = channel(torch.randn(11, 2, 3, 5), torch.randn(11, 2, 3, 5))
    assert z.shape == rate.shape == (11, 2, 3, 5)
    assert channel.sample(4).shape == (4, 2, 3, 5)


def test_state_dict_round_trip():
    channel = trained()
    restored = EchoChannel(num_terms=20, bank_size=50)
    restored.load_state_dict(channel.state_dict())
    torch.manual_seed(4)
    expected = channel.sample(5)
    torch.manual_seed(4)
    assert torch.equal(restored.sample(5), expected)
    EchoChannel(num_terms=20, bank_size=50).load_state_dict(EchoChannel(num_terms=20, bank_size=50).state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda channel: pickle.loads(pickle.dumps(channel))])
def test_copies_are_equal_and_independent(clone):
    channel = trained()
    other = clone(channel)
    torch.manual_seed(5)
    expected = channel.sample(5)
    torch.manual_seed(5)
    assert torch.equal(other.sample(5), expected)
    other(torch.randn(30, 4), torch.randn(30, 4))
    assert not torch.equal(other.bank_f, channel.bank_f)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_channel_converts_between_dtypes(dtype):
    channel = trained().to(dtype)
    assert channel.sample(3).dtype == dtype
    z, rate = channel(torch.randn(25, 4, dtype=dtype), torch.randn(25, 4, dtype=dtype))
    assert z.dtype == dtype
    assert rate.dtype == torch.promote_types(dtype, torch.float32)
    assert channel.eval()(torch.randn(1, 4), torch.randn(1, 4)).z.dtype == torch.float32  # as the input


def test_replaces_gaussian_channel_in_training():
    """The training loop of the README runs with EchoChannel in place of a Gaussian channel."""
    layer = torch.nn.Linear(5, 6)
    channel = EchoChannel(num_terms=15)
    x = torch.randn(16, 5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    rates = []
    for _ in range(20):
        _, rate = channel(*layer(x).chunk(2, dim=-1))
        loss = rate.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append(float(loss.detach()))
    assert rates[-1] < rates[0]
    assert rates[-1] > -3 * math.log(channel.scale)


# ---- Invalid input ---------------------------------------------------------------------------------------------------


def test_too_small_first_batch_raises():
    with pytest.raises(ValueError, match=r"at least 21 rows for num_terms=20 while the bank is still empty, got 10"):
        EchoChannel(num_terms=20)(torch.randn(10, 2), torch.randn(10, 2))


def test_eval_and_sample_before_training_raise():
    with pytest.raises(ValueError, match="train a batch first"):
        EchoChannel().eval()(torch.randn(1, 2), torch.randn(1, 2))
    with pytest.raises(ValueError, match="train a batch first"):
        EchoChannel().sample(3)


def test_row_shape_differing_from_training_raises():
    with pytest.raises(ValueError, match=r"rows of the shape seen in training, \(4,\), got \(5,\)"):
        trained().eval()(torch.randn(1, 5), torch.randn(1, 5))
    with pytest.raises(ValueError, match=r"shape seen in training, \(4,\)"):
        trained()(torch.randn(30, 5), torch.randn(30, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_terms": 0}, "num_terms must be at least 1, got 0"),
        ({"bound": -1.0}, "bound must be a finite number above 0, got -1.0"),
        ({"activation_scale": 0.0}, "activation_scale must be a finite number above 0, got 0.0"),
        ({"sampling": "shuffle"}, "sampling must be one of 'permutation', 'replacement', 'ring', got 'shuffle'"),
        ({"num_terms": 99, "bank_size": 50}, "bank_size must be at least 99, got 50"),
    ],
)
def test_invalid_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        EchoChannel(**options)


# ---- The rate floor --------------------------------------------------------------------------------------------------


def test_more_terms_lower_rate_floor():
    floors = {terms: -math.log(echo_ext.max_scale(terms)) for terms in (99, 1023, 8191)}
    assert floors[99] == pytest.approx(0.179, abs=5e-4)
    assert floors[8191] < 0.003
    assert floors[99] > floors[1023] > floors[8191]


@pytest.mark.parametrize(("num_terms", "floor"), [(99, 0.18), (8191, 0.003)])
def test_training_reaches_rate_floor(num_terms, floor):
    """An encoder trained only to lower the rate reaches the minimum that the channel allows."""
    channel = EchoChannel(num_terms, sampling="ring", bank_size=num_terms)
    encoder = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(encoder.parameters(), 1.0)
    for _ in range(60):
        _, rate = channel(*encoder(torch.randn(num_terms + 1, 4)).chunk(2, dim=-1))
        optimizer.zero_grad()
        rate.mean().backward()
        optimizer.step()
    assert -math.log(channel.scale) < float(rate.detach().mean()) < floor


def test_minimum_rate_is_mutual_information():
    """For normal f and s = r, the maximum scale, the information is -log(1 - corr(f, z)**2) / 2 = -log r."""
    scale = echo_ext.max_scale(8191)
    f = torch.randn(16, 8192, 8, dtype=torch.float64)
    z = torch.stack([echo_ext.echo_sample(one, torch.full_like(one, scale), sampling="ring") for one in f])
    sample = lambda t: t.transpose(1, 2).reshape(-1, 8192)  # noqa: E731
    product = ((sample(f) * sample(z)).mean(1) * math.sqrt(1 - scale**2)).mean()  # z scaled to unit variance
    error = 1 / math.sqrt(f.numel())
    assert abs(float(product) - math.sqrt(1 - scale**2)) < 6 * error
    assert -math.log(1 - (1 - scale**2)) / 2 == pytest.approx(-math.log(scale))
