"""Each metric on a case whose answer is known."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from knn_cases import fresh
from model_cases import diagonal, log_normal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from echo_ext import EchoChannel, metrics
from echo_ext.metrics._inputs import measure_rows
from echo_ext.models import Autoencoder, GaussianChannel, Model, StandardNormal


class LinearGaussian(Model):
    """x = W z + 0.5 noise with orthogonal columns in W, so that the true posterior is factorized.

    q(z|x) has the true posterior's mean and ``widening`` times its variance; 1 makes it exact.
    """

    def __init__(self, widening=1.0):
        super().__init__((4,))
        basis, _ = torch.linalg.qr(torch.randn(4, 3, dtype=torch.float64))
        self.weight = nn.Parameter(basis * torch.tensor([2.0, 0.8, 0.2], dtype=torch.float64))
        self.noise = 0.5
        self.snr = (self.weight.square().sum(0) / self.noise**2).detach()
        self.variance = widening / (1 + self.snr)

    def draw(self, n):
        z = torch.randn(n, 3, dtype=torch.float64)
        return (z @ self.weight.T + self.noise * torch.randn(n, 4, dtype=torch.float64)).detach()

    def log_prob(self, x):
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(4)
        return torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance).log_prob(x)

    def posterior(self, x):
        mean = x @ self.weight / self.noise**2 / (1 + self.snr)
        return diagonal(mean, self.variance.log().expand_as(mean))

    def log_likelihood(self, x, z):
        return log_normal(x, z @ self.weight.T, 2 * math.log(self.noise)).sum(1)

    def log_weight(self, x):
        q = self.posterior(x)
        z = q.rsample()
        return self.log_likelihood(x, z) + log_normal(z).sum(1) - q.log_prob(z)

    def loss(self, x):
        q = self.posterior(x)
        z = q.rsample()
        rate = StandardNormal(3).double().rate(q, z).sum(1).mean()
        distortion = -self.log_likelihood(x, z).mean()
        return {"loss": rate + distortion, "rate_bound": rate, "distortion": distortion}

    def encode(self, x):
        return self.posterior(x).rsample()

    def decode(self, z):
        return z @ self.weight.T

    def sample(self, n):
        return self.decode(torch.randn(n, 3, dtype=torch.float64))


class Echo(Model):
    """f = tanh(x), and a scale that depends on x where ``slope`` is not 0."""

    def __init__(self, s_raw=(-1.0, 1.0), slope=0.0, **settings):
        super().__init__((2,))
        self.channel = EchoChannel(60, activation_scale=1.0, bank_size=4000, **settings)
        self.s_raw = nn.Parameter(torch.tensor(s_raw))
        self.slope = slope

    def channel_inputs(self, x):
        return x, self.s_raw + self.slope * x

    def posterior(self, x):
        return self.channel(*self.channel_inputs(x))

    def loss(self, x):
        rate = self.posterior(x).rate.sum(1).mean()
        return {"loss": rate, "rate": rate, "distortion": x.square().sum(1).mean()}

    def encode(self, x):
        return self.posterior(x).z

    def decode(self, z):
        return z

    def sample(self, n):
        return self.channel.sample(n)


def trained_echo(rows=3000, **settings):
    """An Echo model whose bank holds rows of the distribution of x, and such rows."""
    model, x = Echo(**settings), torch.randn(rows, 2)
    with torch.no_grad():
        model.posterior(torch.randn(4000, 2))
    return model, x


# ---- Rate, distortion, likelihood ------------------------------------------------------------------------------------


def test_rate_and_distortion_meet_their_expectations():
    model = LinearGaussian(widening=1.5)
    x = model.draw(2501)
    measured = metrics.rate_distortion(model, x, draws=6, batch_size=1000)
    q = model.posterior(x)
    rate = StandardNormal(3).double().rate(q, q.rsample()).sum(1).mean().item()
    spread = (model.variance * model.weight.square().sum(0)).sum()  # of W z around W mean
    off = (x - q.mean @ model.weight.T).square().sum(1).mean()
    distortion = (0.5 * (off + spread) / 0.25 + 2 * math.log(2 * math.pi * 0.25)).item()
    assert measured.rate == pytest.approx(rate, rel=1e-12)
    assert measured.rate_error == pytest.approx(0, abs=1e-12)
    assert 0 < measured.distortion_error < 0.1
    assert measured.distortion == pytest.approx(distortion, abs=0.1)
    assert measured.neg_elbo == measured.rate + measured.distortion
    assert measured.rate_name == "rate_bound"


def test_the_standard_error_is_that_of_the_draws():
    model = LinearGaussian()
    x = model.draw(50)
    measured = [metrics.rate_distortion(model, x, draws=8) for _ in range(200)]
    spread = np.std([each.distortion for each in measured])
    assert np.sqrt(np.mean([each.distortion_error**2 for each in measured])) == pytest.approx(spread, rel=0.25)
    assert math.isnan(metrics.rate_distortion(model, x, draws=1).neg_elbo_error)


def test_forms_of_data_and_batch_sizes_give_one_result():
    model, x = trained_echo(rows=103, slope=1.0)
    data = TensorDataset(x, torch.zeros(103))
    expected = x.square().sum(1).mean().item()
    forms = (x, data, DataLoader(data, batch_size=10), list(x.split(50)), (batch for batch in x.split(7)))
    results = [metrics.rate_distortion(model, form, draws=2, batch_size=40) for form in forms]
    for result in results:
        assert result.distortion == pytest.approx(expected, rel=1e-6)
        assert result.rate == pytest.approx(results[0].rate, rel=1e-6)
        assert result.rate_name == "rate"


def test_measuring_leaves_the_model_as_it_was():
    model, x = trained_echo()
    model.channel.train()
    model.eval()
    model.channel.train(True)
    bank = model.channel.bank_f.clone()
    metrics.rate_distortion(model, x[:10], draws=1)  # too few rows for a batch in training
    assert model.channel.training
    assert not model.training
    assert torch.equal(model.channel.bank_f, bank)
    with pytest.raises(KeyError):
        measure_rows(model, x, 10, {}.__getitem__)
    assert model.channel.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_exact_posterior_weighs_every_draw_alike(batch_size):
    model = LinearGaussian()
    x = model.draw(20)
    found = metrics.importance_estimate(model, x, draws=5, max_batch_size=batch_size)
    torch.testing.assert_close(found.log_likelihood, model.log_prob(x).detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.effective_draws, torch.full((20,), 5.0).double())
    assert found.nll_error < 1e-6
    nll = metrics.importance_nll(model, x, draws=3, max_batch_size=batch_size)
    assert nll == pytest.approx(-model.log_prob(x).mean().item())


def test_the_bound_falls_to_the_truth():
    model = LinearGaussian(widening=2.0)
    x = model.draw(2000)
    truth = -model.log_prob(x).mean().item()
    gaps = [metrics.importance_nll(model, x, draws=k, max_batch_size=4000) - truth for k in (1, 5, 200)]
    assert gaps[0] > 1.5 * gaps[1] > 0
    assert gaps[1] > 5 * abs(gaps[2])
    elbo_gap = 1.5 * (1 - math.log(2))  # KL(q | posterior) of three latents of twice the variance
    assert gaps[0] == pytest.approx(elbo_gap, abs=0.12)
    assert abs(gaps[2]) < 0.02


class ExactEncoder(nn.Module):
    """The true posterior of x = W z + noise with orthogonal columns in W, with its std multiplied by ``width``."""

    def __init__(self, weight, noise, width):
        super().__init__()
        snr = weight.square().sum(0) / noise**2
        self.map = nn.Parameter(weight / noise**2 / (1 + snr))
        self.log_variance = (width**2 / (1 + snr)).log()

    def forward(self, x):
        mean = x @ self.map
        return mean, self.log_variance.expand_as(mean)


def linear_model(width):
    """A model whose log p(x) is known, and some x of it."""
    truth = LinearGaussian()
    decoder = nn.Linear(3, 4, bias=False, dtype=torch.float64)
    decoder.weight = nn.Parameter(truth.weight.detach())
    model = Autoencoder(
        ExactEncoder(truth.weight.detach(), truth.noise, width),
        decoder,
        GaussianChannel(),
        prior=StandardNormal(3).double(),
        likelihood=lambda mean: diagonal(mean, torch.full_like(mean, 2 * math.log(truth.noise))),
    )
    return model, truth


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("weight", [0.1, 0.7, 1.0])
def test_defensive_estimate_of_p_is_unbiased(width, weight):
    model, truth = linear_model(width)
    with torch.no_grad():
        x = truth.draw(3)
        rows = x.repeat_interleave(60_000, 0)
        weights = (model.log_weight(rows, defensive_weight=weight) - truth.log_prob(rows)).exp().view(3, -1)
    errors = weights.std(1) / math.sqrt(weights.shape[1])
    assert ((weights.mean(1) - 1).abs() < 5 * errors).all()
    assert (errors < 0.2).all()


def test_too_narrow_posterior_is_found_out_and_mended():
    """A few draws from a q that is too narrow miss most of p(x); the mixture finds it, with fewer effective draws."""
    model, truth = linear_model(width=0.2)
    x = truth.draw(50)
    expected = -truth.log_prob(x).mean().item()
    options = {"draws": 20_000, "max_batch_size": 200_000}
    with pytest.warns(RuntimeWarning, match="too few effective draws"):
        plain = metrics.importance_estimate(model, x, defensive_weight=0, **options)
    mended = metrics.importance_estimate(model, x, **options)
    assert plain.nll > expected + 0.7
    assert mended.nll == pytest.approx(expected, abs=0.05)
    assert mended.nll_error == pytest.approx(0.006, abs=0.004)
    assert metrics.importance_nll(model, x, **options) == pytest.approx(expected, abs=0.05)


def test_standard_error_of_the_nll_is_that_of_the_draws():
    model, truth = linear_model(width=1.5)
    x = truth.draw(10)
    found = [metrics.importance_estimate(model, x, draws=400, max_batch_size=4000) for _ in range(150)]
    spread = np.std([each.nll for each in found])
    assert np.sqrt(np.mean([each.nll_error**2 for each in found])) == pytest.approx(spread, rel=0.25)


def test_effective_draws_are_a_share_in_closed_form():
    """For a q with c times the true variance, 1 / (E_q w^2) is (sqrt(2 c - 1) / c) per dimension."""
    model, truth = linear_model(width=math.sqrt(2))
    found = metrics.importance_estimate(model, truth.draw(5), draws=40_000, defensive_weight=0, max_batch_size=10**6)
    expected = torch.full((5,), (3**0.5 / 2) ** 3).double()
    torch.testing.assert_close(found.effective_draws / 40_000, expected, rtol=0.03, atol=0)
    defended = metrics.importance_estimate(model, truth.draw(5), draws=4_000, max_batch_size=10**6)
    assert (defended.effective_draws > 0.5 * 4000).all()


def test_few_effective_draws_give_a_warning():
    model, truth = linear_model(width=0.02)
    model.encoder.map.data *= 0  # and at the wrong place
    x = 3 * truth.draw(50)
    with pytest.warns(RuntimeWarning, match=r"% of the rows have too few effective draws .*, of 500\), so that"):
        found = metrics.importance_estimate(model, x, draws=500)
    assert found.unreliable_share == (found.effective_draws < 10).double().mean() > 0.01
    assert (found.effective_draws >= 1).all()
    few = metrics.ImportanceEstimate(torch.zeros(4), torch.tensor([1.0, 1.9, 2.1, 20.0]), 20)
    assert few.unreliable_share == 0.5


def test_what_cannot_be_measured_is_refused():
    model, x = trained_echo()
    with pytest.raises(TypeError, match=r"the density q\(z\|x\), which Echo does not have"):
        metrics.importance_nll(model, x)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        metrics.importance_nll(LinearGaussian(), torch.zeros(2, 4), draws=0)
    with pytest.raises(ValueError, match="defensive_weight must be a finite number of at least 0 and at most 1, got 2"):
        metrics.importance_nll(LinearGaussian(), torch.zeros(2, 4), defensive_weight=2)
    with pytest.raises(ValueError, match="x must have at least one row"):
        metrics.importance_nll(LinearGaussian(), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="data must have at least one row"):
        metrics.rate_distortion(model, x[:0])
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        metrics.rate_distortion(model, x, draws=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        metrics.rate_distortion(model, x, batch_size=0)
    model.loss = lambda x: {"loss": x.sum()}
    with pytest.raises(TypeError, match=r"Echo\.loss reports no 'rate_bound', but only loss"):
        metrics.rate_distortion(model, x)


# ---- Information -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "tolerance"), [("formula", 0.06), ("knn", 0.1)])
def test_a_gaussian_latent_knows_half_a_log_of_one_plus_snr(method, tolerance):
    model = LinearGaussian(widening=1.5)
    x = model.draw(3000)
    signal = model.snr / (1 + model.snr)  # the variance of the posterior's mean
    expected = 0.5 * torch.log1p(signal / model.variance)
    found = metrics.latent_information(model, x, method=method, batch_size=700)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert expected[0] > 1
    assert expected[2] < 0.1


def test_the_aggregate_is_the_mixture_over_all_rows(monkeypatch):
    """Against the mixture as PyTorch has it; and rows far apart give log N."""
    model = LinearGaussian()
    x = model.draw(60)
    seed = int(torch.randint(2**31, ()))
    torch.manual_seed(seed)
    q = model.posterior(x)
    z = q.rsample()
    components = torch.distributions.Normal(q.mean.T, q.stddev.T)
    uniform = torch.distributions.Categorical(torch.ones(3, 60, dtype=torch.float64))
    marginal = torch.distributions.MixtureSameFamily(uniform, components).log_prob(z)
    expected = (log_normal(z, q.mean, 2 * q.stddev.log()) - marginal).mean(0)
    for block in (1, 500, 1 << 20):
        monkeypatch.setattr("echo_ext.metrics.information.BLOCK", block)
        torch.manual_seed(seed)
        torch.testing.assert_close(metrics.latent_information(model, x), expected.detach())
    apart = 1e6 * torch.arange(60, dtype=torch.float64).unsqueeze(1) @ model.weight[:, :1].detach().T
    assert metrics.latent_information(model, apart)[0].item() == pytest.approx(math.log(60), abs=1e-9)


@pytest.mark.parametrize(("slope", "multiplicative"), [(0.0, False), (1.0, False), (1.0, True)])
def test_an_echo_latent_knows_minus_log_s(slope, multiplicative):
    model, x = trained_echo(slope=slope, multiplicative=multiplicative)
    log_s = math.log(model.channel.scale) + nn.functional.logsigmoid(model.s_raw + slope * x)
    exact = metrics.latent_information(model, x, batch_size=1000)
    torch.testing.assert_close(exact, -log_s.mean(0).double().detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(metrics.latent_information(model, x, method="knn"), exact, rtol=0, atol=0.12)


def test_information_needs_a_distribution_per_latent():
    model = LinearGaussian()
    x = model.draw(10)
    with pytest.raises(ValueError, match="method must be one of 'formula', 'knn', got 'ksg'"):
        metrics.latent_information(model, x, method="ksg")
    with pytest.raises(ValueError, match="x must have at least one row"):
        metrics.latent_information(model, x[:0])
    model.posterior = lambda x: torch.distributions.MultivariateNormal(x, torch.eye(4, dtype=x.dtype))
    with pytest.raises(TypeError, match="LinearGaussian gives MultivariateNormal"):
        metrics.latent_information(model, x)
    with pytest.raises(TypeError, match="must have an EchoChannel as its channel, got NoneType"):
        metrics.rates_and_activations(model, x)


def test_gaussian_total_correlation():
    rho = 0.6
    points = torch.randn(200, 3, dtype=torch.float64)
    points = torch.linalg.qr(points - points.mean(0))[0]  # empirically white
    assert metrics.gaussian_total_correlation(points) == pytest.approx(0, abs=1e-12)
    points[:, 1] = rho * points[:, 0] + math.sqrt(1 - rho**2) * points[:, 1]
    expected = -0.5 * math.log(1 - rho**2)
    assert metrics.gaussian_total_correlation(points) == pytest.approx(expected, rel=1e-12)
    assert metrics.gaussian_total_correlation(1e3 + 1e-3 * points.numpy()) == pytest.approx(expected, rel=1e-6)
    points[:, 2] = points[:, 0] - 2 * points[:, 1]
    assert metrics.gaussian_total_correlation(points) == math.inf
    assert metrics.gaussian_total_correlation(points[:, 0]) == pytest.approx(0, abs=1e-12)
    points[:, 1] = 0.1
    with pytest.raises(ValueError, match="samples must vary in every column, got constant in column 1"):
        metrics.gaussian_total_correlation(points)
    with pytest.raises(ValueError, match=r"more rows than columns, got shape \(3, 3\)"):
        metrics.gaussian_total_correlation(points[:3])


# ---- Codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 5])
def test_knn_accuracy_is_scikit_learn_s(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = fresh()
    train, test = rng.standard_normal((300, 4)), rng.standard_normal((150, 4))
    train_labels = (train[:, 0] > 0) * 5 + rng.integers(-1, 3, 300)
    test_labels = (test[:, 0] > 0) * 5 + rng.integers(-1, 3, 150)
    theirs = neighbors.KNeighborsClassifier(k).fit(train, train_labels).score(test, test_labels)
    assert metrics.knn_accuracy(train, train_labels, test, test_labels, k=k) == theirs
    tensors = [torch.from_numpy(each) for each in (train, train_labels, test, test_labels)]
    assert metrics.knn_accuracy(*tensors, k=k) == theirs
    several = metrics.knn_accuracy(*tensors, k=[10, k, 1])
    assert several == [metrics.knn_accuracy(*tensors, k=each) for each in (10, k, 1)]


def test_knn_accuracy_ties_and_strangers():
    train, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([7, 2, 7, 2])
    assert metrics.knn_accuracy(train, labels, train[:2], torch.tensor([2, 2]), k=4) == 1  # the smaller label
    assert metrics.knn_accuracy(train, labels, torch.tensor([[1.5]]), torch.tensor([2]), k=1) == 1  # the earlier row
    assert metrics.knn_accuracy(train, labels, train, torch.tensor([7, 9, 9, 2]), k=1) == 0.5  # a label never seen
    with pytest.raises(ValueError, match="k must be at most the number of training rows, 4, got 5"):
        metrics.knn_accuracy(train, labels, train, labels)
    with pytest.raises(ValueError, match="k must be at most the number of training rows, 4, got 9"):
        metrics.knn_accuracy(train, labels, train, labels, k=(1, 9))
    with pytest.raises(ValueError, match="k must have at least one number, got none"):
        metrics.knn_accuracy(train, labels, train, labels, k=())
    with pytest.raises(ValueError, match="must have the 1 columns of train_codes, got 2"):
        metrics.knn_accuracy(train, labels, torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), k=1)
    with pytest.raises(ValueError, match="train_labels must have one row for each of the 4 codes, got 3"):
        metrics.knn_accuracy(train, labels[:3], train, labels)
    with pytest.raises(TypeError, match="test_labels must be integers, got dtype <U1"):
        metrics.knn_accuracy(train, labels, train, ["a"] * 4, k=1)


def test_marginal_statistics_know_a_normal_law_from_another():
    pytest.importorskip("scipy")
    codes = torch.stack([3 + 2 * torch.randn(5000), torch.rand(5000), -torch.rand(5000).log()], 1).double()
    found = metrics.marginal_statistics(codes)
    torch.testing.assert_close(found.mean, torch.tensor([3.0, 0.5, 1.0]).double(), rtol=0, atol=0.2)
    torch.testing.assert_close(found.std, torch.tensor([2.0, 12**-0.5, 1.0]).double(), rtol=0, atol=0.15)
    torch.testing.assert_close(found.skewness[:2], torch.zeros(2).double(), rtol=0, atol=0.25)
    torch.testing.assert_close(found.excess_kurtosis[:2], torch.tensor([0.0, -1.2]).double(), rtol=0, atol=0.5)
    assert found.skewness[2] > 1.3
    assert found.p_value[0] > 1e-7
    assert (found.p_value[1:] < 1e-20).all()
    assert found.statistic.argmin() == 0
    with pytest.raises(ValueError, match="at least 20 rows, got 19"):
        metrics.marginal_statistics(codes[:19])
    with pytest.raises(ValueError, match="constant in column 0"):
        metrics.marginal_statistics(torch.ones(30, 2))


def test_rates_and_activations():
    model, x = trained_echo(slope=1.0)
    rates, norms = metrics.rates_and_activations(model, x, batch_size=999)
    log_s = math.log(model.channel.scale) + nn.functional.logsigmoid(model.s_raw + x)
    torch.testing.assert_close(rates, -log_s.sum(1).detach())
    torch.testing.assert_close(norms, (model.channel.gain * x.tanh()).norm(dim=1))
    with pytest.raises(ValueError, match="x must have at least one row"):
        metrics.rates_and_activations(model, x[:0])


def test_tsne_keeps_apart_what_is_apart():
    pytest.importorskip("sklearn")
    labels = torch.arange(90) % 3
    codes = 20 * nn.functional.one_hot(labels, 4) + torch.randn(90, 4)
    placed = metrics.tsne(codes, perplexity=10, seed=3)
    assert placed.shape == (90, 2)
    assert metrics.knn_accuracy(placed, labels, placed, labels, k=5) == 1
    assert torch.equal(placed, metrics.tsne(codes, perplexity=10, seed=3))
    with pytest.raises(ValueError, match="perplexity must be above 0 and below the number of rows, 90, got 90"):
        metrics.tsne(codes, perplexity=90)


# ---- What is not installed -------------------------------------------------------------------------------------------


def test_metrics_need_no_more_than_torch_and_numpy():
    optional = {"scipy", "sklearn", "matplotlib", "lightning_fabric"}
    code = f"import sys, echo_ext.metrics; print(*{optional} & set(sys.modules))"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_what_is_missing_is_named(monkeypatch):
    for package, measure in (("scipy", metrics.marginal_statistics), ("sklearn", metrics.tsne)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'echo-ext\[(train|demo)\]'"):
            measure(torch.randn(40, 2))
