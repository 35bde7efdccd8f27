"""EchoChannel: its parameterization, its bank, and its use inside a model."""

import copy
import math
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import echo_ext
from echo_ext import EchoChannel


def trained(rows=30, shape=(4,), **options):
    channel = EchoChannel(**{"num_terms": 20, "bank_size": 50, **options})
    channel(torch.randn(rows, *shape), torch.randn(rows, *shape))
    return channel


def test_parameterization_matches_paper():
    """The channel follows the equations of the paper, with the same scale bound r in the noise and in the rate."""
    channel = EchoChannel(num_terms=20, bound=2.0, activation_scale=4.0, bank_size=30, gain=1)
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
    channel = EchoChannel(num_terms=3, bank_size=7, activation_scale=1.0, gain=1)
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


# ---- The gain --------------------------------------------------------------------------------------------------------


def both_channels(rows=40, dim=3, **options):
    """Channels of both kinds with their inputs."""
    matrix = echo_ext.EchoMatrixChannel(dim, 20, bank_size=50, **options)
    f_raw, s_raw = torch.randn(rows, dim) * torch.tensor([1.0, 2.0, 0.1]), torch.randn(rows, dim)
    yield EchoChannel(20, bank_size=50, **options), f_raw, s_raw
    yield matrix, f_raw, torch.randn(rows, matrix.num_scale_features)


@pytest.mark.parametrize("options", [{}, {"initial_std": 2.5}])
def test_first_batch_sets_standard_deviation(options):
    for channel, f_raw, s_raw in both_channels(**options):
        assert channel.gain.isnan()
        z = channel(f_raw, s_raw).z
        assert float(z.std(0, correction=0).mean()) == pytest.approx(options.get("initial_std", 1), rel=1e-5)
        gain = float(channel.gain)
        assert gain > 1
        channel(10 * f_raw, s_raw)
        assert float(channel.gain) == gain  # later batches do not change it
        assert torch.allclose(channel.mean(f_raw), gain * (f_raw / 16).tanh())
        assert torch.allclose(channel.bank_f[:40], (10 * f_raw / 16).tanh())


@pytest.mark.parametrize("multiplicative", [False, True])
def test_gain_is_a_change_of_units(multiplicative):
    """With any gain z is that many times the paper's, in training, in eval mode and from the marginal."""
    f_raw, s_raw = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    found = []
    for gain in (1, 7.0, "auto"):
        channel = EchoChannel(9, bank_size=30, gain=gain, multiplicative=multiplicative).double()
        torch.manual_seed(6)
        outputs = [channel(f_raw, s_raw), channel(f_raw, s_raw), channel.eval()(f_raw, s_raw)]
        z = torch.cat([*(output.z for output in outputs), channel.sample(11), channel.mean(f_raw)])
        found.append((z.log() if multiplicative else z) / channel.gain)
        assert torch.allclose(outputs[0].rate, -math.log(channel.scale) - torch.nn.functional.logsigmoid(s_raw))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-7)  # this gain is a float32 number


def test_gain_of_constant_codes_is_one():
    for channel, f_raw, s_raw in both_channels(initial_std=2.5):
        z = channel(torch.full_like(f_raw, 3.0), torch.zeros_like(s_raw)).z
        assert channel.gain == 1
        assert torch.isfinite(z).all()


def test_gradients_pass_the_gain_as_a_constant():
    f_raw, s_raw = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    seen = []
    for gain in (1, "auto"):
        channel = EchoChannel(8, gain=gain).double()
        inputs = f_raw.clone().requires_grad_(), s_raw.clone().requires_grad_()
        for _ in range(2):  # the batch that sets the gain, and one after it
            torch.manual_seed(7)
            seen.append(torch.stack(torch.autograd.grad(channel(*inputs).z.square().sum(), inputs)) / channel.gain**2)
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_first_batch_can_be_checkpointed(use_reentrant):
    """The recomputation, which finds the gain set, saves the same tensors and has the same gradients."""
    for channel, f_raw, s_raw in both_channels(initial_std=2.0):
        found = []
        for each in (copy.deepcopy(channel), channel):
            inputs = f_raw.clone().requires_grad_(), s_raw.clone().requires_grad_()
            torch.manual_seed(8)
            if each is channel:
                z, rate = checkpoint(each, *inputs, use_reentrant=use_reentrant)
            else:
                z, rate = each(*inputs)
            (z.square().sum() + rate.sum()).backward()
            found += [z.detach(), *(each.grad for each in inputs)]
        assert all(map(torch.equal, found[:3], found[3:]))


