"""The page of limits: its Python blocks run and print what it shows, and its table is the benchmark's."""

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.+?)^```$(?:\n\n```text\n(.+?)^```$)?", PAGE, re.MULTILINE | re.DOTALL)


def test_blocks_print_what_the_page_shows(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == PAGE.count("```python") == 2
    names = {}
    for code, shown in BLOCKS:
        exec(compile(code, "limits.md", "exec"), names)
        assert capsys.readouterr().out == shown


def test_table_is_that_of_the_benchmark():
    assert (ROOT / "benchmarks" / "results" / "beyond_normal.md").read_text(encoding="utf-8") in PAGE
