"""Differential fuzzing: random calls of the library, each compared with an independent definition.

A group is a module with `cases`, a Hypothesis strategy of small cases, and `check(case)`, which runs the calls of a
case, compares them with their definitions and returns the number of calls compared. Hypothesis draws sizes, options
and kinds of data, so that it can shrink a failure, and the integer `case.numbers` that seeds NumPy's generator.

Each run uses a child process, because the native module reads `ECHO_EXT_ISA` only once and because the parent must
report the case of a crash or an endless loop. `ECHO_EXT_FUZZ_SEED` repeats a run, `ECHO_EXT_FUZZ_CALLS` sets the number
of calls of a long run, and `ECHO_EXT_FUZZ_SECONDS` sets the duration of a short run.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.util
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase

import echo_ext
from echo_ext import _C

LONG_RUN_CALLS = 100_000
SHORT_RUN_SECONDS = 10.0
SHORT_RUN_MINIMUM_CALLS = 100
EXAMPLES_PER_BATCH = 200
# Drawing a case is as expensive as a call, so each case is checked with several seeds: numbers, numbers + 1, ...
SAMPLES_PER_CASE = 5
# A case takes milliseconds; the timeout allows for a busy or swapping machine.
HANG_TIMEOUT_SECONDS = 120.0
MAX_CASE_CHARACTERS = 4000  # characters


# ---- One batch -------------------------------------------------------------------------------------------------------


def run_batch(group, seed, examples=EXAMPLES_PER_BATCH, *, note=None, shrink=True):
    """Check up to `examples` cases and return the number of calls compared; a failure is shrunk and raised."""
    calls = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @hypothesis.given(group.cases)
    def compare(case):
        nonlocal calls
        for i in range(SAMPLES_PER_CASE):
            one = replace(case, numbers=case.numbers + i)
            if note is not None:
                note(one)
            calls += group.check(one)

    compare()
    return calls


# ---- The child process -----------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("group", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--calls", type=float, default=math.inf)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    faulthandler.enable()
    group = load_group(options.group)
    case_file = os.open(options.folder / "case", os.O_RDWR | os.O_CREAT)
    examples = 0

    def note(case):
        """Write the case to a file that the parent reads after a crash."""
        nonlocal examples
        examples += 1
        os.pwrite(case_file, f"{examples} {case!r}".encode()[:MAX_CASE_CHARACTERS].ljust(MAX_CASE_CHARACTERS), 0)

    start = time.monotonic()
    calls = batch = 0
    while calls < options.calls and time.monotonic() - start < options.seconds:
        seed = options.seed + batch
        (options.folder / "seed").write_text(str(seed))
        calls += run_batch(group, seed, note=note)
        batch += 1
    result = {"calls": calls, "examples": examples, "isa": _C.isa(), "seconds": time.monotonic() - start}
    (options.folder / "result").write_text(json.dumps(result))


def load_group(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


# ---- The parent ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Summary of a run in a child process."""

    group: str
    seed: int
    isa: str
    calls: int
    seconds: float

    def __str__(self):
        rate = self.calls / max(self.seconds, 1e-9)
        return (
            f"{self.group} on {self.isa}: {self.calls:,} calls in {self.seconds:.0f} s ({rate:,.0f}/s), "
            f"ECHO_EXT_FUZZ_SEED={self.seed}"
        )


def instruction_sets():
    """Return the instruction sets of this machine, or only the one selected by ECHO_EXT_ISA."""
    return [_C.isa()] if "ECHO_EXT_ISA" in os.environ else _C.supported_isas()


def tests_of(file):
    """Return the short and the long test of a group."""

    def test_short_run(record_property):
        short_run(file, record_property)

    @pytest.mark.fuzz
    @pytest.mark.parametrize("isa", instruction_sets())
    def test_long_run(isa, record_property):
        long_run(file, isa, record_property)

    return test_short_run, test_long_run


def short_run(file, record_property):
    """Run as many calls as fit into a fixed time, on an instruction set chosen by the seed."""
    seed = fresh_seed()
    sets = instruction_sets()
    seconds = float(os.environ.get("ECHO_EXT_FUZZ_SECONDS", SHORT_RUN_SECONDS))
    run = run_group(file, seed=seed, isa=sets[seed % len(sets)], seconds=seconds)
    record_property("fuzz", str(run))
    minimum_calls = SHORT_RUN_MINIMUM_CALLS if seconds >= SHORT_RUN_SECONDS else 1
    assert run.calls >= minimum_calls, run


def long_run(file, isa, record_property):
    """Run a fixed number of calls."""
    calls = int(os.environ.get("ECHO_EXT_FUZZ_CALLS", LONG_RUN_CALLS))
    run = run_group(file, seed=fresh_seed(), isa=isa, calls=calls)
    record_property("fuzz", str(run))
    assert run.calls >= calls, run


def fresh_seed():
    return int(os.environ.get("ECHO_EXT_FUZZ_SEED", secrets.randbits(48)))


def run_group(file, *, seed, isa, calls=math.inf, seconds=math.inf, hang_timeout=HANG_TIMEOUT_SECONDS):
    """Run a group in a child process; a wrong result, a crash or a hang fails the test and reports the case."""
    file = Path(file)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, str(file), f"--seed={seed}", f"--calls={calls}", f"--seconds={seconds}"]
        environment = {
            **os.environ,
            "ECHO_EXT_ISA": isa,
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
            # Import the same package and native module as this process.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path(echo_ext.__file__).parents[1]), os.environ.get("PYTHONPATH")])
            ),
        }
        with open(folder / "output", "w") as output:
            process = subprocess.Popen(
                [*command, f"--folder={folder}"], env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=folder
            )
            try:
                hung = not _wait(process, folder / "case", hang_timeout)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if process.returncode != 0:
            pytest.fail(_failure(file, isa, seed, folder, process.returncode, hung), pytrace=False)
        result = json.loads((folder / "result").read_text())
        if result["isa"] != isa:
            pytest.skip(f"this machine has no {isa}")
    return Run(file.stem.removeprefix("test_fuzz_"), seed, isa, result["calls"], result["seconds"])


def _wait(process, case_file, hang_timeout):
    """Wait for the process to end; if one case exceeds the timeout, stop the process and return False."""
    last, since = None, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(1.0, hang_timeout / 4))
            return True
        case = _read(case_file)
        if case != last:
            last, since = case, time.monotonic()
        elif time.monotonic() - since > (hang_timeout if case else HANG_TIMEOUT_SECONDS):  # no case yet: still starting
            process.send_signal(signal.SIGABRT)  # faulthandler then prints the traceback
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            return False


def _failure(file, isa, seed, folder, code, hung):
    if hung:
        what = "did not return"
    elif code < 0:
        what = f"crashed with {signal.Signals(-code).name}"
    else:
        what = "found a wrong result"
    output = _read(folder / "output")[-20_000:]
    seed = _read(folder / "seed") or seed
    return (
        f"{file.name} {what}; repeat it with\n"
        f"  ECHO_EXT_FUZZ_SEED={seed} ECHO_EXT_ISA={isa} pytest {file}\n"
        f"last case: {_read(folder / 'case').strip()}\n\n{output}"
    )


def _read(file):
    return file.read_text(errors="replace") if file.exists() else ""


if __name__ == "__main__":
    import fuzzing

    fuzzing.main()
