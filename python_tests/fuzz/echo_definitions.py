"""Definitions of Echo noise in extended precision, with bounds on the rounding error of a call."""

from __future__ import annotations

import numpy as np
import torch

SAMPLINGS = ("permutation", "replacement", "ring")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
SHAPES = ((1,), (2,), (3,), (), (4,), (5,), (8,), (16,), (17,), (31,), (67,), (2, 3), (3, 1, 7), (0,), (2, 0))
SIGNALS = ("bounded", "zero", "one", "large", "subnormal", "mixed", "nonfinite")
SCALES = ("bounded", "zero", "one", "above_one", "subnormal", "mixed", "nonfinite")
LAYOUTS = ("contiguous", "strided", "expanded", "misaligned", "transposed", "reversed")


# ---- Data ------------------------------------------------------------------------------------------------------------


def values(rng, kind, shape, dtype):
    """Return float64 values of one kind; those of kind "subnormal" are subnormal in the given dtype."""
    if kind == "zero":
        return np.zeros(shape) * rng.choice([-1.0, 1.0], shape)
    if kind == "one":
        return rng.choice([-1.0, 1.0], shape)
    if kind == "above_one":
        return rng.uniform(-3.0, 3.0, shape)
    if kind == "large":
        return rng.standard_normal(shape) * (1e3 if dtype == torch.float16 else 1e30)
    if kind == "subnormal":
        return rng.uniform(-1.0, 1.0, shape) * float(torch.finfo(dtype).tiny)
    bounded = rng.uniform(-0.95, 0.95, shape)
    if kind == "bounded":
        return bounded
    special = [0.0, -0.0, 1.0, -1.0, 1e-40, 1e-320, 0.999, -1.5]
    if kind == "nonfinite":
        special += [np.nan, np.inf, -np.inf]
    return np.where(rng.random(shape) < 0.1, rng.choice(special, shape), bounded)


def tensor(rng, kind, shape, dtype, layout):
    return laid_out(torch.from_numpy(np.asarray(values(rng, kind, shape, dtype))).to(dtype), layout)


def laid_out(plain, layout):
    """Return the same values in another memory layout; "expanded" repeats the first row instead."""
    shape = plain.shape
    if layout == "expanded" and len(shape) > 1 and shape[0] > 0:
        return plain[:1].expand(shape)
    if layout == "strided":
        return torch.stack([plain, torch.ones_like(plain)], -1)[..., 0]
    if layout == "misaligned":
        return torch.cat([plain.new_ones(1), plain.flatten()])[1:].view(shape)
    if layout == "transposed":
        return plain.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "reversed":  # rows with gaps between them
        return torch.cat([plain, plain.flip(0)], -1)[..., : shape[-1]] if len(shape) > 1 else plain
    return plain


def bits(tensor):
    """Return the bit patterns as integers, so that equal NaNs compare equal."""
    return tensor.detach().view(INTEGERS[tensor.element_size()]).numpy()


def wide(tensor):
    return tensor.detach().double().numpy().astype(np.longdouble)


# ---- Draws -----------------------------------------------------------------------------------------------------------


def check_draws(indices, bank_rows, rows, num_terms, sampling):
    """Check the draws against the guarantees in the docstrings."""
    is_own = bank_rows is None
    candidates = rows if is_own else bank_rows
    terms = (rows - 1 if is_own else bank_rows) if num_terms is None else num_terms
    assert indices.shape == (rows, terms)
    assert indices.min() >= 0
    assert indices.max() < candidates
    if is_own:
        assert (indices != np.arange(rows)[:, None]).all(), "a row draws itself"
    if sampling != "replacement":
        ordered = np.sort(indices, 1)
        assert (ordered[:, 1:] != ordered[:, :-1]).all(), "a row is drawn twice"
    if sampling == "ring":
        # Windows of adjacent rows on the circle overlap: they are the same sequence, shifted by one.
        if is_own:
            assert (indices[indices[:, 0], :-1] == indices[:, 1:]).all()
        else:
            on_one_circle = np.arange(1, rows) % bank_rows != 0
            assert (indices[1:, :-1] == indices[:-1, 1:])[on_one_circle].all()


# ---- Values ----------------------------------------------------------------------------------------------------------


