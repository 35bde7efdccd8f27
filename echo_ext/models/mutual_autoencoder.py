"""The Mutual Autoencoder (Phuong, Welling, Kushman, Tomioka & Nowozin 2018): a VAE whose information is given."""

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
    """Minimises ``-ELBO + penalty * |I_hat - M|``, with I_hat a bound on the information of the model's joint law,

        I_hat = H(z) + E_{z ~ p(z), x ~ p(x|z)} log r(z|x) <= I_p(x; z)

    Draws of a discrete x have the score-function gradient. Beside the encoder, r has a network of its
    own that is always drawn towards the tightest bound, and the penalty moves the decoder alone; tied to it, r is the
    encoder, and the penalty moves both.

    Args:
        data_shape: shape of one x; (states,) for one-hot rows.
        latent_dim: dimensions of z.
        information: M, in nats.
        penalty: C, the price of a nat of information too many or too few.
        inverse: r(z|x), "tied" or "beside".
        likelihood: "bernoulli", "categorical" or "gaussian"; None for Bernoulli pixels and Gaussian columns.
        draws: of (z, x) per step for I_hat; None for the batch's size.
        architecture: of :data:`~echo_ext.models.networks.ARCHITECTURES`.
        hidden: widths of an MLP's hidden layers, in the encoder's order.
        activation: of :data:`~echo_ext.models.networks.ACTIVATIONS`.
        min_log_variance: the least log variance of encoder, r and decoder.

    Raises:
        ValueError: an unknown name, or a value out of range.
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
        _checks.choice("inverse", inverse, ("tied", "beside"))
        self.information = _checks.number("information", information, minimum=0)
        self.penalty = _checks.number("penalty", penalty, minimum=0)
        if draws is not None and (not isinstance(draws, int) or draws < 1):
            raise ValueError(f"draws must be a positive integer or None, got {draws}")
        self.draws = draws
        if inverse == "tied":
            self.inverse = None
        else:
            self.inverse = encoder(architecture, self.data_shape, 2 * latent_dim, hidden=hidden, activation=activation)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """ "loss", "rate_bound", "distortion" and "information", which is I_hat; 0-d, nats per sample."""
        losses = joint_losses("vae", self, x)
        information, tightening = self._information(len(x) if self.draws is None else self.draws)
        shortfall = (information - self.information).abs()
        losses["loss"] = losses["loss"] + self.penalty * shortfall + tightening
        return {**losses, "information": information}

    def model_information(self, draws: int) -> Tensor:
        """I_hat of this many draws of the model's joint law; 0-d, nats."""
        return self._information(draws)[0]

    def _information(self, draws: int) -> tuple[Tensor, Tensor]:
        """I_hat, and a term of value zero whose gradient tightens r where it is not the encoder."""
        z = self.draw_prior(draws)
        x, differentiable = self.draw_data(z)
        # H(z) from the same draws: no less exact on average, and its error cancels most of that of log r(z|x).
        density = self._fixed_inverse(x).log_prob(z) - self.log_prior(z)
        if not differentiable:
            density = density + score_function(density, self.log_likelihood(x, z))
        information = density.mean()
        if self.inverse is None:
            return information, torch.zeros_like(information)
        tightness = self.gaussian(self.inverse(x.detach())).log_prob(z).mean()
        return information, tightness.detach() - tightness

    def _fixed_inverse(self, x: Tensor) -> DiagonalGaussian:
        """r(z|x), without gradients to a network of its own."""
        if self.inverse is None:
            return self.infer(x)
        weights = {name: weight.detach() for name, weight in self.inverse.named_parameters()}
        return self.gaussian(functional_call(self.inverse, weights, (x,)))
