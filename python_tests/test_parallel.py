"""Long native calls: interrupts, signal handlers, forks, exceptions in threads, and floating-point modes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import echo_ext

# Child processes run here. In the root of the repository they would import the source tree, not the installed package.
HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"

# Each call takes many seconds unless interrupted.
CALLS = """
import os
import signal
import sys
import threading
import time

import torch

import echo_ext

torch.manual_seed(int(sys.argv[1]))
threads = int(sys.argv[2])
x, y = torch.randn(2, 300_000, 5, dtype=torch.float64)
wide = torch.randn(60_000, 24)
line = torch.randn(200_000, 2)
f = torch.randn(20_000, 16)
s = torch.ones_like(f, requires_grad=True)  # no term is ever negligible
long = torch.randn(2_000_000, 4)

calls = {
    "mutual_information": lambda: echo_ext.mutual_information(x, y),
    "batch": lambda: echo_ext.mutual_information(x.expand(3, -1, -1), y),
    "matrix": lambda: echo_ext.mutual_information_matrix(wide),
    "knn": lambda: echo_ext.knn(wide, k=7, metric="euclidean"),
    "entropy": lambda: echo_ext.entropy(wide, k=50),
    "window": lambda: echo_ext.mutual_information(line[:, 0], line[:, 1], exclude_within=60_000),
    "permutation": lambda: echo_ext.echo_sample(f, s),
    "ring": lambda: echo_ext.echo_sample(long, torch.ones_like(long), sampling="ring"),
    "indices": lambda: echo_ext.echo_indices(20_000, num_terms=19_000, seed=1),
}
"""

INTERRUPTED = (
    CALLS
    + """
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(threads)
echo_ext.mutual_information_matrix(wide[:99])  # imports parts of torch
z = echo_ext.echo_sample(f, s, num_terms=9000)
calls["gradient"] = lambda: torch.autograd.grad(z.sum(), s)
for name, call in calls.items():
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(float(sys.argv[3]), interrupt)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        print(name, time.monotonic() - sent[0])
    else:
        timer.cancel()
        print(name, "finished before the interrupt")
    timer.join()
torch.set_num_threads(2)
print("then", echo_ext.mutual_information(x[:5000], y[:5000]).item().hex())
torch.set_num_threads(1)
print("alone", echo_ext.mutual_information(x[:5000], y[:5000]).item().hex())
"""
)


def run_child(script, *arguments):
    seed = str(int(torch.randint(2**31, ())))
    run = subprocess.run(
        [sys.executable, "-c", script, seed, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=HERE,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return dict(line.split(maxsplit=1) for line in run.stdout.splitlines())


@pytest.mark.parametrize("threads", [1, 3])
def test_interrupt_ends_long_call_within_a_second(threads):
    results = run_child(INTERRUPTED, threads, 0.3)
    assert results.pop("then") == results.pop("alone")
    print(results)
    for name, seconds in results.items():
        assert float(seconds) < 1, name


HANDLED = (
    CALLS
    + """
torch.set_num_threads(threads)
small_x, small_y = x[:500], y[:500]
x, y = x[:30_000], y[:30_000]
alone = calls["mutual_information"]()
small = echo_ext.mutual_information(small_x, small_y)
found = []
signal.signal(signal.SIGALRM, lambda *_: found.append(echo_ext.mutual_information(small_x, small_y)))
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
during = calls["mutual_information"]()
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(found) >= 2, len(found)
assert all(torch.equal(each, small) for each in found)
assert torch.equal(during, alone)
print("handled", len(found))
"""
)


@pytest.mark.parametrize("threads", [1, 2])
def test_signal_handler_may_call_estimators(threads):
    run_child(HANDLED, threads)


FORKED = (
    CALLS
    + """
torch.set_num_threads(threads)
x, y = x[:30_000], y[:30_000]
alone = calls["mutual_information"]()


def fork(*_):
    if children.append(os.fork()) is None and children[-1] == 0:
        signal.setitimer(signal.ITIMER_REAL, 0)


children = []
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    during = calls["mutual_information"]()
except RuntimeError as error:
    assert children == [0] and "forked" in str(error), error
    again = calls["mutual_information"]()
    os._exit(0 if torch.equal(again, alone) else 1)
assert os.waitpid(children[0], 0)[1] == 0
assert torch.equal(during, alone)
print("forked", children)
"""
)


@pytest.mark.parametrize("threads", [1, 2])
def test_signal_handler_may_fork(threads):
    run_child(FORKED, threads)


def test_threads_use_callers_floating_point_mode():
    """The mode changes several times after the threads of the pool have started."""
    tiny = torch.full((4000, 64), 1e-310, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        for flush in (False, True, False, True):
            if not torch.set_flush_denormal(flush):
                pytest.skip("this processor cannot flush subnormal numbers")
            results = []
            for threads in (1, 3, 3, 3):
                torch.set_num_threads(threads)
                noise = echo_ext.echo_noise(tiny, torch.full_like(tiny, 0.5), num_terms=20, seed=5)
                results.append(noise.view(torch.int64))
            assert all(torch.equal(results[0], other) for other in results[1:])
            assert (results[0] == 0).all() == flush
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def test_thread_pool_propagates_exceptions(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the tests of the thread pool need g++")
    program = tmp_path / "pool_driver"
    sources = [CSRC / "common" / "parallel.cpp", HERE / "pool_driver.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, *sources, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
