"""The Mutual Autoencoder (Phuong, Welling, Kushman, Tomioka & Nowozin 2018), a VAE with a prescribed I(x; z)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from echo_ext import _checks
from echo_ext.models.base import LatentModel
from echo_ext.models.likelihoods import GaussianLikelihood
from echo_ext.models.objectives import score_function
from echo_ext.models.priors import Prior, channel_inputs

__all__ = ["MutualAutoencoder"]


class MutualAutoencoder(LatentModel):
    """A VAE that minimizes ``-ELBO + penalty * |I_hat - M|``.

    I_hat is a lower bound on the information between x and z under the joint distribution p(x|z) p(z) of the model:

        I_hat = H(z) + E_{z ~ p(z), x ~ p(x|z)} log r(z|x) <= I_p(x; z)

    If x is discrete, the gradient of this expectation is the score-function estimator. The poster states the constraint
    I_p(x; z) = M, and not how to meet it: the absolute difference is a choice of this project. It is taken of the
    estimate of each step, so it penalizes the variance of I_hat too.

    Args:
        encoder, decoder, channel, prior, likelihood, data_shape: As for :class:`~echo_ext.models.MIM`.
        information: The target M, in nats.
        penalty: Weight of the difference between I_hat and M. A larger value keeps the information closer to M, at the
            expense of the ELBO.
        inverse: An encoder of its own for r(z|x), as on the poster, which is trained to make the bound tight; the
            penalty then trains the decoder only. With None r(z|x) is q(z|x), and the penalty trains the encoder too.
        draws: Number of samples (z, x) for I_hat in each step. More lower its variance. None means the batch size.

    Raises:
        TypeError: A part is no module, or lacks a method; the error names it.
        ValueError: A part has the wrong shape, or a value is out of range.

    Example:
        >>> from echo_ext.models import GaussianChannel, GaussianLikelihood, MutualAutoencoder, StandardNormal, mlp
        >>> channel, likelihood = GaussianChannel(min_log_variance=-6.0), GaussianLikelihood(min_log_variance=-6.0)
        >>> parts = {"prior": StandardNormal(1), "likelihood": likelihood}
        >>> model = MutualAutoencoder(mlp(2, 32, 2), mlp(1, 32, 4), channel, information=1.0, **parts)
        >>> sorted(model.loss(torch.randn(50, 2)))
        ['distortion', 'information', 'loss', 'rate_bound']
    """

    prior: Prior

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        channel: nn.Module,
        *,
        prior: nn.Module,
        likelihood: Callable[[Tensor], Distribution] = GaussianLikelihood(),  # noqa: B008  # it is immutable
        information: float = 1.0,
        penalty: float = 1.0,
        inverse: nn.Module | None = None,
        draws: int | None = None,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder, decoder, channel, prior=prior, likelihood=likelihood)
        self.information = _checks.number("information", information, minimum=0)
        self.penalty = _checks.number("penalty", penalty, minimum=0)
        self.draws = None if draws is None else _checks.whole("draws", draws, minimum=1, what="an int or None")
        self.inverse = inverse
        self.fit_parts(data_shape)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The "loss", "rate_bound", "distortion" and "information" (I_hat), each 0-d and in nats per sample."""
        q = self.posterior(x)
        z = q.rsample()
        rate_bound, distortion = self.prior.log_ratio(q, z).mean(), -self.observation(z).log_prob(x).mean()
        information, tightening = self._information(len(x) if self.draws is None else self.draws)
        shortfall = (information - self.information).abs()
        loss = distortion + self.warm_up_weight * rate_bound + self.penalty * shortfall + tightening
        return {"loss": loss, "rate_bound": rate_bound, "distortion": distortion, "information": information}

    def model_information(self, draws: int) -> Tensor:
        """I_hat in nats, estimated from this many samples of the model's joint distribution; 0-d."""
        return self._information(draws)[0]

    def _information(self, draws: int) -> tuple[Tensor, Tensor]:
        """I_hat, and a term of value zero whose gradient trains a separate r to make the bound tight."""
        z = self.prior.sample(draws)
        p = self.observation(z)
        x = p.rsample() if p.has_rsample else p.sample()
        # H(z) is estimated from the same samples: it stays unbiased, and its error cancels most of that of log r(z|x).
        log_ratio = self._fixed_inverse(x).log_prob(z) - self.prior.log_prob(z)
        if not p.has_rsample:
            log_ratio = log_ratio + score_function(log_ratio, p.log_prob(x))
        information = log_ratio.mean()
        if self.inverse is None:
            return information, torch.zeros_like(information)
        tightness = self.channel(*channel_inputs(self.inverse, x.detach())).log_prob(z).mean()
        return information, tightness.detach() - tightness

    def _fixed_inverse(self, x: Tensor) -> Distribution:
        """The distribution r(z|x), without gradients to the parameters of a separate r."""
        if self.inverse is None:
            return self.posterior(x)
        inverse, weights = self.inverse, {name: weight.detach() for name, weight in self.inverse.named_parameters()}
        return self.channel(*channel_inputs(lambda x: functional_call(inverse, weights, (x,)), x))
