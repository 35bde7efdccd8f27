"""Statistics of joint distributions: closed forms of Gaussian and discrete models, identities and errors."""

import dataclasses
import math

import pytest
import torch
from test_mim import LinearGaussian, Normal, consistent, cross_entropy
from torch.distributions import MultivariateNormal, OneHotCategorical

from echo_ext import metrics
from echo_ext.data.mixtures import MIXTURES
from echo_ext.models import build

ROWS = 20_000
DATA, MARGINAL, REFERENCE = 1.5, 1.2, 0.8  # the variances of P(x), q(x) and P(z)


def normal(variance):
    return MultivariateNormal(torch.zeros(1, dtype=torch.float64), variance * torch.eye(1, dtype=torch.float64))


def measured(model, *, variance=DATA, rows=ROWS, **options):
    """The statistics for rows of N(0, variance)."""
    return metrics.joint_statistics(model, normal(variance).sample((rows,)), normal(variance), **options)


def close(found, name, exact):
    """Whether a statistic is within five standard errors of its exact value, up to rounding."""
    return abs(getattr(found, name) - exact) < 5 * found.errors[name] + 1e-12


def inconsistent(*, learned=True):
    """A model whose four joint distributions differ, and their covariances: anchored, and then learned."""
    model = LinearGaussian(0.7, 0.4, 1.1, 0.6)
    model.reference_prior = Normal(REFERENCE)
    marginal = MARGINAL if learned else model.b**2 + model.w
    model.data_marginal = Normal(marginal) if learned else None
    mean = torch.tensor([[model.b], [1.0]])
    decoding = REFERENCE * mean @ mean.T + torch.diag(torch.tensor([model.w, 0.0]))
    anchored = model.encoder_covariance(DATA), decoding
    learned = model.encoder_covariance(marginal), model.decoder_covariance()
    return model, [each.double() for each in (*anchored, *learned)]


def expectation(values, distribution, step):
    return (distribution.exp() * values).sum().item() * step**2


def by_quadrature(covariances):
    """The Jensen-Shannon divergences of both pairs, the entropy of M_S and L_CE."""
    axis = torch.linspace(-9, 9, 901, dtype=torch.float64)
    points, step = torch.cartesian_prod(axis, axis), 18 / 900
    zero = torch.zeros(2, dtype=torch.float64)
    q, p, learned_q, learned_p = (MultivariateNormal(zero, each).log_prob(points) for each in covariances)

    def mean(first, second):
        return torch.logaddexp(first, second) - math.log(2)

    def jensen_shannon(first, second):
        mixture = mean(first, second)
        return sum(expectation(each - mixture, each, step) for each in (first, second)) / 2

    mixture = mean(q, p)
    return {
        "anchored_jsd": jensen_shannon(q, p),
        "learned_jsd": jensen_shannon(learned_q, learned_p),
        "mixture_entropy": -expectation(mixture, mixture, step),
        "cross_entropy": -expectation(mean(learned_q, learned_p), mixture, step),
    }


def closed_forms(covariances, marginal):
    """Each statistic of Gaussian joint distributions with these covariances, where q(x) has this variance."""
    *anchored, learned_q, learned_p = covariances
    entropies = [cross_entropy(each, each).item() for each in anchored]
    loss = sum(cross_entropy(true, model).item() for true in anchored for model in (learned_q, learned_p)) / 4

    def kl(true, model):
        return 0.5 * (true / model - 1 - math.log(true / model))

    integrals = by_quadrature(covariances)
    return {
        "encoding_entropy": entropies[0],
        "decoding_entropy": entropies[1],
        "mean_entropy": sum(entropies) / 2,
        "mim_loss": loss,
        "regularizer": loss - integrals["cross_entropy"],
        "data_kl": kl(DATA, marginal),
        "prior_kl": kl(REFERENCE, 1.0),
        **integrals,
    }


def test_every_statistic_of_gaussian_joints():
    model, covariances = inconsistent()
    found = measured(model)
    exact = closed_forms(covariances, MARGINAL)
    assert set(found.errors) == set(exact)
    for name, value in exact.items():
        assert close(found, name, value), (name, value, found)
    assert found.mixture_entropy == pytest.approx(found.anchored_jsd + found.mean_entropy, abs=1e-12)
    assert found.mim_loss == pytest.approx(found.cross_entropy + found.regularizer, abs=1e-12)
    assert found.regularizer > 5 * found.errors["regularizer"]


def test_implicit_data_marginal_is_that_of_the_decoder():
    model, covariances = inconsistent(learned=False)
    exact = closed_forms(covariances, model.b**2 + model.w)
    found = measured(model, draws=400, rows=5000)
    for name, value in exact.items():
        assert close(found, name, value), (name, value, found)
    rough = measured(model, draws=1, rows=5000)
    assert rough.data_kl > found.data_kl + 0.1  # an upper bound, which is looser for fewer draws


