"""The rate-distortion recipes: the terms of the loss, learning, generation, and the state that is saved."""

import copy
import math

import pytest
import torch
from model_cases import log_normal
from torch.torch_version import TorchVersion

from echo_ext.models import (
    Autoencoder,
    build,
    mmd,
    recipes,
)
from echo_ext.models._numerics import log_mean_exp
from echo_ext.models.channels import gaussian_factors
from echo_ext.models.recipes import RECIPES, find

NAMES = (
    *("echo", "vae", "beta-vae", "infovae", "vae-maf", "vae-vamp", "iaf-prior", "iaf-mmd", "iaf-maf", "iaf-vamp"),
    *("factor-vae", "echo-matrix", "echo-tc", "corex", "anchor-vae"),
)
SHAPE = (1, 6, 6)


def small(name, shape=SHAPE, **overrides):
    """A recipe with small networks that train quickly."""
    quick = {
        "hidden": (32,),
        "flow_hidden": (16,),
        "flow_steps": 2,
        "pseudo_inputs": 12,
        "bank_size": 64,
        "aggregate_rows": 64,
        "discriminator_width": 24,
        "num_terms": 31,
        "min_other_rows": 31,
    }
    known = find(name).model_settings
    return build(name, shape, latent_dim=6, **{key: value for key, value in quick.items() if key in known}, **overrides)


def small_or_default(name):
    return small(name) if "hidden" in find(name).model_settings else build(name, (1, 8, 8), latent_dim=4)


