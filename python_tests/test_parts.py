"""Autoencoders of parts, some of them the user's own, and the errors that name a part that does not fit."""

import math
import re

import pytest
import torch
from torch import nn

from echo_ext import EchoChannel
from echo_ext.models import (
    Autoencoder,
    GaussianChannel,
    LearnedWeight,
    MMDRegularizer,
    StandardNormal,
    TotalCorrelationRegularizer,
    mmd,
)

SHAPE = (1, 6, 6)
PIXELS = math.prod(SHAPE)


def blobs(rows):
    """Binary images of four kinds with some flipped pixels."""
    kinds = (torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    flipped = (torch.rand(rows, *SHAPE) < 0.05).float()
    return (kinds[torch.randint(4, (rows,))] - flipped).abs()


def parts(latents=6, outputs=None):
    """An encoder and a decoder that are plain networks."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * latents if outputs is None else outputs))
    decoder = nn.Sequential(nn.Linear(latents, PIXELS), nn.Unflatten(1, SHAPE))
    return encoder, decoder


class TwoHeads(nn.Module):
    """An encoder that returns the inputs of the channel as a tuple."""

    def __init__(self):
        super().__init__()
        self.f, self.s = nn.Linear(PIXELS, 6), nn.Linear(PIXELS, 6)

    def forward(self, x):
        return self.f(x.flatten(1)), self.s(x.flatten(1))


class Laplace(nn.Module):
    """A prior of the user's that is no subclass of Prior."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(6))

    def distribution(self):
        return torch.distributions.Laplace(torch.zeros(6), self.log_scale.exp())

    def log_prob(self, z):
        return self.distribution().log_prob(z).sum(1)

    def sample(self, n):
        return self.distribution().sample((n,))


class ExponentialNoise(nn.Module):
    """A channel of the user's with a rate of its own."""

    def forward(self, first, second):
        return first + torch.randn_like(first), nn.functional.softplus(second)

    def sample(self, n):
        return torch.randn(n, 6)


class LowMean(nn.Module):
    """A regularizer of the user's."""

    def forward(self, z):
        return {"penalty": 3.0 * z.mean().square(), "mean": z.mean()}


def step(model, x):
    """One backward pass; return the terms of the loss."""
    terms = model.loss(x)
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return terms


def test_any_encoder_works_with_echo():
    x, (_, decoder) = blobs(64), parts()
    model = Autoencoder(TwoHeads(), decoder, EchoChannel(31))
    terms = step(model, x)
    assert set(terms) == {"loss", "rate", "distortion"}
    assert (model.data_shape, model.latent_dim) == (SHAPE, 6)  # those of the first batch
    assert model.sample(3).shape == model.reconstruct(x[:3]).shape == (3, *SHAPE)
    log_s = model.channel.signal(*model.encoder(x))[1]
    torch.testing.assert_close(terms["rate"], -log_s.sum(1).mean())


def test_any_prior_works_with_a_gaussian_channel():
    x, (encoder, decoder) = blobs(64), parts()
    model = Autoencoder(encoder, decoder, GaussianChannel(), prior=Laplace())
    assert (model.data_shape, model.latent_dim) == (SHAPE, 6)  # those of decoded samples of the prior
    torch.manual_seed(2)
    terms = step(model, x)
    torch.manual_seed(2)
    q = model.posterior(x)
    z = q.rsample()
    torch.testing.assert_close(terms["rate_bound"], (q.log_prob(z) - Laplace().log_prob(z)).mean())
    torch.manual_seed(2)
    torch.testing.assert_close(-model.log_weight(x).mean(), terms["rate_bound"] + terms["distortion"])


def test_any_channel_likelihood_and_regularizer_work():
    x, (encoder, decoder) = blobs(64), parts()

    def likelihood(mean):
        return torch.distributions.Independent(torch.distributions.Laplace(mean, 1.0), 3)

    model = Autoencoder(encoder, decoder, ExponentialNoise(), likelihood=likelihood, regularizers=[LowMean()], beta=2.0)
    terms = step(model, x)
    expected = terms["distortion"] + 2 * terms["rate"] + 3 * terms["mean"].square()
    torch.testing.assert_close(terms["loss"], expected)
    assert model.sample(3).shape == (3, *SHAPE)


def test_checking_parts_leaves_generators_and_modes_alone():
    encoder, decoder = parts()
    decoder.eval()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model = Autoencoder(encoder, decoder, GaussianChannel(), prior=StandardNormal(6), data_shape=SHAPE)
    assert torch.equal(torch.rand(3), expected)
    assert model.encoder.training
    assert not model.decoder.training


class NoLogProb(nn.Module):
    def sample(self, n):
        return torch.zeros(n, 6)


class LogProbPerLatent(NoLogProb):
    def log_prob(self, z):
        return z


class BrokenSample(LogProbPerLatent):
    def sample(self, n):
        raise RuntimeError("no samples today")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"encoder": lambda x: x}, TypeError, "encoder must be a torch.nn.Module, got <function"),
        (
            {"encoder": nn.Linear(5, 12)},
            ValueError,
            r"encoder must accept x of shape \(2, 1, 6, 6\), got RuntimeError: (addmm: )?mat1",
        ),
        ({"decoder": parts(5)[1]}, ValueError, r"decoder must accept z of shape \(2, 6\), got RuntimeError"),
        (
            {"decoder": nn.Linear(6, 9)},
            ValueError,
            r"decoder must give p\(x\|z\) for 2 rows of shape \(1, 6, 6\), got a",
        ),
        ({"channel": nn.Bilinear(6, 6, 6)}, TypeError, "channel must return a distribution with rsample, got Tensor"),
        ({"channel": nn.Linear(6, 6)}, ValueError, "channel must accept the output of the encoder, got TypeError"),
        ({"prior": None}, ValueError, "prior must be given for GaussianChannel, which has no method sample"),
        (
            {"channel": EchoChannel(3)},
            ValueError,
            "prior must be None for EchoChannel, which has its own marginal, got",
        ),
        ({"prior": torch.distributions.Normal(0, 1)}, TypeError, "prior must be a torch.nn.Module, got Normal"),
        (
            {"prior": nn.Linear(6, 6)},
            TypeError,
            "prior must have the methods log_prob and sample, got Linear without log_p",
        ),
        (
            {"prior": NoLogProb()},
            TypeError,
            "prior must have the methods log_prob and sample, got NoLogProb without log_",
        ),
        (
            {"prior": StandardNormal(5)},
            ValueError,
            r"prior must have samples of the shape of z, \(2, 6\) for 2 rows, got",
        ),
        (
            {"prior": LogProbPerLatent()},
            ValueError,
            r"prior must have one log_prob per row, \(2,\), got shape \(2, 6\)",
        ),
        (
            {"prior": BrokenSample()},
            ValueError,
            "prior must accept n = 2 in sample, got RuntimeError: no samples today",
        ),
        ({"likelihood": "bernoulli"}, TypeError, "likelihood must be callable, got 'bernoulli'"),
        ({"likelihood": lambda z: z}, TypeError, "likelihood must return a distribution, got Tensor"),
        ({"beta": [1.0, 2.0]}, ValueError, "beta must have one weight per latent, 6, got 2"),
        (
            {"beta": [1.0] * 6, "prior": Laplace()},
            ValueError,
            "beta must be one number for a rate that is not a sum over",
        ),
        (
            {"regularizers": [nn.Linear(6, 6)]},
            TypeError,
            r"regularizers\[0\] must return a dict with a 'penalty', got ",
        ),
        (
            {"regularizers": [nn.Linear(5, 6)]},
            ValueError,
            r"regularizers\[0\] must accept z of shape \(4, 6\), got Runtime",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(change, error, message):
    encoder, decoder = parts()
    settings = {"encoder": encoder, "decoder": decoder, "channel": GaussianChannel(), "prior": StandardNormal(6)}
    with pytest.raises(error, match=message):
        Autoencoder(**{**settings, **change}, data_shape=SHAPE)


def test_penalties_of_the_package_are_those_of_their_formulas():
    z = torch.randn(64, 6)
    torch.manual_seed(3)
    terms = MMDRegularizer(5.0)(z)
    torch.manual_seed(3)
    torch.testing.assert_close(terms["penalty"], 5 * mmd(z, torch.randn_like(z)))
    terms = TotalCorrelationRegularizer(6, 7.0, 24)(z)
    torch.testing.assert_close(terms["penalty"], 7 * terms["total_correlation"])


# ---- A learned weight of the rate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "value"), [("target_rate", 5.0), ("target_rate", 2.0), ("target_distortion", 8.0)])
@pytest.mark.parametrize("channel", ["echo", "gaussian"])
def test_learned_weight_meets_its_target(target, value, channel):
    prior = StandardNormal(6) if channel == "gaussian" else None
    channel = GaussianChannel() if channel == "gaussian" else EchoChannel(99)
    model = Autoencoder(*parts(), channel, prior=prior, beta=LearnedWeight(**{target: value}), data_shape=SHAPE)
    optimizer = torch.optim.Adam(model.parameter_groups(1e-2))
    found = []
    for step in range(900):
        terms = model.loss(blobs(100))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        if step >= 700:
            found.append({"rate": terms.get("rate", terms.get("rate_bound")), **terms}[target.removeprefix("target_")])
    assert torch.stack(found).mean().item() == pytest.approx(value, rel=0.03)


def test_learned_weight_changes_neither_loss_nor_gradients():
    weight = LearnedWeight(target_rate=3.0)
    with torch.no_grad():
        weight.log_weight.fill_(math.log(2))
    learned = Autoencoder(*parts(), GaussianChannel(), prior=StandardNormal(6), beta=weight)
    fixed = Autoencoder(
        learned.encoder, learned.decoder, GaussianChannel(), prior=StandardNormal(6), beta=weight().item()
    )
    x, results = blobs(50), []
    for model in (learned, fixed):
        torch.manual_seed(3)
        loss = model.loss(x)["loss"]
        results.append((loss, *torch.autograd.grad(loss, [*model.encoder.parameters(), *model.decoder.parameters()])))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_unreachable_targets_are_refused_or_stay_finite():
    floor = 6 * EchoChannel(31).min_rate
    assert 1 < floor < 4
    for target in (floor, floor / 2):
        with pytest.raises(
            ValueError, match=r"target_rate must be above [\d.]+ nats, the minimum rate of 6 dimensions"
        ):
            Autoencoder(*parts(), EchoChannel(31), beta=LearnedWeight(target_rate=target), data_shape=SHAPE)
    weight = LearnedWeight(target_rate=3.0)
    for extreme in (1e9, -1e9):
        with torch.no_grad():
            weight.log_weight.fill_(extreme)
        assert 0 < weight() < math.inf


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, "target_rate or target_distortion must be given, and not both, got None and None"),
        ({"target_rate": 2.0, "target_distortion": 3.0}, "and not both, got 2.0 and 3.0"),
        ({"target_rate": 0.0}, "target_rate must be a finite number above 0, got 0.0"),
        ({"target_distortion": math.inf}, "target_distortion must be a finite number, got inf"),
        ({"target_rate": 2.0, "learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
    ],
)
def test_bad_targets_are_named(targets, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LearnedWeight(**targets)
