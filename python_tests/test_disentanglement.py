"""MIG and the FactorVAE score on codes whose scores are known."""

import itertools
import math

import numpy as np
import pytest
import torch
from knn_cases import fresh

from echo_ext import metrics, mutual_information_discrete


def grid(*sizes):
    """Every combination of factors."""
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def brute_force_mig(codes, factors, bins):
    gaps = []
    for factor in factors.T:
        shares = np.unique(factor, return_counts=True)[1] / len(factor)
        entropy = -(shares * np.log(shares)).sum()
        values = []
        for code in codes.T:
            joint, _, _ = np.histogram2d(code, factor, bins=(bins, np.arange(factor.min(), factor.max() + 2)))
            joint /= joint.sum()
            product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
            values.append((joint[joint > 0] * np.log(joint[joint > 0] / product[joint > 0])).sum())
        second, best = sorted(values)[-2:]
        gaps.append((best - second) / entropy)
    return np.mean(gaps)


def test_mig_is_the_gap_by_brute_force():
    rng = fresh()
    for bins in (2, 5, 20):
        codes = rng.standard_normal((30, 3))
        factors = rng.integers(0, 3, (30, 2))
        codes[:, 1] += factors[:, 0]
        expected = brute_force_mig(codes, factors, bins)
        assert metrics.mig(codes, factors, bins=bins) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("method", ["bins", "knn"])
def test_mig_of_codes_with_known_answers(method):
    factors = grid(4, 5, 3).repeat(40, 1)
    perfect = factors + 0.3 * torch.rand(factors.shape, dtype=torch.float64)
    perfect = torch.cat([torch.full((len(factors), 1), 7.0), perfect], 1)  # and a latent that is switched off
    assert metrics.mig(perfect, factors, method=method) == pytest.approx(1, abs=0.02)
    assert metrics.mig(torch.cat([perfect, perfect], 1), factors, method=method) == 0
    blind = torch.rand(len(factors), 4)
    assert metrics.mig(blind, factors, method=method) < 0.05
    information = metrics.factor_information(perfect, factors, method=method)
    assert information.shape == (3, 4)
    torch.testing.assert_close(
        information[:, 1:].diag(), torch.tensor([4.0, 5.0, 3.0]).double().log(), rtol=0, atol=0.03
    )
    assert (information[:, 0] == 0).all()


def test_the_knn_gap_is_of_ross_s_estimate():
    rng = fresh()
    codes, factors = rng.standard_normal((200, 3)), rng.integers(0, 3, (200, 1))
    codes[:, 1:] += factors
    values = sorted(mutual_information_discrete(code, factors[:, 0], k=4) for code in codes.T)
    shares = np.bincount(factors[:, 0]) / 200
    expected = (values[-1] - values[-2]) / -(shares * np.log(shares)).sum()
    assert metrics.mig(codes, factors, method="knn", k=4) == pytest.approx(expected, rel=1e-9)


def test_mig_refuses_what_has_no_gap():
    factors, codes = grid(4, 5), torch.rand(20, 2)
    with pytest.raises(ValueError, match="at least 2 columns"):
        metrics.mig(codes[:, :1], factors)
    with pytest.raises(ValueError, match="factors must vary in every column, got constant in column 1"):
        metrics.mig(codes, factors * torch.tensor([1, 0]))
    with pytest.raises(TypeError, match="factors must be integers, got float32"):
        metrics.mig(codes, factors.float())
    with pytest.raises(ValueError, match="one row for each of the 20 codes, got 19"):
        metrics.mig(codes, factors[1:])
    with pytest.raises(ValueError, match="method must be one of 'bins', 'knn', got 'tree'"):
        metrics.mig(codes, factors, method="tree")
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        metrics.mig(codes, factors, bins=1)
    with pytest.raises(ValueError, match="column 0 has 5 equal values, more than k=3"):
        metrics.mig(factors.double(), factors, method="knn")
    with pytest.raises(ValueError, match="finite"):
        metrics.mig(codes.log() * math.inf, factors)
    assert (metrics.factor_information(torch.ones(20, 2), factors) == 0).all()


VOTES = {"train_votes": 1500, "test_votes": 600, "rows_per_vote": 16}


