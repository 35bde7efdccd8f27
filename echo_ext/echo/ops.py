"""Echo noise as functions.

Source: Brekelmans, Moyer, Galstyan and Ver Steeg, "Exact Rate-Distortion in Autoencoders via Echo Noise", NeurIPS 2019.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.echo._arguments import (
    EchoCall,
    Sampling,
    bank_pair,
    matching_pair,
    sampling_code,
    seed_tensor,
    term_count,
)
from echo_ext.echo._noise import draw_indices, make_noise
from echo_ext.echo._op import is_plain

__all__ = ["echo_indices", "echo_noise", "echo_rate", "echo_sample", "max_scale"]


def echo_sample(
    f: Tensor,
    s: Tensor,
    *,
    num_terms: int | None = None,
    sampling: Sampling = "permutation",
    bank: tuple[Tensor, Tensor] | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    r"""Pass a batch through the Echo channel: ``z = f + s * eps``, elementwise.

    The noise of row i is made of other rows, ``eps_i = sum_l (s[j_0] ... s[j_{l-1}]) * f[j_l]``. The noise and z then
    have the same distribution, and the information that z carries about the input is exactly ``-log|s|``, see
    :func:`echo_rate` (Brekelmans et al. 2019, eqs. 3 and 4). Gradients flow through the noise.

    With "permutation" and "replacement", NaN, infinity and products that overflow propagate exactly as in the formula.
    With "ring" they may reach any row of their column, or none where a weight is 0 or rounds to 0. Other columns are
    never affected.

    Args:
        f, s: Tensors of one shape ``(B, *)``, dtype and device; dimension 0 is the sample. The dtype is float64,
            float32, bfloat16 or float16; half types accumulate in float32. Where ``|f|`` is bounded and
            ``|s| <= max_scale(num_terms)``, truncating the sum changes nothing beyond rounding.
        num_terms: The number of terms of each noise. More terms allow larger scales, and so lower rates, and take more
            time. None takes all that there are: B - 1, or the number of rows of the bank.
        sampling: How the rows of each noise are chosen.

            * ``"permutation"``: each row has its own uniform ordering of the other rows.
            * ``"replacement"``: uniform over the other rows, independently for each term.
            * ``"ring"``: all rows lie on one random circle and each row is followed by the rows after it. Each row's
              noise has the same distribution as with "permutation", at a cost that does not depend on num_terms. The
              noises of a batch depend on each other, however, which statistics across the batch (MMD, a
              discriminator) notice.
        bank: A pair (f_bank, s_bank) of tensors ``(K, *)``. The noise is made of these rows instead, none excluded; f
            may then have a single row.
        seed: An int, or an int64 tensor of one element on f's device. None draws one from PyTorch's generator of that
            device, so that ``torch.manual_seed`` makes runs repeat; the host is never synchronized.

    Returns:
        z, ``(B, *)``, of the dtype of f. With a given seed it is made of exactly the rows that :func:`echo_indices`
        names.

    Raises:
        TypeError: A tensor is not floating point, or dtypes differ.
        ValueError: Shapes or devices differ; there are fewer rows than num_terms needs, or fewer than 2 without a bank;
            the sampling is unknown; the seed does not fit 64 bits.
        RuntimeError: A CUDA tensor is given to a build without CUDA; a double backward is asked for.

    Example:
        >>> f = torch.tensor([[1.0], [2.0], [4.0]])
        >>> s = torch.full_like(f, 0.5)
        >>> echo_ext.echo_indices(3, seed=0)[1]  # the noise of row 1 is 1 + 0.5 * 4
        tensor([0, 2])
        >>> echo_ext.echo_sample(f, s, seed=0)  # row 1 is 2 + 0.5 * (1 + 0.5 * 4)
        tensor([[3.0000],
                [3.5000],
                [5.2500]])
    """
    f, s = _read_pair(f, s)
    call = _read_call(f, s, bank, f.shape[0], num_terms, sampling, seed)
    if bank is not None and _names_few_rows(bank, call):
        return (f + s * _gather_noise(call)).to(f.dtype)
    return make_noise(call)


def echo_noise(
    f: Tensor | None,
    s: Tensor | None,
    *,
    size: int | None = None,
    num_terms: int | None = None,
    sampling: Sampling = "permutation",
    bank: tuple[Tensor, Tensor] | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Make the noise of :func:`echo_sample` alone, ``eps``, with the same arguments and draws.

    Args:
        f, s: As in :func:`echo_sample`. They may be None where a bank and a size are given.
        size: The number of draws from the bank's marginal q(z), which is the distribution of the noise itself. None
            makes one noise for each row of f.
        num_terms, sampling, bank, seed: As in :func:`echo_sample`.

    Returns:
        The noise, ``(B, *)``, or ``(size, *)``.

    Raises:
        TypeError, ValueError, RuntimeError: As in :func:`echo_sample`. Also a size without a bank, or below 1.

    Example:
        >>> bank = torch.tensor([[1.0], [2.0], [4.0]]), torch.full((3, 1), 0.5)
        >>> echo_ext.echo_noise(None, None, size=4, bank=bank, seed=0).shape
        torch.Size([4, 1])
    """
    if f is None and s is None and bank is not None and size is not None:
        rows = 0
    else:
        f, s = _read_pair(f, s)
        rows = f.shape[0]
    if size is not None:
        if bank is None:
            raise ValueError(f"size must be None without a bank, got {size}; give bank=(f_bank, s_bank) to draw from")
        rows = _checks.row_count("size", size, minimum=1)
    call = _read_call(f, s, bank, rows, num_terms, sampling, seed)
    if bank is not None and _names_few_rows(bank, call):
        return _gather_noise(call).to(call.bank_f.dtype)
    return make_noise(call._replace(f=None, s=None))


