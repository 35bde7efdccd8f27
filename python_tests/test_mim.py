"""MIM: closed forms of linear Gaussian models, identities of the objectives, and gradients of discrete samples."""

import math

import pytest
import torch
from model_cases import fit, log_normal, refuses_other_shapes, same_after_saving, wide_under_autocast
from torch import nn

from echo_ext.models import (
    MIM,
    CategoricalLikelihood,
    GaussianChannel,
    GaussianLikelihood,
    Prior,
    StandardNormal,
    build,
    score_function,
)
from echo_ext.models.mim import OBJECTIVES


class Normal(Prior):
    def __init__(self, variance):
        super().__init__()
        self.variance = variance

    def log_prob(self, z):
        return log_normal(z, 0.0, math.log(self.variance)).sum(1)

    def sample(self, n):
        return math.sqrt(self.variance) * torch.randn(n, 1, dtype=torch.float64)


class Affine(nn.Module):
    """A Gaussian with the mean ``factor * x`` and a constant variance."""

    def __init__(self, factor, variance, concatenated=False):
        super().__init__()
        self.factor, self.variance, self.concatenated = factor, variance, concatenated

    def forward(self, x):
        moments = self.factor * x, torch.full_like(x, math.log(self.variance))
        return torch.cat(moments, dim=1) if self.concatenated else moments


class LinearGaussian(MIM):
    """A model with q(z|x) = N(a x, v), p(z) = N(0, 1) and p(x|z) = N(b z, w)."""

    def __init__(self, a, v, b, w):
        encoder, decoder = Affine(a, v), Affine(b, w, concatenated=True)
        prior = StandardNormal(1).double()
        super().__init__(encoder, decoder, GaussianChannel(), prior=prior, likelihood=GaussianLikelihood())
        self.a, self.v, self.b, self.w = a, v, b, w

    def encoder_covariance(self, variance):
        """The covariance of (x, z) for encoded x ~ N(0, variance)."""
        return torch.tensor([[variance, self.a * variance], [self.a * variance, self.a**2 * variance + self.v]])

    def decoder_covariance(self):
        return torch.tensor([[self.b**2 + self.w, self.b], [self.b, 1.0]])


def cross_entropy(true, model):
    """The cross-entropy -E log N(.; 0, model) under N(0, true)."""
    return 0.5 * (torch.logdet(2 * math.pi * model) + torch.trace(torch.linalg.solve(model, true)))


def consistent(b=0.8, w=0.5):
    """A model whose encoder and decoder have the same joint distribution, and the variance of x ~ N(0, b^2 + w)."""
    variance = b**2 + w
    return LinearGaussian(b / variance, w / variance, b, w), variance


ROWS = 200_000


def loss_of(objective, model, x, *, data_marginal=None, **settings):
    """The loss of a model with another objective and another q(x)."""
    for name, value in {"objective": objective, "data_marginal": data_marginal, **settings}.items():
        setattr(model, name, value)
    return model.loss(x)


def test_mim_loss_of_gaussian_joints_in_closed_form():
    model, variance = LinearGaussian(0.7, 0.4, 1.1, 0.6), 1.5
    encoding, decoding = model.encoder_covariance(variance), model.decoder_covariance()
    halves = [(cross_entropy(half, decoding) + cross_entropy(half, encoding)) / 2 for half in (encoding, decoding)]
    x = math.sqrt(variance) * torch.randn(ROWS, 1, dtype=torch.float64)
    losses = loss_of("mim", model, x, data_marginal=Normal(variance))
    assert losses["encoder_half"].item() == pytest.approx(halves[0].item(), abs=0.02)
    assert losses["decoder_half"].item() == pytest.approx(halves[1].item(), abs=0.02)
    assert losses["loss"].item() == pytest.approx((halves[0] + halves[1]).item() / 2, abs=0.02)