def noise(f, s, indices):
    """Return eps_i = sum_l (s[j_0] ... s[j_{l-1}]) f[j_l], (rows, width), the sum of absolute terms and the weights."""
    term_f, term_s = f[indices], s[indices]
    weights = np.ones_like(term_f)
    weights[:, 1:] = np.cumprod(term_s[:, :-1], 1)
    terms = weights * term_f
    return terms.sum(1), np.abs(terms).sum(1), np.abs(weights)


def computing(dtype):
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)


def check_values(actual, bank_f, bank_s, indices, sampling, own=None):
    """Compare noise with the definition, or z if the rows' own (f, s) are given."""
    dtype = actual.dtype
    assert dtype == bank_f.dtype
    assert actual.shape == (len(indices), *bank_f.shape[1:])
    actual = wide(actual).reshape(len(indices), -1)
    f, s = (wide(tensor).reshape(len(bank_f), -1) for tensor in (bank_f, bank_s))
    with np.errstate(all="ignore"):
        expected, magnitude, weights = noise(f, s, indices)
        is_plain = (np.isfinite(f) & np.isfinite(s)).all(0)[None]
        compute, out = computing(dtype), torch.finfo(dtype)
        terms = indices.shape[1]
        largest_f = np.abs(f).max(0)
        largest_weight = weights.max(1)
        growth = np.maximum(np.abs(s).max(0), 1) ** terms
        # Weights may underflow and then grow again, and the ring multiplies in a different order. Subnormal terms are
        # rounded to a multiple of the smallest subnormal number, and these errors grow too.
        underflow = compute.tiny * growth * (largest_f + compute.eps)
        bound = 4 * (terms + 2) * (compute.eps * magnitude + underflow)
        reach = np.maximum(magnitude, largest_weight)
        if sampling == "ring":
            reach = np.maximum(reach, growth * np.maximum(largest_f, 1) * terms)
        has_sign = True
        if own is not None:
            own_f, own_s = (wide(tensor).reshape(len(indices), -1) for tensor in own)
            is_plain = is_plain & np.isfinite(own_f) & np.isfinite(own_s)
            has_sign = np.isfinite(own_s) | ~(
                np.abs(expected) <= bound
            )  # otherwise rounding decides the sign of infinity
            expected = own_f + own_s * expected
            reach = np.maximum(reach, np.abs(own_f) + np.abs(own_s) * magnitude)
            bound = np.abs(own_s) * bound + 4 * compute.eps * (np.abs(own_f) + np.abs(own_s) * magnitude)
        bound = bound + out.eps * np.abs(expected) + 4 * out.smallest_normal * out.eps
        overflows = reach * (1 + 2 * out.eps) >= min(compute.max, out.max)
        wrong = np.abs(actual - expected) > bound
        wrong |= np.isnan(actual)
        wrong &= is_plain & ~overflows
        if sampling != "ring":  # NaN and infinity reach exactly the rows of the definition
            agree = (np.isnan(actual) & np.isnan(expected)) | (actual == expected)
            # Weights that overflow or underflow turn infinities into NaN.
            is_exact = ~((weights > 0) & (weights < compute.tiny) | (weights >= compute.max)).any(1)
            wrong |= ~is_plain & ~np.isfinite(expected) & ~agree & is_exact & has_sign
    assert not wrong.any(), (actual[wrong], expected[wrong])


# ---- The matrix channel ----------------------------------------------------------------------------------------------


def matrix_ring(f, S, order):
    """Return the solution of z_p = f_p + S_p z_{p+1} around the circle, in extended precision."""
    z, turn = np.zeros_like(f[0]), np.eye(f.shape[1], dtype=f.dtype)
    for row in order[::-1]:
        z, turn = f[row] + S[row] @ z, S[row] @ turn
    entry = np.linalg.solve(np.eye(len(z)) - turn.astype(np.float64), z.astype(np.float64)).astype(f.dtype)
    for _ in range(3):  # iterative refinement: the solver works in float64
        rest = z + turn @ entry - entry
        entry += np.linalg.solve(np.eye(len(z)) - turn.astype(np.float64), rest.astype(np.float64))
    rows = np.empty_like(f)
    for row in order[::-1]:
        entry = f[row] + S[row] @ entry
        rows[row] = entry
    return rows


