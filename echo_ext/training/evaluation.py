"""The result of a run, its figures, and its evaluation by all metrics that apply to its model and data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import Dataset

from echo_ext import _checks, metrics
from echo_ext._progress import progress, tracked
from echo_ext._versions import versions
from echo_ext.data import DSprites, LabeledDataset
from echo_ext.data.mixtures import MIXTURES, Mixture
from echo_ext.echo.channel import ChannelOutput, EchoChannel
from echo_ext.estimators import mutual_information
from echo_ext.metrics import RateDistortion
from echo_ext.metrics.codes import MIN_NORMALITY_ROWS
from echo_ext.metrics.information import METHODS, InformationMethod
from echo_ext.metrics.likelihood import RATE_WORDS, rate_name_in
from echo_ext.models import MIM, Model, PixelCNN, StackedCorEx
from echo_ext.models.channels import gaussian_factors
from echo_ext.training.fitting import evaluation_batch_size
from echo_ext.training.run_directory import EVALUATION_FILE, Run, RunDirectory, load
from echo_ext.training.schedules import Stream, derive_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from echo_ext import plots

__all__ = [
    "LABELS",
    "TEST_DRAWS",
    "evaluate",
    "evenly_spaced",
    "figures",
    "measure",
    "noise_total_correlation",
    "write_figures",
]

TEST_DRAWS = 4
# Numbers of rows in the figures, where vectors are shown as scatter plots.
RECONSTRUCTED_IMAGES, SAMPLED_IMAGES = 12, 64
VECTORS = 2000
# Maximum numbers of rows for the slower metrics.
CODE_ROWS, EMBEDDED_ROWS = 10_000, 2_000
GRID_ROWS = 100_000
JOINT_ROWS, JOINT_DRAWS = 2_000, 500
NOISE_SAMPLES = 100_000
# Numbers of neighbors of the accuracies. knn_accuracy is that of NEIGHBORS, those of the others have a suffix.
NEIGHBORS, OTHER_NEIGHBORS = 5, (1, 3, 10)
# Seconds to wait while another evaluation of the same run writes its files.
LOCK_TIMEOUT = 60.0
# The measures that tables show, in this order.
LABELS = {
    **RATE_WORDS,
    "distortion": "distortion",
    "neg_elbo": "-ELBO",
    "importance_nll": "-log p(x) at most, importance",
    "total_correlation_bound": "bound on TC(x)",
    "noise_total_correlation": "noise TC, -1/2 log det corr",
    "noise_log_det": "noise -log det corr (Echo paper)",
    "knn_accuracy_k1": "1-NN accuracy",
    "knn_accuracy_k3": "3-NN accuracy",
    "knn_accuracy": "5-NN accuracy",
    "knn_accuracy_k10": "10-NN accuracy",
    "information_ksg": "I(x; z) by KSG",
    "rmse": "RMSE per coordinate",
    "joint_mim_loss": "L_MIM",
    "joint_regularizer": "R_MIM = L_MIM - L_CE",
    "joint_anchored_jsd": "JSD of the anchored joints",
    "joint_learned_jsd": "JSD of the learned joints",
    "mig": "MIG, 20 bins",
    "factor_vae_score": "FactorVAE score",
}


def measure(run: Run, test: LabeledDataset, *, draws: int = TEST_DRAWS) -> dict[str, Any]:
    """The content of ``result.json``: rate or rate bound, distortion and -ELBO of the test rows, and settings."""
    import lightning_fabric

    configuration, history = run.configuration, run.history
    return {
        **{name: getattr(configuration, name) for name in ("recipe", "data", "beta", "seed")},
        **_bounds(_measured(run, test, draws)),
        **_minimum(run),
        "unit": "nats per sample",
        "draws": draws,
        "parameters": sum(each.numel() for each in run.model.parameters() if each.requires_grad),
        "rows": {"test": len(test)},
        "epochs": len(history),
        "seconds": round(sum(row["seconds"] for row in history), 2),
        "versions": {**versions(), "lightning-fabric": lightning_fabric.__version__},  # type: ignore[attr-defined]
    }


def _measured(run: Run, test: LabeledDataset, draws: int) -> RateDistortion:
    torch.manual_seed(derive_seed(run.configuration.seed, Stream.MEASURE))
    batch_size = evaluation_batch_size(next(run.model.parameters()).device)
    with watched(test, "test rows") as rows:
        return metrics.rate_distortion(run.model, rows, draws=draws, batch_size=batch_size)


@contextlib.contextmanager
def watched(data: LabeledDataset, label: str) -> Iterator[Dataset[Any]]:
    """Yield the data set, with the progress of reading all its rows once."""
    with progress(label, len(data), "row") as bar:
        yield _Watched(data, bar)


class _Watched(Dataset[Any]):
    """A data set that reports the rows that are read to a bar."""

    def __init__(self, data: LabeledDataset, bar: Any) -> None:
        self._data = data
        self._bar = bar

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = self._data[rows]
        self._bar.update(len(rows))
        return found


def _minimum(run: Run) -> dict[str, float]:
    """The minimum rate of all latents together, if the channel has one, as those of Echo do."""
    each = getattr(getattr(run.model, "channel", None), "min_rate", None)
    return {} if each is None else {"min_rate": each * run.configuration.latent_dim}


def _bounds(measured: RateDistortion) -> dict[str, float]:
    return {measured.rate_name: measured.rate, "distortion": measured.distortion, "neg_elbo": measured.neg_elbo}


# ---- Figures of training ---------------------------------------------------------------------------------------------


def write_figures(run: Run, test: LabeledDataset, result: Mapping[str, Any], directory: RunDirectory) -> None:
    """Write ``reconstructions.png``, ``samples.png`` and ``curves.png`` of a run with this result."""
    name = run.configuration.recipe
    drawn = figures({name: run}, test, {name: result}, rate_floor=result.get("min_rate"))
    directory.write_figures(drawn)


@torch.no_grad()
def figures(
    runs: Mapping[str, Run],
    test: LabeledDataset,
    results: Mapping[str, Mapping[str, Any]],
    *,
    rate_floor: float | None = None,
) -> dict[str, Figure]:
    """The figures of runs on the same data, by file name; the keys of the runs and their results are their labels."""
    from echo_ext import plots

    are_images = len(test.data_shape) == 3
    reconstructions, samples = (RECONSTRUCTED_IMAGES, SAMPLED_IMAGES) if are_images else (VECTORS, VECTORS)
    x = evenly_spaced(test, reconstructions)
    reconstructed, drawn = {}, {}
    for name, (model, configuration, _) in runs.items():
        torch.manual_seed(derive_seed(configuration.seed, Stream.FIGURES))
        model.eval()
        with pixel_progress(model):
            reconstructed[name] = model.reconstruct(x.to(next(model.parameters()).device)).cpu()
            drawn[name] = model.sample(samples).cpu()
    series = {name: _series(run, results[name]) for name, run in runs.items()}
    return {
        "reconstructions.png": plots.reconstructions(x, reconstructed),
        "samples.png": plots.samples(drawn),
        "curves.png": plots.curves(series, rate_floor=rate_floor),
    }


def evenly_spaced(data: LabeledDataset, rows: int) -> Tensor:
    """The x of this many evenly spaced rows, because files may be sorted by label; of all rows if there are fewer."""
    rows = min(rows, len(data))
    return data.values(torch.arange(rows, device=data.labels.device) * len(data) // rows)


@contextlib.contextmanager
def pixel_progress(model: Model) -> Iterator[None]:
    """Show the progress over the pixels while a model draws them one by one."""
    networks = [module for module in model.modules() if isinstance(module, PixelCNN)]
    for network in networks:
        network.wrap_pixels = functools.partial(tracked, label="drawing", unit="pixel")
    try:
        yield
    finally:
        for network in networks:
            network.wrap_pixels = iter


def _series(run: Run, result: Mapping[str, Any]) -> plots.History:
    """The rate, distortion and -ELBO after each epoch, with validation if there are such rows, and of the test rows."""
    from echo_ext import plots

    names = (rate_name_in(result), "distortion")

    def by_quantity(part: str) -> dict[str, list[float]]:
        found = {name: [row[f"{part}_{name}"] for row in run.history] for name in names}
        return {**found, "neg_elbo": [sum(pair) for pair in zip(*found.values(), strict=True)]}

    test = {name: result[name] for name in (*names, "neg_elbo")}
    is_validated = any("valid_loss" in row for row in run.history)
    return plots.History(by_quantity("train"), by_quantity("valid") if is_validated else {}, test)


# ---- Evaluation of a trained run -------------------------------------------------------------------------------------


def evaluate(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    draws: int = TEST_DRAWS,
    importance_draws: int | None = None,
    importance_rows: int | None = None,
    tsne: bool = False,
    information_method: InformationMethod = "formula",
) -> dict[str, Any]:
    """Evaluate the model of a run on its test rows; write ``evaluation.json`` and figures of the codes into its folder.

    The result always contains the rate (or rate bound), the distortion and the negative ELBO, with the standard errors
    over their noise samples. Others depend on the model and the data:

    * ``latent_information`` and ``marginal_activations.png``, if the posterior is that of Echo or a Gaussian;
    * for Echo ``noise_total_correlation``, ``-1/2 log det`` of the correlation matrix of the noise, ``noise_log_det``,
      which is ``-log det``, as the Echo paper prints it, and ``rate_against_activation.png``;
    * for CorEx, AnchorVAE and stacked CorEx ``total_correlation_bound``, the bound on TC(x) in nats, and what each
      layer adds to it, ``layer_terms`` (:func:`echo_ext.metrics.layer_terms`), with the number of layers below the
      first one that adds nothing, ``useful_layers``;
    * for labeled data ``knn_accuracy`` (k = 5, with the codes of all training rows), ``knn_accuracy_k1``, ``_k3`` and
      ``_k10``;
    * for vectors ``information_ksg``, the KSG estimate of I(x; z) in nats with k = 5 and at most 10,000 rows, and
      ``rmse``, the root mean square error per coordinate of x decoded from one sample of z;
    * for MIM on a mixture with a known density the values of :func:`echo_ext.metrics.joint_statistics` for 2,000 rows
      and with 500 draws, as ``joint_NAME`` and ``joint_NAME_error``, and its warning, as ``joint_warning``;
    * for dSprites ``mig`` and ``factor_vae_score``;
    * with ``importance_draws`` the ``importance_nll``, the quartiles of its effective sample sizes over the rows,
      ``importance_effective_draws``, and, where they are too small to trust the estimate, ``importance_warning``.

    The scores, the accuracies and t-SNE are those of mean codes, ``Model.encode_mean``. While a run is being trained,
    the model is that of its last finished epoch, or with early stopping of the best one so far.

    Args:
        path: The folder of the run.
        data_dir: The folder of the data, as ``root`` of :func:`echo_ext.data.load`.
        device: The device to compute on.
        draws: Number of noise samples for each row. More lower the standard errors.
        importance_draws: Number of samples of z for each row's importance-sampled likelihood, which is added as
            ``importance_nll``, in expectation an upper bound on -log p(x). More make it tighter. None leaves it out.
        importance_rows: Maximum number of test rows for ``importance_nll``. None means all of them.
        tsne: Whether to plot the codes by t-SNE too, as ``embedding.png``.
        information_method: How ``latent_information`` is estimated, "formula" or "knn".

    Raises:
        FileNotFoundError: There is no trained run, or the files of the data are missing.
        TypeError: Importance samples are requested for a model without a density q(z|x).
        ValueError: A file is damaged, a value is out of range, or the data do not have the shape that the model needs.

    Example:
        >>> found = echo_ext.training.evaluate("runs/echo")  # see the example of train
        >>> len(found["latent_information"]), 0 <= found["knn_accuracy"] <= 1
        (4, True)
    """
    _checks.whole("draws", draws, minimum=1)
    _checks.whole("importance_draws", 1 if importance_draws is None else importance_draws, minimum=1)
    _checks.whole("importance_rows", 1 if importance_rows is None else importance_rows, minimum=1)
    _checks.choice("information_method", information_method, METHODS)
    directory = RunDirectory(path, task="evaluation")
    run = load(path)
    model, configuration = run.model.to(device), run.configuration
    batch_size = evaluation_batch_size(torch.device(device))
    parts = {name: part.to(device) for name, part in configuration.load_data(data_dir).items()}
    test = parts["test"]
    if (shape := tuple(test.data_shape)) != model.data_shape:
        needed = f"shape {model.data_shape} for the model in {directory}"
        raise ValueError(f"data {configuration.data!r} must have {needed}, got {shape}")
    measured = _measured(run, test, draws)
    codes = encoded(model.encode_mean, test, "codes of test rows")
    x = test.values(slice(CODE_ROWS))
    posterior = _posterior(model, x)
    found = {
        **{"recipe": configuration.recipe, "data": configuration.data, "epochs": len(run.history)},
        **{"unit": "nats per sample", "draws": draws},
        **_bounds(measured),
        f"{measured.rate_name}_error": measured.rate_error,
        **{f"{name}_error": getattr(measured, f"{name}_error") for name in ("distortion", "neg_elbo")},
    }
    if importance_draws is not None:
        found |= _importance(model, test.select(slice(importance_rows)), importance_draws, 2 * batch_size)
    if isinstance(posterior, ChannelOutput) or gaussian_factors(posterior) is not None:
        with progress("information of latents", None):
            found["latent_information"] = metrics.latent_information(model, x, method=information_method).tolist()
    if isinstance(model, StackedCorEx) or getattr(model, "aggregate", None) is not None:
        found |= _correlation_terms(model, x)
    if (noise := noise_total_correlation(model)) is not None:
        found["noise_total_correlation"] = noise
        found["noise_log_det"] = 2 * noise
    if len(model.data_shape) == 1 and len(x) > NEIGHBORS:
        found |= _vector_measures(model, x)
    if isinstance(model, MIM) and configuration.data in MIXTURES:
        with progress("joint statistics", None):
            found |= _joint_statistics(model, x[:JOINT_ROWS], MIXTURES[configuration.data])
    if int(test.labels.min()) >= 0:
        of_train = encoded(model.encode_mean, parts["train"], "codes of training rows")
        with progress("nearest-neighbor accuracies", None):
            found |= _knn_accuracies(of_train, parts["train"], codes, test)
    if isinstance(test, DSprites):
        found |= _disentanglement(model, test, configuration.seed)
    with progress("figures", None):
        drawn = _code_figures(model, x, codes[: len(x)], test.labels, tsne=tsne)
    with directory.owned(timeout=LOCK_TIMEOUT):
        directory.write_figures(drawn)
        directory.write_json(EVALUATION_FILE, found)
    return found


def _importance(model: Model, test: LabeledDataset, draws: int, max_batch_size: int) -> dict[str, Any]:
    """The importance-sampled -log p(x) of the test rows, and how far it can be trusted."""
    with watched(test, "importance samples") as rows:
        estimate = metrics.importance_estimate(model, rows, draws=draws, max_batch_size=max_batch_size)
    quartiles = torch.quantile(estimate.effective_draws, estimate.effective_draws.new_tensor([0, 0.25, 0.5, 0.75, 1]))
    return {
        "importance_nll": estimate.nll,
        "importance_nll_error": estimate.nll_error,
        "importance_draws": draws,
        "importance_rows": len(test),
        "importance_effective_draws": quartiles.tolist(),
        "importance_warning": estimate.warning,
    }


@torch.no_grad()
def _posterior(model: Model, x: Tensor) -> Distribution | ChannelOutput | None:
    """The posterior q(z|x) of two rows, or None if the model has no single one."""
    try:
        return model.posterior(x[:2])
    except TypeError:
        return None


@torch.no_grad()
def encoded(encode: Callable[[Tensor], Tensor], data: LabeledDataset, label: str) -> Tensor:
    """What a method of a model, such as ``encode_mean``, gives for each row: (N, latent_dim)."""
    device = data.labels.device
    rows = torch.arange(len(data), device=device).split(evaluation_batch_size(device))
    with watched(data, label) as read:
        return torch.cat([encode(read[each][0]).float() for each in rows])


def _correlation_terms(model: Model, x: Tensor) -> dict[str, Any]:
    """The bound of CorEx on TC(x) and its terms, unless columns of x have no density or there are too few rows."""
    with contextlib.suppress(TypeError, ValueError):
        terms = metrics.layer_terms(model, x)
        if terms.isfinite().all():
            useful = int((terms > 0).long().cumprod(0).sum())
            return {
                "total_correlation_bound": float(terms.sum()),
                "layer_terms": terms.tolist(),
                "useful_layers": useful,
            }
    return {}


@torch.no_grad()
def noise_total_correlation(model: nn.Module) -> float | None:
    """The second-order total correlation of the noise of the model's Echo channel, or None if it has none."""
    channel = _echo_channel(model)
    return None if channel is None else metrics.gaussian_total_correlation(channel.sample(NOISE_SAMPLES).flatten(1))


