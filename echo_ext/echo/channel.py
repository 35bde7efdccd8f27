"""The Echo channel as a module: a drop-in replacement for ``mu + sigma * torch.randn_like(sigma)``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional

from echo_ext import _checks
from echo_ext.echo._arguments import EchoCall, Sampling, matching_pair, sampling_code, seed_tensor, term_count
from echo_ext.echo._noise import make_noise
from echo_ext.echo.matrix import MAX_DIM, echo_sample_matrix
from echo_ext.echo.ops import echo_noise, max_scale

if TYPE_CHECKING:  # several ranks are rare, and their module imports the estimators too
    from echo_ext.distributed._collectives import Ranks

__all__ = ["ChannelOutput", "EchoChannel", "EchoMatrixChannel"]

Gain: TypeAlias = float | Literal["auto"]
Sync: TypeAlias = bool | Literal["gather"]


class ChannelOutput(NamedTuple):
    """The output of a channel: a sample of the latent for each row, and its rate.

    Attributes:
        z: The latent, ``(B, *)``.
        rate: Its rate in nats per dimension, ``(B, *)``.

    Example:
        >>> z, rate = echo_ext.EchoChannel(num_terms=3)(torch.randn(8, 2), torch.zeros(8, 2))
        >>> z.shape, rate.shape
        (torch.Size([8, 2]), torch.Size([8, 2]))
    """

    z: Tensor
    rate: Tensor


class _BankedChannel(nn.Module):
    """A channel that keeps recent training rows in the buffers ``bank_f`` and ``bank_s``, and the gain in ``gain``.

    The bank has f and s without the gain, which multiplies only what leaves the channel.
    """

    bank_f: Tensor
    bank_s: Tensor
    gain: Tensor
    scale: float  # the largest s, r
    # The attributes without which the buffers of a state_dict have another meaning.
    _saved_settings: tuple[str, ...] = ("bound", "activation_scale")

    def __init__(
        self,
        name: str,
        other_rows: int,
        bank_size: int | None,
        bound: float,
        activation_scale: float,
        gain: Gain,
        initial_std: float,
    ) -> None:
        super().__init__()
        _checks.row_count(name, other_rows, minimum=1)
        self._saved_settings = (name, *_BankedChannel._saved_settings)
        self.bank_size = max(1024, other_rows) if bank_size is None else bank_size
        _checks.row_count("bank_size", self.bank_size, minimum=other_rows)
        self.bound = _checks.number("bound", bound, above=0)
        self.activation_scale = _checks.number("activation_scale", activation_scale, above=0)
        if gain != "auto":
            _checks.number("gain", gain, above=0)
        self.gain_setting = gain
        self.initial_std = _checks.number("initial_std", initial_std, above=0)
        # Their width is that of the first training batch, which also determines an automatic gain.
        self.register_buffer("bank_f", torch.empty(0))
        self.register_buffer("bank_s", torch.empty(0))
        self.register_buffer("gain", torch.tensor(math.nan if gain == "auto" else float(gain)))

    @property
    def has_bank(self) -> bool:
        """Whether a training batch has filled the bank."""
        return self.bank_f.numel() > 0

    @property
    def _needs_gain(self) -> bool:
        """Whether the next training batch sets the gain."""
        return self.gain_setting == "auto" and not self.has_bank

    @property
    def min_rate(self) -> float:
        """The minimum rate of each dimension in nats, ``-log r``."""
        return -math.log(self.scale)

    def mean(self, f_raw: Tensor) -> Tensor:
        """Return the code without noise, ``gain * f``, in the units of z: ``(B, *)``."""
        f = self._code(f_raw)
        return f if self._needs_gain else self._in_units(f)

    def _code(self, f_raw: Tensor) -> Tensor:
        """f, without the gain."""
        return self.bound * torch.tanh(f_raw / self.activation_scale)

    def _check_width(self, f: Tensor) -> None:
        if self.bank_f.shape[1:] != f.shape[1:]:
            raise ValueError(
                f"f_raw must have rows of the shape seen in training, {tuple(self.bank_f.shape[1:])}, "
                f"got {tuple(f.shape[1:])}"
            )

    def _bank_like(self, f: Tensor) -> tuple[Tensor, Tensor]:
        self._check_width(f)
        return self.bank_f.to(f.dtype), self.bank_s.to(f.dtype)

    def _refuse_small(self, rows: int, needed: int, way_out: str) -> None:
        """Raise an error if a batch is too small to draw its noise from itself."""
        if rows < needed:
            name = self._saved_settings[0]
            fits = f", or set {name} to {rows - 1}" if rows > 1 and needed > 2 else ""
            raise ValueError(
                f"f_raw must have at least {needed} rows for {name}={getattr(self, name)} while the bank is still "
                f"empty, got {rows}: {way_out}{fits}"
            )

    def _filled_up(self, f: Tensor, s: Tensor, missing: int) -> tuple[Tensor, Tensor]:
        """A training batch with the missing rows appended, the newest of the bank."""
        if missing <= 0:
            return f, s
        if not self.has_bank:
            self._refuse_small(len(f), len(f) + missing, "give a larger first training batch")
        bank_f, bank_s = self._bank_like(f)
        return torch.cat([f, bank_f[:missing]]), torch.cat([s, bank_s[:missing]])

    def _in_units(self, z: Tensor, ranks: Ranks | None = None) -> Tensor:
        """Multiply z by the gain. If the gain is not known yet, it follows from z, and in training it is kept.

        Args:
            ranks: The ranks whose rows count for the gain, too.
        """
        gain = self.gain
        if self._needs_gain:
            found = gain_for_std(self.initial_std, z.detach(), ranks)
            gain = gain.copy_(found) if self.training else found
        # A copy, because DistributedDataParallel writes to buffers between two forward passes.
        return z * gain.to(z.dtype, copy=True)

    @torch.no_grad()
    def _remember(self, f: Tensor, s: Tensor) -> None:
        """Put the newest rows first and drop the oldest."""
        if not self.has_bank:
            self.bank_f, self.bank_s = _repeated(f, self.bank_size), _repeated(s, self.bank_size)
            return
        self._bank_like(f)
        self.bank_f.copy_(torch.cat([f.to(self.bank_f.dtype), self.bank_f])[: self.bank_size])
        self.bank_s.copy_(torch.cat([s.to(self.bank_s.dtype), self.bank_s])[: self.bank_size])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._saved_settings:
            destination[prefix + name] = torch.tensor(getattr(self, name), device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in self._saved_settings:
            saved, mine = state_dict.get(prefix + name), getattr(self, name)
            if saved is None:
                missing_keys.append(prefix + name)
            elif saved.device.type != "meta" and saved != mine:
                error_msgs.append(f"{prefix}{name} must be {mine}, as in this channel, got {saved.item()}.")
        gain, mine = state_dict.get(prefix + "gain"), self.gain_setting
        if gain is not None and mine != "auto" and gain.device.type != "meta" and gain != gain.new_tensor(mine):
            error_msgs.append(f"{prefix}gain must be {mine}, as in this channel, got {gain.item()}.")
        settings = {prefix + name for name in self._saved_settings}
        buffers = {key: value for key, value in state_dict.items() if key not in settings}
        # The saved bank decides the width, and this channel the number of rows; load it into buffers of its shape.
        for name in ("bank_f", "bank_s"):
            saved = buffers.get(prefix + name)
            if saved is not None and saved.numel() > 0 and len(saved) != self.bank_size:
                saved = buffers[prefix + name] = _repeated(saved, self.bank_size)
            if saved is not None and saved.shape != getattr(self, name).shape:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(
            buffers, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _repeated(rows: Tensor, count: int) -> Tensor:
    """The first rows, repeated if there are too few: (count, *), a copy."""
    return rows.repeat(-(-count // len(rows)), *[1] * (rows.ndim - 1))[:count].clone()


def gain_for_std(wanted: float, z: Tensor, ranks: Ranks | None = None) -> Tensor:
    """The factor that gives the dimensions of z ``(B, *)`` the wanted mean standard deviation, 0-d.

    It is 1 if z does not vary beyond rounding.

    Args:
        ranks: The ranks whose rows count, too.
    """
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    total = (lambda each: each) if ranks is None else ranks.all_reduce
    count = total(wide.new_tensor(float(len(z))))
    mean = total(wide.sum(0)) / count
    std = (total((wide - mean).square().sum(0)) / count).sqrt().mean()
    largest = total(wide.abs().sum(0)).max() / count
    varies = std > 100 * torch.finfo(z.dtype).eps * largest
    return torch.where(varies, wanted / std, torch.ones_like(std))


class EchoChannel(_BankedChannel):
    """Echo noise with the paper's parameterization (Brekelmans et al. 2019, section 2 and appendix B).

    ``z = gain * (f + s * eps)`` with ``f = bound * tanh(f_raw / activation_scale)`` and ``log s = log r +
    logsigmoid(s_raw)``, where ``r = max_scale(num_terms, bound=bound)``; the same r bounds the noise and enters the
    rate, which is therefore exact. The gain is a change of units, which leaves the rate and the information unchanged.

    In training, the noise of a row is made of the other rows of its batch, and gradients flow through it. The module
    keeps a bank of recent training rows (the buffers ``bank_f`` and ``bank_s``, saved in the state_dict), as BatchNorm
    keeps its statistics. In eval mode the noise is made of the bank, so that a single sample can be encoded,
    independently of the rest of its batch. The first training batch fills the whole bank, by repetition if necessary. A
    training batch with too few rows for num_terms is completed with rows of the bank. Before the first training batch,
    eval mode makes the noise of the other rows of the batch, if they are enough.

    Activation checkpointing recomputes a batch with the same noise, but puts it into the bank twice, as BatchNorm
    counts it twice. Do not checkpoint batches that are completed with rows of the bank.

    Args:
        num_terms: The number of terms of each noise, in the paper one less than the batch has rows. More terms allow
            lower rates and need larger batches. The minimum rate is ``-log r`` nats per dimension, 0.179 with 99 terms.
        bound: The largest ``|f|``. A larger bound gives the code a wider range and reduces the largest scale r.
        activation_scale: The width of the tanh. With a larger value f_raw can go further before tanh saturates.
        sampling: ``"permutation"``, ``"replacement"`` or ``"ring"``, see :func:`echo_ext.echo_sample`.
        bank_size: The number of rows of the bank; None for 1024, or num_terms if that is larger. A larger bank makes
            codes in eval mode vary less with the rows that happen to be in it, and takes more memory.
        multiplicative: Whether to return ``z = exp(gain * (f + s * eps))`` instead; the information is the same.
        gain: What f and the noise are multiplied by. "auto" makes it initial_std over the mean standard deviation of
            the dimensions of z in the first training batch (with ``sync``, of the rows of all ranks), so that a decoder
            starts with numbers of unit size, whatever the network before the channel, as with a Gaussian channel. The
            buffer ``gain`` keeps it. 1 is the paper's, with which the z of an untrained network are small and a decoder
            learns slowly.
        initial_std: The mean standard deviation of the dimensions of z, or of log z if multiplicative, in the first
            training batch if gain is "auto". With 3 convolutions learn faster at first, because z changes faster with
            f_raw. Multiplicative noise needs less, such as 0.1.
        sync: Whether the noise is made of the rows of all ranks of torch.distributed in training, as SyncBatchNorm uses
            all ranks for its statistics, so that num_terms may exceed the batch of one rank. True uses one ring around
            all ranks, whatever ``sampling`` is, see :func:`echo_ext.distributed.echo_sample`. "gather" has every rank
            gather all rows and draw from them by ``sampling``. Each rank keeps its own rows in its bank. Without
            several ranks sync has no effect. Channels that differ between ranks, and a batch that one rank refuses, are
            errors on all ranks.

    Raises:
        TypeError: An argument has the wrong type.
        RuntimeError: The state_dict of a channel with other settings is loaded.
        ValueError: An argument is out of range; a batch is too small while the bank is still empty; :meth:`sample`
            before the first training batch.

    Example:
        >>> channel = echo_ext.EchoChannel(num_terms=31)
        >>> f_raw, s_raw = torch.randn(64, 8), torch.randn(64, 8)
        >>> z, rate = channel(f_raw, s_raw)  # in place of mu + sigma * torch.randn_like(sigma)
        >>> loss = rate.sum(-1).mean()  # the exact I(x; z) in nats, to which a model adds its distortion
        >>> channel.eval()(f_raw[:1], s_raw[:1]).z.shape
        torch.Size([1, 8])
        >>> channel.sample(3).shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        num_terms: int = 99,
        *,
        bound: float = 1.0,
        activation_scale: float = 16.0,
        sampling: Sampling = "permutation",
        bank_size: int | None = None,
        multiplicative: bool = False,
        sync: Sync = False,
        gain: Gain = "auto",
        initial_std: float = 1.0,
    ) -> None:
        super().__init__("num_terms", num_terms, bank_size, bound, activation_scale, gain, initial_std)
        self.num_terms = num_terms
        self._sampling_code = sampling_code(sampling)
        self.scale = max_scale(num_terms, bound=bound)
        _checks.choice("sync", sync, (False, True, "gather"))
        self.sampling = sampling
        self.sync = sync
        self.multiplicative = multiplicative

    def forward(self, f_raw: Tensor, s_raw: Tensor) -> ChannelOutput:
        """Encode pre-activations.

        Args:
            f_raw, s_raw: ``(B, *)``, such as two outputs of a linear layer.

        Returns:
            z, of their dtype, and the exact rate in nats per dimension; both ``(B, *)``.
        """
        if self.training and self._num_ranks() > 1:
            return self._encode_across_ranks(f_raw, s_raw)
        return self._encode(f_raw, s_raw, None)

    @_disable_dynamo
    def _encode_across_ranks(self, f_raw: Tensor, s_raw: Tensor) -> ChannelOutput:
        from echo_ext.distributed._collectives import Ranks

        ranks = Ranks(None)
        with ranks.guard(f_raw, s_raw):
            return self._encode(f_raw, s_raw, ranks)

    def _encode(self, f_raw: Tensor, s_raw: Tensor, ranks: Ranks | None) -> ChannelOutput:
        matching_pair("f_raw", f_raw, "s_raw", s_raw)
        f, log_s = self._code(f_raw), self._log_scale(s_raw)
        s = log_s.exp().to(f.dtype)
        if self.training:
            z = self._sample_in_training(f, s, ranks)
        elif self.has_bank:
            z = self._in_units(self._make_noise(f, s, *self._bank_like(f), exclude_self=False))
        else:
            self._refuse_small(len(f), self.num_terms + 1, "train a batch first, give a larger batch")
            z = self._in_units(self._make_noise(f, s, f, s, exclude_self=True))
        return ChannelOutput(z.exp() if self.multiplicative else z, -log_s)

    def signal(self, f_raw: Tensor, s_raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``gain * f`` and ``log s`` of pre-activations; both ``(B, *)``."""
        return super().mean(f_raw), self._log_scale(s_raw)

    def _log_scale(self, s_raw: Tensor) -> Tensor:
        # In at least float32: a rate must not be rounded to a half type's three digits.
        wide = torch.promote_types(s_raw.dtype, torch.float32)
        return math.log(self.scale) + functional.logsigmoid(s_raw.to(wide))

    def mean(self, f_raw: Tensor) -> Tensor:
        """Return the code without noise in the units of z, ``gain * f``, or its exp if multiplicative: ``(B, *)``."""
        f = super().mean(f_raw)
        return f.exp() if self.multiplicative else f

    def without_gain(self, z: Tensor) -> Tensor:
        """Return ``f + s * eps`` of codes z, in the units of the paper: ``(B, *)``."""
        plain = z.log() if self.multiplicative else z
        return plain if self._needs_gain else plain / self.gain.to(z.dtype, copy=True)

    def sample(self, n: int) -> Tensor:
        """Draw from the marginal q(z), the optimal prior: ``(n, *)``, of the dtype and on the device of the bank."""
        if not self.has_bank:
            raise ValueError("sample() draws from rows seen in training, and there are none yet: train a batch first")
        noise = echo_noise(
            None, None, size=n, num_terms=self.num_terms, sampling=self.sampling, bank=(self.bank_f, self.bank_s)
        )
        z = self._in_units(noise)
        return z.exp() if self.multiplicative else z

    def _sample_in_training(self, f: Tensor, s: Tensor, ranks: Ranks | None) -> Tensor:
        rows = f.shape[0]
        if self.has_bank:
            self._check_width(f)
        # Each rank brings its share of the terms, so that none has to know how many the others have.
        missing = -(-(self.num_terms + 1) // (1 if ranks is None else ranks.size)) - rows
        z = self._in_units(self._noisy(*self._filled_up(f, s, missing), ranks)[:rows], ranks)
        self._remember(f.detach(), s.detach())
        return z

    def _noisy(self, f: Tensor, s: Tensor, ranks: Ranks | None) -> Tensor:
        if ranks is None:
            return self._make_noise(f, s, f, s, exclude_self=True)
        from echo_ext.distributed._collectives import CALL
        from echo_ext.distributed.echo import sample_across

        settings = ["num_terms", "bound", "activation_scale", "multiplicative", "sync"]
        settings += ["gain_setting", "initial_std", "has_bank"]
        agreed = {CALL: "EchoChannel", **{f"the channel's {name}": getattr(self, name) for name in settings}}
        if self.sync == "gather":
            return sample_across(f, s, ranks, agreed, num_terms=self.num_terms, sampling=self.sampling)
        return sample_across(f, s, ranks, agreed)

    def _num_ranks(self) -> int:
        joined = self.sync and torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_world_size() if joined else 1

    def _make_noise(self, f: Tensor, s: Tensor, bank_f: Tensor, bank_s: Tensor, *, exclude_self: bool) -> Tensor:
        """z of a batch that has been checked."""
        count = term_count(self.num_terms, bank_rows=bank_f.shape[0], exclude_self=exclude_self)
        seed = seed_tensor(None, f.device)
        return make_noise(EchoCall(f, s, bank_f, bank_s, seed, f.shape[0], count, self._sampling_code, exclude_self))

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return (
            f"num_terms={self.num_terms}, bound={self.bound}, activation_scale={self.activation_scale}, "
            f"sampling={self.sampling!r}, bank_size={self.bank_size}, multiplicative={self.multiplicative}, "
            f"sync={self.sync!r}, gain={self.gain_setting!r}, initial_std={self.initial_std}"
        )


class EchoMatrixChannel(_BankedChannel):
    """Echo noise with a matrix for each row, ``z = f + S eps`` (:func:`echo_ext.echo_sample_matrix`).

    The noises of the dimensions of the latent may depend on each other, given the input. ``z = gain * (f + S eps)``
    with ``f = bound * tanh(f_raw / activation_scale)`` and ``S = r L^{-1} A``, where A is lower triangular with a
    positive diagonal (its logarithm is given) and ``L L^T = I + A A^T``. If a are the singular values of A, those of S
    are ``r a / sqrt(1 + a^2) < r``, whatever A is; S is lower triangular too, so that ``-log|det S|`` is the sum over
    the dimensions of ``-log S_jj = log L_jj - log A_jj - log r``. A diagonal A is :class:`EchoChannel` with
    ``s = r sqrt(sigmoid(2 log A_jj))``.

    Args:
        dim: The number d of dimensions of the latent, at most 64.
        min_other_rows: The minimum number of other rows in a batch; ``r = max_scale(min_other_rows, bound=bound *
            sqrt(d))``. A larger number allows lower rates and needs larger batches.
        bound, activation_scale, gain, initial_std: As in :class:`EchoChannel`.
        bank_size: The number of rows of the bank, as in :class:`EchoChannel`.

    Raises:
        TypeError: An argument has the wrong type.
        RuntimeError: The state_dict of a channel with other settings is loaded.
        ValueError: An argument is out of range; a batch has fewer than min_other_rows + 1 rows while the bank is still
            empty; :meth:`sample` before the first training batch.

    Example:
        >>> channel = echo_ext.EchoMatrixChannel(dim=3, min_other_rows=31)
        >>> f_raw, s_raw = torch.randn(64, 3), torch.randn(64, channel.num_scale_features)
        >>> z, rate = channel(f_raw, s_raw)
        >>> z.shape, rate.sum(-1).shape
        (torch.Size([64, 3]), torch.Size([64]))
    """

    def __init__(
        self,
        dim: int,
        min_other_rows: int = 99,
        *,
        bound: float = 1.0,
        activation_scale: float = 16.0,
        bank_size: int | None = None,
        gain: Gain = "auto",
        initial_std: float = 1.0,
    ) -> None:
        super().__init__("min_other_rows", min_other_rows, bank_size, bound, activation_scale, gain, initial_std)
        self.min_other_rows = min_other_rows
        self.dim = _checks.whole("dim", dim, minimum=1, maximum=MAX_DIM)
        self.scale = max_scale(min_other_rows, bound=bound * math.sqrt(dim))

    @property
    def num_scale_features(self) -> int:
        """The number of values that describe A for one row, d (d + 1) / 2."""
        return self.dim * (self.dim + 1) // 2

    def forward(self, f_raw: Tensor, s_raw: Tensor) -> ChannelOutput:
        """Encode pre-activations.

        Args:
            f_raw: (B, d).
            s_raw: (B, d (d + 1) / 2): the logarithms of the diagonal of A, then the rest of its lower triangle, row by
                row.

        Returns:
            z (B, d), of the dtype of f_raw, and the share of each dimension in the rate (B, d), in nats.
        """
        for name, raw, width in (("f_raw", f_raw, self.dim), ("s_raw", s_raw, self.num_scale_features)):
            if _checks.floating_tensor(name, raw).shape != (f_raw.shape[0], width):
                raise ValueError(f"{name} must have shape (B, {width}), got {tuple(raw.shape)}")
        f = self._code(f_raw)
        scale, rate = self.scale_and_rate(s_raw)
        scale = scale.to(f.dtype)
        if self.training:
            z = self._sample_in_training(f, scale)
        elif self.has_bank:
            z = self._in_units(f + _multiply(scale, self._draw(len(f), f)))
        else:
            self._refuse_small(len(f), self.min_other_rows + 1, "train a batch first, give a larger batch")
            z = self._in_units(echo_sample_matrix(f, scale))
        return ChannelOutput(z, rate)

    def scale_and_rate(self, s_raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return S (B, d, d) and the share of each dimension in ``-log|det S|`` (B, d), in at least float32."""
        s_raw = s_raw.to(torch.promote_types(s_raw.dtype, torch.float32))
        log_diagonal, rest = s_raw[:, : self.dim], s_raw[:, self.dim :]
        rows, columns = torch.tril_indices(self.dim, self.dim, -1, device=s_raw.device)
        a = torch.diag_embed(log_diagonal.exp())
        a[:, rows, columns] = rest
        identity = torch.eye(self.dim, dtype=a.dtype, device=a.device)
        factor = torch.linalg.cholesky(identity + a @ a.mT)
        scale = self.scale * torch.linalg.solve_triangular(factor, a, upper=False)
        return scale, factor.diagonal(dim1=-2, dim2=-1).log() - log_diagonal - math.log(self.scale)

    def sample(self, n: int) -> Tensor:
        """Draw from the marginal q(z), the optimal prior: (n, d), of the dtype and on the device of the bank."""
        return self._in_units(self._draw(_checks.row_count("n", n, minimum=1), self.bank_f))

    def _sample_in_training(self, f: Tensor, scale: Tensor) -> Tensor:
        rows = f.shape[0]
        z = self._in_units(echo_sample_matrix(*self._filled_up(f, scale, self.min_other_rows + 1 - rows))[:rows])
        self._remember(f.detach(), scale.detach())
        return z

    def _draw(self, n: int, like: Tensor) -> Tensor:
        """Noises from the bank: rows of as many circles as are needed to use every row once."""
        if not self.has_bank:
            raise ValueError("noise is made of rows seen in training, and there are none yet: train a batch first")
        bank_f, bank_s = self._bank_like(like)
        circles = -(-n // self.bank_size)
        drawn = torch.cat([echo_sample_matrix(bank_f, bank_s) for _ in range(circles)])
        return drawn[torch.randperm(len(drawn), device=like.device)[:n]]

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return (
            f"{self.dim}, min_other_rows={self.min_other_rows}, bound={self.bound}, "
            f"activation_scale={self.activation_scale}, bank_size={self.bank_size}, gain={self.gain_setting!r}, "
            f"initial_std={self.initial_std}"
        )


def _multiply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