def matrix_bound(expected, norm, dtype):
    """Return a bound on the rounding errors of all products, accumulated around the circle."""
    compute, out = computing(dtype), torch.finfo(dtype)
    amplified = 32 * (expected.shape[1] + 2) * compute.eps * (np.abs(expected).max() + 1) / (1 - norm)
    return amplified + out.eps * np.abs(expected)


def check_near(actual, expected, bound):
    wrong = ~(np.abs(wide(actual) - expected) <= bound)
    assert not wrong.any(), (wide(actual)[wrong], expected[wrong])


# ---- Gradients -------------------------------------------------------------------------------------------------------


def noise_adjoint(f, s, indices, grad):
    """Return the gradients of sum(grad * eps) for f and s, from the tails T_l = f[j_l] + s[j_l] T_{l+1}."""
    term_f, term_s = f[indices], s[indices]
    weights, tail = np.ones_like(term_f), np.zeros_like(term_f)
    weights[:, 1:] = np.cumprod(term_s[:, :-1], 1)
    for l in range(indices.shape[1] - 1, 0, -1):
        tail[:, l - 1] = term_f[:, l] + term_s[:, l] * tail[:, l]
    grad_f, grad_s = np.zeros_like(f), np.zeros_like(s)
    np.add.at(grad_f, indices, grad[:, None] * weights)
    np.add.at(grad_s, indices, grad[:, None] * weights * tail)
    return grad_f, grad_s


def check_gradients(actual, tensors, grad, indices, *, of_sample):
    """Compare gradients for (f, s, bank_f, bank_s), or for (f, s) if the batch is its own bank.

    Args:
        actual: Gradients that the call returned.
        tensors: Inputs of the call.
        grad: Upstream gradient, of z if `of_sample`, otherwise of the noise.
        indices: Rows that the call drew.
        of_sample: Whether the call was `echo_sample`, not `echo_noise`.
    """
    dtype = tensors[0].dtype
    compute, out = computing(dtype), torch.finfo(dtype)
    rows, width = len(indices), int(np.prod(tensors[0].shape[1:]))
    wides = [wide(tensor).reshape(len(tensor), width) for tensor in tensors]
    upstream = wide(grad).reshape(rows, width)
    expected = _gradients(wides, upstream, indices, of_sample)
    sizes = _gradients([np.abs(each) for each in wides], np.abs(upstream), indices, of_sample)
    terms = indices.shape[1]
    largest_s = np.abs(wides[-1]).max(0)
    growth = np.maximum(largest_s, 1) ** terms
    # Terms that a sum omits are negligible relative to the largest term of its column.
    largest = 1 + sum(size.max(0) for size in sizes) + sum(np.abs(each).max(0) for each in (*wides, upstream))
    for ours, theirs, size in zip(actual, expected, sizes, strict=True):
        assert ours.dtype == dtype
        bound = 8 * (terms + rows + 2) * (compute.eps * (size + largest) + compute.tiny * growth * largest)
        bound = bound + 2 * out.eps * np.abs(theirs) + 4 * out.tiny * out.eps
        ours = wide(ours).reshape(theirs.shape)
        overflows = growth * largest * largest * terms >= min(compute.max, out.max)
        wrong = ~(np.abs(ours - theirs) <= bound) & ~overflows
        assert not wrong.any(), (ours[wrong], theirs[wrong])


def _gradients(tensors, grad, indices, of_sample):
    bank_f, bank_s = tensors[-2:]
    if not of_sample:
        return noise_adjoint(bank_f, bank_s, indices, grad)
    s = tensors[1]
    eps = noise(bank_f, bank_s, indices)[0]
    own = grad, grad * eps
    others = noise_adjoint(bank_f, bank_s, indices, grad * s)
    return (own[0] + others[0], own[1] + others[1]) if len(tensors) == 2 else (*own, *others)


def matrix_gradients(z, S, order, grad):
    """Return the gradients of sum(grad * z) for f and S, where z_p = f_p + S_p z_{p+1} around the circle."""
    following = np.roll(order, -1)
    transposed = np.zeros_like(S)
    # The adjoint h_p = grad_p + S_{p-1}^T h_{p-1} runs around the circle the other way.
    transposed[order] = S[np.roll(order, 1)].transpose(0, 2, 1)
    adjoint = matrix_ring(grad, transposed, order[::-1])
    grad_s = np.zeros_like(S)
    grad_s[order] = adjoint[order][:, :, None] * z[following][:, None, :]
    return adjoint, grad_s
