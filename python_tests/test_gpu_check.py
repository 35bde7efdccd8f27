"""benchmarks/gpu_check.sh from start to end, with stand-ins for the GPU and its tools; gpu_check.py."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu_stand_ins
import pytest
import torch
from gpu_stand_ins import BENCHMARKS

import echo_ext

STEPS = ["build", "echo", "information", "time", "rates", "nonfinite", "threads", "memcheck", "racecheck", "ncu"]
TESTS = ["echo", "information", "memcheck", "nonfinite", "racecheck"]  # steps that are tests
KILL_AFTER, PROBES = 2, 2 * (10 + 2)


class Check(gpu_stand_ins.Machine):
    """Runs gpu_check.sh and reads its output."""

    def check(self, *arguments, **more):
        return self.run("gpu_check.sh", *arguments, **more)

    def summary(self):
        return (self.out / "gpu_check.txt").read_text()

    def logs(self):
        with tarfile.open(self.out / "gpu_logs.tar.gz") as archive:
            return {
                Path(member.name).name: archive.extractfile(member).read().decode()
                for member in archive
                if member.isfile()
            }


@pytest.fixture
def check(tmp_path):
    return Check(tmp_path, echo_ext._C.__file__)


def test_limits_leave_room_in_a_call_of_ten_minutes(check):
    listed = [shlex.split(line) for line in check.check("--list").stdout.splitlines()]
    assert [name for name, *_ in listed] == STEPS
    assert sum(int(limit) + KILL_AFTER for _, limit, *_ in listed) + PROBES < 550


def test_dry_run(check):
    finished = check.check("--dry-run", str(check.out))
    assert finished.returncode == 0, finished.stdout
    summary = check.summary()
    limits = {name: int(limit) for name, limit, *_ in map(shlex.split, check.check("--list").stdout.splitlines())}
    seconds = {name: int(taken) for name, taken in re.findall(r"^(\w+): ok, (\d+) s$", summary, re.MULTILINE)}
    assert seconds.keys() == limits.keys(), summary
    assert all(seconds[name] <= limits[name] for name in STEPS), summary
    assert "device: NVIDIA Stand-in, 580.00" in summary
    assert "commit: abc1234" in summary
    assert len(re.findall("^target: .*must be .*: (met|MISSED)$", summary, re.MULTILINE)) == 12
    counts = r"^tests: (\w+): (\d+) passed, 0 failed, 0 skipped$"
    assert [(step, int(count) > 0) for step, count in re.findall(counts, summary, re.MULTILINE)] == [
        (step, True) for step in TESTS
    ]
    assert re.search(r"^\| permutation, forward .*\|$", summary, re.MULTILINE)
    assert summary.endswith("0 failed\n")
    files = {"gpu_check.txt", "gpu_times.json", "gpu_rates.jsonl", "gpu_ncu.csv", "gpu_logs.tar.gz"}
    assert {path.name for path in check.out.iterdir()} == files
    logs = check.logs()
    assert {f"{name}.log" for name in STEPS} <= logs.keys()
    assert "SM: 345 MHz" in logs["clocks.log"]
    assert re.search(r"^=+ \d+ passed, \d+ deselected in .* =+$", logs["echo.log"], re.MULTILINE)
    times = json.loads((check.out / "gpu_times.json").read_text())
    assert times["commit"] == "abc1234"
    assert [len(times[group]) for group in ("cases", "circles", "estimators")] == [14, 2, 8]
    for case in times["cases"]:
        assert case["forward"].keys() == case["both"].keys() == {"given seed", "drawn seed"}
        assert 0 < case["backward"]["given seed"]["minimum_us"] <= case["backward"]["given seed"]["median_us"]


def test_a_step_at_its_limit_leaves_its_log(check):
    finished = check.check("--dry-run", "--steps", "build=1,echo,rates", str(check.out), STAND_IN_HANG="cmake")
    assert finished.returncode == 1
    assert re.search(r"^build: FAILED \(longer than 1 s\), \d s$", check.summary(), re.MULTILINE)
    assert "echo: skipped, the build failed" in check.summary()
    assert "rates: ok" in check.summary()
    assert check.logs()["build.log"] == "cmake has started\n"


def test_a_module_without_cuda_is_named_in_the_summary(check):
    """And so is a GPU that torch cannot use: what gpu_check.py refuses."""
    finished = check.check("--dry-run", "--steps", "build", str(check.out))
    assert finished.returncode == 0
    python = check.install("python", f"case $1 in -c) exit 0;; esac; exec '{sys.executable}' \"$@\"")
    more = {} if echo_ext._C.cuda_version is None else {"CUDA_VISIBLE_DEVICES": ""}
    finished = check.check("--steps", "echo,time", str(check.out), PYTHON=python, **more)
    assert finished.returncode == 2  # two steps
    found = re.findall(r"^(\w+): FAILED \(2\), \d+ s\ngpu_check: (.*)$", check.summary(), re.MULTILINE)
    assert [name for name, _ in found] == ["echo", "time"]
    assert all("built without CUDA" in why or "cannot use a CUDA device" in why for _, why in found)


def test_a_killed_call_leaves_its_logs(check, tmp_path):
    marks = {"STAND_IN_HANG": "cmake", "STAND_IN_STARTED": str(tmp_path / "started")}
    with check.start("gpu_check.sh", "--dry-run", "--steps", "build,echo", str(check.out), **marks) as process:
        while not (tmp_path / "started").is_file():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert check.summary().endswith("stopped by a signal\n")
    assert check.logs()["build.log"] == "cmake has started\n"


def test_killed_times_leave_those_measured(check, tmp_path):
    path = tmp_path / "times.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "time", "--device=cpu", "--quick", f"--json={path}"]
    environment = {**check.environment, "PYTHONPATH": str(Path(echo_ext.__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not path.is_file() or len(json.loads(path.read_text())["cases"]) < 2:
            assert process.poll() is None
            time.sleep(0.005)
        process.terminate()
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert b"gpu_time.py" in stderr  # where it was
    assert 2 <= len(json.loads(path.read_text())["cases"]) < 14


def test_tools_that_do_not_work_are_named(check):
    (check.tools / "ncu").unlink()
    steps = ("--dry-run", "--steps", "rates,memcheck,ncu")
    finished = check.check(*steps, str(check.out), STAND_IN_FAIL="compute-sanitizer")
    assert finished.returncode == 0
    assert "memcheck: skipped, compute-sanitizer does not work here: Error: compute-sanitizer was" in check.summary()
    assert "ncu: skipped, there is no ncu" in check.summary()


@pytest.mark.parametrize(
    ("missing", "failing", "python", "says"),
    [
        ("nvidia-smi", "", None, "no NVIDIA device: there is no nvidia-smi on PATH"),
        (None, "nvidia-smi", None, "no NVIDIA device: nvidia-smi says: Error: nvidia-smi was told to fail"),
        ("nvcc", "", None, "nvcc must be on PATH or in $CUDA_HOME/bin, but is not"),
        (
            None,
            "",
            "RuntimeError: The NVIDIA driver is too old",
            "torch cannot use the device: RuntimeError: The NVIDIA",
        ),
        (
            None,
            "",
            "torch.OutOfMemoryError: CUDA out of memory.",
            "torch cannot use the device: torch.OutOfMemoryError",
        ),
    ],
)
def test_refuses_in_one_line(check, missing, failing, python, says):
    if missing is not None:
        (check.tools / missing).unlink()
    more = {"STAND_IN_FAIL": failing}
    if python is not None:
        more["PYTHON"] = check.install("python", f"echo Traceback >&2; echo '{python}' >&2; echo >&2; exit 1")
    finished = check.check(str(check.out), **more)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"gpu_check: {says}")
    assert finished.stderr.count("\n") == 1
    assert not check.out.exists()


def test_options_are_checked(check):
    names, limit = "--steps must name steps, got tset", "a limit in --steps must be a number of seconds, got build=1m"
    for options, says in (
        ("--steps build,tset", names),
        ("--steps build=1m", limit),
        ("--fast", "unknown option --fast"),
    ):
        finished = check.check(*options.split(), str(check.out))
        assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
        assert says in finished.stderr


def test_the_build_names_what_is_missing(check, tmp_path):
    (check.tools / "nvcc").unlink()
    python = check.install("python", f"case $2 in *pybind11*) exit 1;; esac; exec '{sys.executable}' \"$@\"")
    finished = check.run("gpu_build.sh", str(tmp_path / "build"), PYTHON=python)
    assert finished.returncode == 2
    assert finished.stderr == "gpu_build: missing: nvcc pybind11; install them, or put them on PATH\n"


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_rates_compile_without_warnings(arch, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    options = ["-O3", "-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", f"-arch={arch}"]
    command = ["nvcc", *options, "-c", "-o", tmp_path / "rates.o", BENCHMARKS / "gpu_rates.cu"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


# ---- gpu_check.py ----------------------------------------------------------------------------------------------------


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_check
    import gpu_device

    return gpu_check, gpu_device


def raising(error):
    def call(*_, **__):
        raise error

    return call


def test_a_device_that_cannot_be_used_is_refused(modules, monkeypatch, capsys):
    gpu_check, gpu_device = modules
    too_old = RuntimeError("The NVIDIA driver on your system is too old\nPlease update it")
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB\nMore")
    zeros = torch.zeros
    monkeypatch.setattr(echo_ext._C, "cuda_version", "13.0")
    for error, says in ((too_old, "driver on your system is too old"), (full, "CUDA out of memory. Tried")):
        monkeypatch.setattr(torch, "zeros", raising(error))
        assert says in gpu_device.CudaDevice().refusal()
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    monkeypatch.setattr(echo_ext, "echo_indices", raising(RuntimeError("driver version is insufficient")))
    assert "echo_ext, built by nvcc 13.0, cannot use the device: driver version" in gpu_device.CudaDevice().refusal()
    monkeypatch.setattr(echo_ext._C, "cuda_version", None)
    assert gpu_check.main(["test", "echo"]) == 2
    stderr = capsys.readouterr().err
    assert "was built without CUDA: benchmarks/gpu_build.sh" in stderr
    assert stderr.count("\n") == 1


def test_a_failing_case_does_not_stop_the_others(modules, capsys):
    _, gpu_device = modules
    cases = gpu_device.Cases(gpu_device.CpuStandIn())
    cases.run("first", raising(ValueError("no such thing\nand more")))
    cases.run("second", raising(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    assert cases.run("third", lambda: 3) == 3
    assert (cases.count, cases.failed) == (3, 2)
    stdout = capsys.readouterr().out
    assert "FAILED first: ValueError: no such thing\n" in stdout
    assert "FAILED second: OutOfMemoryError: CUDA out of memory\n" in stdout


def test_a_lost_device_ends_the_step(modules, monkeypatch, capsys):
    gpu_check, gpu_device = modules
    illegal = RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
    monkeypatch.setattr(torch.cuda, "synchronize", raising(illegal))
    with pytest.raises(gpu_device.DeviceLost, match="illegal memory access"):
        gpu_device.CudaDevice().recover()

    reached = []

    def lose_device(cases, quick):
        for case in (lambda: 1, raising(illegal), lambda: reached.append("after the loss")):
            cases.run("case", case)

    monkeypatch.setattr(gpu_device.CpuStandIn, "recover", gpu_device.CudaDevice.recover)
    monkeypatch.setattr(gpu_check, "profile", lose_device)
    assert gpu_check.main(["profile", "--device=cpu"]) == 1
    stdout = capsys.readouterr().out
    assert "the device is lost, and the step ends here: CUDA error: an illegal memory access was encountered" in stdout
    assert stdout.endswith("1 of 2 cases failed\n")
    assert not reached


EXAMPLE = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_number(number):
    {body}
"""
RUN_EXAMPLES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import gpu_check, gpu_device
gpu_check.TESTS = Path.cwd()
gpu_check.NAMES = sys.argv[2:]

