"""Stand-ins for the tools that benchmarks/gpu_check.sh calls, which refuse options that the real ones do not have.

STAND_IN_FAIL names tools that fail, STAND_IN_HANG tools that make the file STAND_IN_STARTED and do not return;
STAND_IN_MODULE is the native module that cmake "builds".
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DEVICE = {
    "utilization.gpu": "90",
    "memory.used": "1000",
    "name": "NVIDIA Stand-in",
    "driver_version": "580.00",
    "compute_cap": "9.0",
    "memory.total": "1000 MiB",
}
RATES = "\n".join(json.dumps({"rate": name, "adds_per_second": 1e12, "right": True}) for name in ("scalar", "float4"))


def strict_parser(name):
    return argparse.ArgumentParser(prog=name, allow_abbrev=False, add_help=False)


def matching(pattern):
    """An argument's type: text that matches all of the pattern."""

    def read(text):
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"must match {pattern}, got {text}")
        return text

    return read


def nvidia_smi(parser, arguments):
    parser.add_argument("--query-gpu", type=lambda fields: [DEVICE[field] for field in fields.split(",")])
    parser.add_argument("--format", choices=["csv,noheader", "csv,noheader,nounits"])
    parser.add_argument("-l", dest="every", type=int)
    parser.add_argument("-q", action="store_true")
    parser.add_argument("-d", choices=["CLOCK"])
    options = parser.parse_args(arguments)
    print("SM: 345 MHz" if options.q else ", ".join(options.query_gpu), flush=True)
    while options.every is not None:
        time.sleep(options.every)
        print(", ".join(options.query_gpu), flush=True)


def nvcc(parser, arguments):
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-O3", action="store_true")
    parser.add_argument("-std", choices=["c++17"])
    parser.add_argument("-arch", type=matching(r"sm_\d\d"))
    parser.add_argument("-o", type=Path)
    parser.add_argument("source", nargs="?", type=matching(r".*\.cu"))
    options = parser.parse_args(arguments)
    if options.version:
        print("Cuda compilation tools, release 13.0, V13.0.88")
        return
    assert Path(options.source).is_file()
    options.o.write_text(f"#!/bin/sh\ncat <<'END'\n{RATES}\nEND\n")
    options.o.chmod(0o755)


def cmake(parser, arguments):
    parser.add_argument("-G", choices=["Ninja"])
    parser.add_argument("-S", type=Path)
    parser.add_argument("-B", type=Path)
    parser.add_argument("-D", action="append", default=[], type=matching(r"\w+=.*"))
    parser.add_argument("--build", type=Path)
    options = parser.parse_args(arguments)
    if options.build is None:
        assert (options.S / "CMakeLists.txt").is_file()
        settings = dict(setting.split("=", 1) for setting in options.D)
        assert settings["ECHO_EXT_CUDA"] == "1"
        assert re.fullmatch(r"\d\d-real", settings["ECHO_EXT_CUDA_ARCHS"])
        assert (Path(settings["pybind11_DIR"]) / "pybind11Config.cmake").is_file()
        options.B.mkdir(exist_ok=True)
        (options.B / "output").write_text(settings["ECHO_EXT_OUTPUT_DIR"])
    else:
        output = Path((options.build / "output").read_text())
        output.mkdir(exist_ok=True)
        shutil.copy(os.environ["STAND_IN_MODULE"], output)


def compute_sanitizer(parser, arguments):
    parser.add_argument("--tool", choices=["memcheck", "racecheck", "initcheck", "synccheck"])
    parser.add_argument("--error-exitcode", type=int)
    parser.add_argument("--kernel-name", type=matching("kernel_(name|substring)=.+"))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return subprocess.run(parser.parse_args(arguments).command, check=False).returncode


def ncu(parser, arguments):
    parser.add_argument("--clock-control", choices=["base", "none"])
    parser.add_argument("--target-processes", choices=["all", "application-only"])
    parser.add_argument("--set", choices=["basic", "detailed", "full"])
    parser.add_argument("--metrics")
    parser.add_argument("--kernel-name", type=lambda text: re.compile(matching("regex:.+")(text)))
    parser.add_argument("--launch-count", type=int)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--import", dest="report", type=Path)
    parser.add_argument("--csv", action="store_true")
    parser.add_argument("--page", choices=["details", "raw"])
    parser.add_argument("--print-details", choices=["all", "header", "body"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.report is not None:
        assert options.report.is_file()
        print('"Kernel Name","Metric Name","Metric Value"')
        return 0
    if options.export is not None:
        options.export.with_name(options.export.name + ".ncu-rep").touch()
    return subprocess.run(options.command, check=False).returncode


TOOLS = {
    "nvidia-smi": nvidia_smi,
    "nvcc": nvcc,
    "cmake": cmake,
    "ninja": lambda parser, arguments: None,
    "compute-sanitizer": compute_sanitizer,
    "ncu": ncu,
}


class Machine:
    """Runs the scripts in benchmarks with the stand-ins on PATH and an output directory of its own."""

    def __init__(self, root, module):
        self.tools, self.out = root / "tools", root / "out"
        self.tools.mkdir()
        for name in TOOLS:
            self.install(name, f"exec '{sys.executable}' '{__file__}' {name} \"$@\"")
        self.environment = {
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "PYTHON": sys.executable,
            "CUDA_HOME": str(root),
            "OMP_NUM_THREADS": "1",  # at these sizes the fastest
            "ECHO_EXT_COMMIT": "abc1234",
            "ECHO_EXT_GPU_BUILD": str(root / "build"),
            "STAND_IN_MODULE": module,
            **{name: os.environ[name] for name in ("HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ},
        }

    def install(self, name, body):
        """Install a command that runs this body of a shell script; returns its path."""
        command = self.tools / name
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
        return str(command)

    def start(self, script, *arguments, **more):
        return subprocess.Popen(
            [BENCHMARKS / script, *arguments],
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script, *arguments, **more):
        process = self.start(script, *arguments, **more)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


if __name__ == "__main__":
    tool, given = sys.argv[1], sys.argv[2:]
    if tool in os.environ.get("STAND_IN_FAIL", "").split(","):
        sys.exit(f"Error: {tool} was told to fail")
    if tool in os.environ.get("STAND_IN_HANG", "").split(","):
        print(f"{tool} has started", flush=True)
        Path(os.environ.get("STAND_IN_STARTED", os.devnull)).touch()
        time.sleep(600)
    sys.exit(TOOLS[tool](strict_parser(tool), given))
