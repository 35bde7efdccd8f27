"""Two-level models: samples against densities, causality of the masks, pixel drawing against teacher forcing."""

import math

import pytest
import torch
from model_cases import diagonal, fit, log_normal, refuses_other_shapes, same_after_saving, wide_under_autocast
from torch import nn

from echo_ext.models import MIM, GaussianLikelihood, PixelCNN, StandardNormal, TwoLevelPrior, build
from echo_ext.models._numerics import log_mean_exp
from echo_ext.models.two_level import MaskedConv2d, TwoLevelPosterior

RECIPES = [
    f"{decoder}-{prior}-{objective}"
    for decoder in ("convhvae", "pixelhvae")
    for prior in ("s", "vp")
    for objective in ("vae", "a-mim", "mim")
]


def stripes(n, side=8):
    """Images of horizontal or vertical stripes."""
    horizontal = (torch.arange(side) % 4 < 2).float()[:, None].expand(side, side)
    upright = torch.rand(n, 1, 1, 1) < 0.5
    return torch.where(upright, horizontal.T, horizontal).contiguous()


B, V, C, D, W = 0.8, 0.5, 1.2, -0.7, 0.4


def covariance():
    """The covariance of (x, z1, z2) for p(z2) = N(0, 1), p(z1|z2) = N(B z2, V), p(x|z) = N(C z1 + D z2, W)."""
    z1 = B**2 + V
    joint = torch.tensor([[0.0, 0.0, 0.0], [0.0, z1, B], [0.0, B, 1.0]], dtype=torch.float64)
    load = torch.tensor([C, D], dtype=torch.float64)
    joint[0, 1:] = joint[1:, 0] = load @ joint[1:, 1:]
    joint[0, 0] = load @ joint[1:, 1:] @ load + W
    return joint


class Lower(nn.Module):
    """The moments of p(z1|z2)."""

    def forward(self, z2):
        return torch.cat([B * z2, torch.full_like(z2, math.log(V))], dim=1)


class Decoder(nn.Module):
    """The moments of p(x|z)."""

    def forward(self, z):
        z1, z2 = z.chunk(2, dim=1)
        return torch.cat([C * z1 + D * z2, torch.full_like(z1, math.log(W))], dim=1)


class ExactChannel(nn.Module):
    """The exact posterior q(z2|x) q(z1|x, z2) of x itself."""

    def forward(self, x):
        joint = covariance()
        upper = joint[2, 0] / joint[0, 0]
        given = joint[1, [0, 2]] @ torch.linalg.inv(joint[[0, 2]][:, [0, 2]])
        variance = joint[1, 1] - given @ joint[1, [0, 2]]
        return TwoLevelPosterior(
            diagonal(upper * x, (joint[2, 2] - upper * joint[0, 2]).log().expand_as(x)),
            lambda z2: diagonal(given[0] * x + given[1] * z2, variance.log().expand_as(x)),
        )


class AsTuple(nn.Module):
    def forward(self, x):
        return (x,)


def linear_gaussian():
    """A tractable model of a scalar x with its exact posterior."""
    prior, likelihood = TwoLevelPrior(Lower(), StandardNormal(1)).double(), GaussianLikelihood()
    return MIM(AsTuple(), Decoder(), ExactChannel(), prior=prior, likelihood=likelihood, objective="vae")


def conv_hvae(**settings):
    return build("convhvae-s-vae", (1, 8, 8), **{"latent_dim": 4, **settings})


def test_elbo_is_the_evidence_for_the_exact_posterior():
    model = linear_gaussian()
    x = torch.randn(100, 1, dtype=torch.float64)
    evidence = log_normal(x.flatten(), 0.0, covariance()[0, 0].log())
    torch.testing.assert_close(model.log_weight(x), evidence)
    losses = model.loss(x)
    assert losses["loss"].item() == pytest.approx(-evidence.mean().item())
    assert losses["loss"].item() == pytest.approx((losses["rate_bound"] + losses["distortion"]).item())


def test_prior_samples_have_the_covariance_of_the_prior():
    z = linear_gaussian().prior.sample(50_000)
    torch.testing.assert_close(z.T.cov(), covariance()[1:, 1:], atol=0.06, rtol=0)


