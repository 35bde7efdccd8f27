"""Evaluation of a trained run by all metrics that apply to its model and data."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from echo_ext import metrics
from echo_ext.data import DSprites, LabeledDataset
from echo_ext.echo.channel import ChannelOutput, EchoChannel
from echo_ext.metrics import RateDistortion
from echo_ext.metrics.information import InformationMethod
from echo_ext.models import Model
from echo_ext.models.channels import GaussianOutput
from echo_ext.training.fitting import evaluation_batch_size
from echo_ext.training.run_directory import RunDirectory
from echo_ext.training.running import load, load_data
from echo_ext.training.schedules import Stream, derive_seed

__all__ = ["EVALUATION", "evaluate"]

EVALUATION = "evaluation.json"
# Maximum numbers of rows for the slower metrics.
CODE_ROWS, EMBEDDED_ROWS = 10_000, 2_000
GRID_ROWS = 100_000
NOISE_SAMPLES = 100_000
NEIGHBORS = 5
# Seconds to wait while another evaluation of the same run writes its files.
LOCK_TIMEOUT = 60.0


def evaluate(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    draws: int = 4,
    importance_samples: int | None = None,
    importance_rows: int = 1000,
    embedding: bool = False,
    information: InformationMethod = "formula",
) -> dict[str, Any]:
    """Evaluate the model of a run on its test rows; write ``evaluation.json`` and figures of the codes into its folder.

    The result always contains the rate (or rate bound), the distortion and the negative ELBO, with the standard errors
    over their noise samples. If the posterior is that of Echo or a Gaussian, there are also ``latent_information`` and
    ``marginal_activations.png``; for labeled data ``knn_accuracy``; for Echo ``noise_total_correlation`` and
    ``rate_against_activation.png``; for dSprites ``mig`` and ``factor_vae_score``.

    A run can be evaluated while it is being trained. The model is then that of its last finished epoch.

    Args:
        path: The folder of the run.
        data_dir: The folder of the data, as ``root`` of :func:`echo_ext.data.load`.
        device: The device to compute on.
        draws: Number of noise samples for each row. More lower the standard errors.
        importance_samples: Number of samples of z for each row's importance-sampled likelihood, which is added as
            ``importance_nll``. More make it tighter. None leaves it out.
        importance_rows: Maximum number of rows for ``importance_nll``.
        embedding: Whether to plot the codes by t-SNE too, as ``embedding.png``.
        information: How ``latent_information`` is estimated, "formula" or "knn".

    Raises:
        FileNotFoundError: There is no trained run, or the files of the data are missing.
        TypeError: Importance samples are requested for a model without a density q(z|x).
        ValueError: A file is damaged, a value is out of range, or the data do not have the shape that the model needs.
    """
    directory = RunDirectory(path, task="evaluation")
    model, configuration, history = load(path)
    model.to(device)
    batch_size = evaluation_batch_size(torch.device(device))
    parts = {name: part.to(device) for name, part in load_data(configuration, data_dir).items()}
    test = parts["test"]
    if tuple(test.data_shape) != model.data_shape:
        raise ValueError(
            f"data {configuration.data!r} must have shape {model.data_shape} for the model in {directory}, "
            f"got {tuple(test.data_shape)}"
        )
    torch.manual_seed(derive_seed(configuration.seed, Stream.MEASURE))
    measured = metrics.rate_distortion(model, test, draws=draws, batch_size=batch_size)
    codes = _codes(model, test)
    x = test.values(slice(CODE_ROWS))
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
            model, rows, samples=importance_samples, batch_size=2 * batch_size
        )
        found["importance_samples"], found["importance_rows"] = importance_samples, len(rows)
    if kind in (ChannelOutput, GaussianOutput):
        found["latent_information"] = metrics.latent_information(model, x, method=information).tolist()
    if kind is ChannelOutput:
        found["noise_total_correlation"] = _noise_total_correlation(model)
    if int(test.labels.min()) >= 0:
        train = parts["train"].select(slice(CODE_ROWS))
        found["knn_accuracy"] = metrics.knn_accuracy(
            _codes(model, train), train.labels, codes, test.labels, k=min(NEIGHBORS, len(train))
        )
    if isinstance(test, DSprites):
        found |= _disentanglement(model, test, configuration.seed)
    with directory.owned(timeout=LOCK_TIMEOUT):
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
    """The type of the model's posterior q(z|x), or None if it has no single one."""
    try:
        return type(model.posterior(x[:2]))
    except TypeError:
        return None


@torch.no_grad()
def _codes(model: Model, data: LabeledDataset) -> Tensor:
    """One sample of z for each row: (N, latent_dim)."""
    device = data.labels.device
    rows = torch.arange(len(data), device=device).split(evaluation_batch_size(device))
    return torch.cat([model.encode(data.values(each)).float() for each in rows])


@torch.no_grad()
def _noise_total_correlation(model: Model) -> float | None:
    """The second-order total correlation of the Echo noise, or None if there are several Echo channels."""
    channels = [module for module in model.modules() if isinstance(module, EchoChannel)]
    if len(channels) != 1:
        return None
    return metrics.gaussian_total_correlation(channels[0].sample(NOISE_SAMPLES).flatten(1))


def _disentanglement(model: Model, test: DSprites, seed: int) -> dict[str, float]:
    """MIG (with 20 bins) and the FactorVAE score, on random rows of the whole grid of factors."""
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.MEASURE, 1))
    grid = test.whole()
    order = torch.randperm(len(grid), generator=generator, device="cpu")
    sample = grid.select(order[:GRID_ROWS].to(test.labels.device))
    codes = _codes(model, sample)
    return {
        "mig": metrics.mig(codes[:CODE_ROWS], sample.factors[:CODE_ROWS]),
        "factor_vae_score": metrics.factor_vae_score(codes, sample.factors, generator=generator),
    }


def _write_figures(
    model: Model, x: Tensor, codes: Tensor, labels: Tensor, directory: RunDirectory, *, has_echo: bool, tsne: bool
) -> None:
    from echo_ext import plots

    # A latent that the model does not use is constant, so it has no density to plot.
    varied = codes[:, codes.amax(0) > codes.amin(0)].cpu()
    figures = {"marginal_activations.png": plots.marginal_activations(varied)} if varied.shape[1] else {}
    if has_echo:
        rates, norms = metrics.rates_and_activations(model, x)
        figures["rate_against_activation.png"] = plots.rate_against_activation(rates.cpu(), norms.cpu())
    if tsne:
        embedded = codes[:EMBEDDED_ROWS].cpu()
        known = labels[: len(embedded)].cpu() if int(labels.min()) >= 0 else None
        figures["embedding.png"] = plots.embedding(metrics.tsne(embedded), known)
    for file, figure in figures.items():
        with directory.replacement(file) as part:
            figure.savefig(part)
