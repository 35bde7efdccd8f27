"""Stacked CorEx: the exact sum over the upper layer against samples and against the evidence."""

import math

import pytest
import torch
from model_cases import fit, kl_to_standard_normal, refuses_other_shapes, same_after_saving, wide_under_autocast

from echo_ext import metrics
from echo_ext.models import build


def small(**settings):
    settings = {"layers": (4,), "hidden": (8,), "upper_hidden": (5,), "layerwise_steps": 0, **settings}
    return build("stacked-corex", (6,), latent_dim=3, **settings)


def same_draws(compute):
    torch.manual_seed(3)
    return compute()


def test_rates_agree_with_samples_of_both_layers():
    model = small()
    x = torch.randn(1, 6).expand(100_000, -1)
    with torch.no_grad():
        q = model.posterior(x)
        z = q.rsample()
        log_choice, log_given = model.prior.log_choice(z), model.prior.log_given(z)
        y = log_choice.exp().multinomial(1)
        lower = q.log_prob(z) - log_given.gather(1, y)[:, 0]
        upper = log_choice.gather(1, y)[:, 0] + math.log(4)
        losses = model.loss(x)
    for name, draws in (("rate_1", lower), ("rate_2", upper)):
        # Both are means over equally many samples, and the variance of the model's is not larger.
        error = math.sqrt(2 / len(x)) * draws.std().item()
        assert losses[name].item() == pytest.approx(draws.mean().item(), abs=6 * error + 1e-5)
    assert losses["rate_bound"].item() == pytest.approx((losses["rate_1"] + losses["rate_2"]).item(), rel=1e-6)


def test_rate_1_is_a_kl_if_the_upper_layer_is_constant():
    model = small()
    model.prior.decoder[-1].weight.data.zero_()  # r(z|y) = N(0, I) for every y
    x = torch.randn(1, 6)
    with torch.no_grad():
        mean, log_variance = model.encoder(x).chunk(2, dim=1)
        rate = model.loss(x.expand(100_000, -1))["rate_1"].item()
    assert rate == pytest.approx(kl_to_standard_normal(mean, log_variance).sum().item(), abs=0.05)


def test_loss_minus_log_weight_is_the_upper_divergence():
    """For each sample, -ELBO - E log(1 / weight) = E KL(q(y|z) | r(y|z))."""
    model = small().double()
    x = torch.randn(20, 6, dtype=torch.float64)
    z = same_draws(lambda: model.encode(x))
    log_choice = model.prior.log_choice(z)
    divergence = (log_choice.exp() * (log_choice - model.prior.log_given(z).log_softmax(1))).sum(1)
    losses, weight = same_draws(lambda: model.loss(x)), same_draws(lambda: model.log_weight(x))
    assert divergence.min() > 0
    assert losses["loss"].item() == pytest.approx((divergence - weight).mean().item(), rel=1e-9)
    assert losses["loss"].item() == pytest.approx((losses["rate_bound"] + losses["distortion"]).item(), rel=1e-9)


