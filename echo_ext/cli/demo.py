"""The command ``echo-ext demo``, which compares an Echo autoencoder with a Gaussian VAE of the same size."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from echo_ext import _checks, _files, data
from echo_ext._native import num_threads
from echo_ext._versions import versions
from echo_ext.cli.machine import add_data_dir, add_device, check_installed, find_device
from echo_ext.demo import training
from echo_ext.demo.training import MODELS, SETTINGS
from echo_ext.echo.channel import EchoChannel

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train an Echo autoencoder and a Gaussian VAE of the same size, print a table and write figures"
FIGURES = ("reconstructions.png", "samples.png", "curves.png")
RESULT = "result.json"
TEST_DRAWS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument(
        "--out", type=Path, default=Path("echo-demo"), metavar="DIR", help="folder for the results (default: echo-demo)"
    )
    parser.add_argument(
        "--data", default="digits", metavar="NAME", help=f"data set: {', '.join(SETTINGS)} (default: digits)"
    )
    add_data_dir(parser)
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="number of training epochs (default: depends on the data set)"
    )
    parser.add_argument("--beta", type=float, default=1.0, help="weight of the rate in the loss (default: 1)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the weights, the order of rows and the noise (default: 0)"
    )
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train and evaluate both models, write the results and print the table."""
    _check_arguments(arguments)
    device = find_device(arguments.device)
    check_installed("matplotlib", "rich", command="the demo", extra="demo")
    _check_writable(arguments.out)
    parts = data.load(arguments.data, arguments.data_dir)

    from rich.console import Console

    console = Console(highlight=False)
    setting = SETTINGS[arguments.data]
    if arguments.epochs is not None:
        setting = dataclasses.replace(setting, epochs=arguments.epochs)
    # More threads do not speed up models this small, and sums must not depend on the number of cores.
    with num_threads(1):
        start = time.perf_counter()
        models, history = _train(console, parts, setting, arguments, device)
        torch.manual_seed(arguments.seed)
        tested = {
            kind: training.measure(model, parts["test"], device=device, draws=TEST_DRAWS)
            for kind, model in models.items()
        }
        result = {
            "data": arguments.data,
            "rows": {part: len(rows) for part, rows in parts.items()},
            "beta": arguments.beta,
            "seed": arguments.seed,
            "device": str(device),
            **dataclasses.asdict(setting),
            "unit": "nats per sample",
            "models": _numbers(models, tested, setting),
            "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(),
        }
        rate_floor = result["models"]["echo"]["rate_floor"]
        figures = _figures(models, parts["test"], history, tested, rate_floor, device)
    _write(arguments.out, result, figures)
    _report(console, result, arguments.out)


def _numbers(
    models: dict[str, training.Autoencoder], tested: dict[str, training.Measured], setting: training.Setting
) -> dict[str, dict[str, float]]:
    channel = models["echo"].channel
    assert isinstance(channel, EchoChannel)
    return {
        "echo": {
            "rate": tested["echo"].rate,
            "distortion": tested["echo"].distortion,
            "neg_elbo": tested["echo"].neg_elbo,
            "rate_floor": -math.log(channel.scale) * setting.latent_dim,
            "noise_total_correlation": training.noise_total_correlation(channel),
        },
        "vae": {
            "rate_bound": tested["vae"].rate,
            "distortion": tested["vae"].distortion,
            "neg_elbo": tested["vae"].neg_elbo,
        },
    }


# ---- Checks before training ------------------------------------------------------------------------------------------


def _check_arguments(arguments: argparse.Namespace) -> None:
    _checks.choice("--data", arguments.data, SETTINGS)
    if arguments.epochs is not None:
        _checks.whole("--epochs", arguments.epochs, minimum=1)
    _checks.number("--beta", arguments.beta, minimum=0)
    _checks.whole("--seed", arguments.seed, minimum=0, maximum=2**63 - 1)


def _check_writable(out: Path) -> None:
    """Refuse a folder that the results could not be written to, without creating anything."""
    try:
        nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"--out must be a folder, got {out}, but {nearest} is a file")
        taken = [name for name in (*FIGURES, RESULT) if (out / name).is_dir()]
        if taken:
            raise FileExistsError(f"--out must have no folder {taken[0]}, which is the name of a result, got {out}")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except PermissionError as refused:
        raise PermissionError(f"--out must be writable, got {out}: {refused.strerror}") from refused
    except OSError as refused:
        if refused.errno is None:  # raised above
            raise
        raise ValueError(f"--out must be writable, got {out}: {refused.strerror}") from refused