def blobs(rows):
    """Binary images of four kinds with some flipped pixels."""
    kinds = (torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    flipped = (torch.rand(rows, *SHAPE) < 0.05).float()
    return (kinds[torch.randint(4, (rows,))] - flipped).abs()


def test_all_autoencoder_recipes_exist():
    assert {name for name in RECIPES if isinstance(small_or_default(name), Autoencoder)} == set(NAMES)
    assert all(recipes()[name] for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_learns_and_generates(name):
    model, x = small(name), blobs(128)
    model.prepare(x)
    optimizer = torch.optim.Adam(model.parameter_groups(5e-3))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        terms = model.loss(x)
        assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert sum(losses[-5:]) < sum(losses[:5]) - 5
    model.refresh(x)
    model.eval()
    assert model.encode(x[:3]).shape == (3, 6)
    for images in (model.reconstruct(x[:3]), model.sample(3)):
        assert images.shape == (3, *SHAPE)
        assert images.min() >= 0
        assert images.max() <= 1
    assert model.sample_latent(5).shape == (5, 6)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_sum_of_its_terms(name):
    model = small(name)
    terms = {key: value.item() for key, value in model.loss(blobs(64)).items()}
    beta = model.beta if isinstance(model.beta, float) else 1
    expected = terms["distortion"] + beta * terms["rate" if name.startswith("echo") else "rate_bound"]
    for regularizer in model.regularizers:
        expected += regularizer.weight * (terms.get("mmd", 0) + terms.get("total_correlation", 0))
    if name != "anchor-vae":
        assert terms["loss"] == pytest.approx(expected, rel=1e-5)
    assert ("mmd" in terms) == (name in ("infovae", "iaf-mmd"))
    assert ("discriminator_loss" in terms) == (name in ("factor-vae", "echo-tc"))


def test_cheap_latents_have_half_the_weight():
    model, x = small("anchor-vae"), blobs(32)
    torch.manual_seed(5)
    terms = model.loss(x)
    torch.manual_seed(5)
    rate = model.transmit(x).rate.mean(0)
    expected = terms["distortion"] + 0.5 * rate[:5].sum() + rate[5]
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["rate_bound"], rate.sum())


def test_warm_up_weight_multiplies_the_rate():
    model, x = small("beta-vae"), blobs(32)
    model.warm_up_weight = 0.25
    terms = model.loss(x)
    torch.testing.assert_close(terms["loss"], terms["distortion"] + 0.25 * 4 * terms["rate_bound"])


def test_echo_rate_is_that_of_the_channel():
    model, x = small("echo", beta=0.7), blobs(64)
    terms = model.loss(x)
    s_raw = model.channel_inputs(x)[1]
    expected = -(math.log(model.channel.scale) + torch.nn.functional.logsigmoid(s_raw)).sum(1).mean()
    torch.testing.assert_close(terms["rate"], expected)
    torch.testing.assert_close(terms["loss"], terms["distortion"] + 0.7 * expected)


@pytest.mark.parametrize("name", ["vae", "vae-vamp", "vae-maf", "iaf-prior", "iaf-vamp", "iaf-maf"])
def test_mean_log_weight_is_the_elbo(name):
    model = small(name).double()
    x = blobs(1).double().expand(4000, *SHAPE)
    with torch.no_grad():
        weights, terms = model.log_weight(x), model.loss(x)
    error = 6 * weights.std().item() / math.sqrt(len(x))
    assert weights.mean().item() == pytest.approx(-(terms["distortion"] + terms["rate_bound"]).item(), abs=2 * error)


@pytest.mark.parametrize("name", ["vae", "vae-vamp", "vae-maf", "iaf-prior", "iaf-vamp", "iaf-maf"])
def test_defensive_draws_estimate_the_same_evidence(name):
    model = small(name).double()
    x = blobs(1).double().expand(20_000, *SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)  # so that the weights vary little and the errors are those of a normal distribution
        plain, defensive = (model.log_weight(x, defensive_weight=weight) for weight in (0.0, 0.7))
    weights = torch.stack([plain, defensive]).sub(plain.max()).exp()
    error = weights.std(1).norm().item() / math.sqrt(len(x))
    assert weights[0].mean().item() == pytest.approx(weights[1].mean().item(), abs=5 * error)
    assert error < 0.3 * weights[1].mean()


def test_vamp_marginal_after_the_flow_by_brute_force():
    """The marginal of iaf-vamp is m(z) = mean_k q(z|u_k), here computed by inverting the flow at z."""
    model = small("iaf-vamp").double()
    q = model.posterior(blobs(5).double())
    z = q.rsample()
    means, log_variances = model.channel_inputs(model.prior.pseudo_inputs.clamp(0, 1))
    before = model.channel.flow.inverse(z)
    brute = log_mean_exp(log_normal(before[:, None], means, log_variances).sum(2), dim=1)
    torch.testing.assert_close(model.prior.rate(q, z), q.log_prob(z) - brute)
    torch.testing.assert_close(model.prior.log_prob(z), brute)
    # Before the flow its samples must have the moments of the mixture, which are known.
    with torch.no_grad():
        draws = model.channel.flow.inverse(model.sample_latent(20_000))
        variance = means.var(0, correction=0) + log_variances.exp().mean(0)
    assert ((draws.mean(0) - means.mean(0)).abs() < 5 * (variance / len(draws)).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.1, atol=0)


def test_infovae_penalty_is_the_mmd():
    model, x = small("infovae"), blobs(64)
    torch.manual_seed(3)
    found = model.loss(x)["mmd"]
    torch.manual_seed(3)
    z = model.encode(x)
    torch.testing.assert_close(found, mmd(z, torch.randn_like(z)))


@pytest.mark.parametrize("multiplicative", [False, True])
def test_total_correlation_of_echo_does_not_depend_on_the_gain(multiplicative):
    """The discriminator sees z in the units of the paper; with those of z, up to the gain, training explodes."""
    x, found = blobs(64), []
    for initial_std in (0.1, 1.0):
        torch.manual_seed(1)
        model = small("echo-tc", initial_std=initial_std, multiplicative=multiplicative)
        model.loss(x)
        model = copy.deepcopy(model).double()  # its discriminator must see the gain of the copied channel
        torch.manual_seed(2)
        terms = model.loss(x.double())
        found.append(torch.stack([terms["total_correlation"], terms["discriminator_loss"]]))
        model.channel.gain.mul_(2)
        torch.manual_seed(2)
        assert torch.allclose(model.loss(x.double())["total_correlation"], terms["total_correlation"])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["factor-vae", "echo-tc"])
