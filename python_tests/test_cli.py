"""The command line: its output, and errors in one line with the right exit code."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import echo_ext
from echo_ext import _C, cli
from echo_ext.cli import demo, machine

# The working directory of child processes. At the root they would import the sources instead of the installed package.
HERE = Path(__file__).parent

NO_HEAVY_IMPORTS = """
import sys
import echo_ext, echo_ext.cli
code = echo_ext.cli.main(["info"])
loaded = {"matplotlib", "pandas", "sklearn", "rich", "scipy"} & set(sys.modules)
sys.exit(f"imported {loaded}" if loaded else code)
"""


def fail(capsys, *argv):
    """Run a command that fails; return its exit code and its one line on stderr."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("echo-ext")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return code, captured.err


def test_info_prints_versions_and_build_options(capsys):
    assert cli.main(["info"]) == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = {name: fact.strip() for name, fact in facts.items()}
    assert facts["echo-ext"] == echo_ext.__version__
    assert facts["torch"] == torch.__version__
    assert facts["numpy"] == np.__version__
    assert facts["CPU"] == f"{_C.isa()} kernels, {torch.get_num_threads()} threads"
    if _C.cuda_version is None:
        assert facts["CUDA built"].startswith("no; ")
        assert "ECHO_EXT_CUDA=1 pip install" in facts["CUDA built"]
    else:
        assert _C.cuda_version in facts["CUDA built"]
        assert _C.cuda_archs in facts["CUDA built"]
    assert facts["CUDA usable"].startswith("cuda:0 (" if torch.cuda.is_available() else "no; ")


def test_info_gives_the_reason_why_cuda_is_not_usable(capsys, monkeypatch, pretend_driver):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["info"]) == 0
    assert "no; torch finds no CUDA device" in capsys.readouterr().out

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pretend_driver(None)
    assert cli.main(["info"]) == 0
    assert "no; echo-ext was built without CUDA" in capsys.readouterr().out


def test_info_needs_only_torch_and_numpy():
    command = [sys.executable, "-m", "echo_ext", "info"]
    by_module = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    assert by_module.returncode == 0, by_module.stderr
    assert by_module.stderr == ""
    in_process = subprocess.run([sys.executable, "-c", NO_HEAVY_IMPORTS], capture_output=True, text=True, cwd=HERE)
    assert (in_process.returncode, in_process.stderr) == (0, "")
    assert in_process.stdout == by_module.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"echo-ext {echo_ext.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["dance"], "there is no command 'dance'; the most similar are "),
        (["sweeep", "--out", "o"], "echo-ext: error: there is no command 'sweeep'; the most similar are sweep"),
        (["info", "--loud"], "echo-ext info: error: unrecognized arguments: --loud (see echo-ext info --help)"),
        (["demo", "--epoch=5"], "unrecognized arguments: --epoch=5; did you mean --epochs?"),
        (["demo", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["demo", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["demo", "--beta", "-1"], "--beta must be a finite number of at least 0, got -1.0"),
        (["demo", "--beta", "nan"], "--beta must be a finite number of at least 0, got nan"),
        (["demo", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["demo", "--data", "cifar"], "--data must be one of 'digits', 'fashion-mnist', 'mnist', got 'cifar'"),
        (
            ["demo", "--data", "mnist", "--data-dir", "/nowhere/at/all"],
            "the data folder /nowhere/at/all does not exist",
        ),
        (["demo", "--device", "abacus"], "--device must be cpu, cuda or cuda:N, got 'abacus'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, complaint):
    monkeypatch.chdir(tmp_path)
    code, line = fail(capsys, *argv)
    assert code == 2
    assert complaint in line
    assert list(tmp_path.iterdir()) == []


def test_missing_cuda_device_is_refused(capsys, monkeypatch, pretend_driver):
    def warn_of_the_driver():
        warnings.warn("CUDA initialization:\n the driver is too old", stacklevel=2)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", warn_of_the_driver)
    code, line = fail(capsys, "demo", "--device", "cuda")
    assert code == 2
    assert "torch finds no CUDA device: CUDA initialization: the driver is too old" in line

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pretend_driver(None)
    code, line = fail(capsys, "demo", "--device", "cuda")
    assert code == 2
    assert "built without CUDA; rebuild it where nvcc is found: ECHO_EXT_CUDA=1" in line


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_):
        pytest.fail("training began")

    monkeypatch.setattr(demo, "_train", refuse)


@pytest.mark.usefixtures("no_training")
def test_unusable_out_is_refused_before_training(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below" / "it"):
        code, line = fail(capsys, "demo", "--out", str(out))
        assert code == 2
        assert f"--out must be a folder, got {out}, but {file} is a file" in line or "Not a directory" in line
    assert file.read_text() == "mine"

    taken = tmp_path / "taken"
    (taken / "curves.png").mkdir(parents=True)
    code, line = fail(capsys, "demo", "--out", str(taken))
    assert code == 2
    assert f"--out must have no folder curves.png, which is the name of a result, got {taken}" in line


@pytest.mark.usefixtures("no_training")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable for root")
def test_read_only_out_is_refused_before_training(capsys, tmp_path):
    tmp_path.chmod(0o500)
    code, line = fail(capsys, "demo", "--out", str(tmp_path / "new"))
    assert code == 2
    assert f"--out must be writable, got {tmp_path / 'new'}: Permission denied" in line


@pytest.mark.usefixtures("no_training")
def test_out_without_permission_is_refused_before_training(capsys, tmp_path, monkeypatch):
    def refuse(*, dir):
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    code, line = fail(capsys, "demo", "--out", str(tmp_path / "new"))
    assert code == 2
    assert f"--out must be writable, got {tmp_path / 'new'}: Permission denied" in line


@pytest.mark.usefixtures("no_training")
def test_missing_packages_are_named_with_their_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    code, line = fail(capsys, "demo", "--out", str(tmp_path))
    assert code == 1
    assert "the demo needs lightning_fabric and matplotlib and tqdm: pip install 'echo-ext[demo]'" in line


def test_unexpected_error_is_one_line_and_exit_code_1(capsys, tmp_path, monkeypatch):
    def break_down(*_):
        raise RuntimeError("the\nground shook")

    monkeypatch.setattr(demo, "_train", break_down)
    code, line = fail(capsys, "demo", "--out", str(tmp_path))
    assert code == 1
    assert "error: RuntimeError: the ground shook" in line
    for argv in (["--debug", "demo", "--out", str(tmp_path)], ["demo", "--debug", "--out", str(tmp_path)]):
        with pytest.raises(RuntimeError, match="ground"):
            cli.main(argv)


def test_interrupt_is_one_line_and_exit_code_130(capsys, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_train", interrupt)
    out = tmp_path / "out"
    code, line = fail(capsys, "demo", "--out", str(out))
    assert code == 130
    assert line == "echo-ext demo: interrupted\n"
    assert not out.exists()


def test_closed_pipe_prints_no_error():
    command = f"{sys.executable} -m echo_ext info"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command.split(), stdout=write, stderr=subprocess.PIPE, text=True, cwd=HERE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
