"""Calls under a memory limit: each returns the correct number or raises an error, and the process continues."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from knn_cases import fresh

resource = pytest.importorskip("resource")
if not Path("/proc/self/statm").exists():
    pytest.skip("needs Linux's /proc", allow_module_level=True)

# The working directory of child processes. At the root they would import the sources instead of the installed package.
HERE = Path(__file__).parent

CASES = ("line", "columns", "batch", "matrix", "gradient", "neighbors", "echo", "ring", "echo_matrix")

# Reads lines "case threads share" and forks for each, so that imports happen once. `share` limits the address space to
# this share of what the call needs in addition to that of the process.
SERVER = """
import hashlib
import os
import resource
import sys

import torch

import echo_ext

torch.manual_seed(0)
torch.set_num_threads(1)
echo_ext.mutual_information_matrix(torch.randn(99, 2))  # imports parts of torch, so that no import fails later
x, y = torch.randn(2, 8000, 5, dtype=torch.float64)
line = torch.randn(2, 200_000)
batch = torch.randn(40, 2000, 2)
f, s = torch.randn(3000, 96), torch.rand(3000, 96)
long_f, long_s = torch.randn(60_000, 8), torch.rand(60_000, 8)
vectors, matrices = torch.randn(3000, 8), 0.1 * torch.randn(3000, 8, 8)


def gradient(function, *tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(function(*tensors).sum(), tensors)


cases = {
    "line": lambda: [echo_ext.mutual_information(*line)],
    "columns": lambda: [echo_ext.mutual_information(x, y)],
    "batch": lambda: [echo_ext.mutual_information(batch, batch.flip(1))],
    "matrix": lambda: [echo_ext.mutual_information_matrix(x[:2000])],
    "gradient": lambda: gradient(echo_ext.mutual_information, x[:3000], y[:3000]),
    "neighbors": lambda: echo_ext.knn(x, k=20, metric="euclidean"),
    "large_result": lambda: echo_ext.knn(line[0], k=30),
    "echo": lambda: gradient(lambda f, s: echo_ext.echo_sample(f, s, seed=1), f, s),
    "ring": lambda: gradient(lambda f, s: echo_ext.echo_sample(f, s, sampling="ring", seed=1), long_f, long_s),
    "echo_matrix": lambda: gradient(lambda f, s: echo_ext.echo_sample_matrix(f, s, seed=1), vectors, matrices),
}


def digest(name):
    found = hashlib.sha256()
    for result in cases[name]():
        found.update(result.numpy().tobytes())
    return found.hexdigest()


def address_space(field):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


def measure(name, threads):
    torch.set_num_threads(threads)
    before = address_space("VmSize")
    return digest(name), address_space("VmPeak") - before


def attempt(name, threads, share):
    expected, needed = measured[name, threads]
    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_AS, (int(address_space("VmSize") + share * needed), resource.RLIM_INFINITY))
    try:
        outcome = "right" if digest(name) == expected else "wrong"
    except MemoryError:
        outcome = "MemoryError"
    except RuntimeError as error:
        outcome = "RuntimeError" if "memory" in str(error) else f"wrong:{error}"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if outcome != "wrong" and digest(name) != expected:
        outcome = f"wrong-after-{outcome}"
    return outcome


def in_fork(function, *arguments):
    results, sink = os.pipe()
    errors = os.memfd_create("stderr")
    child = os.fork()
    if child == 0:
        os.dup2(errors, 2)
        os.write(sink, repr(function(*arguments)).encode())
        os._exit(0)
    os.close(sink)
    with open(results, "rb") as results:
        result = results.read().decode()
    status = os.waitpid(child, 0)[1]
    os.lseek(errors, 0, os.SEEK_SET)
    with open(errors, "rb") as errors:
        message = errors.read().decode(errors="replace")
    return eval(result) if status == 0 and result else f"died:{status}:{message}"


measured = {}
for line_of_input in sys.stdin:
    name, threads, share = line_of_input.split()
    key = name, int(threads)
    if key not in measured:
        measured[key] = in_fork(measure, *key)
    print(in_fork(attempt, *key, float(share)).replace("\\n", " "), flush=True)
"""

# Messages of other libraries that end the process when they are out of memory.
NOT_OURS = (
    "cannot allocate memory for thread-local data",  # glibc cannot fail in another way
    "libgomp:",
    "OpenBLAS",
    "mkl",
)


def outcomes_of(runs):
    """The outcomes of runs (case, threads, share), in one process that forks for each."""
    text = "".join(f"{case} {threads} {share}\n" for case, threads, share in runs)
    server = subprocess.run([sys.executable, "-c", SERVER], input=text, capture_output=True, text=True, cwd=HERE)
    assert server.returncode == 0, server.stderr
    outcomes = server.stdout.splitlines()
    assert len(outcomes) == len(runs)
    return outcomes


def check(runs):
    counts = Counter()
    for run, outcome in zip(runs, outcomes_of(runs), strict=True):
        if outcome.startswith("died") and any(reason in outcome for reason in NOT_OURS):
            outcome = "died in a library"
        assert outcome in ("right", "MemoryError", "RuntimeError", "died in a library"), (run, outcome)
        counts[outcome] += 1
    print(counts)
    return counts


def draw(rng, cases, count):
    shares = rng.uniform(0, 1.1, count).round(3).tolist()
    return [(cases[i % len(cases)], int(rng.integers(1, 5)), share) for i, share in enumerate(shares)]


def test_memory_limit_ends_in_a_number_or_an_error():
    rng = fresh()
    runs = draw(rng, rng.permutation(CASES)[:2].tolist(), 4)
    # Not all memory that threads reserve is needed, but a result of 72 MB is, so that run must fail.
    counts = check([*runs, ("columns", 3, 0.4), ("columns", 3, 2.0), ("large_result", 1, 0.4)])
    assert counts["right"] >= 1
    assert counts["right"] < len(runs) + 3


@pytest.mark.faults
def test_two_hundred_runs_under_memory_limits():
    counts = check(draw(fresh(), CASES, 200))
    assert counts["MemoryError"] + counts["RuntimeError"] >= 20
    assert counts["died in a library"] <= 40