def test_errors_are_the_spread_of_repeated_estimates():
    model, _ = inconsistent()
    found = [measured(model, rows=200, max_batch_size=300) for _ in range(200)]
    for name in found[0].errors:
        spread = torch.tensor([getattr(each, name) for each in found]).std().item()
        mean = sum(each.errors[name] for each in found) / len(found)
        assert mean == pytest.approx(spread, rel=0.3), name


def test_consistent_joints_have_no_divergence():
    model, variance = consistent()
    model.data_marginal = Normal(variance)
    found = measured(model, variance=variance, rows=2000)
    for name in ("anchored_jsd", "learned_jsd", "regularizer", "data_kl", "prior_kl"):
        assert getattr(found, name) == pytest.approx(0, abs=1e-9), name
    for name in ("mixture_entropy", "cross_entropy", "mim_loss"):
        assert getattr(found, name) == pytest.approx(found.mean_entropy, abs=1e-9), name
    assert close(found, "mean_entropy", cross_entropy(model.decoder_covariance(), model.decoder_covariance()).item())


def test_far_joints_have_a_divergence_of_log_two():
    model, _ = inconsistent()
    model.encoder.factor = 100.0
    assert measured(model, rows=1000).anchored_jsd == pytest.approx(math.log(2), abs=0.1)


def test_discrete_data_in_closed_form():
    model = build("mim", (3,), latent_dim=1, likelihood="categorical", hidden=(4,)).double()
    data = OneHotCategorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    found = metrics.joint_statistics(model, data.sample((4000,)), data, draws=200)
    axis = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    weights = model.prior.log_prob(axis).exp() * (axis[1] - axis[0])
    with torch.no_grad():
        conditionals = model.observation(axis)
        entropies = model.posterior(torch.eye(3, dtype=torch.float64)).entropy()
        marginal = weights @ conditionals.mean
    assert close(found, "encoding_entropy", (data.entropy() + data.probs @ entropies).item())
    noise = -(conditionals.logits.log_softmax(1) * conditionals.mean).sum(1)
    assert close(found, "decoding_entropy", (0.5 * math.log(2 * math.pi * math.e) + weights @ noise).item())
    divergence = (data.probs * (data.probs / marginal).log()).sum().item()
    assert found.data_kl == pytest.approx(divergence, abs=5 * found.errors["data_kl"] + 0.01)


def test_mixture_is_a_data_distribution():
    model = build("mim", (2,), latent_dim=2, hidden=(5,), data_marginal="mixture")
    mixture = MIXTURES["gmm2d"]
    x, _ = mixture.sample(500, seed=0)
    found = metrics.joint_statistics(model, x, mixture)
    exact = -(mixture.log_prob(x).mean() - model.posterior(x).entropy().mean()).item()
    assert found.encoding_entropy == pytest.approx(exact, abs=5 / math.sqrt(500))


def test_unreliable_importance_samples_give_a_warning():
    model = LinearGaussian(3.0, 1e-4, 1.1, 0.6)
    with pytest.warns(RuntimeWarning, match="have too few effective draws"):
        measured(model, rows=100)


def test_bad_arguments_raise():
    model, _ = inconsistent()
    x = torch.randn(10, 1, dtype=torch.float64)
    echo = build("echo", (1,), latent_dim=1, hidden=(4,), num_terms=3)
    with pytest.raises(TypeError, match=r"model must have a prior and a density q\(z\|x\), which EchoChannel does not"):
        metrics.joint_statistics(echo, x, normal(1.0))
    with pytest.raises(TypeError, match="data_distribution must have a method log_prob, got"):
        metrics.joint_statistics(model, x, 3)
    with pytest.raises(ValueError, match=r"data_distribution must have one log_prob per row, \(40,\), got shape"):
        metrics.joint_statistics(model, x, torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="x must have at least 2 rows, got 1"):
        metrics.joint_statistics(model, x[:1], normal(1.0))
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        metrics.joint_statistics(model, x, normal(1.0), draws=0)


def test_evaluation_of_a_mixture_has_the_statistics(tmp_path, monkeypatch):
    pytest.importorskip("lightning_fabric")
    from echo_ext import training

    monkeypatch.setattr(training.evaluation, "write_figures", lambda *_: None)
    given = {"latent_dim": 1, "limit": 200, "epochs": 1}
    model = {"hidden": [7], "data_marginal": "mixture"}
    configuration = training.Configuration.of("mim", "gmm1d", model_settings=model, **given)
    training.train(configuration, tmp_path)
    found = training.evaluate(tmp_path)
    names = [field.name for field in dataclasses.fields(metrics.JointStatistics) if field.name != "errors"]
    assert found["joint_mixture_entropy"] == pytest.approx(found["joint_mean_entropy"] + found["joint_anchored_jsd"])
    assert all(found[f"joint_{name}_error"] < 0.1 for name in names)
    assert found["joint_prior_kl"] == 0  # the prior is its own reference
    assert found["joint_warning"] is None  # q(x) has a density of its own
