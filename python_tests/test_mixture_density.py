"""Mixture-density channels and likelihoods: densities, samples, and the gradients of samples."""

import math

import pytest
import torch
from torch.distributions import Normal

from echo_ext.models import MixtureChannel, MixtureLikelihood, build
from echo_ext.models.mixture_density import NormalMixture
from echo_ext.models.networks import Split, mlp


def parameters(*shape):
    """Random logits, means and log standard deviations in float64, with gradients."""
    logits, means, logs = torch.randn(3, *shape, dtype=torch.float64)
    return [each.requires_grad_() for each in (logits, means, 0.5 * logs)]


def mixture(logits, means, log_stds):
    return NormalMixture(logits, means, log_stds.exp())


def test_density_and_moments_by_brute_force():
    logits, means, log_stds = parameters(4, 3)
    weights, stds = logits.softmax(1), log_stds.exp()
    z = torch.randn(4, dtype=torch.float64)
    p = mixture(logits, means, log_stds)
    density = (weights * Normal(means, stds).log_prob(z[:, None]).exp()).sum(1)
    torch.testing.assert_close(p.log_prob(z), density.log())
    torch.testing.assert_close(p.mean, (weights * means).sum(1))


def test_samples_have_the_distribution_function():
    draws = 20_000
    p = mixture(*(each.detach() for each in parameters(3, 5)))
    fractions = p.cdf(p.rsample((draws,))).sort(0).values
    grid = torch.arange(1, draws + 1, dtype=torch.float64)[:, None] / draws
    assert (fractions - grid).abs().max() < 2 / math.sqrt(draws)  # Kolmogorov and Smirnov: P = 0.0007 each


def test_sample_moves_so_that_its_distribution_function_is_constant():
    inputs = parameters(6, 4)
    z = mixture(*inputs).rsample()
    start = z.detach().clone()
    fraction = mixture(*inputs).cdf(start).detach()
    direction = [torch.randn_like(each) for each in inputs]
    gradients = torch.autograd.grad(z, inputs, torch.ones_like(z))
    slope = sum((gradient * each).sum(1) for gradient, each in zip(gradients, direction, strict=True))
    step = 1e-6
    with torch.no_grad():
        moved = mixture(*(each + step * by for each, by in zip(inputs, direction, strict=True)))
        density = moved.log_prob(start).exp()
        expected = (fraction - moved.cdf(start)) / density / step  # one Newton step to the same fraction
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-4)


def test_gradients_of_expectations_are_those_of_the_moments():
    rows = 400_000
    inputs = parameters(1, 3)
    logits, means, log_stds = inputs
    weights = logits.softmax(1)
    exact = {
        1: (weights * means).sum(),
        2: (weights * (means**2 + (2 * log_stds).exp())).sum(),
    }
    z = mixture(*inputs).rsample((rows,))
    for power, moment in exact.items():
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        found = torch.autograd.grad((z**power).mean(), inputs, **options)
        for estimate, true in zip(found, torch.autograd.grad(moment, inputs, **options), strict=True):
            torch.testing.assert_close(estimate, true, atol=0.1, rtol=0.05)


def test_one_component_is_the_reparameterized_gaussian():
    logits, means, log_stds = parameters(50, 1)
    z = mixture(logits, means, log_stds).rsample()
    noise = ((z - means[:, 0]) / log_stds.exp()[:, 0]).detach()
    gradients = torch.autograd.grad(z.sum(), [logits, means, log_stds])
    torch.testing.assert_close(gradients[0], torch.zeros_like(logits), atol=1e-8, rtol=0)
    torch.testing.assert_close(gradients[1], torch.ones_like(means))
    torch.testing.assert_close(gradients[2], (noise * log_stds.exp()[:, 0])[:, None])


def test_channel_and_likelihood_order_their_parameters():
    rows, d, components = 5, 3, 4
    logits, means, logs = torch.randn(3, rows, d, components)
    oracle = NormalMixture(logits, means, (0.5 * logs).exp())
    z = torch.randn(rows, d)
    q = MixtureChannel(components)(*(each.flatten(1) for each in (logits, means, logs)))
    torch.testing.assert_close(q.log_prob(z), oracle.log_prob(z).sum(1))
    assert q.event_shape == (d,)
    thirds = [each.transpose(1, 2).flatten(1) for each in (logits, means, logs)]
    p = MixtureLikelihood(components)(torch.cat(thirds, dim=1))
    torch.testing.assert_close(p.log_prob(z), oracle.log_prob(z).sum(1))
    torch.testing.assert_close(p.mean, oracle.mean)
    image = MixtureLikelihood(2)(torch.randn(rows, 6 * 3, 4, 5))
    assert (image.batch_shape, image.event_shape) == ((rows,), (3, 4, 5))
    assert image.log_prob(image.sample()).shape == (rows,)


def test_minimum_variance_bounds_every_component():
    q = MixtureChannel(2, min_log_variance=-4.0)(torch.zeros(1, 2), torch.zeros(1, 2), torch.full((1, 2), -50.0))
    z = torch.zeros(1, 1)
    assert q.log_prob(z).item() == pytest.approx(Normal(0.0, math.exp(-2.0)).log_prob(torch.tensor(0.0)).item())


def test_mixture_density_network_learns_two_branches():
    """For x = z^2 + noise, z given x has two modes, which one Gaussian cannot represent."""
    encoder, channel = Split(mlp(1, 32, 12, activation="swish"), (4, 4, 4)), MixtureChannel(4, -6.0)
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2)
    for _ in range(500):
        z = torch.randn(256, 1)
        x = z**2 + 0.1 * torch.randn(256, 1)
        optimizer.zero_grad()
        (-channel(*encoder(x)).log_prob(z)).mean().backward()
        optimizer.step()
    codes = channel(*encoder(torch.full((2000, 1), 1.0))).sample()
    assert 0.3 < (codes > 0).float().mean() < 0.7
    assert ((codes.abs() - 1).abs() < 0.4).float().mean() > 0.8


def test_recipe_has_mixture_conditionals():
    model = build("mim", (1,), latent_dim=1, posterior="mixture", likelihood="mixture", hidden=(10,))
    assert model.encoder.encoder[1][-1].out_features == 30
    assert model.decoder[0][-1].out_features == 30
    assert math.isfinite(model.loss(torch.randn(8, 1))["loss"].item())
    with pytest.raises(ValueError, match="likelihood_components must be at least 1, got 0"):
        build("mim", (1,), latent_dim=1, likelihood="mixture", likelihood_components=0)
    with pytest.raises(ValueError, match="components must be at least 1, got 0"):
        MixtureChannel(0)
