"""The scripts in examples run, and succeed by their own criterion."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(echo_ext.__file__).parents[1])}
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    assert not done.stderr
