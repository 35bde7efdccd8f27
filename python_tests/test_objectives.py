"""The rate-distortion objective by hand, and the bound on total correlation in a Gaussian case."""

import math

import pytest
import torch

from echo_ext.metrics import layer_terms
from echo_ext.models import build
from echo_ext.models.objectives import rate_distortion_loss, total_correlation_bound


def test_rate_distortion_by_hand():
    distortion, rate = torch.tensor([3.0, 5.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert rate_distortion_loss(distortion, rate).item() == 4 + 5
    assert rate_distortion_loss(distortion, rate.sum(1), beta=0.5).item() == 4 + 2.5
    weighted = rate_distortion_loss(distortion, rate, beta=2.0 * torch.tensor([0.5, 1.0]))
    assert weighted.item() == 4 + 2 * (0.5 * 2 + 3)


def test_weights_of_cheap_latents():
    assert build("corex", (9,), latent_dim=7, cheap_latents=5).beta.tolist() == [0.5] * 5 + [1, 1]
    assert build("corex", (9,), latent_dim=3, cheap_weight=0.1).beta.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="cheap_latents must be at most 3, got 5"):
        build("anchor-vae", (9,), latent_dim=3)
    with pytest.raises(ValueError, match=r"cheap_weight must be .* of at least 0 and at most 1, got 1\.5"):
        build("corex", (9,), latent_dim=3, cheap_weight=1.5)


def test_total_correlation_bound_of_a_gaussian():
    """The data are x_i = a_i y + noise. The latent z = w.x + noise has unit variance, so N(0, 1) is its marginal."""
    columns, noise, rows = 5, 0.3, 200_000
    a = 0.4 + 0.5 * torch.rand(columns, dtype=torch.float64)
    covariance = torch.outer(a, a) + torch.diag(1 - a.square())
    w = torch.rand(columns, dtype=torch.float64)
    w = w * math.sqrt((1 - noise) / float(w @ covariance @ w))
    shared = covariance @ w  # cov(x_i, z), and the correlation since both have variance 1

    model = build("corex", (columns,), latent_dim=1, hidden=()).double()
    with torch.no_grad():
        model.encoder[-1][0].weight.copy_(torch.stack([w, torch.zeros_like(w)]))
        model.encoder[-1][0].bias.copy_(torch.tensor([0, math.log(noise)]))
        model.decoder[0][0].weight.copy_(torch.cat([shared, torch.zeros_like(shared)])[:, None])
        model.decoder[0][0].bias.copy_(torch.cat([torch.zeros_like(shared), (1 - shared.square()).log()]))
        x = torch.randn(rows, columns, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
        terms = model.loss(x)
        (reported,) = layer_terms(model, x[:20_000]).tolist()
    entropies = torch.full((columns,), 0.5 * math.log(2 * math.pi * math.e), dtype=torch.float64)
    bound = total_correlation_bound(entropies, terms["distortion"], terms["rate_bound"]).item()

    explained = -0.5 * (1 - shared.square()).log().sum().item()  # sum_i I(x_i; z)
    kept = -0.5 * math.log(noise)  # I(z; x)
    total_correlation = -0.5 * torch.logdet(covariance).item()
    assert bound == pytest.approx(explained - kept, abs=0.03)
    assert reported == pytest.approx(explained - kept, abs=0.08)
    assert bound < total_correlation + 0.03
    assert explained - kept < total_correlation


@pytest.mark.parametrize("std", [1.0, 0.3])
def test_mse_likelihood_is_the_squared_error(std):
    x = torch.rand(7, 1, 8, 8, dtype=torch.float64)
    model = build("vae", (1, 8, 8), latent_dim=3, likelihood="mse", likelihood_std=std, hidden=(8,)).double()
    z = torch.randn(7, 3, dtype=torch.float64)
    mean = model.decoder(z)
    expected = (x - mean).square().flatten(1).sum(1) / (2 * std**2) + 64 * (0.5 * math.log(2 * math.pi) + math.log(std))
    torch.testing.assert_close(-model.observation(z).log_prob(x), expected)
    torch.testing.assert_close(model.decode(z), mean)
    with pytest.raises(ValueError, match=r"likelihood_std must be .* above 0, got 0"):
        build("vae", (3,), likelihood="mse", likelihood_std=0.0)


def test_mse_bound_is_the_total_correlation_of_a_factor():
    """x_i = a_i z + std * noise with the exact posterior: then the bound is TC(x) itself."""
    columns, std = 4, 0.6
    a = torch.rand(columns, dtype=torch.float64) + 0.5
    model = build("corex", (columns,), latent_dim=1, likelihood="mse", likelihood_std=std, hidden=()).double()
    variance = 1 / (1 + float(a @ a) / std**2)
    with torch.no_grad():
        weight, bias = model.encoder.parameters()
        weight.copy_(torch.stack([variance * a / std**2, torch.zeros_like(a)]))
        bias.copy_(torch.tensor([0, math.log(variance)]))
        weight, bias = model.decoder.parameters()
        weight.copy_(a[:, None])
        bias.zero_()
    x = torch.randn(20_000, 1, dtype=torch.float64) * a + std * torch.randn(20_000, columns, dtype=torch.float64)
    covariance = torch.outer(a, a) + std**2 * torch.eye(columns, dtype=torch.float64)
    total_correlation = 0.5 * (covariance.diag().log().sum() - torch.logdet(covariance)).item()
    assert layer_terms(model, x).sum().item() == pytest.approx(total_correlation, abs=0.08)
