"""The steps of gpu_check.sh: tests marked `cuda`, times, and short runs for the profiler.

    python benchmarks/gpu_check.py test NAME | time | profile [--device cpu --quick]

`test NAME` runs python_tests/test_cuda_NAME.py. With ``--device cpu`` the CPU stands in for the GPU, for a dry run: the
tests are those that need no GPU. Each step takes about a minute at most, with --quick some seconds.
"""

import argparse
import faulthandler
import signal
import sys
import time
from pathlib import Path

import torch
from gpu_device import Cases, CpuStandIn, CudaDevice, DeviceLost
from gpu_time import inputs, measure_all, related

import echo_ext

TESTS = Path(__file__).parents[1] / "python_tests"
NAMES = [file.stem.removeprefix("test_cuda_") for file in sorted(TESTS.glob("test_cuda_*.py"))]


class Watch:
    """A plugin of pytest that counts the tests by their outcome, and ends the run where the device is lost."""

    def __init__(self, device):
        self.device = device
        self.passed = self.failed = self.skipped = 0

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed
        self.skipped += report.skipped
        if report.failed:
            try:
                self.device.recover()
            except DeviceLost as error:
                import pytest

                pytest.exit(lost(error), returncode=1)


def lost(error):
    return f"the device is lost, and the step ends here: {error}"


def test(device, name):
    """Whether all tests passed: those marked `cuda`, or the others in a dry run. None that passed is a failure."""
    import pytest

    watch = Watch(device)
    marks = "cuda" if device.type == "cuda" else "not cuda"
    # Warnings are no failures here, and a test that prints does not hide the traceback of one that hangs.
    options = ["-v", "-s", "-W", "default", "-p", "no:cacheprovider", "-m", marks]
    code = pytest.main([*options, str(TESTS / f"test_cuda_{name}.py")], plugins=[watch])
    if watch.passed == 0:
        print(f"FAILED {name}: no test has passed")
    print(f"tests: {watch.passed} passed, {watch.failed} failed, {watch.skipped} skipped")
    return code == 0 and watch.passed > 0


def run_cases(device, measure):
    """Whether all cases succeeded."""
    cases = Cases(device)
    try:
        measure(cases)
    except DeviceLost as error:
        print(f"FAILED: {lost(error)}")
    print(f"{cases.failed} of {cases.count} cases failed")
    return cases.failed == 0


def profile(cases, quick):
    """One launch of each of the main kernels, at the sizes for which speed was asked, or a part of them."""
    device = cases.device
    rows, ring_rows, points, columns = (64, 256, 300, 4) if quick else (1024, 2**20, 10**5, 100)

    def launch_rows_kernels():
        f, s = inputs(device, rows, 128, scale=0.97)
        torch.autograd.grad(echo_ext.echo_sample(f, s).sum(), (f, s))

    cases.run("forward_kernel and backward_kernel", launch_rows_kernels)
    ring = [t.detach() for t in inputs(device, ring_rows, 64)]
    cases.run("ring_forward_kernel", lambda: echo_ext.echo_sample(*ring, sampling="ring"))
    x = torch.cat(related(points, 5), 1).to(device.type)
    cases.run("search_kernel", lambda: echo_ext.knn(x, k=5))
    x = related(min(points, 2000), columns)[0].to(device.type)
    cases.run("pairs_kernel", lambda: echo_ext.mutual_information_matrix(x))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["test", "time", "profile"])
    parser.add_argument("name", nargs="?", choices=NAMES, help="of the tests")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run; default: cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a dry run")
    parser.add_argument("--json", default="gpu_times.json", help="file that `time` writes; default: gpu_times.json")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="of the input; default: the time")
    options = parser.parse_args(arguments)
    if (options.command == "test") != (options.name is not None):
        parser.error(f"test takes one of {', '.join(NAMES)}, and no other command does")

    device = CudaDevice() if options.device == "cuda" else CpuStandIn()
    why = device.refusal()
    if why is not None:
        print(f"gpu_check: {why}", file=sys.stderr)
        return 2
    print(f"seed {options.seed}, echo_ext from {echo_ext.__path__[0]}")
    torch.manual_seed(options.seed)
    if options.command == "test":
        succeeded = test(device, options.name)
    elif options.command == "time":
        succeeded = run_cases(device, lambda cases: measure_all(cases, options.quick, options.json))
    else:
        succeeded = run_cases(device, lambda cases: profile(cases, options.quick))
    return int(not succeeded)


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # a step that is stopped at its limit says where it was
    sys.exit(main())
