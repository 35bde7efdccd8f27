"""The command ``echo-ext demo``, which compares an Echo autoencoder with a Gaussian VAE of the same size."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from echo_ext import _checks, _files
from echo_ext._native import num_threads
from echo_ext._progress import progress
from echo_ext.cli.machine import add_data_dir, add_device, check_writable, find_device
from echo_ext.cli.printing import print_table
from echo_ext.data import LabeledDataset
from echo_ext.echo.channel import EchoChannel
from echo_ext.metrics.likelihood import rate_name_in
from echo_ext.training import evaluation
from echo_ext.training.configuration import Configuration
from echo_ext.training.fitting import fit, initial_model, make_fabric, refresh
from echo_ext.training.run_directory import RESULT_FILE, Run

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "train an Echo autoencoder and a Gaussian VAE of the same size, print a table and write figures"
EXAMPLES = (
    "echo-ext demo",
    "echo-ext demo --data fashion-mnist --out fashion-demo",
)
MODELS = {"echo": "Echo", "vae": "VAE"}  # recipes, and their names in the table and the figures
# Number of latents, width of the two layers, learning rate and epochs of both models, by data set.
SIZES = {"digits": (8, 128, 3e-3, 600), "fashion-mnist": (10, 256, 2e-3, 8), "mnist": (10, 256, 2e-3, 8)}
TEST_DRAWS = 16
FILES = ("reconstructions.png", "samples.png", "curves.png", RESULT_FILE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("echo-demo"), metavar="DIR", help="folder for the results")
    add("--data", default="digits", metavar="NAME", help=f"data set: {', '.join(SIZES)}")
    add_data_dir(parser)
    add("--epochs", type=int, metavar="N", help="number of training epochs (default: depends on the data set)")
    add("--beta", type=float, default=1.0, help="weight of the rate in the loss")
    add("--seed", type=int, default=0, help="seed of the weights, the order of rows and the noise")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train and evaluate both models, write the results and print the table."""
    _checks.choice("data", arguments.data, SIZES)
    given = {name: getattr(arguments, name) for name in ("data", "beta", "seed", "epochs")}
    configurations = {recipe: configure(recipe, **given) for recipe in MODELS}
    device = find_device(arguments.device)
    _checks.installed("lightning_fabric", "matplotlib", "tqdm", purpose="the demo", extra="demo")
    check_writable("out", arguments.out, FILES)
    parts = configurations["echo"].load_data(arguments.data_dir)
    # More threads do not speed up models this small, and sums must not depend on the number of cores.
    with num_threads(1):
        start = time.perf_counter()
        runs = _train(configurations, parts, device)
        test = parts["test"].to(device)
        measured = {name: evaluation.measure(run, test, draws=TEST_DRAWS) for name, run in runs.items()}
        result: dict[str, Any] = {
            **{name: value for name, value in configurations["echo"].as_mapping().items() if name != "recipe"},
            "rows": {part: len(rows) for part, rows in parts.items()},
            "device": str(device),
            "unit": "nats per sample",
            "models": {recipe: _numbers(runs[name], measured[name]) for recipe, name in MODELS.items()},
            "seconds": round(time.perf_counter() - start, 2),
            "versions": measured["Echo"]["versions"],
        }
        figures = evaluation.figures(runs, test, measured, rate_floor=result["models"]["echo"]["rate_floor"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    with _files.replacements(arguments.out, *FILES) as (*images, text):  # at once, so that two calls do not mix
        for image in images:
            figures[image.name].savefig(image)
        text.write_text(json.dumps(result, indent=2) + "\n")
    _report(result, arguments.out)


def configure(recipe: str, data: str, **given: Any) -> Configuration:
    """The configuration of a model of the demonstration, with some settings replaced unless they are None."""
    latent_dim, width, learning_rate, epochs = SIZES[data]
    settings: dict[str, Any] = {"latent_dim": latent_dim, "learning_rate": learning_rate, "epochs": epochs}
    settings["model_settings"] = {"architecture": "mlp", "hidden": [width, width]}
    replaced = {name: value for name, value in given.items() if value is not None}
    return Configuration.of(recipe, data, **settings | replaced)


def _train(
    configurations: Mapping[str, Configuration], parts: Mapping[str, LabeledDataset], device: torch.device
) -> dict[str, Run]:
    """Train the models with a progress bar for each; both have the same initial weights and batches."""
    fabric = make_fabric(device, configurations["echo"].precision)
    runs = {}
    for recipe, configuration in configurations.items():
        model = initial_model(configuration, parts["train"])
        with progress(MODELS[recipe], configuration.epochs, "epoch", leave=None) as bar:

            def show(row: Mapping[str, float], bar: Any = bar) -> None:
                rate = row["valid_rate"] if "valid_rate" in row else row["valid_rate_bound"]
                bar.set_postfix_str(f"-ELBO {rate + row['valid_distortion']:.2f} nats (validation)", refresh=False)
                bar.update()

            runs[MODELS[recipe]] = fit(model, parts, configuration, fabric, on_epoch=show)
        refresh(model, parts["train"], configuration)
    return runs


def _numbers(run: Run, measured: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: measured[name] for name in (rate_name_in(measured), "distortion", "neg_elbo")}
    for channel in run.model.modules():
        if isinstance(channel, EchoChannel):
            numbers["rate_floor"] = measured["min_rate"]
            numbers["noise_total_correlation"] = evaluation.noise_total_correlation(run.model)
    return numbers


def _report(result: Mapping[str, Any], out: Path) -> None:
    echo, vae = result["models"]["echo"], result["models"]["vae"]
    print(f"\n{result['data']}, {result['rows']['test']} test images, nats per sample\n")
    rows = [("model", "rate", "distortion", "-ELBO")]
    rates = f"{echo['rate']:.2f} (exact)", f"{vae['rate_bound']:.2f} (bound)"
    for name, rate, model in zip(MODELS.values(), rates, (echo, vae), strict=True):
        rows.append((name, rate, f"{model['distortion']:.2f}", f"{model['neg_elbo']:.2f}"))
    print_table(rows)
    lines = {
        "rate (exact)": "information between the image and z of Echo, -E log|s| summed over the latents",
        "rate (bound)": "KL(q(z|x) | N(0, I)) of the VAE, an upper bound on the information between the image and z",
        "distortion": "-E log p(x|z), the cross-entropy of the pixels with their reconstruction",
        "-ELBO": "rate + distortion, an upper bound on -log p(x); lower is better",
        "rate floor": f"{echo['rate_floor']:.2f}, the minimum rate of {result['latent_dim']} Echo latents with "
        f"{result['batch_size'] - 1} terms",
        "noise TC": f"{echo['noise_total_correlation']:.2f}, the second-order total correlation of the Echo noise, "
        "which is 0 for the noise of a VAE",
        "evaluated": f"after {result['epochs']} epochs, on all test images with {TEST_DRAWS} noise samples each, "
        f"in {result['seconds']:.0f} s",
        "written": ", ".join(str(out / name) for name in FILES),
    }
    print()
    for name, meaning in lines.items():
        print(f"{name:<13} {meaning}")
