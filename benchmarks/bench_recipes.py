"""One epoch of every recipe on Fashion-MNIST, with every warning an error: seconds, and what came out.

    python benchmarks/bench_recipes.py docs/results/recipes --data-dir DIR

Goes on where it stopped. `--limit NAME=ROWS`, repeated, takes fewer training rows for recipes whose name begins so.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from echo_ext import models
from echo_ext.data import catalog

DATA = "fashion-mnist"
ROWS = catalog.CATALOG[DATA].rows[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=ROWS")
    parser.add_argument("--recipes", nargs="*", default=list(models.recipes()))
    arguments = parser.parse_args()
    limits = {name: int(rows) for name, rows in (each.split("=") for each in arguments.limit)}
    file = arguments.out / "result.json"
    done = json.loads(file.read_text()) if file.is_file() else {"data": DATA, "recipes": {}}
    for recipe in arguments.recipes:
        if recipe in done["recipes"]:
            continue
        limit = next((rows for name, rows in limits.items() if recipe.startswith(name)), None)
        done["recipes"][recipe] = one_epoch(recipe, limit, arguments.data_dir)
        done["machine"] = f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads of {processor()}"
        arguments.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(done, indent=2) + "\n")
        (arguments.out / "table.md").write_text(table(done["recipes"]))
        print(recipe, done["recipes"][recipe], flush=True)


def one_epoch(recipe, limit, data_dir):
    """Train through the command, in a process of its own; whatever it warns of or says on standard error ends this."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "error", "-m", "echo_ext", "--debug", "train", "--recipe", recipe]
        command += ["--data", DATA, "--epochs", "1", "--out", folder]
        command += ["--limit", str(limit)] if limit else []
        command += ["--data-dir", data_dir] if data_dir else []
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if ended.returncode or ended.stderr:
            sys.exit(f"{recipe} ended with {ended.returncode} and said:\n{ended.stderr}")
        result = json.loads(Path(folder, "result.json").read_text())
    rate = next(name for name in ("rate", "rate_bound") if name in result)
    return {
        "rows": limit or ROWS,
        "epoch_seconds": result["seconds"],
        "seconds": round(seconds, 1),
        rate: result[rate],
        **{name: result[name] for name in ("distortion", "neg_elbo")},
    }


def table(found):
    lines = ["| recipe | training rows | epoch, s | with metrics and figures, s | rate | distortion | -ELBO |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for recipe, row in found.items():
        rate = f"{row['rate']:.1f} (exact)" if "rate" in row else f"{row['rate_bound']:.1f} (bound)"
        lines.append(
            f"| {recipe} | {row['rows']} | {row['epoch_seconds']:.1f} | {row['seconds']:.1f} | {rate} "
            f"| {row['distortion']:.1f} | {row['neg_elbo']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
