"""The scripts in examples run, succeed by their own criterion, and print what the gallery shows."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import echo_ext

for needed in ("lightning_fabric", "matplotlib", "pandas", "sklearn"):
    pytest.importorskip(needed)
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
NEEDED = {"causal_discovery": ("tigramite", "numba"), "causal_discovery_pc": ("causallearn",)}
DISTRIBUTED = "distributed_mutual_information"
GALLERY = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"examples/(\w+)\.py\n```\n\n```text\n(.*?)```", GALLERY, re.DOTALL))
# torch 2.6 forgets a temporary folder of its own.
WARNINGS = ("-W", "error", "-W", "ignore:Implicitly cleaning up:ResourceWarning")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")
TIME = re.compile(NUMBER.pattern + r"(?= s\b| times)")


def test_gallery_shows_every_script():
    assert sorted(SHOWN) == NAMES
    assert sorted(re.findall(r"^\| \[(\w+)\.py\]\(\.\./examples/\1\.py\) \|", GALLERY, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_script_succeeds(name, tmp_path):
    for package in NEEDED.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name}.py needs {package}")
    done = run(tmp_path, *WARNINGS, EXAMPLES / f"{name}.py")
    assert not done.stderr
    if name != DISTRIBUTED:  # whose gallery shows two processes
        check_output(done.stdout, SHOWN[name])


def test_distributed_script_succeeds_on_two_processes(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run(tmp_path, *launcher, EXAMPLES / f"{DISTRIBUTED}.py")
    check_output(done.stdout, SHOWN[DISTRIBUTED])


def test_transfer_entropy_finds_the_lag_in_a_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    driver, noise, other = np.random.default_rng(0).standard_normal((3, 300))
    table = {"driver": driver, "driven": np.roll(driver, 2) + noise, "other": other}
    pandas.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    options = ("--columns", "driver,driven", "--k", "5", "--window", "0")
    done = run(tmp_path, *WARNINGS, EXAMPLES / "transfer_entropy.py", "table.csv", *options)
    _, forward, backward = done.stdout.splitlines()
    assert forward.startswith("driver -> driven ")
    assert forward.endswith("p = 0.010: yes, at lag 2")
    assert backward.startswith("driven -> driver ")
    assert backward.endswith(": no evidence")


def run(folder, *words):
    """Run Python in a folder; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(echo_ext.__file__).parents[1])}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def check_output(printed, shown):
    """The last lines are those that are shown: the words exactly, the numbers roughly, and times not at all."""
    shown = shown.splitlines()
    for found, expected in zip(printed.splitlines()[-len(shown) :], shown, strict=True):
        found, expected = (TIME.sub("TIME", line).split() for line in (found, expected))
        assert [NUMBER.sub("#", word) for word in found] == [NUMBER.sub("#", word) for word in expected]
        numbers = zip(*(map(float, NUMBER.findall(" ".join(words))) for words in (found, expected)), strict=True)
        assert all(math.isclose(*pair, rel_tol=0.2, abs_tol=0.1) for pair in numbers), f"{found} is not {expected}"