def recover(self):
    if "lost" in gpu_check.running:
        raise gpu_device.DeviceLost("CUDA error: an illegal memory access was encountered")

gpu_device.CpuStandIn.recover = recover
for gpu_check.running in gpu_check.NAMES:
    print("outcome:", gpu_check.main(["test", gpu_check.running, "--device=cpu"]))
"""


def test_tests_are_counted_and_end_with_the_device(tmp_path):
    """In a process of its own, since pytest is not made to run within itself."""
    bodies = {
        "pass": "pass",
        "failure": "assert number != 1",
        "lost": "assert number != 1",
        "skip": "pytest.skip('no GPU')",
    }
    for name, body in bodies.items():
        (tmp_path / f"test_cuda_{name}.py").write_text(EXAMPLE.format(body=body))
    command = [sys.executable, "-c", RUN_EXAMPLES, str(BENCHMARKS), *bodies]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert re.findall(r"tests: (.*)\noutcome: (\d)", printed) == [
        ("4 passed, 0 failed, 0 skipped", "0"),
        ("3 passed, 1 failed, 0 skipped", "1"),
        ("1 passed, 1 failed, 0 skipped", "1"),
        ("0 passed, 0 failed, 4 skipped", "1"),
    ]
    assert printed.count("the device is lost, and the step ends here: CUDA error: an illegal memory access") == 1
    assert printed.count("FAILED skip: no test has passed") == 1
