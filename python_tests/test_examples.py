"""The examples in the docstrings of what users import."""

import doctest
import importlib
import importlib.util
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import echo_ext

pytest.importorskip("sklearn")
pytest.importorskip("lightning_fabric")
SUBMODULES = ("data", "distributed", "estimators", "metrics", "models", "plots", "reference", "sklearn", "training")
MODULES = [echo_ext, *(getattr(echo_ext, name) for name in SUBMODULES)]
MODULES += [
    importlib.import_module(f"echo_ext.{package}")
    for package in ("causallearn", "tigramite")
    if importlib.util.find_spec(package) is not None
]
NAMES = [(module, name) for module in MODULES for name in module.__all__]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(autouse=True)
def _working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run_examples(module, name):
    """Run the examples of a name and of its methods, and return how many of its own there are."""
    names = {"echo_ext": echo_ext, "torch": torch, "np": np}
    tests = doctest.DocTestFinder().find(getattr(module, name), name, globs=names)
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for test in tests:
            runner.run(test)
    assert runner.failures == 0
    return sum(len(test.examples) for test in tests if test.name == name)


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module.__name__}.{name}" for module, name in NAMES])
def test_every_public_name_has_an_example_that_holds(module, name):
    if module is echo_ext.training and name in ("export", "pull"):
        pytest.importorskip("huggingface_hub")
    if module is echo_ext.training and name == "train":
        shutil.rmtree("runs", ignore_errors=True)
    elif module is echo_ext.training and not Path("runs").exists():
        run_examples(module, "train")  # whose run the other examples use
    assert run_examples(module, name) > 0, f"{module.__name__}.{name} has no example"


def test_every_public_name_has_a_page():
    listed = set()
    for page in (Path(__file__).parents[1] / "docs" / "api").glob("*.md"):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if directive := re.match(r"\.\. currentmodule:: (.+)", line):
                module = f"{directive[1]}."
            elif entry := re.match(r" {3}([\w.]+)$", line):
                listed.add(module + entry[1])
    public = {
        f"{module.__name__}.{name}"
        for module, name in NAMES
        if module is echo_ext or getattr(module, name) is not getattr(echo_ext, name, None)  # or exported there too
    }
    assert public <= listed, public - listed
