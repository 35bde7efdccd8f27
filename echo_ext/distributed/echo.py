"""Echo noise whose terms are the rows of all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable

from echo_ext import _checks
from echo_ext._native import dense
from echo_ext.distributed._collectives import CALL, Ranks, is_capturing
from echo_ext.distributed._rows import gather_rows, in_rank_order, own_first
from echo_ext.echo._arguments import RING, EchoCall, Sampling, matching_pair, sampling_code, seed_tensor, term_count
from echo_ext.echo._noise import draw_indices, make_noise
from echo_ext.echo.scan import Composition, periodic, scan, scan_backward

# From one rank's seed to the next: every rank orders its rows by a key of its own. Rank 0 has the seed itself.
SEED_STEP = 0x1E3779B97F4A7C15


def echo_sample(
    f: Tensor,
    s: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    seed: int | Tensor | None = None,
    sampling: Sampling = "ring",
    num_terms: int | None = None,
) -> Tensor:
    r"""Pass the rows of this rank through the Echo channel; their noise is made of the rows of all ranks.

    The rows of all ranks lie on one circle, each rank's in a random order of its own, and ``z_p = f_p + s_p * z_{p+1}``
    around it: the periodic form of the ring of :func:`echo_ext.echo_sample`, which differs from B - 1 terms by ``prod
    |s|`` over the whole circle. A rank composes its rows into one affine map. One all-gather of these 2 d numbers, and
    one of d numbers in the backward pass, closes the circle, so that communication does not depend on the batch. (Each
    takes 4 KiB; numbers that do not fit into 3 KiB follow in a second one.) If the rows of the ranks are independent
    draws from one source, each row has the distribution of :func:`echo_ext.echo_sample` on the joined batch, whatever
    the order of the ranks.

    Gradients flow across ranks: each rank's f and s receive the derivative of the *sum* of all ranks' losses, and every
    rank must take part in the backward pass. DistributedDataParallel averages the gradients of parameters over the W
    ranks, which yields the gradient of the mean of the ranks' losses. For the gradient of the mean over the joined
    batch of N rows, let the loss of a rank be ``W / N`` times the sum over its rows; where batches are equal, this is
    their mean. torch.compile breaks its graph around this function.

    Args:
        f, s: The tensors ``(B, *)`` of this rank, as in :func:`echo_ext.echo_sample`. B may differ between ranks and be
            0; the shape and dtype of a row may not.
        group: The ranks. None for all of them, or for this process alone where torch.distributed is not initialized.
        seed: Orders the rows of this rank, together with its rank. Ranks may pass the same seed or different ones.
        sampling: ``"ring"``; or ``"permutation"`` or ``"replacement"``, for which every rank gathers all rows, with
            O(N d) communication and memory, and each row draws from all others.
        num_terms: As in :func:`echo_ext.echo_sample`. Not for "ring", which has no last term.

    Returns:
        z, ``(B, *)``, of the rows of this rank.

    Raises:
        TypeError, ValueError: As in :func:`echo_ext.echo_sample`. Also fewer than two rows on all ranks together;
            num_terms with "ring"; ranks that differ in sampling, num_terms, the shape, dtype or device type of a row,
            or in whether a gradient is needed; ranks of which one is in a backward pass and another is not. The errors
            are raised on all ranks. Only seeds may differ. On CUDA, where the backward pass of the ring does not wait
            for the device, ranks that are not in the same backward pass get gradients of NaN instead.
        RuntimeError: A rank is missing (the process group's own error, after its timeout); a double backward.

    Example:
        >>> f = torch.randn(8, 2)  # in each process that torchrun has started; here there is one
        >>> echo_ext.distributed.echo_sample(f, torch.full_like(f, 0.5), seed=0).shape
        torch.Size([8, 2])
    """
    z: Tensor = _call(f, s, group, seed, sampling, num_terms)
    return z


@_disable_dynamo  # a compiled model breaks its graph here, as at any collective
def _call(
    f: Tensor,
    s: Tensor,
    group: dist.ProcessGroup | None,
    seed: int | Tensor | None,
    sampling: Sampling,
    num_terms: int | None,
) -> Tensor:
    ranks = Ranks(group)
    with ranks.guard(f, s):
        f, s = matching_pair("f", f, "s", s)
        return sample_across(f, s, ranks, {CALL: "echo_sample"}, seed=seed, sampling=sampling, num_terms=num_terms)


def sample_across(
    f: Tensor,
    s: Tensor,
    ranks: Ranks,
    agreed: Mapping[str, object],
    *,
    seed: int | Tensor | None = None,
    sampling: Sampling = "ring",
    num_terms: int | None = None,
) -> Tensor:
    """Do the work of :func:`echo_sample` on a pair that has been checked.

    Args:
        ranks: The caller is inside their ``guard``.
        agreed: What the ranks must agree on in addition, by name.
    """
    code = sampling_code(sampling)
    if num_terms is not None:
        if sampling == "ring":
            raise ValueError(f"num_terms must be None for sampling='ring' across ranks, got {num_terms}")
        num_terms = _checks.row_count("num_terms", num_terms, minimum=1)
    seed = rank_seed(seed_tensor(seed, f.device), ranks.rank)
    agreed = {
        **agreed,
        "sampling": repr(sampling),
        "num_terms": num_terms,
        "the dtype of f": f.dtype,
        "the shape of f's rows": tuple(f.shape[1:]),
        "the device type of f": f.device.type,
        "whether a gradient is needed": torch.is_grad_enabled() and (f.requires_grad or s.requires_grad),
    }
    if sampling == "ring":
        return _GlobalRing.apply(f, s, seed, ranks, agreed)  # type: ignore[no-untyped-call, no-any-return]
    return _Gathered.apply(f, s, seed, ranks, agreed, code, num_terms)  # type: ignore[no-untyped-call, no-any-return]


def ring_order(sizes: Sequence[int], seed: int) -> Tensor:
    """Return the circle of :func:`echo_sample`, on the CPU.

    Args:
        sizes: The number of rows of each rank.
        seed: The seed that all ranks pass.

    Returns:
        Which row of the joined batch (the rows of rank 0 first) lies at each position, int64 (sum(sizes),). The row at
        position p has the noise ``f_{p+1} + s_{p+1} * (f_{p+2} + ...)``.

    Example:
        >>> echo_ext.distributed.ring_order([2, 3], seed=0).sort().values
        tensor([0, 1, 2, 3, 4])
    """
    first, parts = 0, []
    for rank, size in enumerate(sizes):
        parts.append(first + local_order(size, rank_seed(torch.tensor(seed, device="cpu"), rank)))
        first += size
    return torch.cat(parts)


def rank_seed(seed: Tensor, rank: int) -> Tensor:
    """A seed for each rank: additions wrap around."""
    step = (SEED_STEP * rank + 2**63) % 2**64 - 2**63
    return seed + step


def local_order(rows: int, seed: Tensor) -> Tensor:
    """A keyed order of a rank's rows: the circle that the native ring uses with this seed."""
    if rows == 0:
        return torch.empty(0, dtype=torch.int64, device=seed.device)
    return draw_indices(seed, 1, rows, rows, RING, False).squeeze(0)


# ---- The ring --------------------------------------------------------------------------------------------------------


class _GlobalRing(torch.autograd.Function):
    """``z_p = f_p + s_p z_{p+1}``

    Its adjoint is ``v_p = grad_p + s_{p-1} v_{p-1}``, ``df_p = v_p``, ``ds_p = v_p z_{p+1}``.
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor, s: Tensor, seed: Tensor, ranks: Ranks, agreed: Mapping[str, object]) -> Tensor:
        order = local_order(f.shape[0], seed)
        flat = (f.shape[0], math.prod(f.shape[1:]))
        flat_f, flat_s = dense(f.reshape(flat)), dense(s.reshape(flat))
        composition = Composition(order, flat_f, flat_s)
        sizes, maps = ranks.exchange(f.shape[0], agreed, composition.total)
        if sum(sizes) < 2 and not is_capturing(f.device):
            raise ValueError(f"f must have at least 2 rows on all ranks together, got {sum(sizes)}")
        constants, scales = maps.view(ranks.size, 2, -1).unbind(1)
        # What follows this rank's last row: the whole turn from the next rank on.
        entry = periodic(constants.roll(-1 - ranks.rank, 0), scales.roll(-1 - ranks.rank, 0))
        z = scan(order, flat_f, flat_s, entry, composition)
        ctx.save_for_backward(flat_s, z, entry, scales, order)
        ctx.ranks = ranks
        return z.view(f.shape).to(f.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ranks: Ranks = ctx.ranks
        with ranks.guard(grad):
            s, z, entry, scales, order = ctx.saved_tensors
            flat = dense(grad.reshape(s.shape))
            composition = Composition(order, flat, s, backward=True)
            constants = ranks.exchange_back("echo_sample", composition.total[0])
        # What precedes this rank's first row: the whole turn from the rank before, in reverse.
        entry_back = periodic(constants.flip(0).roll(ranks.rank, 0), scales.flip(0).roll(ranks.rank, 0))
        grad_f, grad_s = scan_backward(order, s, flat, z, entry, entry_back, composition)
        return grad_f.view(grad.shape), grad_s.view(grad.shape), None, None, None


# ---- All rows on every rank ------------------------------------------------------------------------------------------


class _Gathered(torch.autograd.Function):
    """This rank's rows come first in the joined batch, of which the op makes the noise of just these."""

    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        s: Tensor,
        seed: Tensor,
        ranks: Ranks,
        agreed: Mapping[str, object],
        sampling: int,
        num_terms: int | None,
    ) -> Tensor:
        parts, ctx.sizes = gather_rows(torch.stack([f, s], 1), ranks, agreed)
        all_f, all_s = (joined.contiguous() for joined in own_first(parts, ranks.rank).unbind(1))
        count = term_count(num_terms, bank_rows=len(all_f), exclude_self=True)
        call = EchoCall(all_f, all_s, all_f, all_s, seed, f.shape[0], count, sampling, exclude_self=True)
        ctx.save_for_backward(all_f, all_s, seed)
        ctx.settings, ctx.ranks = call.settings, ranks
        return make_noise(call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ranks: Ranks = ctx.ranks
        with ranks.guard(grad):
            all_f, all_s, seed = ctx.saved_tensors
            operands = (grad, all_s, all_f, all_s, seed, *ctx.settings)
            _, grad_f, grad_s = torch.ops.echo_ext.echo_backward.default(*operands)
            ranks.exchange_back("echo_sample", grad.new_empty(0))
        joined = in_rank_order(torch.stack([grad_f, grad_s], 1), ctx.sizes, ranks.rank)
        own = ranks.all_reduce(joined).split(ctx.sizes)[ranks.rank]
        return own[:, 0], own[:, 1], *[None] * 5