def test_mim_loss_of_consistent_joints_is_their_entropy():
    model, variance = consistent()
    x = math.sqrt(variance) * torch.randn(ROWS, 1, dtype=torch.float64)
    entropy = cross_entropy(model.decoder_covariance(), model.decoder_covariance()).item()
    for marginal in (None, Normal(variance)):  # importance sampling is exact if q(z|x) is p(z|x)
        assert loss_of("mim", model, x, data_marginal=marginal)["loss"].item() == pytest.approx(entropy, abs=0.02)
    for other, marginal in ((model, Normal(variance)), (LinearGaussian(0.2, 0.9, 1.1, 0.6), Normal(1.0))):
        losses = []
        for objective in ("cross-entropy", "mim"):
            torch.manual_seed(0)
            losses.append(loss_of(objective, other, x[:100], data_marginal=marginal)["loss"].item())
        if other is model:
            assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        else:
            assert losses[0] < losses[1]


def test_log_weight_is_the_evidence_for_the_exact_posterior():
    model, variance = consistent()
    x = torch.randn(1000, 1, dtype=torch.float64)
    evidence = Normal(variance).log_prob(x)
    torch.testing.assert_close(model.log_weight(x), evidence)
    model.encoder.factor *= 0.5
    gap = evidence - torch.stack([model.log_weight(x) for _ in range(50)]).mean(0)
    assert gap.mean() > 0.01


def same_draws(objective, model, x, **arguments):
    torch.manual_seed(11)
    return loss_of(objective, model, x, **arguments)


def test_identities_between_the_objectives():
    model = build("mim", (3,), latent_dim=2, hidden=(8,), min_log_variance=-6, joint_entropy="anchored")
    x = torch.randn(50, 3)
    torch.manual_seed(11)
    q = model.posterior(x)
    z = q.rsample()
    log_decoding = model.observation(z).log_prob(x) + model.prior.log_prob(z)
    objectives = [objective for objective in OBJECTIVES if objective not in ("cross-entropy", "mim-h")]
    terms = {objective: same_draws(objective, model, x) for objective in objectives}
    losses = {objective: each["loss"].item() for objective, each in terms.items()}
    entropy = -q.log_prob(z).mean().item()
    assert losses["a-mim"] == pytest.approx(-log_decoding.mean().item(), rel=1e-5)
    assert losses["vae-h"] == pytest.approx(losses["vae"] + entropy, rel=1e-5)
    assert losses["vae-h"] == pytest.approx(losses["a-mim"], rel=1e-5)
    assert terms["mim"]["encoder_half"].item() == pytest.approx(losses["a-mim"], rel=1e-5)
    by_model = same_draws("vae-h", model, x, joint_entropy="model")["loss"].item()
    assert by_model == pytest.approx(losses["vae"] + losses["a-mim"], rel=1e-5)
    torch.manual_seed(11)
    neg_elbo = -model.log_weight(x).mean().item()
    for each in terms.values():
        assert (each["rate_bound"] + each["distortion"]).item() == pytest.approx(neg_elbo, rel=1e-5)