def test_factor_vae_score_of_codes_with_known_answers():
    factors = grid(4, 5, 3)
    values = factors.double()
    assert metrics.factor_vae_score(values * torch.tensor([1.0, -0.2, 9.0]), factors, **VOTES) == 1
    turn = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]).double() / math.sqrt(2)
    assert 0.4 < metrics.factor_vae_score(values @ turn, factors, **VOTES) < 0.95
    blind = metrics.factor_vae_score(
        torch.rand(60, 4)[torch.randperm(60)].repeat(20, 1), factors.repeat(20, 1), **VOTES
    )
    assert blind < 0.65  # of 60 rows: what they know by chance
    codes = torch.rand(30_000, 4)
    assert metrics.factor_vae_score(codes, factors.repeat(500, 1), **VOTES) == pytest.approx(1 / 3, abs=0.1)


def test_latents_that_are_switched_off_take_no_part():
    """They would win every vote: they do not vary, or vary least relative to rounding."""
    factors = grid(4, 5, 3)
    still = torch.cat([torch.full((60, 2), 0.1), 1e-3 * factors[:, :1], factors], 1).double()
    assert metrics.factor_vae_score(still, factors, **VOTES) == 1
    assert metrics.factor_vae_score(still[:, :2], factors, **VOTES) == 0
    assert metrics.factor_vae_score((still + 1e-16 * torch.rand(60, 6))[:, :2], factors, **VOTES) == 0
    assert metrics.factor_vae_score(still[:, 1:], factors, **VOTES) == 1
    noisy = still + 0.1 * torch.randn(60, 6)
    assert metrics.factor_vae_score(still[:, :3], factors, noisy_codes=noisy[:, :3], **VOTES) == 0
    assert metrics.factor_vae_score(still[:, :3], factors, noisy_codes=noisy[:, :3], min_ratio=0, **VOTES) > 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 64.0, 1e6])
def test_factor_vae_score_does_not_depend_on_units(scale):
    """Any positive number for each latent, with and without noisy codes, of which one latent is only noise."""
    factors = grid(4, 5, 3).repeat(20, 1)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    codes = torch.cat([factors.double() @ (torch.eye(3) + 0.3 * turn), 0.01 * torch.randn(1200, 1)], 1)
    noisy = codes + torch.tensor([0.1, 0.2, 0.3, 1.0]) * torch.randn(1200, 4)
    factor = scale * torch.exp(2 * torch.randn(4, dtype=torch.float64))
    for samples, scaled in ((None, None), (noisy, noisy * factor)):
        plain = metrics.factor_vae_score(codes, factors, noisy_codes=samples, seed=3, **VOTES)
        assert metrics.factor_vae_score(codes * factor, factors, noisy_codes=scaled, seed=3, **VOTES) == plain


def test_factor_vae_score_agrees_with_its_definition():
    """The votes are counted by hand, for groups of rows with one value that are drawn with the same seed."""
    factors = grid(3, 4).repeat(10, 1)
    codes = factors + 2 * torch.rand(factors.shape)
    generator = torch.Generator().manual_seed(5)

    def votes(count):
        for factor in torch.randint(2, (count,), generator=generator).tolist():
            value = torch.randint((3, 4)[factor], (), generator=generator)
            rows = (factors[:, factor] == value).nonzero().flatten()
            group = codes[rows[torch.randint(len(rows), (VOTES["rows_per_vote"],), generator=generator)]]
            yield int((group.double().var(0) / codes.double().var(0)).argmin()), factor

    table = torch.zeros(2, 2)
    for vote in votes(VOTES["train_votes"]):
        table[vote] += 1
    right = [table[latent].argmax() == factor for latent, factor in votes(VOTES["test_votes"])]
    score = metrics.factor_vae_score(codes, factors, seed=5, **VOTES)
    assert score == pytest.approx(np.mean(right), abs=1e-12)
    assert 0.5 < score <= 1


def test_factor_vae_score_refuses_bad_numbers():
    factors = grid(3, 4)
    for name, value in {"train_votes": 0, "test_votes": 0, "rows_per_vote": 1}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            metrics.factor_vae_score(factors.double(), factors, **{name: value})
    with pytest.raises(ValueError, match="min_ratio must be a finite number of at least 0, got -1"):
        metrics.factor_vae_score(factors.double(), factors, min_ratio=-1)
    with pytest.raises(ValueError, match="factors must have at least 2 columns, got 1"):
        metrics.factor_vae_score(factors.double(), factors[:, :1])
    with pytest.raises(ValueError, match="noisy_codes must have the 2 columns of codes, got 1"):
        metrics.factor_vae_score(factors.double(), factors, noisy_codes=factors[:, :1].double())
