"""The rate-distortion autoencoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from echo_ext import _checks
from echo_ext.echo.channel import ChannelOutput
from echo_ext.models.base import LatentModel, tried, zeros_like_parameters
from echo_ext.models.likelihoods import BernoulliLikelihood
from echo_ext.models.objectives import LearnedWeight, rate_distortion_loss
from echo_ext.models.priors import AggregatePosterior, random_rows

__all__ = ["Autoencoder"]


class Autoencoder(LatentModel):
    """An autoencoder that minimizes ``distortion + sum_j beta_j rate_j`` plus the penalties of regularizers.

    The rate is the channel's own if there is no prior, as for :class:`echo_ext.EchoChannel`, whose rate is exact.
    Otherwise it is the rate bound ``E log q(z|x) - log p(z)``, in closed form where the prior knows it.

    Args:
        encoder: Maps x ``(B, *data_shape)`` to the inputs of the channel: a tuple of tensors, or one tensor
            (B, 2 * latent_dim), whose halves they are.
        decoder: Maps z (B, latent_dim) to the parameters of the likelihood.
        channel: Maps the outputs of the encoder to the distribution q(z|x), with ``rsample`` and ``log_prob``, the
            batch (B,) and the event (latent_dim,), as :class:`~echo_ext.models.GaussianChannel` does. Or maps them to a
            pair ``(z, rate)`` of a sample and its own rate in nats, as :class:`echo_ext.EchoChannel` does; then it has
            the methods ``sample(n)``, for its marginal q(z), and, for :meth:`encode_mean`, ``mean`` of the first output
            of the encoder, the code without noise.
        prior: The distribution p(z): a :class:`~echo_ext.models.Prior`, or any module with ``log_prob(z)`` and
            ``sample(n)``. None for a channel with a rate of its own.
        likelihood: Maps the output of the decoder to the distribution p(x|z), such as
            :class:`~echo_ext.models.BernoulliLikelihood`; any callable that returns one of torch.distributions.
        beta: Weight of the rate, one number or one for each latent. A larger value gives less information about x and a
            larger distortion. One for each needs a rate for each, as Echo and a Gaussian with a standard normal prior
            have. With a :class:`~echo_ext.models.LearnedWeight`, the rate or the distortion meets a target instead.
        regularizers: Modules that map z (B, latent_dim) to a dict of 0-d terms, whose "penalty" is added to the loss,
            such as :class:`~echo_ext.models.MMDRegularizer`.
        aggregate: If given, samples start from this distribution, which :meth:`refresh` fills, and not from the prior.
        data_shape: Shape of one x, by which the parts are checked. None means that of the decoded samples of the prior,
            or, if there is no prior, that of the first batch.

    Raises:
        TypeError: A part is no module, or lacks a method; the error names it.
        ValueError: A part has the wrong shape, or beta is out of range.

    Example:
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2 * 4))
        >>> decoder = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Unflatten(1, (1, 8, 8)))
        >>> model = echo_ext.models.Autoencoder(encoder, decoder, echo_ext.EchoChannel(31), data_shape=(1, 8, 8))
        >>> sorted(model.loss(torch.rand(50, 1, 8, 8)))
        ['distortion', 'loss', 'rate']
    """

    beta: float | Tensor | LearnedWeight

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        channel: nn.Module,
        *,
        prior: nn.Module | None = None,
        likelihood: Callable[[Tensor], Distribution] = BernoulliLikelihood(),  # noqa: B008  # it is immutable
        beta: float | Sequence[float] | LearnedWeight = 1.0,
        regularizers: Iterable[nn.Module] = (),
        aggregate: AggregatePosterior | None = None,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder, decoder, channel, prior=prior, likelihood=likelihood)
        if isinstance(beta, Sequence):
            weights = torch.tensor([_checks.number("beta", each, minimum=0) for each in beta])
            self.register_buffer("beta", weights, persistent=False)
        else:
            self.beta = beta if isinstance(beta, LearnedWeight) else _checks.number("beta", beta, minimum=0)
        self.regularizers = nn.ModuleList(regularizers)
        self.aggregate = aggregate
        self.fit_parts(data_shape)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The loss of a batch ``(B, *data_shape)`` and its terms, each 0-d and in nats per sample.

        The terms are "rate", or "rate_bound" if there is a prior, "distortion", "beta" if it is learned, and those of
        the regularizers.
        """
        z, rate = self.transmit(x)
        distortion = -self.observation(z).log_prob(x)
        means = rate.sum() / len(x), distortion.mean()
        terms = {"rate" if self.prior is None else "rate_bound": means[0], "distortion": means[1]}
        if isinstance(self.beta, LearnedWeight):
            terms["beta"] = beta = self.beta()
            loss = rate_distortion_loss(distortion, rate, beta=self.warm_up_weight * beta) + self.beta.penalty(*means)
        else:
            loss = rate_distortion_loss(distortion, rate, beta=self.warm_up_weight * self.beta)
        for regularizer in self.regularizers:
            found = dict(regularizer(z))
            loss = loss + found.pop("penalty")
            terms.update(found)  # not |=, which torch.compile of torch 2.6 cannot trace
        return {"loss": loss, **terms}

    def transmit(self, x: Tensor) -> ChannelOutput:
        """Encode x ``(B, *data_shape)``.

        Returns:
            One sample of z for each x, and the rate of each latent, (B, latent_dim), or of each sample, (B,).
        """
        output = self.posterior(x)
        if self.prior is None:
            return ChannelOutput(*output)
        z = output.rsample()
        return ChannelOutput(z, self.prior.rate(output, z))

    def encode(self, x: Tensor) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""
        output = self.posterior(x)
        return output[0] if self.prior is None else output.rsample()

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are samples as :meth:`sample_latent` draws them: ``(n, *data_shape)``."""
        return self.decode(self.sample_latent(n))

    def sample_latent(self, n: int) -> Tensor:
        """``n`` samples of z from the aggregate, if there is one, else from the prior or the channel: (n, d)."""
        marginals: list[Any] = [self.aggregate, self.prior, self.channel]
        return next(each for each in marginals if each is not None).sample(n)

    def log_weight(self, x: Tensor, *, defensive_weight: float = 0.0) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one sample of z for each x: (B,); see the base class."""
        if self.prior is None:
            raise TypeError(
                f"importance sampling needs the density q(z|x), which {type(self.channel).__name__} does not have; its "
                "own rate needs none"
            )
        return super().log_weight(x, defensive_weight=defensive_weight)

    @torch.no_grad()
    def refresh(self, x: Tensor) -> None:
        """Fill the bank of the channel, or of the aggregate, with the current codes of training rows."""
        if self.aggregate is not None:
            self.aggregate.fill(self.posterior(random_rows(x, len(self.aggregate.means))))
        elif isinstance(rows := getattr(self.channel, "bank_size", None), int):
            training = self.channel.training
            self.channel.train()
            self.posterior(random_rows(x, rows))
            self.channel.train(training)

    def try_parts(self, x: Tensor) -> int:
        """Encode and decode x, and name the part that fails or has the wrong shape; return the width of z."""
        latents = super().try_parts(x)
        target = self.beta.target_rate if isinstance(self.beta, LearnedWeight) else None
        minimum = latents * getattr(self.channel, "min_rate", 0.0)
        if target is not None and target <= minimum:
            raise ValueError(
                f"target_rate must be above {minimum:.4g} nats, the minimum rate of {latents} dimensions of the "
                f"channel, got {target}"
            )
        if isinstance(self.beta, Tensor):
            if len(self.beta) != latents:
                raise ValueError(f"beta must have one weight per latent, {latents}, got {len(self.beta)}")
            if self.prior is not None and self.transmit(x).rate.ndim == 1:
                raise ValueError("beta must be one number for a rate that is not a sum over latents, got several")
        z = zeros_like_parameters(self.decoder, (4, latents))
        for index, regularizer in enumerate(self.regularizers):
            name = f"regularizers[{index}]"
            terms = tried(name, f"z of shape {tuple(z.shape)}", functools.partial(regularizer, z))
            if not isinstance(terms, Mapping) or "penalty" not in terms:
                raise TypeError(f"{name} must return a dict with a 'penalty', got {_checks.brief(terms)}")
        return latents