def cross_entropies(model, variance):
    """CE of the encoder samples and of the decoder samples, each relative to p(x, z) and to q(x, z) with N(0, 1)."""
    encoding, decoding = model.encoder_covariance(variance), model.decoder_covariance()
    learned = model.encoder_covariance(1.0)
    return [[cross_entropy(half, joint).item() for joint in (decoding, learned)] for half in (encoding, decoding)]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_warm_up_of_gaussian_joints_in_closed_form(weight):
    """The weighted cross-entropies of eq. 8: of p(x, z), as the paper says, or of q(x, z), as in the authors' code."""
    model, variance = LinearGaussian(0.7, 0.4, 1.1, 0.6), 1.5
    x = math.sqrt(variance) * torch.randn(ROWS, 1, dtype=torch.float64)
    halves = cross_entropies(model, variance)
    model.warm_up_weight = weight
    for warm_up, (of_p, of_q) in {"decoding": (weight, 1.0), "encoding": (1.0, weight)}.items():
        expected = [0.5 * (of_p * p + of_q * q) for p, q in halves]
        found = loss_of("mim", model, x, data_marginal=Normal(1.0), warm_up=warm_up)
        assert found["encoder_half"].item() == pytest.approx(expected[0], abs=0.02)
        assert found["decoder_half"].item() == pytest.approx(expected[1], abs=0.02)
        joins = warm_up == "decoding" or weight == 1
        assert found["loss"].item() == pytest.approx(0.5 * (expected[0] + joins * expected[1]), abs=0.02)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_warm_up_with_the_marginal_of_the_decoder_in_closed_form(weight):
    """If q(z|x) is p(z|x), the estimate of q(x) is exact, so both joint distributions are the same Gaussian."""
    model, _ = consistent()
    x = math.sqrt(2.0) * torch.randn(ROWS, 1, dtype=torch.float64)  # other data than the model's
    joint = model.decoder_covariance()
    encoder_half, decoder_half = (
        0.5 * (1 + weight) * cross_entropy(samples, joint).item() for samples in (model.encoder_covariance(2.0), joint)
    )
    model.warm_up_weight = weight
    for reuses_latents in (False, True):
        found = loss_of("mim", model, x, reuses_latents=reuses_latents)
        assert found["encoder_half"].item() == pytest.approx(encoder_half, abs=0.02)
        if not reuses_latents:
            assert found["decoder_half"].item() == pytest.approx(decoder_half, abs=0.02)
    a_mim = loss_of("a-mim", model, x, reuses_latents=False)["loss"].item()
    assert a_mim == pytest.approx(encoder_half, abs=0.02)


def test_reused_latents_give_the_conditional_as_the_marginal():
    """By appendix D.1 log q(x) of decoder samples is log p(x|z), whose mean is minus the entropy of p(x|z)."""
    model, _ = consistent()
    x = torch.randn(ROWS, 1, dtype=torch.float64)
    noise_entropy = 0.5 * math.log(2 * math.pi * math.e * model.w)
    joint = cross_entropy(model.decoder_covariance(), model.decoder_covariance()).item()
    posterior_entropy = 0.5 * math.log(2 * math.pi * math.e * model.v)
    found = loss_of("mim", model, x, reuses_latents=True)["decoder_half"].item()
    assert found == pytest.approx(0.5 * (joint + posterior_entropy + noise_entropy), abs=0.02)


def test_mim_h_subtracts_the_entropy_of_the_sampling_mixture():
    model, variance = consistent()
    x = math.sqrt(variance) * torch.randn(ROWS, 1, dtype=torch.float64)
    entropy = cross_entropy(model.decoder_covariance(), model.decoder_covariance()).item()
    known = {"data_marginal": Normal(variance), "data_distribution": Normal(variance)}
    for weight in (0.0, 0.3, 1.0):  # M_S is a Gaussian, and L_MIM its entropy
        model.warm_up_weight = weight
        mim = 0.5 * (1 + weight) * entropy
        found = loss_of("mim-h", model, x, joint_entropy="anchored", **known)["loss"].item()
        assert found == pytest.approx(mim - weight * entropy, abs=0.02)
        found = loss_of("mim-h", model, x, joint_entropy="model", **known)["loss"].item()
        assert found == pytest.approx(mim - entropy, abs=0.02)
    # Any model: L_MIM - H_{M_S} >= L_CE - H_{M_S} = KL(M_S | M_theta) >= 0, and above it by R_MIM.
    other = LinearGaussian(0.2, 0.9, 1.1, 0.6)
    assert loss_of("mim-h", other, x, joint_entropy="anchored", **known)["loss"].item() > 0.1


def test_data_have_no_gradient_in_mim_h_of_the_model():
    """Encoder samples have the same density under both joint distributions, so their half of the loss is 0."""
    model = build("mim", (3,), latent_dim=2, hidden=(8,), objective="mim-h", joint_entropy="model").double()
    x = torch.randn(50, 3, dtype=torch.float64)
    half = model.loss(x)["encoder_half"]
    assert half.item() == pytest.approx(0, abs=1e-12)
    for gradient in torch.autograd.grad(half, list(model.parameters())):
        assert gradient.abs().max() < 1e-12


