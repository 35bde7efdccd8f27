"""The commands in the documentation: each exists, and trains in a shortened form."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from echo_ext import cli
from echo_ext.cli.train import settings
from echo_ext.training.configuration import Configuration

for needed in ("lightning_fabric", "matplotlib", "pandas", "sklearn", "yaml"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "examples" / "papers"
PAGES = [ROOT / "docs" / "papers.md", *sorted(ROOT.glob("docs/results/*/README.md"))]
SHAPES = {"dsprites": (64, 64), "dsprites-dependent": (64, 64), "fashion-pca20": (20,)}


def commands(program):
    """What follows this program in the indented blocks."""
    text = "\n".join(re.sub(r"\\\n\s+", " ", page.read_text(encoding="utf-8")) for page in PAGES)
    return sorted(set(re.findall(rf"^    (?:[A-Z_]+=\S+ )*{program}(.+)$", text, re.MULTILINE)))


def replaced(words, flag, value):
    """The words with this value of a flag, which is added if it is not there."""
    if flag not in words:
        return [*words, flag, value]
    at = words.index(flag) + 1
    return [*words[:at], value, *words[at + 1 :]]


def recipes_of(words):
    """The values after --recipe."""
    start = words.index("--recipe") + 1
    return words[start : next(at for at in range(start, len(words)) if words[at].startswith("--"))]


TRAININGS = [command for command in commands("echo-ext ") if command.split()[0] in ("train", "sweep")]
CASES = sorted({(recipe, command) for command in TRAININGS for recipe in recipes_of(shlex.split(command))})


def test_pages_have_commands():
    assert len(TRAININGS) >= 5
    assert len(CASES) >= 20


@pytest.mark.parametrize("command", TRAININGS)
def test_command_is_a_configuration_of_its_data(command):
    words = shlex.split(command)
    given = settings(cli._parser().parse_args(words))
    for recipe in recipes_of(words):
        assert Configuration.of(**given | {"recipe": recipe, "beta": 1.0, "seed": 0}).data == given["data"]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "command"), CASES)
def test_command_trains_in_a_shortened_form(recipe, command, tmp_path, capsys):
    """With one recipe, seed and beta, an epoch of two steps of noise of the shape of the data."""
    words = shlex.split(command)
    generator, shape = np.random.default_rng(0), SHAPES.get(words[words.index("--data") + 1], (28, 28))
    vectors = len(shape) == 1
    x = generator.normal(size=(20, *shape)).astype("f4") if vectors else generator.random((20, *shape)) < 0.5
    np.savez(tmp_path / "rows.npz", x=x, labels=np.arange(20) % 2)
    start = words.index("--recipe") + 1
    words = [*words[:start], recipe, *words[start + len(recipes_of(words)) :]]
    short = {"--data": str(tmp_path / "rows.npz"), "--out": str(tmp_path / "out"), "--epochs": "1", "--batch-size": "8"}
    if words[0] == "sweep":
        short |= {"--beta": "1", "--seeds": "0"}
    if "--trim" in words:
        short["--trim"] = "0"
    for flag, value in short.items():
        words = replaced(words, flag, value)
    assert cli.main(words) == 0
    assert list((tmp_path / "out").rglob("result.json"))
    capsys.readouterr()


@pytest.mark.parametrize("command", commands("python examples/papers/"))
def test_script_takes_the_arguments_of_its_page(command, monkeypatch, tmp_path, capsys):
    name, *words = shlex.split(command)
    monkeypatch.syspath_prepend(str(PAPERS))
    script, experiment = importlib.import_module(Path(name).stem), importlib.import_module("experiment")
    out = words[words.index("--out") + 1]

    def run(tried, out, **options):
        assert tried is script.EXPERIMENT
        numbers = {"options", "measure_options", "seeds", "epochs", "warm_up_epochs", "limit"}
        assert set(options) == {*numbers, "data_dir", "device"}
        out.mkdir(parents=True)
        (out / "table.md").write_text("| no | rows |")

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.chdir(tmp_path)
    assert experiment.main(script.EXPERIMENT, words) == 0
    assert f"written to {out}" in capsys.readouterr().out


def test_scripts_are_named_where_they_are_run():
    page = PAGES[0].read_text(encoding="utf-8")
    named = set(re.findall(r"python examples/papers/(\w+)\.py", page))
    assert named == {path.stem for path in PAPERS.glob("*.py")} - {"experiment", "figures"}