@pytest.mark.parametrize("recipe", ["convhvae-s-vae", "convhvae-vp-vae"])
def test_prior_integrates_to_one(recipe):
    """The mean of p(z) / q(z) over samples of a wider q is 1."""
    model = build(recipe, (1, 8, 8), latent_dim=2, **({"pseudo_inputs": 5} if "vp" in recipe else {}))
    wide = diagonal(torch.zeros(50_000, 2), torch.full((50_000, 2), 2 * math.log(4.0)))
    z = wide.sample()
    with torch.no_grad():
        mass = log_mean_exp(model.prior.log_prob(z) - wide.log_prob(z), dim=0).exp()
    assert mass.item() == pytest.approx(1, abs=0.05)


def test_objectives_report_the_same_rate_and_distortion():
    x = stripes(10)
    reported = []
    for objective in ("vae", "a-mim", "mim"):
        torch.manual_seed(5)
        model = conv_hvae(objective=objective)
        losses = model.loss(x)
        reported.append((losses["rate_bound"].item(), losses["distortion"].item()))
    assert reported[0] == reported[1] == reported[2]


def test_layers_are_the_papers():
    model = build("convhvae-vp-vae", (1, 28, 28), latent_dim=80)
    convolutions = [layer for layer in model.encoder.upper.modules() if isinstance(layer, nn.Conv2d)]
    sizes = [(c.out_channels // 2, c.kernel_size[0], c.stride[0], c.padding[0]) for c in convolutions]
    assert sizes == [(32, 7, 1, 3), (32, 3, 2, 1), (64, 5, 1, 2), (64, 3, 2, 1), (6, 3, 1, 1)]
    assert [c.kernel_size[0] for c in model.encoder.features.modules() if isinstance(c, nn.Conv2d)] == [3] * 5
    assert model.encoder.upper[-1].in_features == 294
    assert model.channel.lower[-1].in_features == 300
    assert model.prior.upper.pseudo_inputs.shape == (500, 1, 28, 28)
    log_variance = 2 * model.posterior(100 * torch.randn(3, 1, 28, 28)).upper.stddev.log()
    assert log_variance.min() >= -6 - 1e-5
    assert log_variance.max() <= 2 + 1e-5


def test_masked_convolution_hides_later_pixels():
    mask = MaskedConv2d(3, 2, blind=1).mask
    before = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    own = torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]])
    for output in mask:
        assert torch.equal(output, torch.stack([before, own, own]))


@pytest.mark.parametrize("hides_maps", [False, True])
def test_pixel_depends_on_earlier_pixels_and_its_own_maps(hides_maps):
    side = 5
    network = PixelCNN(2, channels=16, hides_maps=hides_maps).double().eval()
    for layer in network.layers:  # all ReLUs are active, so only the masks make zeros in the Jacobian
        layer.norm.bias.data.fill_(50.0)
    x = torch.rand(1, 1, side, side, dtype=torch.float64)
    maps = torch.randn(1, 2, side, side, dtype=torch.float64)
    by_x, by_maps = torch.autograd.functional.jacobian(
        lambda *arguments: network.logits(*arguments).flatten(), (x, maps)
    )
    by_x = by_x.reshape(side**2, side**2)
    assert torch.equal(by_x.triu(), torch.zeros_like(by_x))
    assert (by_x.tril(-1).abs().sum(1)[1:] > 0).all()
    for of_map in by_maps[:, 0].unbind(1):
        of_map = of_map.reshape(side**2, side**2)
        assert (of_map.diagonal().abs() > 0).all() != hides_maps
        assert (of_map.tril(-1).abs().sum(1)[1:] > 0).all()


def test_pixel_drawing_agrees_with_teacher_forcing():
    network = PixelCNN(2, channels=8, layers=4).double()
    maps = torch.randn(6, 2, 5, 7, dtype=torch.float64)
    network.logits(torch.rand(6, 1, 5, 7, dtype=torch.float64).round(), maps)  # updates the running statistics
    draws, probabilities = network.draw(maps)
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(torch.sigmoid(network.eval().logits(draws, maps)), probabilities)


