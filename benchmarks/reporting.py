"""What the benchmarks share besides timers: options, the description of the machine, tables, and result files.

Every `bench_NAME.py` writes NAME.json, which holds summaries, and makes NAME.md and NAME.png from it.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import echo_ext

RESULTS = Path(__file__).parent / "results"


def make_parser(description, device=False, seconds=None):
    """A parser of the options that all benchmarks have.

    Args:
        description: The module's docstring.
        device: Whether the benchmark runs on a GPU too.
        seconds: The default of ``--seconds``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
    if seconds is not None:
        parser.add_argument("--seconds", type=float, default=seconds, help=f"for each call; default: {seconds}")
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results, --quick: none")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="smallest sizes and a trial of each call, in seconds")
    mode.add_argument("--report", action="store_true", help="measure nothing: tables and figures of existing results")
    return parser


def parse(parser, arguments=None):
    """The options; ``--quick`` shortens ``--seconds``."""
    options = parser.parse_args(arguments)
    options.device = getattr(options, "device", torch.device("cpu"))
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device must be cpu where torch finds no GPU, got {options.device}")
    if options.quick and hasattr(options, "seconds"):
        options.seconds = 0.001
    if options.out is None and not options.quick:
        options.out = RESULTS
    return options


def finish(name, options, measure, table=None, plot=None):
    """Measure, or read what was measured, and write the results, their table and their figure.

    Args:
        name: Of the files.
        options: Of the command line.
        measure: Takes the options, returns a dictionary of summaries.
        table: Takes the results, returns Markdown.
        plot: Takes the results, returns a figure.
    """
    path = None if options.out is None else options.out / f"{name}.json"
    if options.report:
        result = json.loads(path.read_text())
    else:
        result = {**describe(options.device), **measure(options)}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
    if table is not None:
        text = table(result)
        print(text)
        if path is not None:
            path.with_suffix(".md").write_text(text)
    if plot is not None:
        figure = plot(result)
        if path is not None:
            figure.savefig(path.with_suffix(".png"))


def on_device(name, device):
    """The name of results on a device: NAME on the CPU, NAME_cuda on a GPU."""
    return name if device.type == "cpu" else f"{name}_{device.type}"


def describe(device):
    """Where and when something is measured."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "versions": {"echo_ext": echo_ext.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def machine(result):
    """Where results were measured, as the beginning of a line."""
    return f"{result['device']}, torch {result['versions']['torch']}"


def processor():
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def markdown_table(heads, rows):
    """The lines of a table; cells are text or numbers."""
    lines = [heads, *rows]
    text = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    return [text[0], "|---" * len(heads) + "|", *text[1:]]


def three_digits(value):
    """Three significant digits without an exponent: 1,790."""
    return f"{float(f'{value:.3g}'):,g}"
