"""Further measures of a trained run, each where it applies."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from echo_ext import metrics
from echo_ext.data import DSprites, LabelledDataset
from echo_ext.echo.channel import ChannelOutput, EchoChannel
from echo_ext.metrics import RateDistortion
from echo_ext.models import Model
from echo_ext.models.channels import GaussianOutput
from echo_ext.training.fitting import measured_rows
from echo_ext.training.run_directory import RunDirectory
from echo_ext.training.running import load, load_data
from echo_ext.training.schedules import Stream, derive_seed

__all__ = ["EVALUATION", "evaluate"]

EVALUATION = "evaluation.json"
# Rows that the slower measures take, at most.
CODES, EMBEDDED = 10_000, 2_000
GRID_ROWS = 100_000
NOISE_DRAWS = 100_000
NEIGHBORS = 5
# Seconds that another evaluation of the same run gets to write its files.
PATIENCE = 60.0


def evaluate(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    draws: int = 4,
    importance_samples: int | None = None,
    importance_rows: int = 1000,
    embedding: bool = False,
    information: str = "formula",
) -> dict[str, Any]:
    """Measure a run's model on its test rows; writes ``evaluation.json`` and pictures of the codes into its folder.

    Always rate (or rate bound), distortion and -ELBO with the standard errors of their draws. ``latent_information``
    and ``marginal_activations.png`` where the posterior is Echo's or a Gaussian; ``knn_accuracy`` where there are
    labels; ``noise_total_correlation`` and ``rate_against_activation.png`` for Echo; ``mig`` and ``factor_vae_score``
    for dSprites; ``importance_nll`` where it is asked for.

    A run can be measured while it is being trained: what is measured is its last finished epoch.

    Args:
        path: the folder of the run.
        data_dir: as ``root`` of :func:`echo_ext.data.load`.
        device: where to compute.
        draws: how often each row is sent through the channel.
        importance_samples: of z for each row's importance-sampled likelihood; None for none.
        importance_rows: how many rows get it, at most.
        embedding: also draw the codes by t-SNE, ``embedding.png``.
        information: how ``latent_information`` is taken, "formula" or "knn".

    Raises:
        FileNotFoundError: there is no trained run; or the data's files are not there.
        TypeError: importance samples of a model without a density q(z|x).
        ValueError: a damaged file, a value out of range, data of another shape than the model's.
    """
    directory = RunDirectory(path, task="evaluation")
    model, configuration, history = load(path)
    model.to(device)
    at_once = measured_rows(torch.device(device))
    parts = {name: part.to(device) for name, part in load_data(configuration, data_dir).items()}
    test = parts["test"]
    if tuple(test.data_shape) != model.data_shape:
        raise ValueError(
            f"the model in {directory} takes x of shape {model.data_shape}, but {configuration.data!r} has "
            f"{tuple(test.data_shape)}"
        )
    torch.manual_seed(derive_seed(configuration.seed, Stream.MEASURE))
    measured = metrics.rate_distortion(model, test, draws=draws, batch_size=at_once)
    codes = _codes(model, test)
    x = test.values(slice(CODES))
    kind = _posterior_kind(model, x)
    found = {
        "recipe": configuration.recipe,
        "data": configuration.data,
        "epochs": len(history),
        "unit": "nats per sample",
        "draws": draws,
        **_bounds(measured),
    }
    if importance_samples is not None:
        rows = x[:importance_rows]
        found["importance_nll"] = metrics.importance_nll(
            model, rows, samples=importance_samples, batch_size=2 * at_once
        )
        found["importance_samples"], found["importance_rows"] = importance_samples, len(rows)
    if kind in (ChannelOutput, GaussianOutput):
        found["latent_information"] = metrics.latent_information(model, x, method=information).tolist()
    if kind is ChannelOutput:
        found["noise_total_correlation"] = _noise_total_correlation(model)
    if int(test.labels.min()) >= 0:
        train = parts["train"].select(slice(CODES))
        found["knn_accuracy"] = metrics.knn_accuracy(
            _codes(model, train), train.labels, codes, test.labels, k=min(NEIGHBORS, len(train))
        )
    if isinstance(test, DSprites):
        found |= _disentanglement(model, test, configuration.seed)
    with directory.owned(patience=PATIENCE):
        has_echo = kind is ChannelOutput
        _write_figures(model, x, codes[: len(x)], test.labels, directory, has_echo=has_echo, tsne=embedding)
        directory.write_json(EVALUATION, found)
    return found


def _bounds(measured: RateDistortion) -> dict[str, float]:
    return {
        measured.rate_name: measured.rate,
        "distortion": measured.distortion,
        "neg_elbo": measured.neg_elbo,
        f"{measured.rate_name}_error": measured.rate_error,
        "distortion_error": measured.distortion_error,
        "neg_elbo_error": measured.neg_elbo_error,
    }


@torch.no_grad()
def _posterior_kind(model: Model, x: Tensor) -> type | None:
    """What q(z|x) the model has; None where it has no single one."""
    try:
        return type(model.posterior(x[:2]))
    except TypeError:
        return None


@torch.no_grad()
def _codes(model: Model, data: LabelledDataset) -> Tensor:
    """A draw of z of each row: (N, latent_dim)."""
    device = data.labels.device
    rows = torch.arange(len(data), device=device).split(measured_rows(device))
    return torch.cat([model.encode(data.values(each)).float() for each in rows])


@torch.no_grad()
def _noise_total_correlation(model: Model) -> float | None:
    """How dependent the dimensions of the Echo noise are, second order; None for several Echo channels."""
    channels = [module for module in model.modules() if isinstance(module, EchoChannel)]
    if len(channels) != 1:
        return None
    return metrics.gaussian_total_correlation(channels[0].sample(NOISE_DRAWS).flatten(1))


def _disentanglement(model: Model, test: DSprites, seed: int) -> dict[str, float]:
    """MIG (in 20 bins) and the FactorVAE score, on rows of the whole grid of factors."""
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.MEASURE, 1))
    grid = test.whole()
    some = grid.select(torch.randperm(len(grid), generator=generator, device="cpu")[:GRID_ROWS].to(test.labels.device))
    codes = _codes(model, some)
    return {
        "mig": metrics.mig(codes[:CODES], some.factors[:CODES]),
        "factor_vae_score": metrics.factor_vae_score(codes, some.factors, generator=generator),
    }


def _write_figures(
    model: Model, x: Tensor, codes: Tensor, labels: Tensor, directory: RunDirectory, *, has_echo: bool, tsne: bool
) -> None:
    from echo_ext import plots

    # A latent that was switched off has no law to draw.
    varied = codes[:, codes.amax(0) > codes.amin(0)].cpu()
    figures = {"marginal_activations.png": plots.marginal_activations(varied)} if varied.shape[1] else {}
    if has_echo:
        rates, norms = metrics.rates_and_activations(model, x)
        figures["rate_against_activation.png"] = plots.rate_against_activation(rates.cpu(), norms.cpu())
    if tsne:
        few = codes[:EMBEDDED].cpu()
        known = labels[: len(few)].cpu() if int(labels.min()) >= 0 else None
        figures["embedding.png"] = plots.embedding(metrics.tsne(few), known)
    for file, figure in figures.items():
        with directory.part(file) as part:
            figure.savefig(part)
