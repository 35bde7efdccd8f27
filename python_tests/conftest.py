"""Fresh random input on every run: the seed is in the report's header, and ECHO_EXT_TEST_SEED repeats it."""

import os
import secrets
import signal

import device_worker
import emulated_device
import pytest
import torch
from filelock import FileLock

from echo_ext import _C, _cuda, _progress

SEED = int(os.environ.setdefault("ECHO_EXT_TEST_SEED", str(secrets.randbits(31))))  # which worker processes inherit

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"ECHO_EXT_TEST_SEED={SEED}"


def pytest_terminal_summary(terminalreporter):
    """The seed of a run with failures, and what each fuzzer has done with which seed."""
    if terminalreporter.getreports("failed") or terminalreporter.getreports("error"):
        terminalreporter.write_line(pytest_report_header())
    passed = terminalreporter.getreports("passed")
    runs = [
        value for report in passed if report.when == "call" for name, value in report.user_properties if name == "fuzz"
    ]
    if runs:
        terminalreporter.section("fuzzing")
        for run in runs:
            terminalreporter.line(run)


@pytest.fixture(autouse=True)
def fresh_randomness(request):
    """Every test its own random stream, the same whether it runs alone or with others."""
    torch.manual_seed(SEED + sum(map(ord, request.node.nodeid)))
    torch.set_flush_denormal(False)  # what torch.compile of torch 2.4 loads sets the mode for the whole process


def built_once(tmp_path_factory, *, sanitized):
    """The emulated device, shared by all worker processes of this run: the first that needs it builds it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "emulated_device"
    with FileLock(folder.with_suffix(".lock")):
        folder.mkdir(exist_ok=True)
        return emulated_device.build(folder, sanitized=sanitized)


@pytest.fixture(scope="session")
def sanitized_library(tmp_path_factory):
    return built_once(tmp_path_factory, sanitized=True)


@pytest.fixture(scope="session")
def device(sanitized_library):
    worker = emulated_device.Worker(sanitized_library)
    yield emulated_device.Device(worker)
    worker.close()


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory):
    """The emulated device in this process, without sanitizers."""
    return device_worker.load(built_once(tmp_path_factory, sanitized=False))


@pytest.fixture(autouse=True)
def _no_lines_of_progress(monkeypatch):
    """On a slow machine a command in this process would print them among what a test compares."""
    monkeypatch.setattr(_progress, "FIRST_LINE", 3600.0)


@pytest.fixture
def one_thread():
    """For small models, to which more threads than free cores are many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pretend_driver(monkeypatch, tmp_path_factory):
    """Call it to have another build of the core, and another driver on this machine."""

    def pretend(built, supported=0, version=None):
        file = tmp_path_factory.mktemp("driver") / "version"
        if version is not None:
            lines = (
                f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (builder@host)",
                "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)",
            )
            file.write_text("\n".join(lines))
        monkeypatch.setattr(_cuda, "_DRIVER_FILE", file)
        monkeypatch.setattr(_C, "cuda_version", built)
        monkeypatch.setattr(_C, "cuda_driver_version", lambda: supported)
        _cuda.cuda_refusal.cache_clear()

    yield pretend
    _cuda.cuda_refusal.cache_clear()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