def test_score_function_gradient_is_that_of_the_expectation():
    logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, dtype=torch.float64)
    (exact,) = torch.autograd.grad((logits.softmax(0) * values).sum(), logits)
    states = logits.softmax(0).multinomial(ROWS, replacement=True)
    terms = score_function(values[states], logits.log_softmax(0)[states])
    assert terms.abs().max() == 0
    (estimate,) = torch.autograd.grad(terms.mean(), logits)
    torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)


class Point(Prior):
    def __init__(self, z):
        super().__init__()
        self.z = z

    def log_prob(self, z):
        raise NotImplementedError

    def sample(self, n):
        return self.z.expand(n, -1)


class Uniform(Prior):
    def log_prob(self, z):
        return torch.full_like(z[:, 0], -math.log(z.shape[1]))

    def sample(self, n):
        raise NotImplementedError


def test_discrete_decoder_half_gradient_is_exact_on_average():
    states = 3
    model = build("mim", (states,), latent_dim=1, likelihood="categorical", hidden=(4,)).double()
    point = torch.tensor([[0.4]], dtype=torch.float64)
    model.reference_prior = Point(point)
    weights = dict(model.named_parameters())
    x = torch.eye(states, dtype=torch.float64)
    z = point.expand(states, -1)
    log_likelihood = model.observation(z).log_prob(x)
    cost = -0.5 * (log_likelihood + model.prior.log_prob(z) + model.posterior(x).log_prob(z) - math.log(states))
    expectation = (log_likelihood.exp() * cost).sum()
    exact = torch.autograd.grad(expectation, list(weights.values()))
    rows = x[torch.randint(states, (ROWS,))]
    half = loss_of("mim", model, rows, data_marginal=Uniform())["decoder_half"]
    assert half.item() == pytest.approx(expectation.item(), abs=0.03)
    for name, estimate, true in zip(weights, torch.autograd.grad(half, list(weights.values())), exact, strict=True):
        torch.testing.assert_close(estimate, true, atol=0.03, rtol=0.03, msg=lambda line, name=name: f"{name}: {line}")


def test_categorical_likelihood_is_a_softmax():
    logits = torch.randn(1, 5)
    draws = CategoricalLikelihood()(logits.expand(ROWS, -1)).sample()
    assert torch.equal(draws.sum(1), torch.ones(ROWS))
    torch.testing.assert_close(draws.mean(0), logits.softmax(1)[0], atol=0.01, rtol=0)
    p = CategoricalLikelihood()(logits.expand(5, -1))
    torch.testing.assert_close(p.log_prob(torch.eye(5)), logits.log_softmax(1)[0])


@pytest.mark.parametrize("data_marginal", ["standard-normal", "normal", "mixture", "flow", "vamp"])
@pytest.mark.parametrize("prior", ["standard-normal", "normal", "mixture", "flow", "vamp"])
def test_marginals_have_gradients_and_integrate_to_one(prior, data_marginal):
    small = {"hidden": (10,), "activation": "swish", "components": 3, "pseudo_inputs": 5, "flow_hidden": (8,)}
    model = build("mim", (1,), latent_dim=1, prior=prior, data_marginal=data_marginal, **small).double()
    x = torch.randn(64, 1, dtype=torch.float64)
    model.prepare(x)
    model.loss(x)["loss"].backward()
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    for marginal in (model.prior, model.data_marginal):
        gradients = [weight.grad.abs().sum() for weight in marginal.parameters()]
        assert not gradients or max(gradients) > 0
        with torch.no_grad():
            total = marginal.log_prob(grid).exp().sum().item() * 0.003
        assert total == pytest.approx(1, abs=1e-3)
        assert marginal.sample(4).shape == (4, 1)
    assert (model.reference_prior is None) == (prior in ("standard-normal", "vamp"))


