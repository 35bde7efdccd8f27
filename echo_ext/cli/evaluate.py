"""The command ``echo-ext evaluate``, which computes further metrics of a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext import _checks
from echo_ext.cli.machine import add_data_dir, add_device, check_installed, find_device
from echo_ext.cli.train import PACKAGES

__all__ = ["HELP", "add_arguments", "run"]

HELP = "evaluate the model of a run directory by all metrics that apply to it"

LABELS = {
    "rate": "rate (exact)",
    "rate_bound": "rate bound",
    "distortion": "distortion",
    "neg_elbo": "-ELBO",
    "importance_nll": "-log p(x), importance",
    "noise_total_correlation": "noise TC, 2nd order",
    "knn_accuracy": "5-NN accuracy",
    "mig": "MIG, 20 bins",
    "factor_vae_score": "FactorVAE score",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="run directory that train has written")
    parser.add_argument(
        "--draws", type=int, default=4, metavar="N", help="number of noise samples for each row (default: 4)"
    )
    parser.add_argument(
        "--importance-samples",
        type=int,
        metavar="N",
        help="number of samples of z for the importance-sampled -log p(x) of each row (default: do not compute it)",
    )
    parser.add_argument(
        "--importance-rows",
        type=int,
        default=1000,
        metavar="N",
        help="maximum number of rows for the importance-sampled -log p(x) (default: 1000)",
    )
    parser.add_argument("--tsne", action="store_true", help="plot a t-SNE embedding of the codes as embedding.png")
    parser.add_argument(
        "--information",
        default="formula",
        choices=("formula", "knn"),
        help="estimator of the information I(z_j; x) of each latent (default: formula)",
    )
    add_data_dir(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the run and print the results."""
    _checks.whole("--draws", arguments.draws, minimum=1)
    if arguments.importance_samples is not None:
        _checks.whole("--importance-samples", arguments.importance_samples, minimum=1)
    _checks.whole("--importance-rows", arguments.importance_rows, minimum=1)
    check_installed(*PACKAGES, "sklearn", "scipy", command="evaluate", extra="train")
    from echo_ext import training
    from echo_ext.training.evaluation import EVALUATION

    found = training.evaluate(
        arguments.directory,
        data_dir=arguments.data_dir,
        device=find_device(arguments.device),
        draws=arguments.draws,
        importance_samples=arguments.importance_samples,
        importance_rows=arguments.importance_rows,
        embedding=arguments.tsne,
        information=arguments.information,
    )
    print(f"{found['recipe']} on {found['data']} after {found['epochs']} epochs, nats per sample")
    for name, label in LABELS.items():
        if found.get(name) is not None:
            error = found.get(f"{name}_error")
            print(f"  {label:<22} {found[name]:10.3f}" + (f" +- {error:.3f}" if error else ""))
    if "latent_information" in found:
        values = sorted(found["latent_information"], reverse=True)
        print(f"  {'I(z_j; x), sorted':<22} " + " ".join(f"{value:.2f}" for value in values))
    print(f"written to {arguments.directory / EVALUATION}")
