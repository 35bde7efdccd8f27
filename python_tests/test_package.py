"""What `import echo_ext` brings, and what it leaves for later."""

import importlib.util
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

import echo_ext

SUBMODULES = (
    "causallearn",
    "data",
    "distributed",
    "metrics",
    "models",
    "plots",
    "reference",
    "sklearn",
    "tigramite",
    "training",
)
NEEDED = {
    "causallearn": ("causallearn",),
    "plots": ("matplotlib",),
    "sklearn": ("sklearn",),
    "tigramite": ("tigramite",),
    "training": ("lightning_fabric", "yaml"),
}


def run(program):
    """What a program prints in a fresh interpreter that imports the installed package, not the source folder."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout


def test_version_is_the_metadata_of_the_installed_package():
    try:
        installed = metadata.version("echo-ext")
    except metadata.PackageNotFoundError:
        pytest.skip("the package runs from its source tree")
    assert echo_ext.__version__ == installed


def test_optional_packages_are_left_for_later():
    loaded = run("import sys, echo_ext; print(*sys.modules)").split()
    assert "torch" in loaded
    for name in (
        "matplotlib",
        "sklearn",
        "lightning_fabric",
        "scipy",
        "pandas",
        "echo_ext.models",
        "echo_ext.training",
    ):
        assert name not in loaded


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodules_need_no_second_import(name):
    needed = NEEDED.get(name, ())
    if any(importlib.util.find_spec(package) is None for package in needed):
        pytest.skip(f"echo_ext.{name} needs {needed}")
    assert run(f"import echo_ext; print(echo_ext.{name}.__name__)") == f"echo_ext.{name}\n"


@pytest.mark.parametrize(
    ("module", "package", "command"),
    [
        ("sklearn", "sklearn", "pip install 'echo-ext[train]'"),
        ("tigramite", "tigramite", "pip install tigramite"),
        ("causallearn", "causallearn", "pip install causal-learn"),
    ],
)
def test_a_missing_package_is_named_with_its_command(module, package, command):
    program = f"""
        import importlib.util
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else find_spec(name, *rest)
        import echo_ext
        try:
            echo_ext.{module}
        except ModuleNotFoundError as error:
            print(error)
    """
    assert run(textwrap.dedent(program)) == f"echo_ext.{module} needs {package}: {command}\n"


def test_submodules_are_attributes(monkeypatch):
    import echo_ext.models

    models = echo_ext.models
    monkeypatch.delattr(echo_ext, "models")
    assert echo_ext.models is models
    assert {"models", "echo_sample"} <= set(dir(echo_ext))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'echo_ext' has no attribute 'modles'"):
        echo_ext.modles  # noqa: B018


def test_completion_shows_public_names_only():
    assert run("import echo_ext; print(*dir(echo_ext))").split() == sorted(
        [*echo_ext.__all__, *SUBMODULES, "__version__"]
    )
    for name in (*SUBMODULES, "estimators"):
        module = pytest.importorskip(f"echo_ext.{name}", exc_type=ImportError)
        assert [shown for shown in dir(module) if not shown.startswith("__")] == sorted(module.__all__), name
