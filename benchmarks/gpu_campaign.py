"""Train the papers' tables, one stage at a time: many runs at once on one GPU, in calls of some minutes.

All sweeps of a stage run at the same time, each by the command ``echo-ext sweep --jobs N --time-limit TIME``. Then
the finished runs are evaluated, the tables are printed with the published values, and the runs are packed for the
next call, which continues them.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import campaign_report
import torch
from campaign_archive import ArchiveError, pack, run_states, unpack
from campaign_stages import STAGES

import echo_ext
from echo_ext.data import catalog
from echo_ext.training import RunDirectory
from echo_ext.training.run_directory import CHECKPOINT_FILE, EVALUATION_FILE

# Seconds of a call that are reserved after the time limit of the sweeps: first to evaluate the runs that end just then,
# and for their curves; then for tables and the archive. In a short call they are these shares of its seconds.
MEASURING, PACKING = (60, 0.3), (20, 0.1)
PACK_EVERY = 150
SMALL_RUN = ("--recipe", "echo", "--data", "digits", "--epochs", "1", "--latent-dim", "4", "--set", "hidden=[32]")
# The maximum device memory of one run: the context, cuDNN's workspaces and the data set.
BYTES_OF_A_RUN = 6e9


@dataclass
class Load:
    """The load of the GPU, sampled each second: its share of busy time and its memory."""

    busy: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def follow(self, stream):
        for line in stream:
            with contextlib.suppress(ValueError):
                busy, memory = (float(number) for number in line.split(","))
                self.busy.append(busy)
                self.memory.append(memory)

    def describe(self):
        if not self.busy:
            return {"gpu_busy_percent": None}
        return {
            "gpu_busy_percent": round(statistics.fmean(self.busy), 1),
            "gpu_memory_mib": max(self.memory),
            "gpu_samples": len(self.busy),
        }


@contextlib.contextmanager
def sampled_load(device):
    """Sample the load of the GPU in a `with` block."""
    load = Load()
    if device != "cuda" or shutil.which("nvidia-smi") is None:
        yield load
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-l", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        thread = threading.Thread(target=load.follow, args=(process.stdout,), daemon=True)
        thread.start()
        try:
            yield load
        finally:
            process.terminate()


SUM = "import torch; torch.ones(8, device='cuda').sum().item()"  # a program that uses the device


@contextlib.contextmanager
def shared_device(device, work):
    """Let kernels of several processes run at once by NVIDIA's MPS, where that works; yields how it is shared."""
    control = shutil.which("nvidia-cuda-mps-control")
    if device != "cuda" or control is None:
        yield "by the operating system" if device != "cuda" else "in time slices: there is no nvidia-cuda-mps-control"
        return
    folders = {"CUDA_MPS_PIPE_DIRECTORY": work / "mps-pipe", "CUDA_MPS_LOG_DIRECTORY": work / "mps-log"}
    for name, folder in folders.items():
        folder.mkdir(exist_ok=True)
        os.environ[name] = str(folder)
    try:
        subprocess.run([control, "-d"], check=True, timeout=20, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "-c", SUM], check=True, timeout=60, capture_output=True)
        how = "by MPS"
    except (OSError, subprocess.SubprocessError) as error:
        how = f"in time slices: MPS does not work here ({type(error).__name__})"
        stop_mps(control)
        for name in folders:
            del os.environ[name]
    try:
        yield how
    finally:
        if how == "by MPS":
            stop_mps(control)


def stop_mps(control):
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run([control], input="quit\n", text=True, timeout=20, stdout=subprocess.DEVNULL)


