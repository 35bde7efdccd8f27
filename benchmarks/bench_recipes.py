"""One epoch of every recipe on Fashion-MNIST, with every warning as an error: its time, and the metrics of the run.

    python benchmarks/bench_recipes.py docs/results/recipes --data-dir DIR [--quick]

A full run takes hours on a CPU; --quick takes half a minute for each recipe. An interrupted run continues where it
stopped. `--limit NAME=ROWS`, which may be repeated, limits the training rows of recipes whose name begins with NAME.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reporting import markdown_table, processor

from echo_ext import data, models

DATA = "fashion-mnist"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of result.json and table.md")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data set; default: ECHO_EXT_DATA")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=ROWS", help="see above")
    parser.add_argument("--recipes", nargs="*", default=list(models.recipes()), metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="200 training rows for every recipe")
    options = parser.parse_args()
    limits = {name: int(rows) for name, rows in (each.split("=") for each in options.limit)}
    limits |= {"": 200} if options.quick else {}
    file = options.out / "result.json"
    done = json.loads(file.read_text()) if file.is_file() else {"data": DATA, "recipes": {}}
    for recipe in options.recipes:
        if recipe in done["recipes"]:
            continue
        limit = next((rows for name, rows in limits.items() if recipe.startswith(name)), None)
        done["recipes"][recipe] = one_epoch(recipe, limit, options.data_dir)
        done["machine"] = f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads of {processor()}"
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(done, indent=2) + "\n")
        (options.out / "table.md").write_text(table(done["recipes"]))
        print(recipe, done["recipes"][recipe], flush=True)


def one_epoch(recipe, limit, data_dir):
    """Train through the command, in a process of its own; any warning or standard error ends this."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "error", "-m", "echo_ext", "--debug", "train", "--recipe", recipe]
        command += ["--data", DATA, "--epochs", "1", "--out", folder]
        command += ["--limit", str(limit)] if limit else []
        command += ["--data-dir", data_dir] if data_dir else []
        start = time.perf_counter()  # the first and only run of a whole process: nothing that a Timer could repeat
        ended = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if ended.returncode or ended.stderr:
            sys.exit(f"{recipe} ended with {ended.returncode} and printed:\n{ended.stderr}")
        result = json.loads(Path(folder, "result.json").read_text())
    rate = next(name for name in ("rate", "rate_bound") if name in result)
    return {
        "rows": limit or len(data.load(DATA, data_dir)["train"]),
        "epoch_seconds": result["seconds"],
        "seconds": round(seconds, 1),
        rate: result[rate],
        **{name: result[name] for name in ("distortion", "neg_elbo")},
    }


def table(found):
    head = ["recipe", "training rows", "epoch, s", "with metrics and figures, s", "rate", "distortion", "-ELBO"]
    rows = []
    for recipe, row in found.items():
        rate = f"{row['rate']:.1f} (exact)" if "rate" in row else f"{row['rate_bound']:.1f} (bound)"
        numbers = [f"{row[name]:.1f}" for name in ("epoch_seconds", "seconds", "distortion", "neg_elbo")]
        rows.append([recipe, row["rows"], *numbers[:2], rate, *numbers[2:]])
    return "\n".join(markdown_table(head, rows)) + "\n"


if __name__ == "__main__":
    main()
