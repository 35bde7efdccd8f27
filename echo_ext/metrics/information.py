"""How much each latent knows of x, and how much the dimensions know of each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.echo.channel import ChannelOutput, EchoChannel
from echo_ext.estimators import mutual_information
from echo_ext.estimators._samples import ArrayLike
from echo_ext.metrics._inputs import Data, batches, evaluating, read_codes, refuse_constant_columns
from echo_ext.models.base import Model
from echo_ext.models.channels import GaussianOutput
from echo_ext.models.densities import log_mean_exp, log_normal

__all__ = ["EchoSignal", "echo_signal", "gaussian_total_correlation", "latent_information"]

METHODS = ("formula", "knn")
# Densities held at once.
BLOCK = 1 << 21


def gaussian_total_correlation(samples: ArrayLike) -> float:
    """``-1/2 log det corr``, in nats, of samples (N, d).

    The total correlation of jointly Gaussian columns; of others, its second-order part (Brekelmans et al. 2019, section
    5). 0 where nothing is correlated, infinite where a column is a linear combination of others. Computed in float64.

    Raises:
        TypeError: samples are not float64 or float32.
        ValueError: values that are not finite, a constant column, no more rows than columns.
    """
    points = read_codes("samples", samples).double()
    if len(points) <= points.shape[1]:
        raise ValueError(f"samples must have more rows than columns, got shape {tuple(points.shape)}")
    refuse_constant_columns("samples", points)
    centred = points - points.mean(0)
    standard = centred / centred.norm(dim=0)
    # Rounding can leave an eigenvalue of a singular matrix below zero.
    eigenvalues = torch.linalg.eigvalsh(standard.T @ standard)
    rounding = len(eigenvalues) * torch.finfo(torch.float64).eps * eigenvalues[-1]
    return float("inf") if eigenvalues[0] <= rounding else -0.5 * float(eigenvalues.log().sum())


def latent_information(model: Model, x: Data, *, method: str = "formula", k: int = 3, batch_size: int = 1000) -> Tensor:
    """``I(z_j; x)`` of each latent, in nats: (latent_dim,), float64.

    * "formula", Echo: the mean over the rows of ``-log s_j(x)``, which is exact.
    * "formula", Gaussian: ``E KL(q(z_j|x) | q(z_j))``, by one draw of z for each row, q(z_j) being the mixture of all
      rows' posteriors. In expectation this is the exact information for x uniform on the N rows: at most log N, and
      at most that of the law which the rows come from. It takes N^2 densities per latent.
    * "knn": the KSG estimate between z_j and the two numbers of x that fix q(z_j|x), mean and standard deviation (Echo:
      f_j and s_j). They are sufficient for z_j, so that ``I(z_j; x)`` is their information. Near 0 it may be negative.

    Args:
        model: its ``posterior`` must be Echo's or a Gaussian.
        x: rows (N, *data_shape); a data set whose ``dataset[rows]`` is a batch (x, ...); or batches, as a DataLoader
            gives them.
        method: "formula" or "knn".
        k: neighbours, for "knn".
        batch_size: rows encoded at once.

    Raises:
        TypeError: a model without such a posterior.
        ValueError: an unknown method, no rows, or no more than k of them.
    """
    _checks.choice("method", method, METHODS)
    sent: list[tuple[Tensor, ...]] = []
    with evaluating(model):
        for batch in batches(model, x, batch_size):
            sent.append(_statistics(model, batch, method))
    if not sent:
        raise ValueError("x must have at least one row, got none")
    if len(sent[0]) == 1:
        return torch.cat([rate for (rate,) in sent]).double().mean(0)
    z, mean, deviation = (torch.cat(parts) for parts in zip(*sent, strict=True))
    if method == "formula":
        return _information_from_aggregate(z, mean, deviation)
    latents = z.double().T.unsqueeze(-1)
    statistics = torch.stack([mean, deviation], -1).double().transpose(0, 1)
    information = mutual_information(latents, statistics, k=k)
    assert isinstance(information, Tensor)
    return information


def _statistics(model: Model, x: Tensor, method: str) -> tuple[Tensor, ...]:
    """Of a batch: Echo's rate alone for "formula", else z and what fixes its law; each (B, d)."""
    if method == "knn" and _echo_channels(model):
        return echo_signal(model, x)[:3]
    output = model.posterior(x)
    if method == "formula" and isinstance(output, ChannelOutput):
        return (output.rate.flatten(1),)
    if isinstance(output, GaussianOutput):
        z, mean, log_variance = (part.flatten(1) for part in output)
        return z, mean, (0.5 * log_variance).exp()
    raise TypeError(
        f"latent_information needs an Echo or a Gaussian q(z|x), but {type(model).__name__} gives "
        f"{type(output).__name__}: its latents have no law of their own given x"
    )


def _information_from_aggregate(z: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    rows, log_variance = len(z), 2 * deviation.log()
    information = log_normal(z, mean, log_variance).double().mean(0)
    for j in range(z.shape[1]):
        for chunk in z[:, j].split(max(1, BLOCK // rows)):
            log_marginal = log_mean_exp(log_normal(chunk.unsqueeze(1), mean[:, j], log_variance[:, j]), dim=1)
            information[j] -= log_marginal.double().sum() / rows
    return information


class EchoSignal(NamedTuple):
    """``z = f + s * noise`` of a batch (its log, for a multiplicative channel), and its rate in nats; each (B, d)."""

    z: Tensor
    f: Tensor
    s: Tensor
    rate: Tensor


def echo_signal(model: Model, x: Tensor) -> EchoSignal:
    """Encode a batch (B, *data_shape) and look into the Echo channel on the way.

    Raises:
        TypeError: the model has no Echo channel, or several.
    """
    channels = _echo_channels(model)
    if len(channels) != 1:
        raise TypeError(f"{type(model).__name__} must have one EchoChannel, got {len(channels)}")
    seen: list[EchoSignal] = []

    def look(channel: EchoChannel, inputs: tuple[Tensor, Tensor], output: ChannelOutput) -> None:
        f, log_s = channel.signal(*inputs)
        z = output.z.log() if channel.multiplicative else output.z
        seen.append(EchoSignal(*(part.flatten(1) for part in (z, f, log_s.exp(), output.rate))))

    with channels[0].register_forward_hook(look):
        model.posterior(x)
    return seen[-1]


def _echo_channels(model: Model) -> list[EchoChannel]:
    return [module for module in model.modules() if isinstance(module, EchoChannel)]
