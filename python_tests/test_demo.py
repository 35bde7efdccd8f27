"""The demonstration: its models learn, its numbers are consistent, and its figures are not empty."""

import contextlib
import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from echo_ext import EchoChannel, cli, data, max_scale
from echo_ext._native import num_threads
from echo_ext.cli import demo
from echo_ext.training import evaluation
from echo_ext.training.fitting import fit, initial_model, make_fabric

for needed in ("lightning_fabric", "matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(needed)

SETTING = {"latent_dim": 4, "learning_rate": 3e-3, "epochs": 120, "model_settings": {"hidden": [64, 64]}}


def configure(recipe, **more):
    return demo.configure(recipe, "digits", **{**SETTING, "seed": 0, **more})


def train(recipe, digits, **more):
    """Train a model; return it with its history."""
    configuration = configure(recipe, **more)
    model = initial_model(configuration, digits["train"])
    return fit(model, digits, configuration, make_fabric(torch.device("cpu"), "32-true"))


def neg_elbo(row, part):
    rate = "rate" if f"{part}_rate" in row else "rate_bound"
    return row[f"{part}_{rate}"] + row[f"{part}_distortion"]


@pytest.fixture(autouse=True)
def _one_thread():
    with num_threads(1):
        yield


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the command with one seed and one with another."""
    results = []
    for seed in (3, 3, 4):
        out = tmp_path_factory.mktemp("demo") / "deep" / "out"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cli.main(["demo", "--epochs", "8", "--seed", str(seed), "--out", str(out)]) == 0
        results.append((out, json.loads((out / "result.json").read_text())))
    return results


def test_numbers_are_consistent(runs):
    _, result = runs[0]
    echo, vae = result["models"]["echo"], result["models"]["vae"]
    assert echo["rate"] + echo["distortion"] == pytest.approx(echo["neg_elbo"], rel=1e-12)
    assert vae["rate_bound"] + vae["distortion"] == pytest.approx(vae["neg_elbo"], rel=1e-12)
    assert echo["rate_floor"] == pytest.approx(-math.log(max_scale(99)) * result["latent_dim"])
    assert echo["rate"] >= echo["rate_floor"] - 1e-4
    assert vae["rate_bound"] >= 0
    assert echo["noise_total_correlation"] >= 0
    assert result["rows"] == {"train": 1297, "valid": 200, "test": 300}
    assert (result["data"], result["beta"], result["seed"], result["epochs"]) == ("digits", 1.0, 3, 8)
    assert result["versions"]["torch"] == torch.__version__
    assert result["seconds"] > 0


def test_same_seed_gives_the_same_numbers(runs):
    first, second, other = (result["models"] for _, result in runs)
    assert first == second
    assert first["echo"]["distortion"] != other["echo"]["distortion"]
    assert first["vae"]["distortion"] != other["vae"]["distortion"]


def test_figures_are_not_empty_and_no_other_files_are_left(runs):
    from matplotlib.image import imread

    out, _ = runs[0]
    sizes = {"reconstructions.png": (1281, 334), "samples.png": (1140, 615), "curves.png": (1440, 510)}
    assert {path.name for path in out.iterdir()} == {*sizes, "result.json"}
    for name, (width, height) in sizes.items():
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(out / name)
        assert pixels.shape[:2] == pytest.approx((height, width), abs=1)
        assert pixels[..., :3].std() > 0.05
        assert (out / name).stat().st_size < 150_000


def test_table_marks_exact_rates_and_bounds(capsys, tmp_path):
    assert cli.main(["demo", "--epochs", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    echo, vae = (json.loads((tmp_path / "result.json").read_text())["models"][kind] for kind in ("echo", "vae"))
    lines = printed.out.splitlines()
    echo_row = next(line for line in lines if "Echo" in line and "(exact)" in line)
    assert f"{echo['rate']:.2f} (exact)" in echo_row
    assert f"{echo['neg_elbo']:.2f}" in echo_row
    assert any(f"{vae['rate_bound']:.2f} (bound)" in line and "VAE" in line for line in lines)
    assert any(line.startswith("noise TC") for line in lines)
    assert printed.err == ""


@pytest.mark.parametrize("kind", ["echo", "vae"])
def test_training_lowers_the_loss_of_unseen_rows(digits, kind):
    run = train(kind, digits)
    first, *_, last = run.history
    assert len(run.history) == SETTING["epochs"]
    assert neg_elbo(last, "train") < neg_elbo(first, "train") - 4
    assert neg_elbo(last, "valid") < neg_elbo(first, "valid") - 2
    tested = evaluation.measure(run, digits["test"], draws=4)
    # Better than the best model without a latent, which predicts the mean of each pixel.
    mean, x = digits["train"][:][0].mean(0).clamp(1e-3, 1 - 1e-3), digits["test"][:][0]
    baseline = -(x * mean.log() + (1 - x) * (1 - mean).log()).flatten(1).sum(1).mean().item()
    assert tested["neg_elbo"] < baseline - 1


def test_both_models_have_the_same_initial_weights(digits):
    echo, vae = (initial_model(configure(kind, seed=5), digits["train"]) for kind in ("echo", "vae"))
    pairs = list(zip(echo.parameters(), vae.parameters(), strict=True))
    assert len(pairs) == 12
    assert all(torch.equal(*pair) for pair in pairs)


def test_beta_trades_rate_for_distortion(digits):
    low, high = (train("echo", digits, beta=beta).history[-1] for beta in (0.1, 3.0))
    assert low["valid_rate"] > high["valid_rate"] + 1
    assert low["valid_distortion"] < high["valid_distortion"] - 1


def test_noise_total_correlation_of_correlated_rows():
    """For a constant s, eps has the correlation matrix of f."""
    torch.manual_seed(0)
    channel = EchoChannel(num_terms=40, bank_size=4000)
    f = torch.randn(4000, 2)
    f[:, 1] = 0.6 * f[:, 0] + 0.8 * f[:, 1]
    with torch.no_grad():
        channel(f, torch.zeros_like(f))
    assert evaluation.noise_total_correlation(SimpleNamespace(channel=channel)) == pytest.approx(
        -0.5 * math.log(1 - 0.36), abs=0.03
    )


def test_number_of_threads_is_restored():
    torch.set_num_threads(2)
    with contextlib.suppress(KeyError), num_threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2