def echo_indices(
    batch_size: int,
    *,
    num_terms: int | None = None,
    sampling: Sampling = "permutation",
    seed: int | Tensor,
    bank_size: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the rows that :func:`echo_sample` draws with a seed; they are the same on every device.

    Args:
        batch_size: The number of rows of f.
        num_terms: The number of terms of each noise; None for all that there are.
        sampling: As in :func:`echo_sample`.
        seed: An int, or an int64 tensor of one element on the device.
        bank_size: The number of rows of the bank; None where the batch is its own bank.
        device: The device of the result; None for the seed's, or the default device.

    Returns:
        int64 (batch_size, num_terms).

    Raises:
        TypeError, ValueError: As in :func:`echo_sample`.

    Example:
        >>> echo_ext.echo_indices(3, seed=0)
        tensor([[1, 2],
                [0, 2],
                [1, 0]])
    """
    rows = _checks.row_count("batch_size", batch_size, minimum=1)
    own_bank = bank_size is None
    bank_rows = rows if own_bank else _checks.row_count("bank_size", bank_size, minimum=1)
    count = term_count(num_terms, bank_rows=bank_rows, exclude_self=own_bank)
    code = sampling_code(sampling)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else torch.get_default_device()
    seed = seed_tensor(seed, torch.device(device))
    run = draw_indices if is_plain(seed) else torch.ops.echo_ext.echo_indices.default
    return run(seed, rows, bank_rows, count, code, own_bank)


def echo_rate(s: Tensor) -> Tensor:
    """Return the exact rate of the Echo channel, ``-log|s|``, in nats per dimension.

    Summed over the dimensions of a sample it is the pointwise information; its mean over samples is I(x; z)
    (Brekelmans et al. 2019, eq. 4).

    Args:
        s: The scales, of any shape.

    Returns:
        The rate, of the shape of s.

    Example:
        >>> echo_ext.echo_rate(torch.tensor([[0.5, 0.25]])).sum(-1)
        tensor([2.0794])
    """
    return -s.abs().log()


def max_scale(num_terms: int, *, bound: float = 1.0, tol: float = 2**-23) -> float:
    """Return the largest scale for which truncating the noise cannot be noticed.

    It is the root r of ``bound * r**num_terms / (1 - r) = tol`` (Brekelmans et al. 2019, appendix B). With ``|f| <=
    bound`` and ``|s| <= r``, dropping all terms after the first ``num_terms`` changes a noise by at most ``tol``. The
    minimum rate of the channel is ``-log r`` nats per dimension.

    Args:
        num_terms: The number of terms of each noise. More terms give a larger scale, and so a lower minimum rate.
        bound: The largest ``|f|``. A larger bound gives a smaller scale.
        tol: The largest change that is accepted; the default is the resolution of float32.

    Raises:
        TypeError: bound or tol is not a number.
        ValueError: num_terms is below 1, bound or tol is not positive, or the root is too small for a float.

    Example:
        >>> round(echo_ext.max_scale(99), 4)
        0.8359
    """
    count = _checks.row_count("num_terms", num_terms, minimum=1)
    bound, tol = _checks.number("bound", bound, above=0), _checks.number("tol", tol, above=0)
    log_ratio = math.log(tol) - math.log(bound)  # the ratio itself may be too small for a float
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            if low == 0.0:
                raise ValueError(f"tol must be larger for num_terms={count} and bound={bound}, got {tol}")
            return low
        if count * math.log(middle) - math.log1p(-middle) > log_ratio:
            high = middle
        else:
            low = middle


# ---- Reading the arguments -------------------------------------------------------------------------------------------


def _read_pair(f: Any, s: Any) -> tuple[Tensor, Tensor]:
    """f and s, checked; under autocast they may come out of their layers with different dtypes: take the wider."""
    if isinstance(f, Tensor) and isinstance(s, Tensor) and f.dtype != s.dtype:
        floating = f.is_floating_point() and s.is_floating_point()
        if floating and torch.is_autocast_enabled(f.device.type):
            wider = torch.promote_types(f.dtype, s.dtype)
            f, s = f.to(wider), s.to(wider)
    return matching_pair("f", f, "s", s)


def _read_call(
    f: Tensor | None,
    s: Tensor | None,
    bank: tuple[Tensor, Tensor] | None,
    rows: int,
    num_terms: int | None,
    sampling: Sampling,
    seed: int | Tensor | None,
) -> EchoCall:
    """The call of a batch that has been checked."""
    own_bank = bank is None
    bank_f, bank_s = (f, s) if bank is None else bank_pair(bank, f)
    assert bank_f is not None
    assert bank_s is not None
    count = term_count(num_terms, bank_rows=rows if own_bank else bank_f.shape[0], exclude_self=own_bank)
    code = sampling_code(sampling)
    return EchoCall(f, s, bank_f, bank_s, seed_tensor(seed, bank_f.device), rows, count, code, own_bank)


# ---- Few draws from a large bank -------------------------------------------------------------------------------------

# Draws that name fewer rows than one in so many are gathered where the kernels would copy the bank first.
FEW_ROWS = 64


def _names_few_rows(bank: tuple[Tensor, Tensor], call: EchoCall) -> bool:
    """Whether copying a bank that is not contiguous would cost far more than gathering the rows that are drawn."""
    if call.rows * call.num_terms * FEW_ROWS >= bank[0].shape[0]:
        return False
    return not (bank[0].is_contiguous() and bank[1].is_contiguous())


def _gather_noise(call: EchoCall) -> Tensor:
    """The noise of rows that are gathered from the bank, in at least float32."""
    bank_f, bank_s, (rows, num_terms, sampling, _) = call.bank_f, call.bank_s, call.settings
    indices = torch.ops.echo_ext.echo_indices.default(call.seed, rows, bank_f.shape[0], num_terms, sampling, False)
    wide = torch.promote_types(bank_f.dtype, torch.float32)
    f, s = (each[indices].to(wide) for each in (bank_f, bank_s))  # (rows, num_terms, *)
    weights = torch.cat([torch.ones_like(s[:, :1]), s[:, :-1]], 1).cumprod(1)
    return (weights * f).sum(1)
