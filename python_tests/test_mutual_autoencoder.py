"""The Mutual Autoencoder: its estimate and gradients against exact enumeration, and the target information."""

import math

import pytest
import torch
from model_cases import fit, refuses_other_shapes, same_after_saving, wide_under_autocast
from torch import nn

from echo_ext.models import GaussianChannel, GaussianLikelihood, MutualAutoencoder, StandardNormal, build
from echo_ext.models.priors import channel_inputs

STATES = 4


def toy(**settings):
    return build(
        "mutual-ae",
        (STATES,),
        latent_dim=1,
        **{"likelihood": "categorical", "hidden": (8,), "inverse": "tied", **settings},
    )


def sharpened(model, factor=4.0):
    """The model with a decoder whose x carries more information about z."""
    model.decoder[0][-1].weight.data.mul_(factor)
    return model


def exact_information(model):
    """The information I(x; z) = H(x) - H(x|z) of p(z) p(x|z), by quadrature over z."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    weights = (model.prior.log_prob(z).exp() * (z[1] - z[0])).detach()
    given = model.decode(z).detach()
    marginal = (weights[:, None] * given).sum(0)
    return ((weights[:, None] * given * (given / marginal).log()).sum()).item()


def exact_bound(model):
    """The bound I_hat with gradients, by enumeration of x and quadrature over z."""
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]
    weights = (model.prior.log_prob(z).exp() * (z[1] - z[0])).detach()
    given = model.decode(z)
    log_inverse = torch.stack(
        [model.posterior(state.expand(len(z), -1)).log_prob(z) for state in torch.eye(STATES, dtype=torch.float64)],
        dim=1,
    )
    return (weights[:, None] * given * (log_inverse - model.prior.log_prob(z)[:, None])).sum()


def test_information_estimate_is_a_lower_bound():
    model = sharpened(toy().double())
    bound, information = exact_bound(model).item(), exact_information(model)
    assert bound < information
    with torch.no_grad():
        assert model.model_information(200_000).item() == pytest.approx(bound, abs=0.03)


def test_bound_is_tight_if_r_is_the_exact_posterior():
    """For x = b z + noise the information is log(1 + b^2 / w) / 2, and p(z|x) is Gaussian."""
    b, w = 2.0, 0.5

    class Affine(nn.Module):
        def __init__(self, factor, variance):
            super().__init__()
            self.factor, self.variance = factor, variance

        def forward(self, x):
            return torch.cat([self.factor * x, torch.full_like(x, math.log(self.variance))], dim=1)

    variance = w / (b**2 + w)
    parts = {"prior": StandardNormal(1), "likelihood": GaussianLikelihood()}
    model = MutualAutoencoder(Affine(variance * b / w, variance), Affine(b, w), GaussianChannel(), **parts)
    estimate = model.model_information(200_000).item()
    assert estimate == pytest.approx(0.5 * math.log(1 + b**2 / w), abs=0.01)


def test_information_gradient_equals_full_enumeration():
    model = sharpened(toy().double())
    weights = dict(model.named_parameters())
    exact = torch.autograd.grad(exact_bound(model), list(weights.values()))
    estimates = torch.autograd.grad(model.model_information(400_000), list(weights.values()))
    for name, estimate, true in zip(weights, estimates, exact, strict=True):
        torch.testing.assert_close(estimate, true, atol=0.04, rtol=0.04, msg=lambda line, name=name: f"{name}: {line}")


def test_penalty_trains_only_the_decoder_with_a_separate_r():
    model = sharpened(toy(inverse="separate", information=0.0, penalty=1000.0).double())
    x = torch.eye(STATES, dtype=torch.float64)
    torch.manual_seed(5)
    model.loss(x)["loss"].backward()
    r_gradients = [weight.grad.clone() for weight in model.inverse.parameters()]
    torch.manual_seed(5)
    # The same samples as in the loss: one of z given x, then those of the joint distribution.
    model.posterior(x).rsample()
    z = model.prior.sample(len(x))
    drawn = model.observation(z).sample()
    tightness = model.channel(*channel_inputs(model.inverse, drawn)).log_prob(z).mean()
    expected = torch.autograd.grad(-tightness, list(model.inverse.parameters()))
    for gradient, expected_gradient in zip(r_gradients, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)
    encoder_gradients = [weight.grad.clone() for weight in model.encoder.parameters()]
    model.zero_grad()
    model.penalty = 0.0
    torch.manual_seed(5)
    model.loss(x)["loss"].backward()
    for before, weight in zip(encoder_gradients, model.encoder.parameters(), strict=True):
        torch.testing.assert_close(before, weight.grad)


def test_loss_is_negative_elbo_plus_penalty():
    model = toy(information=0.9, penalty=3.0)
    losses = model.loss(torch.eye(STATES)[torch.randint(STATES, (50,))])
    neg_elbo = losses["rate_bound"] + losses["distortion"]
    expected = neg_elbo + 3.0 * (losses["information"] - 0.9).abs()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("inverse", ["tied", "separate"])
def test_discrete_toy_reaches_its_target_information(inverse):
    model = toy(information=0.7, penalty=5.0, inverse=inverse, hidden=(32,), draws=256)
    x = torch.eye(STATES).repeat(32, 1)
    fit(model, x, steps=500, learning_rate=5e-3)
    with torch.no_grad():
        assert model.model_information(20_000).item() == pytest.approx(0.7, abs=0.12)


def test_mutual_ae_of_normal_data_uses_z_and_the_vae_does_not():
    x = torch.randn(256, 1)
    settings = {"latent_dim": 1, "hidden": (32,), "min_log_variance": -6.0}
    constrained = build("mutual-ae", (1,), information=1.0, penalty=5.0, **settings)
    vae = build("mutual-ae", (1,), penalty=0.0, **settings)
    for model in (constrained, vae):
        fit(model, x, steps=300, learning_rate=5e-3)
    with torch.no_grad():
        assert constrained.model_information(20_000).item() == pytest.approx(1.0, abs=0.15)
        assert vae.model_information(20_000).item() < 0.3


def test_recipe_learns_and_restores_its_state():
    x = torch.eye(10).repeat(10, 1)
    settings = {"latent_dim": 1, "likelihood": "categorical", "hidden": (16,), "information": 1.0}
    settings["inverse"] = "separate"
    model = build("mutual-ae", (10,), **settings)
    first, last = fit(model, x, steps=200, learning_rate=1e-2)
    assert last < first - 0.1
    assert model.reconstruct(x).shape == x.shape
    torch.testing.assert_close(model.sample(5).sum(1), torch.ones(5))
    assert wide_under_autocast(model, x)
    assert refuses_other_shapes(model, x)
    assert same_after_saving("mutual-ae", (10,), model, x, **settings)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"information": -1.0}, "information must be a finite number of at least 0, got -1.0"),
        ({"penalty": math.inf}, "penalty must be a finite number of at least 0, got inf"),
        ({"inverse": "none"}, "inverse must be one of 'tied', 'separate', got 'none'"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_bad_arguments_raise(settings, line):
    with pytest.raises(ValueError, match=line):
        toy(**settings)