def test_decoder_samples_start_from_the_reference_prior():
    model = build("mim", (1,), latent_dim=1, hidden=(4,))
    assert model.reference_prior is None
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.reference_prior = Point(torch.tensor([[3.0]]))
    model.loss(torch.randn(2, 1))
    assert torch.equal(seen[1], torch.full((2, 1), 3.0))  # after the encoder samples


@pytest.mark.parametrize("recipe", ["mim", "a-mim", "vae-h"])
def test_recipes_learn_and_restore_their_state(recipe):
    centers = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    x = centers[torch.randint(3, (128,))] + 0.25 * torch.randn(128, 2)
    settings = {"latent_dim": 2, "hidden": (16, 16), "min_log_variance": -6.0}
    model = build(recipe, (2,), **settings)
    first, last = fit(model, x, steps=300, learning_rate=1e-2)
    assert last < first - 0.3
    assert model.reconstruct(x).shape == x.shape
    assert model.sample(7).shape == (7, 2)
    assert (model.reconstruct(x) - x).square().mean() < 0.75 * x.var()  # of two dimensions at least one
    assert wide_under_autocast(model, x)
    assert refuses_other_shapes(model, x)
    assert same_after_saving(recipe, (2,), model, x, **settings)


def test_mim_learns_binary_images():
    x = (torch.arange(8) < 4).float().expand(64, 1, 8, 8)
    x = torch.where(torch.rand(64, 1, 1, 1) < 0.5, x, 1 - x)
    first, last = fit(build("mim", (1, 8, 8), latent_dim=2, hidden=(32,)), x, steps=60)
    assert last < 0.7 * first


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"objective": "mimm"}, "objective must be one of 'vae', .*'mimm'"),
        ({"prior": "gamma"}, "prior must be one of 'standard-normal', .*'vamp', got 'gamma'"),
        ({"data_marginal": "gamma"}, "data_marginal must be one of 'importance', .*'vamp', got 'gamma'"),
        ({"posterior": "gamma"}, "posterior must be one of 'gaussian', 'mixture', got 'gamma'"),
        ({"warm_up": "both"}, "warm_up must be one of 'decoding', 'encoding', got 'both'"),
        ({"joint_entropy": "none"}, "joint_entropy must be one of 'anchored', 'model', got 'none'"),
        ({"objective": "cross-entropy"}, r"data_marginal must be a learned q\(x\) for objective 'cross-entropy'"),
        (
            {"objective": "a-mim", "data_marginal": "mixture"},
            "data_marginal must be None for objective 'a-mim', .* got GaussianMixture; an explicit .* as in .*'mim'",
        ),
        ({"objective": "vae", "data_marginal": "normal"}, "data_marginal must be None for objective 'vae'"),
        (
            {"objective": "mim-h", "joint_entropy": "anchored"},
            r"data_distribution must be the known P\(x\) .*'mim-h', got None; a recipe .*'model' needs none",
        ),
        ({"reference_means": [[1.0]]}, "reference_means must be a sequence of means with 2 numbers each, .* latent"),
        ({"data_means": [[1.0]]}, "data_means must be a sequence of means with 2 numbers each, one per column"),
        ({"likelihood": "poisson"}, "likelihood must be one of .*'poisson'"),
        ({"activation": "step"}, "activation must be one of .*'step'"),
        ({"initialization": "ones"}, "initialization must be one of 'glorot', 'torch', got 'ones'"),
    ],
)
def test_bad_arguments_raise(settings, line):
    with pytest.raises(ValueError, match=line):
        build("mim", (2,), latent_dim=2, **settings)


def test_mixtures_and_categories_of_images_raise():
    with pytest.raises(ValueError, match=r"data_shape must be \(columns,\) for data_marginal 'mixture', got"):
        build("mim", (1, 8, 8), data_marginal="mixture")
    with pytest.raises(ValueError, match=r"data_shape must be \(states,\) for likelihood 'categorical', got"):
        build("mim", (1, 8, 8), likelihood="categorical")
