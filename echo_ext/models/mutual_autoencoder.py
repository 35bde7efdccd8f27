"""The Mutual Autoencoder (Phuong, Welling, Kushman, Tomioka & Nowozin 2018), a VAE with a prescribed I(x; z)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from echo_ext import _checks
from echo_ext.models.joint import DiagonalGaussian, GaussianJointModel, score_function
from echo_ext.models.marginals import StandardNormal
from echo_ext.models.mim import joint_losses
from echo_ext.models.networks import encoder

__all__ = ["MutualAutoencoder"]


class MutualAutoencoder(GaussianJointModel):
    """A VAE that minimizes ``-ELBO + penalty * |I_hat - M|``.

    I_hat is a lower bound on the information between x and z under the joint distribution p(x|z) p(z) of the model:

        I_hat = H(z) + E_{z ~ p(z), x ~ p(x|z)} log r(z|x) <= I_p(x; z)

    If x is discrete, the gradient of this expectation is the score-function estimator.

    Args:
        data_shape: Shape of one x, which is (states,) for one-hot rows.
        latent_dim: Number of dimensions of z.
        information: The target M, in nats.
        penalty: Weight of the difference between I_hat and M. A larger value keeps the information closer to M, at the
            expense of the ELBO.
        inverse: The distribution r(z|x). "tied" is the encoder, and the penalty trains both the encoder and the
            decoder. "separate" is a network of its own, which is trained to make the bound tight, and the penalty
            trains the decoder only.
        likelihood: "bernoulli", "categorical" or "gaussian". None means "bernoulli" for images and "gaussian" for
            vectors.
        draws: Number of samples (z, x) for I_hat in each step. More lower its variance. None means the batch size.
        architecture: One of :data:`~echo_ext.models.networks.ARCHITECTURES`.
        hidden: Widths of the hidden layers of the encoder, if it is an MLP; the decoder has them in reverse order.
        activation: One of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        min_log_variance: Minimum of the log variances of the encoder, of r and of a Gaussian decoder.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A name is unknown, or a value is out of range.
    """

    inverse: nn.Module | None

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 1,
        *,
        information: float = 1.0,
        penalty: float = 1.0,
        inverse: str = "tied",
        likelihood: str | None = None,
        draws: int | None = None,
        architecture: str = "mlp",
        hidden: Sequence[int] | None = (100, 100),
        activation: str = "relu",
        min_log_variance: float = -10.0,
    ) -> None:
        super().__init__(
            data_shape,
            latent_dim,
            prior=StandardNormal(latent_dim),
            likelihood=likelihood,
            architecture=architecture,
            hidden=hidden,
            activation=activation,
            min_log_variance=min_log_variance,
        )
        _checks.choice("inverse", inverse, ("tied", "separate"))
        self.information = _checks.number("information", information, minimum=0)
        self.penalty = _checks.number("penalty", penalty, minimum=0)
        self.draws = None if draws is None else _checks.whole("draws", draws, minimum=1, what="an int or None")
        if inverse == "tied":
            self.inverse = None
        else:
            self.inverse = encoder(architecture, self.data_shape, 2 * latent_dim, hidden=hidden, activation=activation)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The "loss", "rate_bound", "distortion" and "information" (I_hat), each 0-d and in nats per sample."""
        losses = joint_losses("vae", self, x)
        information, tightening = self._information(len(x) if self.draws is None else self.draws)
        shortfall = (information - self.information).abs()
        losses["loss"] = losses["loss"] + self.penalty * shortfall + tightening
        return {**losses, "information": information}

    def model_information(self, draws: int) -> Tensor:
        """I_hat in nats, estimated from this many samples of the model's joint distribution; 0-d."""
        return self._information(draws)[0]

    def _information(self, draws: int) -> tuple[Tensor, Tensor]:
        """I_hat, and a term of value zero whose gradient trains a separate r to make the bound tight."""
        z = self.draw_prior(draws)
        x, differentiable = self.draw_data(z)
        # H(z) is estimated from the same samples: it stays unbiased, and its error cancels most of that of log r(z|x).
        density = self._fixed_inverse(x).log_prob(z) - self.log_prior(z)
        if not differentiable:
            density = density + score_function(density, self.log_likelihood(x, z))
        information = density.mean()
        if self.inverse is None:
            return information, torch.zeros_like(information)
        tightness = self.gaussian(self.inverse(x.detach())).log_prob(z).mean()
        return information, tightness.detach() - tightness

    def _fixed_inverse(self, x: Tensor) -> DiagonalGaussian:
        """The distribution r(z|x), without gradients to the parameters of a separate r."""
        if self.inverse is None:
            return self.infer(x)
        weights = {name: weight.detach() for name, weight in self.inverse.named_parameters()}
        return self.gaussian(functional_call(self.inverse, weights, (x,)))
