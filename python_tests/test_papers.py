"""The experiments: the command, saved single runs, statistics over seeds, and what they measure."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from echo_ext.data import VectorDataset
from echo_ext.data.mixtures import MIXTURES
from echo_ext.models import GaussianMixture, build
from echo_ext.training import Configuration

pytest.importorskip("lightning_fabric")
pytest.importorskip("matplotlib")
pd = pytest.importorskip("pandas")
PAPERS = Path(__file__).parents[1] / "examples" / "papers"
sys.path.append(str(PAPERS))
experiment, consistency_1d, mim_mixture, noise_tc = map(
    importlib.import_module, ("experiment", "consistency_1d", "mim_mixture", "noise_tc")
)

NAMES = sorted(path.stem for path in PAPERS.glob("*.py") if path.stem not in ("experiment", "figures"))


def run(tried, out, **options):
    options = {"seeds": (0, 1), "epochs": 1, "limit": 128, "show_progress": False, **options}
    return experiment.run(tried, out, **options)


def comparison(measure, **settings):
    """An experiment with a VAE and MIM."""

    def cases():
        for objective in ("vae", "mim"):
            chosen = {"hidden": [3], "objective": objective, **settings}
            yield {"model": objective}, Configuration.of("mim", "gmm2d", latent_dim=2, model_settings=chosen)

    return experiment.Experiment("comparison", "None.\n\nNobody 2020", cases, measure, lambda *_: {})


@pytest.fixture
def small(monkeypatch):
    """The mixture experiment with a width of 3, two models and few samples."""
    monkeypatch.setattr(mim_mixture, "WIDTHS", (3,))
    monkeypatch.setattr(mim_mixture, "LIKELIHOOD_ROWS", 20)
    monkeypatch.setattr(mim_mixture, "LIKELIHOOD_SAMPLES", 5)
    models = {name: mim_mixture.MODELS[name] for name in ("VAE", "MIM")}
    return mim_mixture.comparison("small", "None.\n\nNobody 2020", models, shown=models)


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---- Registry --------------------------------------------------------------------------------------------------------


def test_every_experiment_has_a_summary_and_a_source():
    assert len(NAMES) == 12
    for name in NAMES:
        found = importlib.import_module(name).EXPERIMENT
        assert found.name == name.replace("_", "-")
        assert "\n" not in found.summary
        assert any(character.isdigit() for character in found.source)  # the paper's year
        assert found.seeds >= 3


def test_every_experiment_has_its_command_in_the_docs():
    page = (PAPERS.parents[1] / "docs" / "papers.md").read_text(encoding="utf-8")
    assert all(f"python examples/papers/{name}.py" in page for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--limit", "-1"], "--limit must be at least 1, got -1"),
        (["--first-seed", "-1"], "--first-seed must be at least 0, got -1"),
        (["--widths", "5,x"], "--widths must be different whole numbers separated by commas, got '5,x'"),
        (["--widths", "5,5"], "--widths must be different whole numbers separated by commas, got '5,5'"),
    ],
)
def test_bad_usage_is_named(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        experiment.main(mim_mixture.EXPERIMENT, [*arguments, "--out", str(tmp_path)])
    assert capsys.readouterr().err.splitlines()[-1].endswith(words)


def test_errors_are_one_line(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert experiment.main(mim_mixture.EXPERIMENT, ["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"mim-mixture: error: {tmp_path / 'file'} must be a folder, but it is a file\n"


def test_script_writes_its_result_and_prints_its_table(tmp_path):
    script = [sys.executable, str(PAPERS / "consistency_1d.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run([*script, "--seeds", "1", "--epochs", "1", "--limit", "200"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["experiment"] == "consistency-1d"
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout


# ---- Runs and results ------------------------------------------------------------------------------------------------


def test_result_contains_every_value_and_its_mean(small, tmp_path):
    runs = run(small, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["experiment"] == "small"
    assert result["seeds"] == [0, 1]
    assert result["settings"]["epochs"] == 1
    assert result["settings"]["limit"] == 128
    assert result["settings"]["model_settings"]["3 MIM"]["objective"] == "mim"  # not the same for all cases
    assert [(row["hidden units"], row["model"]) for row in result["rows"]] == [(3, "VAE"), (3, "MIM")]
    for row in result["rows"]:
        returned = runs[runs["model"] == row["model"]]
        for quantity in (mim_mixture.INFORMATION, mim_mixture.ERROR, mim_mixture.ACCURACY, mim_mixture.NLL):
            first, second = row[quantity]["values"]
            assert first != second  # seeds differ
            assert row[quantity]["mean"] == pytest.approx((first + second) / 2)
            assert row[quantity]["standard_error"] == pytest.approx(abs(first - second) / 2)
            assert row[quantity]["standard_deviation"] == pytest.approx(abs(first - second) / math.sqrt(2))
            assert returned[quantity].tolist() == [first, second]
    *lines, caption = (tmp_path / "table.md").read_text().splitlines()
    assert (len(lines), caption) == (5, "Mean ± standard error over 2 seeds.")
    for name in ("measures.png", "models.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_interrupted_experiment_resumes(tmp_path):
    measured = []

    def interrupted(model, parts):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append({"one": float(len(measured))})
        return measured[-1]

    with pytest.raises(KeyboardInterrupt):
        run(comparison(interrupted), tmp_path)
    before = files(tmp_path)
    runs = run(comparison(lambda model, parts: {"one": 7.0}), tmp_path)
    assert [group["one"].tolist() for _, group in runs.groupby("model", sort=False)] == [[0.0, 7.0], [1.0, 7.0]]
    after = files(tmp_path)
    # Neither the measured runs nor the run that was trained but not measured have changed.
    assert {path: after[path] for path in before} == before


def test_options_and_seeds_of_several_calls_share_a_folder(tmp_path):
    """Each call trains what is missing, and its result has its own cases and seeds."""

    def cases(targets):
        for target in targets:
            settings = {"hidden": [2], "information": target}
            yield {"M": target}, Configuration.of("mutual-ae", "normal", latent_dim=1, model_settings=settings)

    measured = []

    def measure(model, parts):
        measured.append(model.information)
        return {"one": float(len(measured))}

    tried = experiment.Experiment(
        *("shared", "None.\n\nNobody 2020", cases, measure, lambda *_: {}), options={"targets": (0.0, 1.5)}
    )
    common = ["--out", str(tmp_path), "--epochs", "1", "--limit", "128"]

    def rows(*arguments):
        assert experiment.main(tried, [*common, *arguments]) == 0
        result = json.loads((tmp_path / "result.json").read_text())
        return result["seeds"], {row["M"]: row["one"]["values"] for row in result["rows"]}

    assert rows("--targets", "0.5", "--seeds", "1") == ([0], {0.5: [1.0]})
    assert rows("--first-seed", "1", "--seeds", "1") == ([1], {0.0: [2.0], 1.5: [3.0]})
    assert rows("--targets", "0.5,0,1.5", "--seeds", "2") == (
        [0, 1],
        {0.5: [1.0, 6.0], 0.0: [4.0, 2.0], 1.5: [5.0, 3.0]},
    )
    assert measured == [0.5, 0.0, 1.5, 0.0, 1.5, 0.5]


def test_folder_refuses_another_experiment(small, tmp_path):
    nothing = comparison(lambda model, parts: {"one": 1.0})
    run(nothing, tmp_path / "out")
    with pytest.raises(FileExistsError, match="contains the result of 'comparison', not of 'small'"):
        run(small, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="must be a folder, but it is a file"):
        run(nothing, tmp_path / "file")


def test_run_refuses_another_configuration(tmp_path):
    run(comparison(lambda model, parts: {"one": 1.0}), tmp_path)
    with pytest.raises(FileExistsError, match="contains another run"):
        run(comparison(lambda model, parts: {"one": 1.0}, hidden=[4]), tmp_path)


def test_damaged_measures_are_named(tmp_path):
    tried = comparison(lambda model, parts: {"one": 1.0})
    run(tried, tmp_path)
    file = tmp_path / "runs" / "mim-seed1" / "measures.json"
    file.write_text('{"one": 1')
    with pytest.raises(ValueError, match=r"mim-seed1/measures\.json is damaged: .*; remove it"):
        run(tried, tmp_path)


def test_table_has_two_digits_of_the_standard_error():
    first = [{"width": 5, "model": "A", "nats": nats, "share": share} for nats, share in
             ((1.0, 0.91), (2.0, 0.93), (3.0, 0.92))]  # fmt: skip
    second = [{"width": 20, "model": "B", "nats": nats} for nats in (120.0, 140.0, 160.0)]
    table = experiment.statistics(pd.DataFrame([*first, *second]).assign(seed=0), ["width", "model"])
    assert table["nats", "mean"][5, "A"] == 2
    assert table["nats", "sem"][5, "A"] == pytest.approx(1 / math.sqrt(3))
    assert table["nats", "std"][5, "A"] == 1
    assert table["nats", "first"][20, "B"] == 120
    assert math.isnan(experiment.statistics(pd.DataFrame(second[:1]).assign(seed=0), ["model"])["nats", "sem"]["B"])
    assert experiment.markdown(table).splitlines() == [
        "| width | model | nats | share |",
        "| --- | --- | --- | --- |",
        "| 5 | A | 2.00 ± 0.58 | 0.9200 ± 0.0058 |",
        "| 20 | B | 140 ± 12 |  |",
    ]
    assert experiment.run_name({"width": 5, "model": "VAE+H x"}, 3) == "5-vae+h-x-seed3"


# ---- Measurements ----------------------------------------------------------------------------------------------------


def test_fixed_mixture_has_its_density_and_no_gradients():
    mixture = MIXTURES["gmm2d"]
    fixed = GaussianMixture.fixed(mixture.means.float(), mixture.sigma)
    x, _ = mixture.sample(100, seed=0)
    torch.testing.assert_close(fixed.log_prob(x).double(), mixture.log_prob(x), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())


def test_reference_samples_come_from_its_components():
    reference = {"reference_means": [[-3.0], [5.0]], "reference_std": 0.01}
    model = build("mim", (1,), latent_dim=1, hidden=[3], **reference)
    z = model.reference_prior.sample(2000)
    near = torch.stack([(z + 3).abs() < 0.1, (z - 5).abs() < 0.1]).double()
    assert near.sum(0).min() == 1
    assert near[0].mean().item() == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ValueError, match="reference_means must be a sequence of means with 2 numbers"):
        build("mim", (1,), latent_dim=2, **reference)
    with pytest.raises(ValueError, match="reference_std must be a finite number above 0, got 0"):
        build("mim", (1,), latent_dim=1, reference_means=[[0.0]], reference_std=0)


def test_consistent_joints_have_zero_divergence():
    """Both marginals are N(0, 1), and the conditionals are such that q(x) q(z|x) = p(z) p(x|z)."""
    model = build(
        "mim", (1,), latent_dim=1, prior="mixture", data_marginal="mixture", components=1, hidden=[],
        reference_means=[[0.0]], reference_std=1.0,
    )  # fmt: skip
    with torch.no_grad():
        for network in (model.encoder, model.decoder):
            linear = next(module for module in network.modules() if isinstance(module, torch.nn.Linear))
            linear.weight.copy_(torch.tensor([[0.8], [0.0]]))
            linear.bias.copy_(torch.tensor([0.0, math.log(1 - 0.8**2)]))
        for mixture in (model.prior, model.data_marginal):
            mixture.means.zero_()
    parts = {"test": VectorDataset(*MIXTURES["gmm1d"].sample(2000, seed=0))}
    with torch.no_grad():
        found = consistency_1d.measure(model, parts)
        assert found["L_MIM - CE, nats"] == pytest.approx(0, abs=1e-5)
        assert found["JSD of the learned joints, nats"] == pytest.approx(0, abs=1e-5)
        assert found["KL(P(z) ‖ p(z)), nats"] == pytest.approx(0, abs=1e-5)
        linear.bias[0] = 2.0  # a wrong decoder
        assert consistency_1d.measure(model, parts)["L_MIM - CE, nats"] > 0.1


def test_consistency_and_noise_experiments_write_their_files(monkeypatch, tmp_path):
    run(consistency_1d.EXPERIMENT, tmp_path / "consistency")
    assert (tmp_path / "consistency" / "histograms.png").is_file()
    monkeypatch.setattr(noise_tc, "PUBLISHED", {"digits": 1.5})
    monkeypatch.setattr(noise_tc, "EPOCHS", {"digits": 2})
    monkeypatch.setattr(noise_tc, "HIDDEN", (16,))
    monkeypatch.setattr(noise_tc, "SAMPLES", 2000)
    (row,) = run(noise_tc.EXPERIMENT, tmp_path / "noise", seeds=(0,), limit=200).to_dict("records")
    assert list(row.items())[:2] == [("data", "digits"), ("published TC", 1.5)]
    assert row[noise_tc.PRINTED] == 2 * row[noise_tc.CORRELATION] > 0
    assert row["-ELBO"] == pytest.approx(row["rate"] + row["distortion"])
    assert (tmp_path / "noise" / "correlations.png").is_file()
