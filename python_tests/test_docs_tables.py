"""Tables in the documentation are those of the benchmarks."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


def module(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_speed_table_of_the_readme_is_measured():
    assert module("docs/figures/overview.py").table() in text("README.md")


def test_readme_has_at_most_100_lines():
    assert len(text("README.md").splitlines()) <= 100


def test_limits_page_has_the_table_of_the_benchmark():
    assert (RESULTS / "beyond_normal.md").read_text(encoding="utf-8") in text("docs/limits.md")


@pytest.mark.parametrize("section", ["## Mutual information", "## Echo noise"])
def test_rows_of_the_benchmarks_page_are_measured(section):
    """Each row of numbers is in the benchmark's own table."""
    measured = (RESULTS / "echo_cpu.md").read_text(encoding="utf-8")
    measured += (RESULTS / "mutual_information.md").read_text(encoding="utf-8")
    part = text("docs/benchmarks.md").split(f"{section}\n")[1].split("\n## ")[0]
    rows = [line for line in part.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) >= 7
    assert [row for row in rows if row not in measured] == []