def _echo_channel(model: nn.Module) -> EchoChannel | None:
    channel = getattr(model, "channel", None)
    return channel if isinstance(channel, EchoChannel) else None


@torch.no_grad()
def _vector_measures(model: Model, x: Tensor) -> dict[str, float]:
    """The information between x and samples of z, by KSG, and the root mean square error of x decoded from them."""
    z = model.encode(x)
    error = torch.cat([model.decode(part) for part in z.split(evaluation_batch_size(z.device))]) - x
    return {
        "information_ksg": float(mutual_information(x.double(), z.double(), k=NEIGHBORS)),
        "rmse": float(error.double().square().mean().sqrt()),
    }


def _joint_statistics(model: MIM, x: Tensor, mixture: Mixture) -> dict[str, Any]:
    """The entropies and divergences of the joint distributions of x and z, each with its standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = dataclasses.asdict(metrics.joint_statistics(model, x, mixture, draws=JOINT_DRAWS))
    errors = {f"joint_{name}_error": error for name, error in found.pop("errors").items()}
    values = {f"joint_{name}": value for name, value in found.items()}
    return {**values, **errors, "joint_warning": str(caught[0].message) if caught else None}


def _knn_accuracies(
    train_codes: Tensor, train: LabeledDataset, test_codes: Tensor, test: LabeledDataset
) -> dict[str, float]:
    """The accuracy for each number of neighbors, or for all training rows if these are fewer."""
    names = {"knn_accuracy": NEIGHBORS, **{f"knn_accuracy_k{k}": k for k in OTHER_NEIGHBORS}}
    k = [min(each, len(train)) for each in names.values()]
    found = metrics.knn_accuracy(train_codes, train.labels, test_codes, test.labels, k=k)
    return dict(zip(names, found, strict=True))


def _disentanglement(model: Model, test: DSprites, seed: int) -> dict[str, float]:
    """MIG (with 20 bins) and the FactorVAE score of mean codes of random rows of the whole grid of factors."""
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.MEASURE, 1))
    grid = test.whole()
    order = torch.randperm(len(grid), generator=generator, device="cpu")
    sample = grid.select(order[:GRID_ROWS].to(test.labels.device))
    codes = encoded(model.encode_mean, sample, "codes of the grid")
    noisy = encoded(model.encode, sample.select(slice(CODE_ROWS)), "samples of the grid's codes")
    seed = derive_seed(seed, Stream.MEASURE, 2)
    with progress("MIG and FactorVAE score", None):
        return {
            "mig": metrics.mig(codes[:CODE_ROWS], sample.factors[:CODE_ROWS]),
            "factor_vae_score": metrics.factor_vae_score(codes, sample.factors, noisy_codes=noisy, seed=seed),
        }


def _code_figures(model: Model, x: Tensor, codes: Tensor, labels: Tensor, *, tsne: bool) -> dict[str, Figure]:
    """The figures of the samples of z for x, and of the mean codes."""
    from echo_ext import plots

    with torch.no_grad():
        samples = model.encode(x)
    # A latent that the model does not use may be constant, so it has no density to plot.
    varied = samples[:, samples.amax(0) > samples.amin(0)].float().cpu()
    drawn = {}
    if varied.shape[1] and len(varied) >= MIN_NORMALITY_ROWS:
        drawn["marginal_activations.png"] = plots.marginal_activations(varied)
    if _echo_channel(model) is not None:
        rates, norms = metrics.rates_and_activations(model, x)
        drawn["rate_against_activation.png"] = plots.rate_against_activation(rates.cpu(), norms.cpu())
    if tsne:
        embedded = codes[:EMBEDDED_ROWS].cpu()
        known = labels[: len(embedded)].cpu() if int(labels.min()) >= 0 else None
        drawn["embedding.png"] = plots.embedding(metrics.tsne(embedded), known)
    return drawn
