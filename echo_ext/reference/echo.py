"""Echo noise in plain PyTorch.

Readable as the paper (Brekelmans, Moyer, Galstyan and Ver Steeg, "Exact Rate-Distortion in Autoencoders via Echo
Noise", NeurIPS 2019), and as wasteful: every term of every row is gathered, O(B D d) memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["echo_circle", "echo_matrix_circle", "echo_noise", "echo_sample", "random_orderings"]


def random_orderings(batch_size: int, num_terms: int, *, device: torch.device | str | None = None) -> Tensor:
    """For each row, a uniform random ordering of the others, by sorting a B x B random matrix.

    Returns the first ``num_terms`` of each, int64 (batch_size, num_terms).
    """
    keys = torch.rand(batch_size, batch_size, device=device)
    keys.fill_diagonal_(torch.inf)  # a row itself comes last, and is cut off
    return keys.argsort(dim=1)[:, :num_terms]


def echo_noise(f: Tensor, s: Tensor, indices: Tensor, *, bank: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """``eps_i = sum_l (s[j_0] ... s[j_{l-1}]) * f[j_l]`` with ``j = indices[i]``; autograd's own backward.

    Args:
        f, s: (B, *) floating-point tensors of one shape.
        indices: int64 (rows, D) into the rows of f and s, or of the bank.
        bank: (f, s) tensors (K, *) to draw from instead of f and s.

    Returns:
        (rows, *) of f's dtype; half types are computed in float32.

    Raises:
        ValueError: an index lies outside the rows there are.
    """
    bank_f, bank_s = (f, s) if bank is None else bank
    if indices.numel() > 0 and not 0 <= int(indices.min()) <= int(indices.max()) < len(bank_f):
        raise ValueError(
            f"indices must lie in [0, {len(bank_f)}), the rows there are, "
            f"but they range from {int(indices.min())} to {int(indices.max())}"
        )
    compute_dtype = torch.promote_types(bank_f.dtype, torch.float32)
    term_f = bank_f.to(compute_dtype)[indices]  # (rows, D, *)
    term_s = bank_s.to(compute_dtype)[indices]
    # Exclusive products: the first term has weight 1, and its own s enters at the second.
    weights = torch.cat([torch.ones_like(term_s[:, :1]), term_s[:, :-1]], dim=1).cumprod(dim=1)
    return (weights * term_f).sum(dim=1).to(bank_f.dtype)


def echo_sample(f: Tensor, s: Tensor, indices: Tensor, *, bank: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """``z = f + s * eps`` with the noise of :func:`echo_noise`: same arguments, shape and errors."""
    compute_dtype = torch.promote_types(f.dtype, torch.float32)
    wide_bank = None if bank is None else (bank[0].to(compute_dtype), bank[1].to(compute_dtype))
    noise = echo_noise(f.to(compute_dtype), s.to(compute_dtype), indices, bank=wide_bank)
    return (f + s * noise).to(f.dtype)


def echo_circle(f: Tensor, s: Tensor, order: Tensor) -> Tensor:
    """The periodic ring: the solution of ``z_p = f_p + s_p * z_{p+1}`` around a circle of all rows.

    Unrolled, the first row's is ``z_0 = b + a * z_0`` with ``b`` the sum of all B terms and ``a`` the product of all s.

    Args:
        f, s: (B, *) floating-point tensors of one shape.
        order: int64 (B,), the row at each position.

    Returns:
        z, (B, *), in the order of f.
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
    """:func:`echo_circle` with matrices: the solution of ``z_p = f_p + S_p z_{p+1}``; f (B, d), S (B, d, d)."""
    z, scale = torch.zeros_like(f[0]), torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    for row in order.flip(0):
        z, scale = f[row] + S[row] @ z, S[row] @ scale
    z = torch.linalg.solve(torch.eye(len(z), dtype=f.dtype, device=f.device) - scale, z)
    rows: list[Tensor] = [z] * len(f)
    for row in order.flip(0):
        z = f[row] + S[row] @ z
        rows[int(row)] = z
    return torch.stack(rows)
