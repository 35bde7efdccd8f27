"""The Echo channel as a module: a drop-in for ``mu + sigma * torch.randn_like(sigma)``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional

from echo_ext import _checks
from echo_ext.distributed._echo import send
from echo_ext.distributed._ranks import CALL, Ranks
from echo_ext.matrix import MAX_DIM, echo_sample_matrix
from echo_ext.ops import echo_noise, echo_sample, max_scale

__all__ = ["ChannelOutput", "EchoChannel", "EchoMatrixChannel"]


class ChannelOutput(NamedTuple):
    """What a channel makes of a batch: the latent ``z`` (B, *) and its ``rate`` (B, *) in nats per dimension."""

    z: Tensor
    rate: Tensor


class _BankedChannel(nn.Module):
    """A channel that remembers recent training rows: buffers ``bank_f`` and ``bank_s``."""

    bank_f: Tensor
    bank_s: Tensor

    def __init__(self, num_terms: int, bank_size: int | None) -> None:
        super().__init__()
        _checks.row_count("num_terms", num_terms, least=1)
        self.num_terms = num_terms
        self.bank_size = max(1024, num_terms) if bank_size is None else bank_size
        _checks.row_count("bank_size", self.bank_size, least=num_terms)
        # Their width is that of the first training batch.
        self.register_buffer("bank_f", torch.empty(0))
        self.register_buffer("bank_s", torch.empty(0))

    @property
    def has_bank(self) -> bool:
        """Whether a training batch has filled the bank."""
        return self.bank_f.numel() > 0

    def _check_width(self, f: Tensor) -> None:
        if self.bank_f.shape[1:] != f.shape[1:]:
            raise ValueError(
                f"f_raw must have rows of shape {tuple(self.bank_f.shape[1:])}, as in training, "
                f"but they have {tuple(f.shape[1:])}"
            )

    def _bank_like(self, f: Tensor) -> tuple[Tensor, Tensor]:
        self._check_width(f)
        return self.bank_f.to(f.dtype), self.bank_s.to(f.dtype)

    def _filled_up(self, f: Tensor, s: Tensor, missing: int) -> tuple[Tensor, Tensor]:
        """A training batch that lacks so many rows, with the bank's newest behind its own."""
        if missing <= 0:
            return f, s
        if not self.has_bank:
            raise ValueError(
                f"f_raw has {len(f)} rows, but num_terms={self.num_terms} needs {len(f) + missing} and the bank is "
                "still empty: let the first training batch be a full one, or use fewer terms"
            )
        bank_f, bank_s = self._bank_like(f)
        return torch.cat([f, bank_f[:missing]]), torch.cat([s, bank_s[:missing]])

    @torch.no_grad()
    def _remember(self, f: Tensor, s: Tensor) -> None:
        """Put the newest rows first and drop the oldest."""
        if not self.has_bank:
            repeats = -(-self.bank_size // f.shape[0])
            self.bank_f = f.repeat(repeats, *[1] * (f.ndim - 1))[: self.bank_size].clone()
            self.bank_s = s.repeat(repeats, *[1] * (s.ndim - 1))[: self.bank_size].clone()
            return
        self._bank_like(f)
        self.bank_f.copy_(torch.cat([f.to(self.bank_f.dtype), self.bank_f])[: self.bank_size])
        self.bank_s.copy_(torch.cat([s.to(self.bank_s.dtype), self.bank_s])[: self.bank_size])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The saved bank decides the width; load it into buffers of its shape.
        for name in ("bank_f", "bank_s"):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != getattr(self, name).shape:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class EchoChannel(_BankedChannel):
    """Echo noise with the paper's parameterisation (Brekelmans et al. 2019, section 3 and appendix C).

    ``f = bound * tanh(f_raw / activation_scale)`` and ``log s = log r + logsigmoid(s_raw)`` with
    ``r = max_scale(num_terms, bound=bound)``; the same r bounds the noise and enters the rate, which is therefore
    exact.

    In training a row's noise is made of the other rows of its batch, and gradients flow through it. The module keeps a
    bank of recent training rows (buffers ``bank_f`` and ``bank_s``, saved in the state_dict), as BatchNorm keeps its
    statistics: in eval mode noise is made of the bank, so that a single sample can be encoded, independently of what
    else is in its batch. The first training batch fills the whole bank, by repetition if need be; a training batch with
    too few rows for num_terms is filled up from it. Activation checkpointing recomputes a batch with the same noise but
    puts it into the bank twice, as BatchNorm counts it twice; leave batches that are filled up from the bank out of it.

    Args:
        num_terms: terms of each noise; more terms allow lower rates (the floor is ``-log r`` nats per dimension, 0.179
            at 99 terms) and need larger batches.
        bound: the largest ``|f|``.
        activation_scale: how far f_raw goes before tanh saturates.
        sampling: "permutation", "replacement" or "ring", see :func:`echo_ext.echo_sample`, also for what NaN and
            infinity reach.
        bank_size: rows of the bank; None for 1024, or num_terms where that is more.
        multiplicative: ``z = exp(f + s * eps)`` instead; the information is the same.
        sync: in training, make the noise of the rows of all ranks of torch.distributed, as SyncBatchNorm takes its
            statistics, so that num_terms may exceed one rank's batch. True: one ring around all ranks, whatever
            ``sampling`` says, see :func:`echo_ext.distributed.echo_sample`. "gather": every rank gathers all rows and
            draws from them by ``sampling``. Each rank remembers its own rows; without several ranks sync does nothing.
            Channels that differ between ranks, and a batch that one rank refuses, are errors on all ranks.

    Raises:
        ValueError: an argument is out of range; a batch is too small and the bank is still empty; eval mode or
            :meth:`sample` before any training batch.
    """

    def __init__(
        self,
        num_terms: int = 99,
        *,
        bound: float = 1.0,
        activation_scale: float = 16.0,
        sampling: str = "permutation",
        bank_size: int | None = None,
        multiplicative: bool = False,
        sync: bool | str = False,
    ) -> None:
        super().__init__(num_terms, bank_size)
        _checks.sampling_code(sampling)
        self.scale = max_scale(num_terms, bound=bound)
        _checks.number("activation_scale", activation_scale, above=0)
        if sync not in (False, True, "gather"):
            raise ValueError(f"sync must be False, True or 'gather', got {sync!r}")
        self.bound = bound
        self.activation_scale = activation_scale
        self.sampling = sampling
        self.sync = sync
        self.multiplicative = multiplicative

    def forward(self, f_raw: Tensor, s_raw: Tensor) -> ChannelOutput:
        """Encode (B, *) pre-activations: ``z`` of their dtype and the exact rate; both (B, *)."""
        if self.training and self._num_ranks() > 1:
            return self._encode_across_ranks(f_raw, s_raw)
        return self._encode(f_raw, s_raw, None)

    @_disable_dynamo
    def _encode_across_ranks(self, f_raw: Tensor, s_raw: Tensor) -> ChannelOutput:
        ranks = Ranks(None)
        with ranks.guard(f_raw, s_raw):
            return self._encode(f_raw, s_raw, ranks)

    def _encode(self, f_raw: Tensor, s_raw: Tensor, ranks: Ranks | None) -> ChannelOutput:
        _checks.matching_pair("f_raw", f_raw, "s_raw", s_raw)
        f, log_s = self.signal(f_raw, s_raw)
        s = log_s.exp().to(f.dtype)
        z = self._send_in_training(f, s, ranks) if self.training else self._send_in_eval(f, s)
        return ChannelOutput(z.exp() if self.multiplicative else z, -log_s)

    def signal(self, f_raw: Tensor, s_raw: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``log s`` of pre-activations; both (B, *)."""
        f = self.bound * torch.tanh(f_raw / self.activation_scale)
        # In at least float32: a rate must not be rounded to a half type's three digits.
        wide = torch.promote_types(s_raw.dtype, torch.float32)
        return f, math.log(self.scale) + functional.logsigmoid(s_raw.to(wide))

    def sample(self, n: int) -> Tensor:
        """``n`` draws from the marginal q(z), the optimal prior: (n, *) of the bank's dtype and device."""
        if not self.has_bank:
            raise ValueError("sample() draws from the rows seen in training, but there were none: train a batch first")
        noise = echo_noise(
            None, None, size=n, num_terms=self.num_terms, sampling=self.sampling, bank=(self.bank_f, self.bank_s)
        )
        return noise.exp() if self.multiplicative else noise

    def _send_in_training(self, f: Tensor, s: Tensor, ranks: Ranks | None) -> Tensor:
        rows = f.shape[0]
        if self.has_bank:
            self._check_width(f)
        # Each rank brings its share of the terms, so that none has to know how many the others have.
        missing = -(-(self.num_terms + 1) // (1 if ranks is None else ranks.size)) - rows
        z = self._noisy(*self._filled_up(f, s, missing), ranks)[:rows]
        self._remember(f.detach(), s.detach())
        return z

    def _noisy(self, f: Tensor, s: Tensor, ranks: Ranks | None) -> Tensor:
        if ranks is None:
            return echo_sample(f, s, num_terms=self.num_terms, sampling=self.sampling)
        settings = ("num_terms", "bound", "activation_scale", "multiplicative", "sync")
        agreed = {CALL: "EchoChannel", **{f"the channel's {name}": getattr(self, name) for name in settings}}
        if self.sync == "gather":
            return send(f, s, ranks, agreed, num_terms=self.num_terms, sampling=self.sampling)
        return send(f, s, ranks, agreed)

    def _num_ranks(self) -> int:
        joined = self.sync and torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_world_size() if joined else 1

    def _send_in_eval(self, f: Tensor, s: Tensor) -> Tensor:
        if not self.has_bank:
            raise ValueError("eval mode draws from the rows seen in training, but there were none: train a batch first")
        return echo_sample(f, s, num_terms=self.num_terms, sampling=self.sampling, bank=self._bank_like(f))

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"num_terms={self.num_terms}, bound={self.bound}, activation_scale={self.activation_scale}, "
            f"sampling={self.sampling!r}, bank_size={self.bank_size}, multiplicative={self.multiplicative}, "
            f"sync={self.sync!r}"
        )


class EchoMatrixChannel(_BankedChannel):
    """Echo noise with a matrix for each row, ``z = f + S eps`` (:func:`echo_ext.echo_sample_matrix`).

    The noise of the latent's dimensions may depend on each other, given x. ``f = bound * tanh(f_raw /
    activation_scale)``; ``S = r L^{-1} A``, where A is lower triangular with positive diagonal (its logarithm is given)
    and ``L L^T = I + A A^T``. If a are the singular values of A, those of S are ``r a / sqrt(1 + a^2) < r``, whatever A
    is; S is lower triangular too, so that ``-log|det S|`` is the sum over the dimensions of ``-log S_jj = log L_jj -
    log A_jj - log r``. A diagonal A is :class:`EchoChannel` with ``s = r sqrt(sigmoid(2 log A_jj))``.

    Args:
        dim: d, the latent's dimensions, at most 64.
        num_terms: rows of a batch beside the row itself, at least: ``r = max_scale(num_terms, bound=bound * sqrt(d))``.
        bound, activation_scale: as :class:`EchoChannel`.
        bank_size: rows of the bank, as there.

    Raises:
        ValueError: an argument is out of range; a batch has fewer than num_terms + 1 rows and the bank is still empty;
            eval mode or :meth:`sample` before any training batch.
    """

    def __init__(
        self,
        dim: int,
        num_terms: int = 99,
        *,
        bound: float = 1.0,
        activation_scale: float = 16.0,
        bank_size: int | None = None,
    ) -> None:
        super().__init__(num_terms, bank_size)
        if _checks.row_count("dim", dim, least=1) > MAX_DIM:
            raise ValueError(f"dim must be between 1 and {MAX_DIM}, got {dim}")
        self.scale = max_scale(num_terms, bound=_checks.number("bound", bound, above=0) * math.sqrt(dim))
        _checks.number("activation_scale", activation_scale, above=0)
        self.dim = dim
        self.bound = bound
        self.activation_scale = activation_scale

    @property
    def num_scale_features(self) -> int:
        """How many numbers describe one row's A: d (d + 1) / 2."""
        return self.dim * (self.dim + 1) // 2

    def forward(self, f_raw: Tensor, s_raw: Tensor) -> ChannelOutput:
        """Encode ``f_raw`` (B, d) and ``s_raw`` (B, d (d + 1) / 2), the logarithms of A's diagonal before the rest of
        its lower triangle, row by row: ``z`` (B, d) and the rate's share of each dimension (B, d), in nats.
        """
        for name, raw, width in (("f_raw", f_raw, self.dim), ("s_raw", s_raw, self.num_scale_features)):
            if _checks.floating_tensor(name, raw).shape != (f_raw.shape[0], width):
                raise ValueError(f"{name} must have shape (B, {width}), got {tuple(raw.shape)}")
        f = self.bound * torch.tanh(f_raw / self.activation_scale)
        scale, rate = self.scale_and_rate(s_raw)
        scale = scale.to(f.dtype)
        z = self._send_in_training(f, scale) if self.training else f + _multiply(scale, self._draw(len(f), f))
        return ChannelOutput(z, rate)

    def scale_and_rate(self, s_raw: Tensor) -> tuple[Tensor, Tensor]:
        """S (B, d, d) and each dimension's share of ``-log|det S|`` (B, d), in at least float32."""
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
        """``n`` draws from the marginal q(z), the optimal prior: (n, d) of the bank's dtype and device."""
        return self._draw(_checks.row_count("n", n, least=1), self.bank_f)

    def _send_in_training(self, f: Tensor, scale: Tensor) -> Tensor:
        rows = f.shape[0]
        z = echo_sample_matrix(*self._filled_up(f, scale, self.num_terms + 1 - rows))[:rows]
        self._remember(f.detach(), scale.detach())
        return z

    def _draw(self, n: int, like: Tensor) -> Tensor:
        """Noises from the bank: a row of each of as many circles as give every row once."""
        if not self.has_bank:
            raise ValueError("noise is drawn from the rows seen in training, but there were none: train a batch first")
        bank_f, bank_s = self._bank_like(like)
        circles = -(-n // self.bank_size)
        drawn = torch.cat([echo_sample_matrix(bank_f, bank_s) for _ in range(circles)])
        return drawn[torch.randperm(len(drawn), device=like.device)[:n]]

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"{self.dim}, num_terms={self.num_terms}, bound={self.bound}, activation_scale={self.activation_scale}, "
            f"bank_size={self.bank_size}"
        )


def _multiply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
