"""Densities of the priors by brute force and by integration, and their samples against the densities."""

import copy
import math

import pytest
import torch
from model_cases import diagonal, kl_to_standard_normal
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from echo_ext.models import (
    MAF,
    AggregatePosterior,
    GaussianChannel,
    GaussianMixture,
    IAFChannel,
    StandardNormal,
    VampPrior,
)
from echo_ext.models.priors import random_rows


def trained_maf():
    return MAF(2, 4, (16, 16))


def mixture():
    made = GaussianMixture(2, 3)
    with torch.no_grad():
        made.logits.normal_()
        made.log_variances.normal_(std=0.3)
    return made


def vamp():
    encoder = torch.nn.Linear(3, 4).double()
    return VampPrior(encoder, GaussianChannel(), (3,), 5)


def aggregate():
    made = AggregatePosterior(2, 6)
    made.fill(diagonal(torch.randn(6, 2), 0.5 * torch.randn(6, 2)))
    return made


PRIORS = [lambda: StandardNormal(2), mixture, trained_maf, vamp, aggregate]


@pytest.mark.parametrize("make", PRIORS)
@torch.no_grad()
def test_density_integrates_to_one_and_agrees_with_samples(make):
    prior = make().double()
    axis = torch.linspace(-14, 14, 281, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = prior.log_prob(grid).exp()
    cell = float(axis[1] - axis[0]) ** 2
    assert density.sum().item() * cell == pytest.approx(1, abs=2e-3)
    # Means over samples against integrals, of log m(z) and of two other functions that reveal errors in sample().
    draws = prior.sample(20_000)
    for value_at_draws, value_on_grid in (
        (prior.log_prob(draws), prior.log_prob(grid)),
        (draws.square().sum(1), grid.square().sum(1)),
        (draws.prod(1), grid.prod(1)),
    ):
        expected = (density * value_on_grid).sum() * cell
        error = value_at_draws.std() / math.sqrt(len(draws))
        assert abs(value_at_draws.mean() - expected) < 5 * error + 0.01 * (1 + abs(expected))


def test_mixture_density_is_torchs():
    made, z = mixture(), torch.randn(9, 2)
    normals = Independent(Normal(made.means, (0.5 * made.log_variances).exp()), 1)
    oracle = MixtureSameFamily(Categorical(logits=made.logits), normals)
    torch.testing.assert_close(made.log_prob(z), oracle.log_prob(z))


def test_vamp_prior_by_brute_force():
    encoder = torch.nn.Linear(4, 6).double()
    prior = VampPrior(encoder, GaussianChannel(), (4,), 7).double()
    with torch.no_grad():
        prior.pseudo_inputs.normal_()  # some exceed the limits, so clamping matters
    z = torch.randn(5, 3, dtype=torch.float64)
    for row, found in zip(z, prior.log_prob(z), strict=True):
        total = 0.0
        for u in prior.pseudo_inputs:
            mean, log_variance = encoder(u.clamp(0, 1)).chunk(2)
            total += Normal(mean, log_variance.exp().sqrt()).log_prob(row).sum().exp().item() / 7
        assert found.item() == pytest.approx(math.log(total), rel=1e-12)


def test_vamp_prior_starts_from_training_rows():
    rows = torch.rand(40, 3)
    prior = VampPrior(torch.nn.Identity(), GaussianChannel(), (3,), 30)
    prior.prepare(rows)
    nearest = torch.cdist(prior.pseudo_inputs, rows).min(1)
    assert nearest.values.max() < 0.01 * 6
    assert 0.005 < (prior.pseudo_inputs - rows[nearest.indices]).std() < 0.015
    VampPrior(torch.nn.Identity(), GaussianChannel(), (3,), 90).prepare(rows)  # more pseudo-inputs than rows


def test_vamp_prior_encodes_its_pseudo_inputs_once_per_evaluation():
    calls = []
    encoder = torch.nn.Linear(4, 6)
    encoder.register_forward_hook(lambda *_: calls.append(1))
    prior, z = VampPrior(encoder, GaussianChannel(), (4,), 7), torch.randn(5, 3)
    expected = prior.log_prob(z).detach()
    assert len(calls) == 1
    prior.eval()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(prior.log_prob(z), expected)
    assert len(calls) == 2
    prior.log_prob(z).sum().backward()  # gradients need a pass of their own
    assert len(calls) == 3
    with torch.no_grad():
        prior.pseudo_inputs.mul_(0.5)
        moved = prior.log_prob(z)
        encoder.bias.add_(0.5)
        assert not torch.equal(prior.log_prob(z), moved)
        encoder.double()
        prior.double()
        assert prior.log_prob(z.double()).dtype == torch.float64
    assert len(calls) == 6
    copied = copy.deepcopy(prior)
    with torch.no_grad():
        torch.testing.assert_close(copied.log_prob(z.double()), prior.log_prob(z.double()))


def test_vamp_prior_follows_a_fused_optimizer():
    encoder, z = torch.nn.Linear(3, 4), torch.randn(5, 2)
    prior = VampPrior(encoder, GaussianChannel(), (3,), 5).eval()
    optimizer = torch.optim.Adam([*encoder.parameters(), *prior.parameters()], lr=0.1, fused=True)

    @torch.no_grad()
    def density():
        return prior.log_prob(z)

    before = density()
    prior.log_prob(z).sum().backward()
    optimizer.step()
    after = density()
    assert not torch.equal(after, before)
    optimizer.step()  # without a forward pass, as in the replay of a CUDA graph
    prior.train()
    prior.eval()
    assert not torch.equal(density(), after)


def test_flow_over_a_learned_base_has_its_entropy():
    base = GaussianMixture(2, components=1)
    with torch.no_grad():
        base.log_variances.fill_(2 * math.log(0.1))
    prior = MAF(2, steps=2, hidden=(8,), base=base)
    z = prior.sample(20_000)
    entropy = -prior.log_prob(z).mean().item()
    assert entropy == pytest.approx(math.log(2 * math.pi * math.e * 0.01), abs=0.05)


def test_random_rows_repeat_only_if_there_are_too_few():
    x = torch.arange(10)
    assert sorted(random_rows(x, 10).tolist()) == list(range(10))
    assert len(set(random_rows(x, 6).tolist())) == 6
    assert torch.bincount(random_rows(x, 25)).tolist().count(3) == 5


def test_aggregate_has_independent_marginals():
    mean = torch.randn(2000, 1).expand(-1, 2)  # both dimensions are equal
    made = AggregatePosterior(2, 2000)
    made.fill(diagonal(mean, torch.full_like(mean, -3.0)))
    draws = made.sample(20_000)
    variance = mean.var(0) + math.exp(-3)
    torch.testing.assert_close(draws.var(0), variance, rtol=0.05, atol=0)
    assert abs(torch.corrcoef(draws.T)[0, 1]) < 5 / math.sqrt(20_000)
    together = mean[:1000] + math.exp(-1.5) * torch.randn(1000, 2)
    single = AggregatePosterior(1, 2000)
    single.fill(diagonal(mean[:, :1], torch.full_like(mean[:, :1], -3.0)))
    torch.testing.assert_close(
        made.log_prob(together), single.log_prob(together[:, :1]) + single.log_prob(together[:, 1:])
    )


def test_aggregate_is_the_prior_until_filled():
    z = torch.randn(4, 3)
    torch.testing.assert_close(AggregatePosterior(3).log_prob(z), StandardNormal(3).log_prob(z))


def test_kl_by_monte_carlo():
    mean, log_variance = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    q, prior = GaussianChannel()(mean.expand(50_000, -1), log_variance.expand(50_000, -1)), StandardNormal(3).double()
    z = q.rsample()
    ratio = prior.log_ratio(q, z)
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - prior.rate(q, z)[0].sum()) < 5 * error


def test_kl_in_closed_form():
    mean, log_variance = torch.randn(50, 3), torch.randn(50, 3)
    q = GaussianChannel()(mean, log_variance)
    expected = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    torch.testing.assert_close(StandardNormal(3).rate(q, q.rsample()), expected)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_iaf_density_by_change_of_variables():
    channel = IAFChannel(3, 4, (16, 16)).double()
    mean, log_variance = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    q = channel(mean, log_variance)
    z = q.rsample()
    base = channel.flow.inverse(z)  # the density is computed from z only
    torch.testing.assert_close(q.log_prob(z), diagonal(mean, log_variance).log_prob(base))
    torch.testing.assert_close(channel(mean, log_variance).log_prob(z), q.log_prob(z))  # not known from drawing it


def test_bad_counts_raise():
    with pytest.raises(ValueError, match="components must be at least 1, got 0"):
        GaussianMixture(2, 0)
    with pytest.raises(ValueError, match="pseudo_inputs must be at least 1, got -3"):
        VampPrior(torch.nn.Identity(), GaussianChannel(), (3,), -3)
