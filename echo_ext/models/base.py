"""The interface of all models, and the model of parts: an encoder, a channel, a prior, a decoder and a likelihood."""

from __future__ import annotations

import abc
import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from typing_extensions import Self

from echo_ext import _checks
from echo_ext.echo.channel import ChannelOutput
from echo_ext.models._numerics import widened
from echo_ext.models.channels import noiseless
from echo_ext.models.priors import Prior, as_prior, channel_inputs
from echo_ext.models.proposals import draw_defensively

__all__ = ["LatentModel", "Model", "eval_mode", "load_weights"]


class Model(nn.Module, abc.ABC):
    """A generative model of x with a latent z. All quantities are in nats, summed over dimensions.

    Args:
        data_shape: Shape of one x: (channels, height, width) for an image, (columns,) for a vector.

    Attributes:
        warm_up_weight: A number from 0 to 1, by default 1. Training with a warm-up raises it from 0 to 1, and each
            model says which terms of its loss it multiplies.
        built_by: The recipe, data_shape, latent_dim and model_settings of :func:`~echo_ext.models.build`, by which a
            saved model is built again. None for a model that was not built by it.

    Example:
        >>> model = echo_ext.models.build("vae", (1, 8, 8), latent_dim=4)
        >>> x = torch.rand(50, 1, 8, 8)
        >>> sorted(model.loss(x))
        ['distortion', 'loss', 'rate_bound']
        >>> model.encode_mean(x).shape, model.reconstruct(x, draws=10).shape, model.sample(3).shape
        (torch.Size([50, 4]), torch.Size([50, 1, 8, 8]), torch.Size([3, 1, 8, 8]))
    """

    built_by: Mapping[str, Any] | None = None

    def __init__(self, data_shape: Sequence[int]) -> None:
        super().__init__()
        self.data_shape = _checks.data_shape(data_shape)
        self.warm_up_weight = 1.0

    def checked(self, x: Tensor) -> Tensor:
        """The batch x itself; raises ValueError if its shape is not ``(B, *data_shape)``."""
        if x.shape[1:] != self.data_shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}")
        return x

    @abc.abstractmethod
    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """The "loss" of a batch ``(B, *data_shape)`` and its terms, each 0-d and in nats per sample.

        "rate" is the exact information that z has about x, "rate_bound" an upper bound on it, and "distortion" is
        -E log p(x|z). Rate and distortion have no weights here, so their sum is the negative ELBO.
        """

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: ``(B, *data_shape)``."""

    @abc.abstractmethod
    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are samples of the model's own distribution: ``(n, *data_shape)``."""

    def encode_mean(self, x: Tensor) -> Tensor:
        """The code without noise for each x, in the units that the decoder sees: (B, latent_dim)."""
        raise TypeError(f"{type(self).__name__} must define encode_mean to encode without noise")

    def reconstruct(self, x: Tensor, draws: int = 1) -> Tensor:
        """The mean of ``draws`` decoded samples of z for each x: ``(B, *data_shape)``."""
        total = self.decode(self.encode(x))
        for _ in range(_checks.whole("draws", draws, minimum=1) - 1):
            total = total + self.decode(self.encode(x))
        return total / draws

    def posterior(self, x: Tensor) -> Distribution | ChannelOutput:
        """The distribution q(z|x), or a sample of z and its rate for a channel with a rate of its own (Echo)."""
        raise TypeError(f"{type(self).__name__} has no single posterior q(z|x)")

    def log_weight(self, x: Tensor) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one sample of z for each x, for importance sampling: (B,)."""
        raise TypeError(f"importance sampling needs the density q(z|x), which {type(self).__name__} does not have")

    def prepare(self, x: Tensor) -> None:
        """Initialize what depends on the data from training rows ``(B, *data_shape)``, before the first step."""

    def refresh(self, x: Tensor) -> None:
        """Update stored statistics of training rows ``(B, *data_shape)`` to the final weights, after the last step."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameter groups for an Adam optimizer.

        A part with an attribute ``optimizer_settings``, such as ``{"lr": 1e-4}``, has a group of its own.
        """
        groups, taken = [], set[int]()
        for part in self.modules():
            if (settings := getattr(part, "optimizer_settings", None)) is not None:
                groups.append({"params": list(part.parameters()), **settings})
                taken |= set(map(id, part.parameters()))
        rest = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        return [{"params": rest, "lr": learning_rate}, *groups]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the model in a folder, from which :meth:`from_pretrained` loads it.

        The folder gets ``model.safetensors`` with the weights, ``config.json`` with what
        :func:`~echo_ext.models.build` was called with, and a model card, ``README.md``, unless it has one.

        Args:
            folder: The folder, which is created if necessary.

        Raises:
            ModuleNotFoundError: huggingface_hub or safetensors is not installed.
            TypeError: A setting of the model cannot be written as JSON.
            ValueError: The model has other parts than those of its recipe.
        """
        from echo_ext.models import pretrained

        pretrained.shared(self).save_pretrained(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save the model in a repository of the Hugging Face Hub, which is created if necessary.

        Args:
            repo_id: The repository, such as "user/name".
            options: Those of ``push_to_hub`` of :class:`huggingface_hub.ModelHubMixin`, such as ``private=True``,
                ``token``, ``branch``, ``create_pr``, ``commit_message`` and ``ignore_patterns``.

        Returns:
            The address of the commit.

        Raises:
            ConnectionError: The Hub cannot be reached, or does not accept the files.
            ModuleNotFoundError: huggingface_hub or safetensors is not installed.
            PermissionError: There is no token, or it may not write to the repository.
            TypeError, ValueError: As for :meth:`save_pretrained`, or the name is no name of a repository.
        """
        from echo_ext.models import pretrained

        return pretrained.shared(self).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **parts: Any,
    ) -> Self:
        """Load a saved model, in eval mode and on the CPU, from a folder or from the Hugging Face Hub.

        ``Model.from_pretrained`` builds the model of any recipe; the method of another class accepts only models of
        this class. A model that was composed of parts, as in ``Autoencoder(encoder, decoder, channel)``, is loaded by
        the method of its class with the same arguments, whose weights are replaced. Files of unknown origin are safe
        to load: nothing in them is executed.

        Args:
            name: A folder that :meth:`save_pretrained` has written, or a repository, such as "user/name".
            revision: A branch, a tag or a commit of the repository.
            token: A token for a private repository. None means that of ``hf auth login`` or ``HF_TOKEN``.
            cache_dir: The folder of downloaded files. None means that of huggingface_hub.
            local_files_only: Whether to use only files that were downloaded before.
            force_download: Whether to download files again.
            parts: The arguments of the class, for a model that was not built by a recipe.

        Raises:
            ConnectionError: The Hub cannot be reached.
            FileNotFoundError: There is no such folder or repository, or it has no saved model.
            ModuleNotFoundError: huggingface_hub or safetensors is not installed.
            PermissionError: The owner of the repository has to grant access to it.
            TypeError: The model is of another class.
            ValueError: A file is damaged, or does not fit the model.
        """
        from echo_ext.models import pretrained

        download = {"revision": revision, "token": token, "cache_dir": cache_dir}
        flags = {"local_files_only": local_files_only, "force_download": force_download}
        return pretrained.load(cls, name, parts, **download, **flags)


class LatentModel(Model):
    """A model made of an encoder, a channel, a prior, a decoder and a likelihood. Subclasses define :meth:`loss`.

    Args:
        encoder, decoder, channel, prior, likelihood: As for :class:`~echo_ext.models.Autoencoder`.

    Attributes:
        data_shape: Shape of one x; () as long as it is not known. The first batch, or :meth:`fit_parts`, sets it.
        latent_dim: Number of dimensions of z; 0 as long as the shape is not known.

    Raises:
        TypeError: A part is no module, or lacks a method; the error names it.
        ValueError: A part has the wrong shape.

    Example:
        >>> from echo_ext.models import BernoulliLikelihood, GaussianChannel, LatentModel, StandardNormal, mlp
        >>> class ImportanceWeighted(LatentModel):  # Burda et al. 2016
        ...     def loss(self, x):
        ...         log_weights = torch.stack([self.log_weight(x) for _ in range(5)])
        ...         return {"loss": np.log(5) - log_weights.logsumexp(0).mean()}
        >>> options = {"prior": StandardNormal(2), "likelihood": BernoulliLikelihood()}
        >>> model = ImportanceWeighted(mlp(8, 16, 4), mlp(2, 16, 8), GaussianChannel(), **options)
        >>> model.loss(torch.rand(50, 8))["loss"].shape, model.data_shape
        (torch.Size([]), (8,))
    """

    prior: Prior | None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        channel: nn.Module,
        *,
        prior: nn.Module | None,
        likelihood: Callable[[Tensor], Distribution],
    ) -> None:
        for name, part in (("encoder", encoder), ("decoder", decoder), ("channel", channel), ("prior", prior)):
            if not isinstance(part, nn.Module) and (part is not None or name != "prior"):
                raise TypeError(f"{name} must be a torch.nn.Module, got {_checks.brief(part)}")
        if not callable(likelihood):
            raise TypeError(f"likelihood must be callable, got {_checks.brief(likelihood)}")
        nn.Module.__init__(self)
        self.data_shape: tuple[int, ...] = ()
        self.latent_dim = 0
        self.warm_up_weight = 1.0
        self.encoder = encoder
        self.decoder = decoder
        self.channel = channel
        self.prior = None if prior is None else as_prior("prior", prior)
        self.likelihood = likelihood
        _check_marginal(channel, prior)

    def channel_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """The inputs of the channel for x ``(B, *data_shape)``, such as the mean and log variance of a Gaussian."""
        return channel_inputs(self.encoder, self.checked(x))

    def posterior(self, x: Tensor) -> Any:
        """The output of the channel for x ``(B, *data_shape)``: the distribution q(z|x), or z and its rate."""
        return self.channel(*self.channel_inputs(x))

    def observation(self, z: Tensor) -> Distribution:
        """The distribution p(x|z) for each z of (B, latent_dim)."""
        return self.likelihood(widened(self.decoder(z)))

    def encode(self, x: Tensor) -> Tensor:
        """One sample of z for each x: (B, latent_dim)."""
        return self.posterior(x).rsample()

    def encode_mean(self, x: Tensor) -> Tensor:
        """The code without noise for each x, in the units that the decoder sees: (B, latent_dim)."""
        inputs = self.channel_inputs(x)
        if self.prior is not None:
            return noiseless(self.channel(*inputs))
        mean = getattr(self.channel, "mean", None)
        if not callable(mean):
            raise TypeError(
                f"channel must have a method mean to encode without noise, got {type(self.channel).__name__}"
            )
        return cast(Tensor, mean(inputs[0]))

    def decode(self, z: Tensor) -> Tensor:
        """The mean of x given each z: ``(B, *data_shape)``."""
        return self.observation(z).mean

    def sample(self, n: int) -> Tensor:
        """The means of ``n`` x whose z are samples of the prior: ``(n, *data_shape)``."""
        assert self.prior is not None
        return self.decode(self.prior.sample(n))

    def log_weight(self, x: Tensor, *, defensive_weight: float = 0.0) -> Tensor:
        """``log p(x, z) - log q(z|x)`` at one sample of z for each x: (B,).

        With a ``defensive_weight`` z has the density of a mixture of q(z|x) and, with this weight, wider distributions,
        which takes the place of q(z|x); see :func:`echo_ext.metrics.importance_estimate`.
        """
        assert self.prior is not None
        z, log_ratio = draw_defensively(self.posterior(x), self.prior, defensive_weight)
        return self.observation(z).log_prob(x) + log_ratio

    def prepare(self, x: Tensor) -> None:
        """Initialize a prior that depends on the data, such as a VampPrior, from training rows ``(B, *data_shape)``."""
        if self.prior is not None:
            self.prior.prepare(x)

    def checked(self, x: Tensor) -> Tensor:
        """The batch x itself; raises ValueError if its shape is not ``(B, *data_shape)``."""
        if not self.data_shape:
            self.fit_parts(x.shape[1:])
        return super().checked(x)

    @torch.no_grad()
    def fit_parts(self, data_shape: Sequence[int] | None) -> None:
        """Set the shape of x, and raise an error that names the first part that does not fit it.

        Args:
            data_shape: Shape of one x. None stands for that of decoded samples of the prior; without a prior nothing
                happens, and the first batch sets the shape.
        """
        prior, devices = self.prior, range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with eval_mode(self), torch.random.fork_rng(devices):
            if data_shape is None and prior is not None:
                p = tried("decoder", "samples of the prior", lambda: self.observation(prior.sample(2)))
                data_shape = (p.batch_shape + p.event_shape)[1:]
            if data_shape is not None:
                self.data_shape = _checks.data_shape(data_shape)
                self.latent_dim = self.try_parts(zeros_like_parameters(self.encoder, (2, *self.data_shape)))

    def try_parts(self, x: Tensor) -> int:
        """Encode and decode x, and name the part that fails or has the wrong shape; return the width of z."""
        inputs = tried("encoder", f"x of shape {tuple(x.shape)}", lambda: channel_inputs(self.encoder, x))
        z = inputs[0]
        if self.prior is not None:
            q = tried("channel", "the output of the encoder", lambda: self.channel(*inputs))
            if not (isinstance(q, Distribution) and q.has_rsample):
                raise TypeError(f"channel must return a distribution with rsample, got {type(q).__name__}")
            z = q.rsample()
            drawn = tried("prior", "n = 2 in sample", functools.partial(self.prior.sample, 2))
            if z.ndim != 2 or drawn.shape != z.shape:
                wanted = f"samples of the shape of z, {tuple(z.shape)} for 2 rows"
                raise ValueError(f"prior must have {wanted}, got {tuple(drawn.shape)}")
            log_density = tried("prior", "its samples in log_prob", functools.partial(self.prior.log_prob, drawn))
            if log_density.shape != z.shape[:1]:
                raise ValueError(f"prior must have one log_prob per row, (2,), got shape {tuple(log_density.shape)}")
        p = tried("decoder", f"z of shape {tuple(z.shape)}", lambda: self.observation(z))
        if not isinstance(p, Distribution):
            raise TypeError(f"likelihood must return a distribution, got {type(p).__name__}")
        if p.batch_shape != x.shape[:1] or p.event_shape != x.shape[1:]:
            raise ValueError(
                f"decoder must give p(x|z) for {len(x)} rows of shape {self.data_shape}, got a distribution with batch "
                f"{tuple(p.batch_shape)} and event {tuple(p.event_shape)}"
            )
        return z.shape[1]


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    assign: bool = False,
    misfit: str = "the checkpoint does not fit the model of its configuration",
) -> None:
    """Load a state_dict into a model.

    Args:
        model: The model.
        state_dict: The weights.
        assign: Whether to use the tensors of the state_dict themselves, which a model on the meta device needs.
        misfit: How the error begins.

    Raises:
        ValueError: The weights belong to another model; the message names the first difference.
    """
    try:
        model.load_state_dict(state_dict, assign=assign)
    except Exception as wrong:  # the message lists every difference, one per line
        first = next((line.strip() for line in str(wrong).splitlines()[1:] if line.strip()), str(wrong))
        shown = first if len(first) <= 200 else f"{first[:200]} ..."
        raise ValueError(f"{misfit}: {shown}") from wrong


@contextlib.contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Run in eval mode; afterwards each module is back in the mode that it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def tried(name: str, what: str, call: Callable[[], Any]) -> Any:
    """Call a part, and name it if it fails."""
    try:
        return call()
    except Exception as error:  # the part may be the user's own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} must accept {what}, got {type(error).__name__}: {reason}") from error


def zeros_like_parameters(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Zeros of the dtype and on the device of a module."""
    weight = next(module.parameters(), torch.empty(0))
    return torch.zeros(shape, dtype=weight.dtype, device=weight.device)


def _check_marginal(channel: nn.Module, prior: nn.Module | None) -> None:
    """Check that there is one marginal of z: that of the channel, or the prior."""
    has_marginal, kind = callable(getattr(channel, "sample", None)), type(channel).__name__
    if prior is None and not has_marginal:
        raise ValueError(f"prior must be given for {kind}, which has no method sample(n) for a marginal of its own")
    if prior is not None and has_marginal:
        raise ValueError(f"prior must be None for {kind}, which has its own marginal, got {type(prior).__name__}")
