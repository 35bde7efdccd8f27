"""What mypy and pyright say of a user's calls.

They check the files in typing_snippets, where ``assert_type`` states the type of a result and ``# error`` marks the
lines that a checker must refuse.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import echo_ext

HERE = Path(__file__).parent
SNIPPETS = HERE / "typing_snippets"
PACKAGE = Path(echo_ext.__file__).parents[1]  # the folder that holds the package under test


def run(command, folder, **environment):
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment})


def mypy(folder):
    """The errors of each line, by file name and line number."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    cache = HERE.parent / ".mypy_cache" / "snippets"
    options = ["--config-file=", f"--cache-dir={cache}", "--strict", "--follow-imports=silent", "--no-pretty"]
    options += ["--untyped-calls-exclude=torch"]  # whose older distributions have no types
    installed = "site-packages" in PACKAGE.parts  # which mypy finds by itself, and refuses to be told
    environment = {} if installed else {"MYPYPATH": str(PACKAGE)}
    done = run([sys.executable, "-m", "mypy", *options, "."], folder, **environment)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors = {}
    for name, line, message in re.findall(r"([^/\s]+\.py):(\d+): error: (.*)", done.stdout):
        errors.setdefault((name, int(line)), []).append(message)
    return errors


def pyright(folder):
    """The errors of each line, by file name and line number."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    options = {"extraPaths": [str(PACKAGE)], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(options))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", "."]
    done = run(command, folder, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
        # Its first run installs pyright itself with npm, which needs Node.js and a network.
        pytest.skip(f"pyright cannot run: {(done.stderr or done.stdout).strip()[-500:]}")
    report = json.loads(done.stdout)
    errors = {}
    for found in report["generalDiagnostics"]:
        if found["severity"] == "error":
            place = (Path(found["file"]).name, found["range"]["start"]["line"] + 1)
            errors.setdefault(place, []).append(found["message"])
    return errors


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_refuse_mistakes_alone(checker, tmp_path):
    folder = shutil.copytree(SNIPPETS, tmp_path / "snippets")
    marked = {
        (path.name, number)
        for path in folder.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# error")
    }
    assert marked
    errors = checker(folder)
    unexpected = {place: messages for place, messages in errors.items() if place not in marked}
    assert not unexpected
    assert not marked - errors.keys()