def test_two_forward_passes_before_one_backward_pass():
    """A buffer that is written between the passes, as DistributedDataParallel does, does not invalidate the first."""
    channel = trained()
    f_raw = torch.randn(30, 4, requires_grad=True)
    first = channel(f_raw, torch.randn(30, 4)).z
    channel.gain.copy_(channel.gain.clone())
    (first.sum() + channel(f_raw, torch.randn(30, 4)).z.sum()).backward()
    assert f_raw.grad.abs().min() > 0


@pytest.mark.parametrize("gain", ["auto", 5.0])
def test_eval_before_training_draws_from_batch(gain):
    """Validation may come first; it changes no buffer."""
    for channel, f_raw, s_raw in both_channels(gain=gain, initial_std=2.0):
        untouched = channel.state_dict()
        z, rate = channel.eval()(f_raw, s_raw)
        assert z.shape == rate.shape == f_raw.shape
        if gain == "auto":
            assert float(z.std(0, correction=0).mean()) == pytest.approx(2, rel=1e-5)
        else:
            assert torch.equal(channel.gain, torch.tensor(5.0))
        assert not channel.has_bank
        torch.testing.assert_close(channel.state_dict(), untouched, equal_nan=True)
        with pytest.raises(ValueError, match=r"at least 21 rows for .*=20 while .* got 20: train a batch first"):
            channel(f_raw[:20], s_raw[:20])
        assert channel.train()(f_raw, s_raw).z.shape == f_raw.shape


def test_state_dict_of_other_channel_raises():
    saved = trained(gain=3.0).state_dict()
    assert {"num_terms", "bound", "activation_scale", "gain", "bank_f", "bank_s"} == set(saved)
    for options, message in (
        ({"num_terms": 19}, r"num_terms must be 19, as in this channel, got 20"),
        ({"bound": 2.0}, r"bound must be 2.0, as in this channel, got 1.0"),
        ({"activation_scale": 1.0}, r"activation_scale must be 1\.0, as in this channel, got 16.0"),
        ({"gain": 1}, r"gain must be 1, as in this channel, got 3.0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            EchoChannel(**{"num_terms": 20, "bank_size": 50, **options}).load_state_dict(saved)
    automatic = EchoChannel(20, bank_size=50)
    automatic.load_state_dict(saved)
    assert automatic.gain == 3
    with pytest.raises(RuntimeError, match=r"Missing key.*num_terms"):
        automatic.load_state_dict({name: value for name, value in saved.items() if name != "num_terms"})
    matrix, other = (echo_ext.EchoMatrixChannel(3, other_rows, bank_size=50) for other_rows in (20, 21))
    with pytest.raises(RuntimeError, match="min_other_rows must be 21, as in this channel, got 20"):
        other.load_state_dict(matrix.state_dict())


def test_model_with_channel_keeps_its_other_keys():
    model = torch.nn.ModuleDict({"channel": trained(), "layer": torch.nn.Linear(2, 2)})
    other = torch.nn.ModuleDict({"channel": EchoChannel(20, bank_size=50), "layer": torch.nn.Linear(2, 2)})
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.state_dict(), model.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*channel.other"):
        other.load_state_dict({**model.state_dict(), "channel.other": torch.zeros(1)})


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


@pytest.mark.parametrize("bank_size", [30, 120])
def test_bank_of_another_size_loads(bank_size):
    channel = trained()  # with a bank of 50 rows
    other = EchoChannel(num_terms=20, bank_size=bank_size)
    other.load_state_dict(channel.state_dict())
    assert torch.equal(other.bank_f, torch.cat([channel.bank_f] * 3)[:bank_size])
    f_raw = torch.randn(30, channel.bank_f.shape[1])
    other(f_raw, f_raw)
    assert len(other.bank_f) == len(other.bank_s) == bank_size


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
    message = r"at least 21 rows for num_terms=20 while the bank is still empty, got 10: .* or set num_terms to 9"
    with pytest.raises(ValueError, match=message):
        EchoChannel(num_terms=20)(torch.randn(10, 2), torch.randn(10, 2))


def test_eval_and_sample_before_training_raise():
    with pytest.raises(ValueError, match=r"at least 100 rows for num_terms=99 .* got 1: train a batch first"):
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
        ({"gain": 0.0}, "gain must be a finite number above 0, got 0.0"),
        ({"gain": math.nan}, "gain must be a finite number above 0, got nan"),
        ({"initial_std": 0.0}, "initial_std must be a finite number above 0, got 0.0"),
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
