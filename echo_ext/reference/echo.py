"""Echo noise in plain PyTorch, written as in the paper.

It gathers every term of every row, O(B D d) memory. Source: Brekelmans, Moyer, Galstyan and Ver Steeg, "Exact
Rate-Distortion in Autoencoders via Echo Noise", NeurIPS 2019, eqs. 1 to 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["echo_circle", "echo_matrix_circle", "echo_noise", "echo_sample", "random_orderings"]


def random_orderings(batch_size: int, num_terms: int, *, device: torch.device | str | None = None) -> Tensor:
    """Draw a uniform random ordering of the other rows for each row, by sorting a B x B random matrix.

    Args:
        batch_size: The number of rows B.
        num_terms: The number of rows in each ordering, at most B - 1.
        device: The device of the result.

    Returns:
        The first ``num_terms`` of each ordering, int64 (batch_size, num_terms).

    Example:
        >>> echo_ext.reference.random_orderings(5, 4).sort(dim=1).values[0]  # row 0 has all other rows
        tensor([1, 2, 3, 4])
    """
    keys = torch.rand(batch_size, batch_size, device=device)
    keys.fill_diagonal_(torch.inf)  # the row itself comes last and is cut off
    return keys.argsort(dim=1)[:, :num_terms]


def echo_noise(f: Tensor, s: Tensor, indices: Tensor, *, bank: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Make Echo noise by its definition, with the gradients of autograd.

    It is ``eps_i = sum_l (s[j_0] ... s[j_{l-1}]) * f[j_l]`` with ``j = indices[i]``.

    Args:
        f, s: Floating-point tensors of one shape ``(B, *)``.
        indices: int64 (rows, D), the rows of f and s, or of the bank, that each noise is made of.
        bank: A pair of tensors ``(K, *)`` to draw from instead of f and s.

    Returns:
        The noise, ``(rows, *)``, of the dtype of f; half types are computed in float32.

    Raises:
        ValueError: An index is not the number of a row.

    Example:
        >>> f, s = torch.randn(5, 2), 0.5 * torch.rand(5, 2)
        >>> noise = echo_ext.reference.echo_noise(f, s, echo_ext.echo_indices(5, seed=0))
        >>> torch.allclose(noise, echo_ext.echo_noise(f, s, seed=0), atol=1e-6)
        True
    """
    bank_f, bank_s = (f, s) if bank is None else bank
    if indices.numel() > 0 and not 0 <= int(indices.min()) <= int(indices.max()) < len(bank_f):
        raise ValueError(
            f"indices must be numbers of rows, from 0 to {len(bank_f) - 1}, "
            f"got {int(indices.min())} to {int(indices.max())}"
        )
    compute_dtype = torch.promote_types(bank_f.dtype, torch.float32)
    term_f = bank_f.to(compute_dtype)[indices]  # (rows, D, *)
    term_s = bank_s.to(compute_dtype)[indices]
    # Exclusive products: the first term has weight 1, and its own s enters at the second.
    weights = torch.cat([torch.ones_like(term_s[:, :1]), term_s[:, :-1]], dim=1).cumprod(dim=1)
    return (weights * term_f).sum(dim=1).to(bank_f.dtype)


def echo_sample(f: Tensor, s: Tensor, indices: Tensor, *, bank: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Pass a batch through the Echo channel, ``z = f + s * eps`` with the noise of :func:`echo_noise`.

    The arguments and errors are those of :func:`echo_noise`.

    Example:
        >>> f, s = torch.randn(5, 2), 0.5 * torch.rand(5, 2)
        >>> z = echo_ext.reference.echo_sample(f, s, echo_ext.echo_indices(5, seed=0))
        >>> torch.allclose(z, echo_ext.echo_sample(f, s, seed=0), atol=1e-6)
        True
    """
    compute_dtype = torch.promote_types(f.dtype, torch.float32)
    wide_bank = None if bank is None else (bank[0].to(compute_dtype), bank[1].to(compute_dtype))
    noise = echo_noise(f.to(compute_dtype), s.to(compute_dtype), indices, bank=wide_bank)
    return (f + s * noise).to(f.dtype)


def echo_circle(f: Tensor, s: Tensor, order: Tensor) -> Tensor:
    """Return the periodic ring, the solution of ``z_p = f_p + s_p * z_{p+1}`` around a circle of all rows.

    Unrolled, that of the first row is ``z_0 = b + a * z_0``, where ``b`` is the sum of all B terms and ``a`` the
    product of all s.

    Args:
        f, s: Floating-point tensors of one shape ``(B, *)``.
        order: int64 (B,), the row at each position.

    Returns:
        z, ``(B, *)``, in the order of f.

    Example:
        >>> f, s = torch.randn(5, 2), 0.5 * torch.rand(5, 2)
        >>> z = echo_ext.reference.echo_circle(f, s, echo_ext.distributed.ring_order([5], seed=0))
        >>> torch.allclose(z, echo_ext.distributed.echo_sample(f, s, seed=0), atol=1e-6)
        True
    """
    z, scale = torch.zeros_like(f[0]), torch.ones_like(f[0])
    for row in order.flip(0):
        z, scale = f[row] + s[row] * z, s[row] * scale
    z = z / (1 - scale)
    rows: list[Tensor] = [z] * len(f)
    for row in order.flip(0):
        z = f[row] + s[row] * z
        rows[int(row)] = z
    return torch.stack(rows)


def echo_matrix_circle(f: Tensor, S: Tensor, order: Tensor) -> Tensor:
    """Return the periodic ring with matrices, the solution of ``z_p = f_p + S_p z_{p+1}`` around a circle of all rows.

    Args:
        f: Floating-point tensor (B, d).
        S: Matrices (B, d, d).
        order: int64 (B,), the row at each position.

    Returns:
        z, (B, d), in the order of f.

    Example:
        >>> f, S = torch.randn(5, 2), torch.diag_embed(0.5 * torch.rand(5, 2))
        >>> order = torch.randperm(5)
        >>> z = echo_ext.reference.echo_matrix_circle(f, S, order)
        >>> torch.allclose(z, echo_ext.reference.echo_circle(f, S.diagonal(dim1=1, dim2=2), order), atol=1e-6)
        True
    """
    z, scale = torch.zeros_like(f[0]), torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    for row in order.flip(0):
        z, scale = f[row] + S[row] @ z, S[row] @ scale
    z = torch.linalg.solve(torch.eye(len(z), dtype=f.dtype, device=f.device) - scale, z)
    rows: list[Tensor] = [z] * len(f)
    for row in order.flip(0):
        z = f[row] + S[row] @ z
        rows[int(row)] = z
    return torch.stack(rows)
