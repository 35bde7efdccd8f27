"""The examples in the docstrings of what users import."""

import doctest
import importlib
import importlib.util
import warnings

import numpy as np
import pytest
import torch

import echo_ext

pytest.importorskip("sklearn")
MODULES = [echo_ext, echo_ext.sklearn, echo_ext.distributed, echo_ext.models, echo_ext.metrics, echo_ext.data]
MODULES += [
    importlib.import_module(f"echo_ext.{package}")
    for package in ("causallearn", "tigramite")
    if importlib.util.find_spec(package) is not None
]
NAMES = [(module, name) for module in MODULES for name in module.__all__ if name not in ("LatentModel", "Model")]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module.__name__}.{name}" for module, name in NAMES])
def test_every_public_name_has_an_example_that_holds(module, name, capsys):
    public = getattr(module, name)
    names = {"echo_ext": echo_ext, "torch": torch, "np": np}
    finder = doctest.DocTestFinder()
    tests = [test for test in finder.find(public, name, globs=names) if test.examples]  # those of methods too
    assert any(test.name == name for test in tests), f"{module.__name__}.{name} has no example"
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for test in tests:
            runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out
