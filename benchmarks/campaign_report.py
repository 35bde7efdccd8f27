"""Tables of the finished runs of a campaign, with the published values."""

import json
import math
import statistics
from pathlib import Path

from campaign_archive import run_states

from echo_ext.training.run_directory import EVALUATION_FILE

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
QUANTITIES = ["rate", "rate_bound", "distortion", "neg_elbo", "noise_total_correlation", "noise_log_det"]
QUANTITIES += ["factor_vae_score", "mig", "knn_accuracy", "importance_nll"]


def values_of(run):
    """Return all measures of a finished run."""
    evaluation = run.path / EVALUATION_FILE
    return {**(json.loads(evaluation.read_text()) if evaluation.is_file() else {}), **run.result}


def report(stage, root, facts):
    """Return the content of the tables: a row for each data set, recipe and beta, and the unfinished runs.

    A recipe is followed by the model settings that the name of its folder ends with, if the sweep had several of them.
    """
    groups, unfinished = {}, []
    for run in run_states(root):
        folder = run.path.parent.name
        if not run.finished:
            unfinished.append({"run": f"{folder}/{run.path.name}", "epochs": run.epochs, "of": run.epochs_in_all})
            continue
        found = values_of(run)
        recipe = found["recipe"] + run.path.name.partition(f"-seed{found['seed']}")[2]
        groups.setdefault((folder, found["data"], recipe, found["beta"]), []).append(found)
    published = PUBLISHED.get(stage, {})
    rows = []
    for (folder, data, recipe, beta), runs in sorted(groups.items()):
        row = {"folder": folder, "data": data, "recipe": recipe, "beta": beta, "seeds": len(runs)}
        row["epochs"] = sorted({run["epochs"] for run in runs})
        for quantity in QUANTITIES:
            values = [run[quantity] for run in runs if run.get(quantity) is not None]
            if values:
                error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
                row[quantity] = {"mean": statistics.fmean(values), "standard_error": error, "values": values}
        if beta == 1 and recipe in published.get(data, {}):
            row["published"] = dict(zip(published["quantities"], published[data][recipe], strict=True))
        rows.append(row)
    return {**facts, "source": PUBLISHED["source"], "rows": rows, "unfinished": unfinished}


def cell(row, quantity):
    """Format the mean with its standard error over the seeds, and the published value."""
    ours = row.get(quantity)
    # The paper has one column for exact rates and for bounds.
    name = "rate" if quantity == "rate_bound" and quantity in row else quantity
    published = None if quantity == "rate" and "rate_bound" in row else row.get("published", {}).get(name)
    if ours is None:
        return "" if published is None else f"- ({published})"
    error = ours["standard_error"]
    text = f"{ours['mean']:.2f}" + (f" ± {error:.2f}" if error is not None else "")
    return text if published is None else f"{text} ({published})"


def as_markdown(content):
    """Format the report as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    busy = content["gpu_busy_percent"]
    lines = [
        f"# {content['stage']}",
        "",
        f"{content['device']}; {versions}; commit {content['commit'] or 'unknown'}; {content['date']}.",
        "",
        f"This call took {content['seconds']:.0f} s and advanced {content['runs_advanced']} runs, "
        f"{content['jobs']} at a time. The device was shared {content['sharing']}; "
        f"steps were {'replayed from CUDA graphs' if content['cuda_graphs'] else 'launched kernel by kernel'}. "
        + ("The GPU's load was not measured." if busy is None else f"The GPU was busy {busy:.0f} % of the time."),
        "",
    ]
    shown = [quantity for quantity in QUANTITIES if any(quantity in row for row in content["rows"])]
    if content["rows"]:
        head = ["data", "recipe", "beta", "seeds", "epochs", *shown]
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for row in content["rows"]:
            epochs = "-".join(dict.fromkeys(str(row["epochs"][index]) for index in (0, -1)))
            rebuilt = " (rebuilt)" if row["data"] in content["rebuilt"] else ""
            cells = [f"{row['folder']}{rebuilt}", row["recipe"], f"{row['beta']:g}", str(row["seeds"]), epochs]
            lines.append(f"| {' | '.join([*cells, *(cell(row, quantity) for quantity in shown)])} |")
        lines += [
            "",
            "Means over the seeds with their standard errors, in nats where they are information; in parentheses the "
            f"published value ({content['source']}).",
            "",
        ]
    if content["unfinished"]:
        lines.append(f"{len(content['unfinished'])} runs are not finished:")
        lines += [f"- {run['run']}: {run['epochs']} of {run['of']} epochs" for run in content["unfinished"]]
    if content["failures"]:
        lines += ["", "Failures:", *(f"- {failure}" for failure in content["failures"])]
    return "\n".join(lines).rstrip() + "\n"