# ---- Training --------------------------------------------------------------------------------------------------------


def _train(
    console: Console,
    parts: dict[str, data.LabeledDataset],
    setting: training.Setting,
    arguments: argparse.Namespace,
    device: torch.device,
) -> tuple[dict[str, training.Autoencoder], dict[str, training.History]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<5}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[now]}"),
    )
    models: dict[str, training.Autoencoder] = {}
    history: dict[str, training.History] = {}
    with Progress(*columns, console=console) as progress:
        tasks = {
            kind: progress.add_task(name, total=setting.epochs, start=False, now="") for kind, name in MODELS.items()
        }
        for kind, task in tasks.items():
            progress.start_task(task)
            model = training.build(kind, parts["train"], setting, beta=arguments.beta, seed=arguments.seed).to(device)
            history[kind] = []
            for measured in training.train(model, parts, setting, seed=arguments.seed, device=device):
                history[kind].append(measured)
                progress.update(task, advance=1, now=f"-ELBO {measured[1].neg_elbo:.2f} nats (validation)")
            models[kind] = model
    return models, history


# ---- Files -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _figures(
    models: dict[str, training.Autoencoder],
    test: data.LabeledDataset,
    history: dict[str, training.History],
    tested: dict[str, training.Measured],
    rate_floor: float,
    device: torch.device,
) -> dict[str, Figure]:
    from echo_ext.demo import plots

    images = test[:12][0].to(device)
    reconstructed, drawn = {}, {}
    for kind, model in models.items():
        model.eval()
        reconstructed[kind] = model.reconstruct(images)
        drawn[kind] = model.sample(64)
    figures = (
        plots.reconstructions(images, reconstructed),
        plots.samples(drawn),
        plots.curves(history, tested, rate_floor=rate_floor),
    )
    return dict(zip(FIGURES, figures, strict=True))


def _write(out: Path, result: dict[str, Any], figures: dict[str, Figure]) -> None:
    """Replace all files of the result at once, so that those of two calls do not mix."""
    out.mkdir(parents=True, exist_ok=True)
    with _files.replacements(out, *figures, RESULT) as (*parts, result_part):
        for part, figure in zip(parts, figures.values(), strict=True):
            figure.savefig(part)
        result_part.write_text(json.dumps(result, indent=2) + "\n")


# ---- Report ----------------------------------------------------------------------------------------------------------


def _report(console: Console, result: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    echo, vae, latents = result["models"]["echo"], result["models"]["vae"], result["latent_dim"]
    terms = result["batch_size"] - 1
    table = Table()
    table.add_column("model")
    for column in ("rate", "distortion", "-ELBO"):
        table.add_column(column, justify="right")
    for name, rate, kind, model in (("Echo", echo["rate"], "exact", echo), ("VAE", vae["rate_bound"], "bound", vae)):
        table.add_row(name, f"{rate:.2f} ({kind})", f"{model['distortion']:.2f}", f"{model['neg_elbo']:.2f}")
    console.print(f"\n{result['data']}, {result['rows']['test']} test images, nats per sample", markup=False)
    console.print(table)
    lines = {
        "rate (exact)": "information between the image and z of Echo, -E log|s| summed over the latents",
        "rate (bound)": "KL(q(z|x) | N(0, I)) of the VAE, an upper bound on the information between the image and z",
        "distortion": "-E log p(x|z), the cross-entropy of the pixels with their reconstruction",
        "-ELBO": "rate + distortion, an upper bound on -log p(x); lower is better",
        "rate floor": f"{echo['rate_floor']:.2f}, the minimum rate of {latents} Echo latents with {terms} terms",
        "noise TC": f"{echo['noise_total_correlation']:.2f}, the second-order total correlation of the Echo noise, "
        "which is 0 for the noise of a VAE",
        "evaluated": f"after {result['epochs']} epochs, on all test images with {TEST_DRAWS} noise samples each, "
        f"in {result['seconds']:.0f} s",
        "written": ", ".join(str(out / name) for name in (*FIGURES, RESULT)),
    }
    for name, meaning in lines.items():
        console.print(f"{name:<13} {meaning}", soft_wrap=True, markup=False)
