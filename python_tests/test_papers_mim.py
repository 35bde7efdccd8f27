"""The experiments of the MIM paper: their cases, runs that start from others, and small runs of each."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from echo_ext.data import mixtures
from echo_ext.data.mixtures import MIXTURES
from echo_ext.training import load

for needed in ("lightning_fabric", "matplotlib", "pandas", "sklearn"):
    pytest.importorskip(needed)
sys.path.append(str(Path(__file__).parents[1] / "examples" / "papers"))
experiment, consistency_order, mim_bottleneck, mim_entropy, mim_images, mim_mixture, prior_expressiveness = map(
    importlib.import_module,
    (
        *("experiment", "consistency_order", "mim_bottleneck", "mim_entropy", "mim_images", "mim_mixture"),
        "prior_expressiveness",
    ),
)
SMALL = {"seeds": (0,), "epochs": 1, "limit": 128, "show_progress": False}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Mixtures of a few hundred rows, because each run measures all test rows."""
    monkeypatch.setattr(mixtures, "_ROWS", {"train": 400, "valid": 100, "test": 300})


def models(cases):
    """The untrained models of cases by their labels."""
    return {tuple(labels.values()): configuration.build((2,)) for labels, configuration in cases}


def test_models_of_the_mixture_differ_only_in_the_loss():
    built = models(mim_entropy.EXPERIMENT.cases(widths=(5,))) | models(mim_mixture.EXPERIMENT.cases(widths=(5,)))
    assert {model.objective for model in built.values()} == {"vae", "a-mim", "mim", "vae-h", "mim-h"}
    shapes = {tuple(weight.shape for weight in model.parameters() if weight.requires_grad) for model in built.values()}
    assert shapes == {((5, 2), (5,), (4, 5), (4,), (5, 2), (5,), (4, 5), (4,))}  # two fully connected layers each
    x = MIXTURES["gmm2d"].sample(50, seed=0)[0]
    known = built[5, "MIM-H"].data_distribution.log_prob(x)
    torch.testing.assert_close(known.double(), MIXTURES["gmm2d"].log_prob(x), rtol=1e-4, atol=1e-4)
    assert built[5, "MIM-H"].joint_entropy == built[5, "VAE+H"].joint_entropy == "anchored"
    code = built[5, "MIM-H code"]
    assert (code.joint_entropy, code.warm_up) == ("model", "encoding")


def test_warm_up_of_the_authors_code_begins_above_zero():
    for script, name in ((mim_entropy, "MIM-H"), (mim_mixture, "MIM")):
        cases = {labels["model"]: each for labels, each in script.EXPERIMENT.cases(widths=(5,))}
        assert cases[name].warm_up_from_zero
        assert not cases[f"{name} code"].warm_up_from_zero
        assert "warm_up" not in cases[name].model_settings
        assert cases[f"{name} code"].model_settings["warm_up"] == "encoding"


@pytest.mark.filterwarnings("ignore:.* too few effective draws:RuntimeWarning")  # of models of one epoch
def test_bottleneck_has_its_sizes(tmp_path, capsys):
    cases = list(mim_bottleneck.cases(("gmm20d",), (2, 20)))
    assert [(labels["latent dimensions"], labels["model"]) for labels, _ in cases] == [
        (latent_dim, model) for latent_dim in (2, 20) for model in ("VAE", "MIM", "MIM code")
    ]
    assert all(configuration.build((20,)).encoder[1][0].out_features == 50 for _, configuration in cases)
    for words, line in (
        (("--latent-dims", "4,24"), "latent_dims must be at most 20, the columns of fashion-pca20, .* got 24"),
        (("--data", "gmm2d"), "data must be one of fashion-pca20, gmm20d, got gmm2d"),
    ):
        assert experiment.main(mim_bottleneck.EXPERIMENT, [*words, "--out", str(tmp_path / "out")]) == 2
        (found,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(f"mim-bottleneck: error: {line}", found)
    options = {"data": ("gmm20d",), "latent_dims": (2,)}
    runs = experiment.run(mim_bottleneck.EXPERIMENT, tmp_path / "small", **SMALL, options=options)
    assert runs["model"].tolist() == ["VAE", "MIM", "MIM code"]
    assert (tmp_path / "small" / "measures-gmm20d.png").is_file()


def test_second_loss_starts_from_the_run_of_the_first(tmp_path):
    experiment.run(consistency_order.EXPERIMENT, tmp_path, **SMALL)
    runs = tmp_path / "runs"
    assert sorted(path.name for path in runs.iterdir()) == [
        *("--ce-seed0", "--mim-seed0", "ce-mim-seed0", "mim-ce-seed0")
    ]
    assert (tmp_path / "histograms.png").is_file()
    first, second = load(runs / "--ce-seed0"), load(runs / "ce-mim-seed0")
    assert Path(second.configuration.initial_run) == (runs / "--ce-seed0").resolve()
    assert (first.model.objective, second.model.objective) == ("cross-entropy", "mim")
    assert first.configuration.initial_run is None
    # One step of the second loss moves the weights by at most the learning rate of Adam.
    steps = second.history[-1]["step"]
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1.01e-3 * steps


def test_marginals_are_learned_or_fixed(tmp_path):
    cases = {tuple(labels.values()): each.build((1,)) for labels, each in prior_expressiveness.cases()}
    for (of_x, of_z), model in cases.items():
        for kind, marginal in ((of_x, model.data_marginal), (of_z, model.prior)):
            assert any(weight.requires_grad for weight in marginal.parameters()) == (kind == "learned")
        assert model.reference_prior.means.shape == (2, 1)
    experiment.run(prior_expressiveness.EXPERIMENT, tmp_path, **SMALL)
    assert (tmp_path / "histograms.png").is_file()


def test_images_have_all_losses_and_figures(monkeypatch, tmp_path, capsys):
    assert experiment.main(mim_images.EXPERIMENT, ["--architectures", "convhvae", "--out", str(tmp_path / "no")]) == 2
    assert "architectures must be some of convhvae-s, " in capsys.readouterr().err
    cases = list(mim_images.cases(mim_images.DATA, mim_images.ARCHITECTURES))
    assert len(cases) == 3 * (3 + 3 + 2 + 2)
    assert not any(labels["loss"] == "MIM" and "pixel" in labels["architecture"] for labels, _ in cases)
    monkeypatch.setattr(mim_images, "DATA", ("digits",))
    monkeypatch.setattr(mim_images, "EMBEDDED", 100)
    chosen = {"options": {"data": ("digits",), "architectures": ("convhvae-s", "pixelhvae-s")}}
    counts = {"measure_options": {"draws": 3, "rows": 10}}
    runs = experiment.run(mim_images.EXPERIMENT, tmp_path / "out", **{**SMALL, "limit": 16}, **chosen, **counts)
    assert runs["loss"].tolist() == ["MIM", "A-MIM", "VAE", "A-MIM", "VAE"]
    assert runs[mim_images.DRAWS].between(1, 3).all()
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    for name in ("convhvae-s", "pixelhvae-s"):
        assert {f"reconstructions-digits-{name}.png", f"samples-digits-{name}.png"} <= names
        assert f"embedding-digits-{name}-a-mim.png" in names
    settings = json.loads((tmp_path / "out" / "result.json").read_text())["settings"]
    assert (settings["draws"], settings["rows"]) == (3, 10)
