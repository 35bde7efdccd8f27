"""The command of experiments: its registry, single runs that are kept, values over seeds; and what they measure."""

import json
import math

import pytest
import torch

from echo_ext import cli, reproduce
from echo_ext.data.mixtures import MIXTURES
from echo_ext.models import build
from echo_ext.models.densities import log_normal
from echo_ext.models.marginals import GaussianMixture
from echo_ext.reproduce import Bench, Experiment, Outcome, Row, consistency_1d, mim_mixture, noise_tc
from echo_ext.reproduce.experiment import run_name, table


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "out", (0, 1), epochs=1, limit=128, progress=False)


@pytest.fixture
def small(monkeypatch):
    """The mixture's experiment at a width of 3 with two models, measured briefly."""
    monkeypatch.setattr(mim_mixture, "WIDTHS", (3,))
    monkeypatch.setattr(mim_mixture, "LIKELIHOOD_ROWS", 20)
    monkeypatch.setattr(mim_mixture, "LIKELIHOOD_DRAWS", 5)
    return Experiment("small", "none", lambda bench: mim_mixture.compare(bench, ("VAE", "MIM")), seeds=2)


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---- Registry --------------------------------------------------------------------------------------------------------


def test_every_experiment_says_what_it_is_and_where_it_is_from():
    for name, summary in reproduce.experiments().items():
        experiment = reproduce.find(name)
        assert experiment.summary == summary
        assert "\n" not in summary
        assert any(character.isdigit() for character in experiment.source)  # the paper's year
        assert experiment.seeds >= 3


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"no experiment 'mim-mixtures'; the most similar are mim-mixture"):
        reproduce.find("mim-mixtures")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["noise"], "there is no experiment 'noise'"),
        (["mim-mixture", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    ],
)
def test_bad_usage_is_one_line(arguments, words, capsys, tmp_path):
    assert cli.main(["reproduce", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_without_a_name_the_command_lists_them(capsys):
    assert cli.main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(reproduce.NAMES)


# ---- Runs and results ------------------------------------------------------------------------------------------------


def test_a_result_holds_every_value_and_its_mean(small, bench):
    outcome = reproduce.reproduce("small", small, bench)
    result = json.loads((bench.out / "result.json").read_text())
    assert result["experiment"] == "small"
    assert result["seeds"] == [0, 1]
    assert result["settings"]["epochs"] == 1
    assert result["settings"]["limit"] == 128
    assert [(row["hidden units"], row["model"]) for row in result["rows"]] == [(3, "VAE"), (3, "MIM")]
    for row, of_outcome in zip(result["rows"], outcome.rows, strict=True):
        for quantity in (mim_mixture.INFORMATION, mim_mixture.ERROR, mim_mixture.ACCURACY, mim_mixture.NLL):
            first, second = row[quantity]["values"]
            assert first != second  # seeds differ
            assert row[quantity]["mean"] == pytest.approx((first + second) / 2)
            assert row[quantity]["standard_error"] == pytest.approx(abs(first - second) / 2)
            assert of_outcome.mean(quantity) == row[quantity]["mean"]
    assert (bench.out / "table.md").read_text().count("\n") == 4
    for name in ("measures.png", "codes.png"):
        assert (bench.out / name).read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_experiment_goes_on_where_it_stopped(small, bench, monkeypatch):
    measured = []

    def interrupted(model, parts):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append({"one": float(len(measured))})
        return measured[-1]

    cases = [
        ({"model": name}, bench.configuration("mim", "gmm2d", latent_dim=2, model={"hidden": [3], "objective": name}))
        for name in ("vae", "mim")
    ]
    with pytest.raises(KeyboardInterrupt):
        bench.rows(cases, interrupted)
    before = files(bench.out)
    rows = bench.rows(cases, lambda model, parts: {"one": 7.0})
    assert [list(row.values["one"]) for row in rows] == [[0.0, 7.0], [1.0, 7.0]]
    after = files(bench.out)
    # Neither the measured runs nor the one that was trained but not measured were touched.
    assert {path: after[path] for path in before} == before


def test_a_folder_keeps_to_its_experiment(small, bench, tmp_path):
    nothing = Experiment("nothing", "none", lambda bench: Outcome([], {}, {}))
    reproduce.reproduce("nothing", nothing, bench)
    with pytest.raises(FileExistsError, match="holds the results of 'nothing', not of 'small'"):
        reproduce.reproduce("small", small, bench)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        reproduce.reproduce("nothing", nothing, Bench(tmp_path / "file"))


def test_a_run_keeps_to_its_configuration(bench):
    configuration = bench.configuration("mim", "gmm2d", latent_dim=2, model={"hidden": [3]})
    bench.measure("run", configuration, lambda model, parts: {"one": 1.0})
    other = bench.configuration("mim", "gmm2d", latent_dim=2, model={"hidden": [4]})
    with pytest.raises(FileExistsError, match="holds another run"):
        bench.measure("run", other, lambda model, parts: {"one": 1.0})


def test_a_table_shows_two_digits_of_the_standard_error():
    rows = [
        Row({"width": 5, "model": "A"}, {"nats": [1.0, 2.0, 3.0], "share": [0.91, 0.93, 0.92]}),
        Row({"width": 20, "model": "B"}, {"nats": [120.0, 140.0, 160.0]}),
    ]
    assert rows[0].mean("nats") == 2
    assert rows[0].error("nats") == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(Row({}, {"nats": [1.0]}).error("nats"))
    assert table(rows).splitlines() == [
        "| width | model | nats | share |",
        "| --- | --- | --- | --- |",
        "| 5 | A | 2.00 ± 0.58 | 0.9200 ± 0.0058 |",
        "| 20 | B | 140 ± 12 |  |",
    ]
    assert run_name({"width": 5, "model": "VAE+H x"}, 3) == "5-vae+h-x-seed3"


# ---- What they measure -----------------------------------------------------------------------------------------------


def test_jensen_shannon_divergence_of_known_laws():
    x = torch.randn(1000, dtype=torch.float64)
    equal = log_normal(x).expand(2, -1)
    assert consistency_1d.jensen_shannon(equal, equal) == pytest.approx(0, abs=1e-12)

    def densities(at, distance):
        return torch.stack([log_normal(at), log_normal(at, distance)])

    far = consistency_1d.jensen_shannon(densities(x, 100.0), densities(x + 100, 100.0))
    assert far == pytest.approx(math.log(2))
    n, distance = 200_000, 1.5
    draws = torch.randn(2, n, dtype=torch.float64)
    estimate = consistency_1d.jensen_shannon(densities(draws[0], distance), densities(draws[1] + distance, distance))
    grid = torch.linspace(-10, 12, 20_001, dtype=torch.float64)
    first, second = densities(grid, distance).exp()
    middle = (first + second) / 2
    exact = torch.trapezoid((first * (first / middle).log() + second * (second / middle).log()) / 2, grid).item()
    assert estimate == pytest.approx(exact, abs=5 / math.sqrt(n))


def test_a_fixed_mixture_is_the_law_that_it_says_and_is_not_trained():
    mixture = MIXTURES["gmm2d"]
    fixed = GaussianMixture.fixed(mixture.means.float(), mixture.sigma)
    x = mixture.sample(100, seed=0).values(slice(None))
    torch.testing.assert_close(fixed.log_prob(x).double(), mixture.log_prob(x), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())


def test_an_anchor_is_what_decoder_samples_start_from():
    anchored = {"anchor": [[-3.0], [5.0]], "anchor_std": 0.01}
    model = build("mim", (1,), latent_dim=1, hidden=[3], **anchored)
    z = model.draw_anchor(2000)
    near = torch.stack([(z + 3).abs() < 0.1, (z - 5).abs() < 0.1]).double()
    assert near.sum(0).min() == 1
    assert near[0].mean().item() == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ValueError, match="anchor must be rows of 2 numbers"):
        build("mim", (1,), latent_dim=2, **anchored)
    with pytest.raises(ValueError, match="anchor_std must be a finite number above 0, got 0"):
        build("mim", (1,), latent_dim=1, anchor=[[0.0]], anchor_std=0)


def test_joint_laws_that_agree_have_no_gap(bench):
    """z = x = N(0, 1) with the noise of both conditionals such that q(x) q(z|x) = p(z) p(x|z)."""
    model = build(
        "mim", (1,), latent_dim=1, prior="mixture", marginal="mixture", components=1, hidden=[], anchor=[[0.0]],
        anchor_std=1.0,
    )  # fmt: skip
    with torch.no_grad():
        for network in (model.encoder, model.decoder):
            linear = next(module for module in network.modules() if isinstance(module, torch.nn.Linear))
            linear.weight.copy_(torch.tensor([[0.8], [0.0]]))
            linear.bias.copy_(torch.tensor([0.0, math.log(1 - 0.8**2)]))
        for law in (model.prior, model.marginal):
            law.means.zero_()
    parts = {"test": MIXTURES["gmm1d"].sample(2000, seed=0)}
    with torch.no_grad():
        found = consistency_1d.measure(model, parts)
        assert found["L_MIM - CE, nats"] == pytest.approx(0, abs=1e-5)
        assert found["JSD of the learned joints, nats"] == pytest.approx(0, abs=1e-5)
        assert found["KL(P(z) ‖ p(z)), nats"] == pytest.approx(0, abs=1e-5)
        linear.bias[0] = 2.0  # a decoder that is off
        assert consistency_1d.measure(model, parts)["L_MIM - CE, nats"] > 0.1


def test_consistency_and_noise_experiments_write_their_files(bench, monkeypatch, tmp_path):
    reproduce.reproduce("consistency-1d", consistency_1d.EXPERIMENT, bench)
    assert (bench.out / "joints.png").is_file()
    monkeypatch.setattr(noise_tc, "PUBLISHED", {"digits": 1.5})
    monkeypatch.setattr(noise_tc, "EPOCHS", {"digits": 2})
    monkeypatch.setattr(noise_tc, "HIDDEN", (16,))
    monkeypatch.setattr(noise_tc, "DRAWS", 2000)
    out = Bench(tmp_path / "noise", (0,), epochs=1, limit=200, progress=False)
    (row,) = reproduce.reproduce("noise-tc", noise_tc.EXPERIMENT, out).rows
    assert row.labels == {"data": "digits", "published TC": 1.5}
    assert row.mean(noise_tc.CORRELATION) > 0
    assert row.mean("-ELBO") == pytest.approx(row.mean("rate") + row.mean("distortion"))
    assert (out.out / "correlations.png").is_file()
