"""The scripts in examples run, and succeed by their own criterion."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import echo_ext

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDED = {"causal_discovery": "tigramite", "causal_discovery_pc": "causallearn"}


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_script_succeeds(name, tmp_path):
    if name in NEEDED and importlib.util.find_spec(NEEDED[name]) is None:
        pytest.skip(f"{name}.py needs {NEEDED[name]}")
    done = run(tmp_path, "-W", "error", EXAMPLES / f"{name}.py")
    assert done.stdout
    assert not done.stderr


def test_distributed_script_succeeds_on_two_processes(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run(tmp_path, *launcher, EXAMPLES / "distributed_mutual_information.py", "--samples", "1001")
    assert done.stdout.startswith("2 x 501 rows: ")


def test_transfer_entropy_finds_the_lag_in_a_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    driver, noise, other = np.random.default_rng(0).standard_normal((3, 300))
    table = {"driver": driver, "driven": np.roll(driver, 2) + noise, "other": other}
    pandas.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    options = ("--columns", "driver,driven", "--k", "5", "--window", "0")
    done = run(tmp_path, "-W", "error", EXAMPLES / "transfer_entropy.py", "table.csv", *options)
    forward, backward = done.stdout.splitlines()
    assert forward.startswith("driver -> driven: ")
    assert forward.endswith("adjusted p = 0.010: lag 2")
    assert backward.startswith("driven -> driver: ")
    assert backward.endswith(": none")


def run(folder, *words):
    """Run Python in a folder; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(echo_ext.__file__).parents[1])}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
