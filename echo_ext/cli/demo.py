"""``echo-ext demo``: train an Echo autoencoder and a Gaussian VAE of the same size, and compare them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from echo_ext import data
from echo_ext._versions import versions
from echo_ext.cli.machine import check_installed, find_device
from echo_ext.demo import training
from echo_ext.demo.training import MODELS, SETTINGS
from echo_ext.echo.channel import EchoChannel

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train an Echo autoencoder and a Gaussian VAE of the same size, print a table, write pictures"
PICTURES = ("reconstructions.png", "samples.png", "curves.png")
FILES = (*PICTURES, "result.json")
TEST_DRAWS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where from, where to, and how long."""
    parser.add_argument("--out", type=Path, default=Path("echo-demo"), metavar="DIR", help="default: echo-demo")
    parser.add_argument("--data", default="digits", metavar="NAME", help=f"{', '.join(SETTINGS)}; default: digits")
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of the data's files; default: ECHO_EXT_DATA")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: what the data set needs")
    parser.add_argument("--beta", type=float, default=1.0, help="the weight of the rate in the loss; default: 1")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the noise; default: 0")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: cpu")


def run(arguments: argparse.Namespace) -> None:
    """Check everything, train, measure, write, print."""
    _check_numbers(arguments)
    device = find_device(arguments.device)
    check_installed("matplotlib", "rich", command="the demo", extra="demo")
    _check_writable(arguments.out)
    parts = data.load(arguments.data, arguments.data_dir)

    from rich.console import Console

    console = Console(highlight=False)
    setting = SETTINGS[arguments.data]
    if arguments.epochs is not None:
        setting = dataclasses.replace(setting, epochs=arguments.epochs)
    with training.one_thread():
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
        pictures = _draw(models, parts["test"], history, tested, rate_floor, device)
    _write_all(arguments.out, result, pictures)
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


# ---- Before training: refuse what cannot work ------------------------------------------------------------------------


def _check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.data not in SETTINGS:
        raise ValueError(f"--data: there is no data set {arguments.data!r}; there are {', '.join(SETTINGS)}")
    if arguments.epochs is not None and arguments.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {arguments.epochs}")
    if not (arguments.beta >= 0 and math.isfinite(arguments.beta)):
        raise ValueError(f"--beta must be 0 or more, got {arguments.beta}")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed must be between 0 and 2**63 - 1, got {arguments.seed}")


def _check_writable(out: Path) -> None:
    """Refuse a folder in which the results could not be written, without leaving a trace."""
    try:
        nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"--out {out} cannot be a folder: {nearest} is a file")
        taken = [name for name in FILES if (out / name).is_dir()]
        if taken:
            raise FileExistsError(f"--out {out} has a folder where {taken[0]} is to be written")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except PermissionError as refused:
        raise PermissionError(f"--out {out} is not writable: {refused.strerror}") from refused
    except OSError as refused:
        if refused.errno is None:  # ours
            raise
        raise ValueError(f"--out {out} is not writable: {refused.strerror}") from refused


# ---- Train -----------------------------------------------------------------------------------------------------------


def _train(
    console: Console,
    parts: dict[str, data.LabelledDataset],
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
            steps = training.train(model, parts, setting, seed=arguments.seed, device=device)
            for point in steps:
                history[kind].append(point)
                progress.update(task, advance=1, now=f"-ELBO {point[1].neg_elbo:.2f} nats (validation)")
            models[kind] = model
    return models, history


# ---- Write -----------------------------------------------------------------------------------------------------------

Writer = Callable[[Path], Any]


@torch.no_grad()
def _draw(
    models: dict[str, training.Autoencoder],
    test: data.LabelledDataset,
    history: dict[str, training.History],
    tested: dict[str, training.Measured],
    rate_floor: float,
    device: torch.device,
) -> dict[str, Writer]:
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
    return dict(zip(PICTURES, (figure.savefig for figure in figures), strict=True))


def _write_all(out: Path, result: dict[str, Any], pictures: dict[str, Writer]) -> None:
    """Write every file under a temporary name first: what stands under its own name is whole."""
    out.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Writer] = {
        **pictures,
        "result.json": lambda path: path.write_text(json.dumps(result, indent=2) + "\n"),
    }
    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as folder:
        for name, write in writers.items():
            write(Path(folder) / name)
        for name in writers:
            os.replace(Path(folder) / name, out / name)


# ---- Say what came out -----------------------------------------------------------------------------------------------


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
        "rate (exact)": "what Echo's z tells about the image, -E log|s| summed over the latents: no bound, no estimate",
        "rate (bound)": "the VAE's KL(q(z|x) | N(0, I)): at least what its z tells about the image",
        "distortion": "-E log p(x|z), the cross-entropy of the pixels with their reconstruction",
        "-ELBO": "rate + distortion, a bound on -log p(x): lower is better",
        "rate floor": f"{echo['rate_floor']:.2f}, the least that {latents} Echo latents of {terms} terms can send",
        "noise TC": f"{echo['noise_total_correlation']:.2f}, the total correlation of Echo's noise (second order): "
        "how dependent its dimensions are; a VAE's noise has 0",
        "measured": f"after {result['epochs']} epochs, mean over the test images with {TEST_DRAWS} noise draws each, "
        f"in {result['seconds']:.0f} s",
        "written": ", ".join(str(out / name) for name in FILES),
    }
    for name, meaning in lines.items():
        console.print(f"{name:<13} {meaning}", soft_wrap=True, markup=False)