def test_beta_multiplies_both_rates():
    x = torch.randn(20, 6)
    model = small()
    losses = same_draws(lambda: model.loss(x))
    model.beta = 0.3
    expected = losses["distortion"] + 0.3 * losses["rate_bound"]
    assert same_draws(lambda: model.loss(x))["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_warm_up_weight_multiplies_only_the_rate_1():
    x = torch.randn(20, 6)
    model = small(initial_lower_weight=4.0)
    for warm_up_weight, lower_weight in ((0.0, 4.0), (0.5, 2.5), (1.0, 1.0)):
        model.warm_up_weight = warm_up_weight
        losses = same_draws(lambda: model.loss(x))
        expected = losses["distortion"] + lower_weight * losses["rate_1"] + losses["rate_2"]
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_samples_average_over_states():
    """The mean of decoded samples is the mean over states and their Gaussians."""
    model = small(likelihood="gaussian")
    with torch.no_grad():
        mean, log_variance = model.prior.levels().chunk(2, dim=1)
        z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * torch.randn(4, 20_000, 3)
        expected = model.decode(z.flatten(0, 1)).mean(0)
        torch.testing.assert_close(model.sample(80_000).mean(0), expected, atol=0.03, rtol=0)


def test_cluster_is_the_most_probable_state_of_the_mean():
    model = small(layers=(3,), upper_hidden=())
    model.prior.encoder[-1].weight.data = torch.eye(3)
    x = torch.randn(50, 6)
    assert torch.equal(model.cluster(x), model.encoder(x)[:, :3].argmax(1))


def test_layers_are_the_papers():
    model = build("stacked-corex", (1, 28, 28), latent_dim=64)

    def widths(network):
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        return [layers[0].in_features, *(layer.out_features for layer in layers)]

    assert widths(model.encoder) == [784, 512, 512, 2 * 64]
    assert widths(model.decoder) == [64, 512, 512, 784]
    assert widths(model.prior.encoder) == [64, 32, 32, 16, 16, 10]
    assert widths(model.prior.decoder) == [10, 16, 16, 32, 32, 2 * 64]


def test_recipe_learns_and_restores_its_state():
    centers = 4 * torch.eye(6)[:3]
    x = centers.repeat(50, 1) + 0.3 * torch.randn(150, 6)
    settings = {"latent_dim": 3, "layers": (3,), "hidden": (16,), "upper_hidden": (8,), "layerwise_steps": 0}
    model = build("stacked-corex", (6,), **settings)
    first, last = fit(model, x, steps=150)
    assert last < first - 1
    assert model.encode(x).shape == (150, 3)
    assert model.reconstruct(x).shape == x.shape
    assert wide_under_autocast(model, x)
    assert refuses_other_shapes(model, x)
    assert same_after_saving("stacked-corex", (6,), model, x, **settings)


@pytest.mark.parametrize(("layers", "top"), [((2,), "gaussian"), ((4, 3), "categorical"), ((5, 4, 3), "gaussian")])
def test_any_number_of_layers(layers, top):
    # Of about unit scale, since other rows can overflow a learned variance before the first step.
    x = torch.cat([torch.randn(40, 6) + 3, torch.randn(40, 6) - 3]) / math.sqrt(10)
    settings = {"latent_dim": 3, "layers": layers, "top": top, "hidden": (16,), "upper_hidden": (8,)}
    model = build("stacked-corex", (6,), **settings)
    losses = model.loss(x)
    rates = [losses[f"rate_{level}"] for level in range(1, len(layers) + 2)]
    assert len(losses) == 3 + len(rates)
    assert losses["rate_bound"].item() == pytest.approx(sum(rates).item(), rel=1e-6)
    first, last = fit(model, x, steps=150)
    assert last < first - 1
    assert metrics.layer_terms(model, x).shape == (len(layers) + 1,)
    assert model.sample(7).shape == (7, 6)
    assert same_after_saving("stacked-corex", (6,), model, x, **settings)


def test_layers_sum_to_the_bound():
    model = small(layers=(4, 3)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 0.5  # variances and samples close to 1
    x = torch.randn(20_000, 6, dtype=torch.float64)
    entropies = 6 * 0.5 * math.log(2 * math.pi * math.e)
    with torch.no_grad():
        losses = model.loss(x)
    bound = entropies - losses["distortion"].item() - losses["rate_bound"].item()
    assert metrics.layer_terms(model, x).sum().item() == pytest.approx(bound, abs=0.15)


def test_log_weights_average_to_the_density():
    """For linear Gaussian layers with constant variances, x is Gaussian with a known covariance."""
    model = small(layers=(2,), top="gaussian", hidden=(), upper_hidden=()).double()
    parts = []
    with torch.no_grad():
        for network in (model.decoder, model.prior.decoder):
            weight, bias = network.parameters()
            width = len(bias) // 2
            weight[width:] = 0
            bias.normal_(std=0.3)
            parts.append((weight[:width], bias[:width], torch.diag(bias[width:].exp())))
        # The proposals are wide: N(0, 4 I) for z and N(0, I) for y.
        list(model.encoder.parameters())[-1][3:] = math.log(4)
        next(model.prior.encoder.parameters()).zero_()
        (a, shift, noise), (b, upper_shift, upper_noise) = parts
        covariance = a @ (b @ b.T + upper_noise) @ a.T + noise
        x = torch.zeros(1, 6, dtype=torch.float64)
        exact = torch.distributions.MultivariateNormal(shift + a @ upper_shift, covariance).log_prob(x).item()
    assert metrics.importance_nll(model, x, draws=400_000, max_batch_size=100_000) == pytest.approx(-exact, abs=0.1)


@pytest.mark.parametrize("layers", [(3,), (4, 3)])
def test_layerwise_start_finds_clusters(layers):
    pytest.importorskip("sklearn")
    labels = torch.arange(3).repeat(200)
    x = 6 * torch.eye(6)[labels] + 0.3 * torch.randn(600, 6)
    model = small(layers=layers, hidden=(16,), upper_hidden=(16,), layerwise_steps=400)
    model.prepare(x)
    counts = torch.zeros(3, 3).index_put_((model.cluster(x), labels), torch.ones(600), accumulate=True)
    # Three starts of a mixture may all join two clusters, which leaves 400; states that ignore x have about 220.
    assert counts.amax(1).sum() > 350


def test_cluster_needs_a_categorical_top():
    with pytest.raises(TypeError, match="cluster needs a CategoricalLayer"):
        small(top="gaussian").cluster(torch.randn(5, 6))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"layers": (0,)}, "layers must be .*0"),
        ({"beta": -1.0}, "beta must be a finite number of at least 0, got -1.0"),
        ({"likelihood": "poisson"}, "likelihood must be one of .*'poisson'"),
    ],
)
def test_bad_arguments_raise(settings, line):
    with pytest.raises(ValueError, match=line):
        small(**settings)