class Campaign:
    """One call: it runs the lanes of a stage until the time is up.

    Args:
        options: The options of the command line.
        begin: The start of the call on the monotonic clock.
    """

    def __init__(self, options, begin):
        self.options = options
        self.stage = STAGES[options.stage]
        self.root = options.work / options.stage
        measuring, packing = (min(most, share * options.seconds) for most, share in (MEASURING, PACKING))
        self.end = begin + options.seconds - packing  # of all work
        self.end_of_training = self.end - measuring
        self.log = (options.out / "campaign.log").open("a")
        self.failures = []
        self.processes = set()
        self.training, self.stopping = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.graph_options = []  # of sweeps, about CUDA graphs

    def print(self, text):
        """To the console and to the log."""
        print(text, flush=True)
        self.log.write(f"{text}\n")
        self.log.flush()

    def run(self, name, words):
        """Run a command of echo-ext with its output in the log; returns whether it succeeded."""
        command = [sys.executable, "-m", "echo_ext", *words]
        environment = {"OMP_NUM_THREADS": "1", **os.environ} if self.options.device == "cuda" else None
        # Outside the source tree, from which Python would import the package.
        with subprocess.Popen(
            command,
            cwd=self.options.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            self.processes.add(process)
            if self.stopping.is_set():  # since this thread last checked
                process.terminate()
            last = ""
            for line in process.stdout:
                last = line.strip() or last
                with self.lock:
                    self.log.write(f"{name}: {line}")
                    self.log.flush()
        self.processes.discard(process)
        if process.returncode and not self.stopping.is_set():
            self.failures.append(f"{name}: {last or f'exit code {process.returncode}'}")
        return process.returncode == 0

    def common(self):
        options = self.options
        data = ["--data-dir", str(options.data_dir)] if options.data_dir else []
        return ["--device", options.device, *data]

    def try_graphs(self):
        """Find out on one small run whether steps can be recorded as CUDA graphs here."""
        with tempfile.TemporaryDirectory(dir=self.options.work) as folder:
            words = ["train", *SMALL_RUN, "--device", self.options.device, "--out", f"{folder}/run"]
            if not self.run("a small run with CUDA graphs", words):
                self.graph_options = ["--no-cuda-graph"]

    def lane(self, folder, sweeps, jobs):
        """Run the sweeps of one lane one after the other, until the time is up."""
        for words in sweeps:
            seconds = self.end_of_training - time.monotonic()
            if seconds < 1 or self.stopping.is_set():
                return
            limits = ["--jobs", str(jobs), "--time-limit", f"{seconds:.0f}s"]
            out = ["--out", str(self.root / folder)]
            self.run(folder, ["sweep", *words, *self.options.more, *out, *limits, *self.graph_options, *self.common()])

    def evaluate(self):
        """Evaluate the runs that earlier calls or this one have finished, one at a time, until the time is up."""
        tried = set()
        while time.monotonic() < self.end_of_training and not self.stopping.is_set():
            waiting = [run.path for run in run_states(self.root) if self.to_be_evaluated(run)]
            path = next((path for path in waiting if path not in tried), None)
            if path is not None:
                tried.add(path)
                self.run(f"evaluate {path.name}", ["evaluate", str(path), *self.stage.evaluation, *self.common()])
            elif self.training.is_set():
                time.sleep(1)
            else:
                return

    def to_be_evaluated(self, run):
        if not run.finished or run.result["recipe"] not in self.stage.measured:
            return False
        return (run.path / CHECKPOINT_FILE).is_file() and not (run.path / EVALUATION_FILE).is_file()

    def work(self):
        """Run all lanes at the same time, until they are done or the time is up."""
        jobs = max(1, self.options.jobs // len(self.stage.lanes))
        self.training.set()
        lanes = [
            threading.Thread(target=self.lane, args=(folder, sweeps, jobs))
            for folder, sweeps in self.stage.lanes.items()
        ]
        threads = [*lanes, threading.Thread(target=self.evaluate)]
        for thread in threads:
            thread.start()
        packed = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            if not any(lane.is_alive() for lane in lanes):
                self.training.clear()
            if time.monotonic() > self.end and not self.stopping.is_set():
                self.stop()
            if time.monotonic() - packed > PACK_EVERY:  # in case this call is killed
                self.pack()
                packed = time.monotonic()
            time.sleep(0.1)

    def stop(self, *_):
        """Terminate what still runs; the files that it has written are complete."""
        self.stopping.set()
        for process in list(self.processes):
            process.terminate()

    def pack(self):
        return pack(self.options.work, self.options.out, commit=os.environ.get("ECHO_EXT_COMMIT"))


# In a process of its own, so that this one holds nothing on the device.
PROBE = """
import json, sys, torch
from echo_ext.cli.machine import find_device
try:
    torch.zeros(1, device=find_device("cuda"))
    properties = torch.cuda.get_device_properties(0)
    print(json.dumps([properties.name, properties.total_memory]))
except (ValueError, RuntimeError) as error:
    sys.exit(" ".join(str(error).split()))
"""


class Refused(Exception):
    """The device cannot be used."""


def find_device(device, work):
    """Return the device's name and the number of runs that its memory holds; ``work`` is the folder of the process."""
    if device == "cpu":
        return f"CPU, {platform.machine()}", sys.maxsize
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=work, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Refused((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    name, memory = json.loads(done.stdout)
    return name, max(1, int(memory / BYTES_OF_A_RUN))


def rebuilt_data(stage, data_dir):
    """Return the stage's data sets whose files were rebuilt by others, not published by the authors."""
    names = {words[words.index("--data") + 1] for sweeps in STAGES[stage].lanes.values() for words in sweeps}
    files = {name: catalog.find(name).found(data_dir) for name in names}
    return sorted(name for name, file in files.items() if file is not None and "rebuilt" in file.name)


def count_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help lists what there is)\n")


def read_options(arguments):
    stages = "\n".join(f"  {name:<16} {stage.summary}" for name, stage in STAGES.items())
    parser = Parser(
        prog="gpu_campaign",
        usage="%(prog)s STAGE [OPTION...] [-- OPTION...], where those after -- are for every sweep",
        description=f"{__doc__}\nstages:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default_out = Path("benchmarks/results/campaign")
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help="one of the above")
    parser.add_argument("--out", type=Path, default=default_out, metavar="DIR", help="for tables and the archive")
    parser.add_argument("--archive", type=Path, metavar="DIR", help="continue the runs of the archive in this folder")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the data sets' files; default: ECHO_EXT_DATA")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time; default: what cores and memory allow")
    parser.add_argument("--seconds", type=float, default=530, metavar="S", help="of the whole call; default: 530")
    parser.add_argument("--work", type=Path, default=Path("build/campaign"), metavar="DIR", help="for runs under way")
    arguments, more = list(arguments), []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, more = arguments[:at], arguments[at + 1 :]
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    options.out, options.work, options.more = options.out.resolve(), options.work.resolve(), more
    data_dir = options.data_dir or os.environ.get("ECHO_EXT_DATA")
    options.data_dir = Path(data_dir).resolve() if data_dir else None
    return options


def main(arguments=None):
    begin = time.monotonic()
    options = read_options(sys.argv[1:] if arguments is None else arguments)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        name, most = find_device(options.device, options.work)
        unpacked = unpack(options.archive, options.work) if options.archive else 0
    except (ArchiveError, Refused) as error:
        print(f"gpu_campaign: {error}", file=sys.stderr)
        return 2
    options.jobs = options.jobs or min(count_cores(), most)
    options.out.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(options, begin)
    for number in (signal.SIGTERM, signal.SIGINT):  # after which the runs are packed too
        signal.signal(number, campaign.stop)
    campaign.root.mkdir(parents=True, exist_ok=True)
    before = {state.path: state.epochs for state in run_states(campaign.root)}
    campaign.print(
        f"{options.stage}: {options.jobs} runs at a time on {name}, {options.seconds:.0f} s; "
        f"{unpacked} runs from the archive, {len(before)} in all"
    )
    with shared_device(options.device, options.work) as sharing, sampled_load(options.device) as load:
        if options.device == "cuda":
            campaign.try_graphs()
        campaign.work()
    states = run_states(campaign.root)
    advanced = sum(state.epochs > before.get(state.path, 0) for state in states)
    facts = {
        "stage": options.stage,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": name,
        "commit": os.environ.get("ECHO_EXT_COMMIT"),
        "versions": {"echo-ext": echo_ext.__version__, "torch": torch.__version__, "cuda": torch.version.cuda,
                     "python": platform.python_version()},
        "rebuilt": rebuilt_data(options.stage, options.data_dir),
        "jobs": options.jobs,
        "sharing": sharing,
        "cuda_graphs": options.device == "cuda" and not campaign.graph_options,
        **load.describe(),
        "runs_advanced": advanced,
        "seconds": round(time.monotonic() - begin, 1),
        "failures": campaign.failures,
    }  # fmt: skip
    manifest = campaign.pack()  # first, so that no later error can lose the runs
    report = campaign_report.report(options.stage, campaign.root, facts)
    text = campaign_report.as_markdown(report)
    folder = RunDirectory(options.out)
    folder.write_json("campaign.json", report)
    folder.write("campaign.md", text.encode())
    campaign.print(text)
    size = sum(part["bytes"] for part in manifest["parts"])
    campaign.print(f"packed {len(manifest['kept'])} files, {size / 1e6:.1f} MB; {len(manifest['left_out'])} left out")
    for failure in campaign.failures:
        campaign.print(f"FAILED {failure}")
    campaign.log.close()
    return int(bool(campaign.failures))


if __name__ == "__main__":
    sys.exit(main())
