"""Every code block of the README and the site runs, page by page, and prints what the page shows."""

import contextlib
import doctest
import functools
import io
import re
import shlex
from pathlib import Path

import pytest

sybil = pytest.importorskip("sybil")
for needed in ("lightning_fabric", "matplotlib", "pandas", "sklearn", "yaml"):
    pytest.importorskip(needed)

from sybil.document import Document  # noqa: E402
from sybil.evaluators.doctest import NUMBER, OutputChecker  # noqa: E402
from sybil.evaluators.python import PythonEvaluator  # noqa: E402
from sybil.parsers.myst import CodeBlockParser  # noqa: E402

from echo_ext import cli  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in ROOT.glob("docs/**/*.md") if "```python\n" in page.read_text(encoding="utf-8")),
]
SAME = NUMBER | doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# What shortens a command.
TRAINING = {"--epochs": "1", "--limit": "200"}
SHORT = {"train": TRAINING, "sweep": TRAINING | {"--beta": "1", "--seeds": "0"}, "demo": {"--epochs": "1"}}
# Pages whose blocks need packages that the tests do not.
NEEDS = {
    "docs/causal_discovery.md": ("tigramite", "causallearn"),
    "docs/sharing.md": ("huggingface_hub", "safetensors", "tensorboard"),
}
NOT_RUN = ("pip ", "git ", "pytest ", "torchrun ", "cmake ", "export ", "python ", "benchmarks/")


class Page:
    """Runs the blocks of a page, in order, and compares what they print.

    What Python prints must be shown. What commands print, shortened, is compared only where it is shown.
    """

    def __init__(self):
        self.printed, self.end, self.must_be_shown = "", 0, False

    def run(self, evaluate, example):
        """Run a block; what the block before it printed must have been shown."""
        self.check_nothing_is_left()
        with contextlib.redirect_stdout(io.StringIO()) as output:
            evaluate(example)
        self.printed, self.end, self.must_be_shown = output.getvalue(), example.end, evaluate is not run_commands

    def check_nothing_is_left(self):
        """Fail if the last block of Python printed what no block of text shows."""
        assert not (self.printed and self.must_be_shown), f"this is printed, but not shown:\n{self.printed}"

    def compare(self, example):
        """Compare a block of text that follows immediately with what was printed; other text is not output."""
        if example.document.text[self.end : example.start].strip() or not self.end:
            return
        assert example.parsed.strip(".\n "), f"line {example.line} shows nothing"
        assert OutputChecker().check_output(example.parsed, self.printed, SAME), (
            f"line {example.line} shows\n{example.parsed}\nbut this is printed:\n{self.printed}"
        )
        self.printed = ""


def run_commands(example):
    """Run each line that calls echo-ext, shortened; the other programs are named in NOT_RUN."""
    for line in re.sub(r"\\\n\s*", " ", example.parsed).splitlines():
        words = shlex.split(line, comments=True)
        if not words or line.startswith(NOT_RUN):
            continue
        assert words[0] == "echo-ext", f"{line!r} is not a command that this test knows"
        for flag, value in SHORT.get(words[1], {}).items():
            words = replaced(words, flag, value)
        assert cli.main(words[1:]) == 0, line


def replaced(words, flag, value):
    """The words with this value of a flag, which is added if it is not there."""
    if flag not in words:
        return [*words, flag, value]
    at = words.index(flag) + 1
    return [*words[:at], value, *words[at + 1 :]]


def page_id(page):
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_blocks_run_and_print_what_the_page_shows(path, tmp_path, monkeypatch):
    for package in NEEDS.get(page_id(path), ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    page = Page()
    evaluators = {"python": PythonEvaluator(), "shell": run_commands}
    parsers = [CodeBlockParser(name, functools.partial(page.run, each)) for name, each in evaluators.items()]
    document = Document.parse(str(path), *parsers, CodeBlockParser("text", page.compare))
    for example in document:
        example.evaluate()
    page.check_nothing_is_left()
