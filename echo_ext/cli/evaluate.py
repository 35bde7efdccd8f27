"""The command ``echo-ext evaluate``, which computes further metrics of a trained run."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from echo_ext import _checks
from echo_ext.cli.machine import add_data_dir, add_device, check_writable, find_device
from echo_ext.cli.printing import print_table
from echo_ext.cli.train import PACKAGES
from echo_ext.metrics.information import METHODS
from echo_ext.training.evaluation import LABELS

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "evaluate the model of a run directory by all metrics that apply to it"
EXAMPLES = (
    "echo-ext evaluate runs/echo-digits-beta1-seed0",
    "echo-ext evaluate runs/vae-digits-beta1-seed0 --importance-draws 1000 --tsne",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("directory", type=Path, metavar="RUN_DIR", help="run directory that train has written")
    add("--draws", type=int, default=4, metavar="N", help="number of noise samples for each row")
    what = "number of samples of z for an importance-sampled -log p(x) (default: none)"
    add("--importance-draws", type=int, metavar="N", help=what)
    what = "use only the first N test rows for the importance-sampled -log p(x) (default: all)"
    add("--importance-rows", type=int, metavar="N", help=what)
    add("--tsne", action="store_true", help="plot a t-SNE embedding of the codes as embedding.png")
    what = "estimator of the information I(z_j; x) of each latent"
    add("--information-method", default="formula", metavar="|".join(METHODS), help=what)
    add_data_dir(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the run and print the results."""
    _checks.installed(*PACKAGES, "sklearn", "scipy", purpose="evaluate")
    check_writable("directory", arguments.directory)
    from echo_ext import training
    from echo_ext.training.run_directory import EVALUATION_FILE

    names = ("data_dir", "draws", "importance_draws", "importance_rows", "tsne", "information_method")
    options = {name: getattr(arguments, name) for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*too few effective draws")  # it is printed below
        found = training.evaluate(arguments.directory, device=find_device(arguments.device), **options)
    print(f"{found['recipe']} on {found['data']} after {found['epochs']} epochs, nats per sample")
    shown = [name for name in LABELS if found.get(name) is not None]
    errors = {name: f"+- {found[f'{name}_error']:.3f}" for name in shown if found.get(f"{name}_error")}
    print_table([(LABELS[name], f"{found[name]:.3f}", errors.get(name, "")) for name in shown])
    if "latent_information" in found:
        values = sorted(found["latent_information"], reverse=True)
        print("I(z_j; x), sorted:", *(f"{value:.2f}" for value in values))
    if "layer_terms" in found:
        terms, useful = found["layer_terms"], found["useful_layers"]
        verdict = {0: "no layer helps", len(terms): "all layers help"}.get(useful, f"{useful} of {len(terms)} help")
        print(f"what each layer adds to the bound on TC(x): {', '.join(f'{term:.2f}' for term in terms)}; {verdict}")
    if found.get("importance_nll") is not None:
        low, quarter, half, *_ = found["importance_effective_draws"]
        print(
            f"effective draws of {found['importance_draws']} on {found['importance_rows']} test rows: "
            f"median {half:.0f}, lower quartile {quarter:.0f}, minimum {low:.1f}"
        )
        if found["importance_warning"] is not None:
            print(f"echo-ext evaluate: warning: {found['importance_warning']}", file=sys.stderr)
    print(f"written to {arguments.directory / EVALUATION_FILE}")
