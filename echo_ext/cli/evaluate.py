"""``echo-ext evaluate``: measure a trained run further."""

from __future__ import annotations

import argparse
from pathlib import Path

from echo_ext.cli.machine import check_installed, find_device
from echo_ext.cli.train import PACKAGES

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure the model of a run directory by all that applies to it"

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
    """Which run, and what beside the usual."""
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="as train wrote it")
    parser.add_argument("--draws", type=int, default=4, metavar="N", help="of z for each row; default: 4")
    parser.add_argument("--importance-samples", type=int, metavar="N", help="of z for -log p(x); default: leave it out")
    parser.add_argument(
        "--importance-rows", type=int, default=1000, metavar="N", help="that get it, at most; default: 1000"
    )
    parser.add_argument("--tsne", action="store_true", help="also draw the codes in the plane, embedding.png")
    parser.add_argument(
        "--information", default="formula", choices=("formula", "knn"), help="how I(z_j; x) is taken; default: formula"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of the data's files; default: ECHO_EXT_DATA")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: cpu")


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print what was found."""
    for name in ("draws", "importance_samples", "importance_rows"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
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
        each = sorted(found["latent_information"], reverse=True)
        print(f"  {'I(z_j; x), sorted':<22} " + " ".join(f"{value:.2f}" for value in each))
    print(f"written to {arguments.directory / EVALUATION}")