def test_drawn_images_have_the_distribution_of_the_density():
    network = PixelCNN(1, channels=4, layers=2).eval()
    nn.init.normal_(network.head.weight, std=3.0)
    maps = torch.randn(1, 1, 2, 2)
    images = torch.tensor([[int(bit) for bit in f"{code:04b}"] for code in range(16)]).float().view(16, 1, 2, 2)
    logits = network.logits(images, maps.expand(16, -1, -1, -1))
    density = (-nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((1, 2, 3))).exp()
    assert density.sum().item() == pytest.approx(1, abs=1e-5)
    draws, means = network.draw(maps.expand(50_000, -1, -1, -1))
    codes = (draws.flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    torch.testing.assert_close(codes.bincount(minlength=16) / 50_000, density, atol=0.012, rtol=0)
    torch.testing.assert_close(means.mean(0), draws.mean(0), atol=0.012, rtol=0)


def test_decoder_samples_use_the_running_statistics():
    model = build("pixelhvae-s-mim", (1, 4, 4), latent_dim=4).train()
    draw, logits, drawn, evaluated = model.likelihood.draw, model.likelihood.logits, [], []
    model.likelihood.draw = lambda maps: drawn.append(draw(maps)) or drawn[-1]
    model.likelihood.logits = lambda x, maps: evaluated.append(logits(x, maps)) or evaluated[-1]
    with torch.no_grad():
        model.loss(stripes(16, side=4))  # updates the running statistics, then draws, then evaluates what it has drawn
    torch.testing.assert_close(torch.sigmoid(evaluated[1]), drawn[0][1], atol=1e-5, rtol=0)
    assert all(part.training for part in (model.decoder, *model.likelihood.modules()))


def test_progress_iterates_over_every_pixel():
    seen = []

    def progress(places):
        for place in places:
            seen.append(place)
            yield place

    model = build("pixelhvae-s-vae", (1, 4, 6), latent_dim=4)
    model.likelihood.wrap_pixels = progress
    assert model.sample(2).shape == (2, 1, 4, 6)
    assert seen == list(range(24))


def test_pseudo_inputs_start_at_training_rows():
    x = stripes(20)
    model = conv_hvae(prior="vamp", pseudo_inputs=30)
    model.prepare(x)
    nearest = torch.cdist(model.prior.upper.pseudo_inputs.flatten(1), x.flatten(1)).min(1).values
    assert nearest.max() < 0.2


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_learn_and_restore_their_state(recipe):
    settings = {"latent_dim": 4, **({"pseudo_inputs": 6} if "-vp-" in recipe else {})}
    model = build(recipe, (1, 4, 4), **settings)
    x = stripes(32, side=4)
    # No more steps: after about 40, the loss of MIM with a VampPrior may jump on a data set this small.
    first, last = fit(model, x, steps=35, learning_rate=5e-4, clip_gradients=True)
    assert last < 0.9 * first
    assert model.encode(x).shape == (32, 4)
    assert model.reconstruct(x[:3]).shape == x[:3].shape
    means = model.sample(3)
    assert means.shape == (3, 1, 4, 4)
    assert ((means >= 0) & (means <= 1)).all()
    assert wide_under_autocast(model, x)
    assert refuses_other_shapes(model, x)
    assert same_after_saving(recipe, (1, 4, 4), model, x, **settings)


@pytest.mark.parametrize(
    ("recipe", "data_shape", "settings", "line"),
    [
        ("convhvae-s-vae", (64,), {}, r"data_shape must be \(channels, height, width\), got \(64,\)"),
        ("pixelhvae-s-vae", (3, 8, 8), {}, r"data_shape must be \(1, height, width\) .* \(3, 8, 8\)"),
        ("convhvae-s-vae", (1, 8, 8), {"latent_dim": 5}, "latent_dim must be even, .* 5"),
        ("convhvae-s-vae", (1, 8, 8), {"prior": "maf"}, "prior must be one of 'standard-normal', 'vamp', got 'maf'"),
        ("convhvae-s-vae", (1, 8, 8), {"objective": "cross-entropy"}, "objective must be one of .* 'cross-entropy'"),
    ],
)
def test_bad_arguments_raise(recipe, data_shape, settings, line):
    with pytest.raises(ValueError, match=line):
        build(recipe, data_shape, **{"latent_dim": 4, **settings})


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_defensive_draws_of_two_levels_estimate_the_evidence(weight):
    model = linear_gaussian()
    x = torch.randn(1, 1, dtype=torch.float64).expand(100_000, 1)
    evidence = log_normal(x.flatten(), 0.0, covariance()[0, 0].log())
    with torch.no_grad():
        weights = (model.log_weight(x, defensive_weight=weight) - evidence).exp()
    assert weights.mean().item() == pytest.approx(1, abs=5 * weights.std().item() / math.sqrt(len(x)))
    assert weights.std() > 0.01  # some draws are not from the exact posterior