def test_one_backward_gives_model_and_discriminator_gradients(name):
    model, x = small(name), blobs(64)

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    torch.manual_seed(9)
    both = gradients(model.loss(x)["loss"])
    torch.manual_seed(9)
    alone = gradients(model.loss(x)["discriminator_loss"])
    discriminator = set(map(id, model.regularizers[0].discriminator.parameters()))
    for parameter, together, own in zip(model.parameters(), both, alone, strict=True):
        if id(parameter) in discriminator:
            torch.testing.assert_close(together, own)
        else:
            assert together is not None
            assert own is None
    groups = model.parameter_groups(1e-3)
    assert (groups[1]["lr"], groups[1]["betas"]) == (1e-4, (0.5, 0.9))
    assert set(map(id, groups[1]["params"])) == discriminator
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", RECIPES)
def test_no_step_reads_a_value_from_the_device(name):
    """Values on the meta device do not exist. A step that read one on a GPU could not be part of a CUDA graph."""
    settings = {"likelihood": "categorical"} if name == "mutual-ae" else {}
    shape = (8,) if name in ("mim", "a-mim", "mim-h", "vae-h", "mutual-ae") else (1, 8, 8)
    with torch.device("meta"):
        model = build(name, shape, latent_dim=6, **settings)
        model.loss(torch.rand(128, *shape))["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_float32_under_autocast(name):
    model, x = small(name), blobs(64)
    torch.manual_seed(2)
    full = model.loss(x)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.loss(x)
    mixed["loss"].backward()
    for key, value in mixed.items():
        assert value.dtype == torch.float32
        if key != "loss" or "mmd" not in mixed:  # the weight of 999 amplifies the rounding of z
            torch.testing.assert_close(value, full[key], rtol=0.02, atol=0.02)


NEEDS_NEWER_COMPILER = pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.6",
    reason="torch 2.4 cannot trace functional_call, nor the inverse of a transform",
)


@pytest.mark.parametrize(
    "name",
    ["echo", *(pytest.param(name, marks=NEEDS_NEWER_COMPILER) for name in ("iaf-vamp", "factor-vae"))],
)
def test_a_step_compiles_to_one_graph(name):
    model, x = small(name), blobs(64)
    model.loss(x)  # fills the bank of Echo, whose width is unknown before
    terms = torch.compile(model.loss, backend="aot_eager", fullgraph=True)(x)
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_and_copies_are_complete(name):
    model, x = small(name), blobs(64)
    model.prepare(x)
    model.loss(x)
    model.refresh(x)
    other = small(name)
    other.load_state_dict(model.state_dict())
    copied = copy.deepcopy(model)
    results = []
    for one in (model, other, copied):
        one.eval()
        torch.manual_seed(1)
        results.append([*(term.item() for term in one.loss(x).values()), one.sample(2).sum().item()])
    assert results[0] == results[1] == results[2]


def test_copied_vamp_prior_uses_the_copied_encoder():
    model = small("vae-vamp")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.encoder.parameters():
            parameter.zero_()
    z = torch.randn(3, 6)
    torch.testing.assert_close(copied.prior.log_prob(z), log_normal(z).sum(1))
    assert not torch.allclose(model.prior.log_prob(z), log_normal(z).sum(1))


def test_refresh_fills_the_echo_bank_with_current_codes():
    model, x = small("echo"), blobs(64)
    model.loss(blobs(64))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    model.refresh(x)
    assert not model.training
    assert not model.channel.training
    f = torch.tanh(model.channel_inputs(x)[0] / 16)
    torch.testing.assert_close(model.channel.bank_f.sort(0).values, f.sort(0).values)
    model.refresh(x[:5])  # fewer rows than the bank holds, so they are repeated
    assert (
        torch.cdist(model.channel.bank_f, f[:5], compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-4
    )


@pytest.mark.parametrize(
    ("name", "shape", "overrides", "initial_std"),
    [
        ("echo", (1, 6, 6), {}, 1.0),
        ("echo", (1, 28, 28), {}, 3.0),
        ("echo", (1, 28, 28), {"architecture": "mlp"}, 1.0),
        ("echo", (1, 28, 28), {"initial_std": 2.0}, 2.0),
        ("echo", (1, 28, 28), {"multiplicative": True}, 0.1),
        ("echo-matrix", (1, 28, 28), {}, 3.0),
    ],
)
def test_initial_std_follows_architecture(name, shape, overrides, initial_std):
    assert build(name, shape, **overrides).channel.initial_std == initial_std


def test_refresh_fills_the_aggregate():
    model, x = small("corex"), blobs(64)
    assert not model.aggregate.means.any()
    model.refresh(x)
    mean, log_variance = model.channel_inputs(x)
    torch.testing.assert_close(model.aggregate.means.sort(0).values, mean.sort(0).values)
    torch.testing.assert_close(2 * model.aggregate.stds.log().sort(0).values, log_variance.sort(0).values)


def test_vectors_have_gaussian_likelihoods():
    model = small("vae", shape=(3,))
    x = torch.randn(20, 3)
    mean, log_variance = model.decoder(model.encode(x)).chunk(2, dim=1)
    assert mean.shape == log_variance.shape == (20, 3)
    assert gaussian_factors(model.posterior(x)).mean.shape == (20, 6)
    vamp = small("vae-vamp", shape=(3,))
    vamp.prepare(x + 5)  # vectors are not clamped to the range of pixels
    assert vamp.prior.limits is None
    assert vamp.prior.pseudo_inputs.mean() > 4


def test_defaults_of_the_papers():
    assert build("echo", (1, 28, 28)).channel.num_terms == 99
    assert build("echo", (1, 64, 64), latent_dim=10).channel.num_terms == 63
    echo = find("echo")
    assert echo.settings_for((1, 28, 28)) == {}
    assert echo.settings_for((1, 64, 64)) == {"learning_rate": 1e-4, "schedule": "constant", "batch_size": 64}
    assert build("echo", SHAPE, sampling="ring", activation_scale=4.0, bank_size=200).channel.bank_size == 200


@pytest.mark.parametrize(
    ("name", "shape", "overrides", "message"),
    [
        ("ecko", SHAPE, {}, "there is no recipe 'ecko'; the most similar are echo"),
        ("vae", SHAPE, {"betta": 1}, "recipe 'vae' has no setting 'betta'; the most similar are beta"),
        ("vae", SHAPE, {"beta": -1.0}, r"beta must be a finite number of at least 0, got -1\.0"),
        ("vae", SHAPE, {"beta": math.nan}, "beta must be a finite number of at least 0, got nan"),
        ("vae", SHAPE, {"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ("vae", (0,), {}, r"data_shape must be a list or tuple of positive integers, got \(0,\)"),
        ("vae", (), {}, r"data_shape must have at least one dimension, .* got \(\)"),
        (
            "vae",
            SHAPE,
            {"likelihood": "poisson"},
            "likelihood must be one of 'bernoulli', 'categorical', 'gaussian', 'mixture', 'mse', got 'poisson'",
        ),
        (
            "vae",
            SHAPE,
            {"architecture": "conv28"},
            r"data_shape must be \(channels, 28, 28\) for architecture 'conv28', got \(1, 6, 6\)",
        ),
        ("corex", SHAPE, {"cheap_latents": 33}, "cheap_latents must be at most 32, got 33"),
        ("corex", SHAPE, {"cheap_weight": 1.5}, r"cheap_weight must be .* of at least 0 and at most 1, got 1\.5"),
        ("vae", SHAPE, {"hidden": 512}, "hidden must be a list or tuple of positive integers, got 512"),
        ("vae-maf", SHAPE, {"flow_hidden": (8, 0)}, r"flow_hidden must be a list or tuple .*, got \(8, 0\)"),
        (
            "echo",
            SHAPE,
            {"target_rate": 1.0},
            r"target_rate must be above 5\.\d+ nats, the minimum rate of 32 dimensions",
        ),
        ("vae", SHAPE, {"target_rate": 9.0, "beta": 2.0}, r"beta must be 1, since a target determines .*, got 2\.0"),
        ("echo", SHAPE, {"gain": 0.0}, r"gain must be a finite number above 0, got 0\.0"),
        ("infovae", SHAPE, {"mmd_weight": -1.0}, r"^mmd_weight must be a finite number of at least 0, got -1\.0"),
        ("echo-tc", SHAPE, {"tc_weight": -1.0}, r"^tc_weight must be a finite number of at least 0, got -1\.0"),
        ("corex", SHAPE, {"aggregate_rows": 0}, "^aggregate_rows must be at least 1, got 0"),
        ("echo", SHAPE, {"bank_size": 3}, "bank_size must be at least 99, got 3"),
    ],
)
def test_bad_arguments_raise(name, shape, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(name, shape, **overrides)


def test_other_data_shapes_raise():
    with pytest.raises(ValueError, match=r"x must have shape \(B, 1, 6, 6\), got \(4, 1, 5, 6\)"):
        small("vae").loss(torch.rand(4, 1, 5, 6))


def test_echo_has_no_importance_weights():
    model = small("echo")
    model.loss(blobs(64))
    with pytest.raises(TypeError, match=r"needs the density q\(z\|x\), which EchoChannel does not have"):
        model.log_weight(blobs(64))
