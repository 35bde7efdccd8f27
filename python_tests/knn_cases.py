"""Shared helpers of the estimator tests: samples with ties, outliers and extreme magnitudes."""

import numpy as np
import torch

KINDS = ("normal", "ties", "duplicates", "constant", "heavy", "offset", "tiny", "large", "line")


def fresh():
    """Return a NumPy generator seeded from torch's, and so from ECHO_EXT_TEST_SEED."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def sample(rng, n, d, kind="normal", dtype=np.float64):
    """Return an (n, d) array of one kind of values."""
    values = rng.standard_normal((n, d))
    if kind == "ties":
        values = np.round(rng.uniform(-2, 2, (n, d)))  # zeros of both signs among them
    elif kind == "duplicates":
        values = values[rng.integers(0, max(n // 3, 1), n)]
    elif kind == "constant":
        values[:, rng.integers(d)] = 2.5
    elif kind == "heavy":
        values = np.clip(rng.standard_cauchy((n, d)) ** 3, -1e15, 1e15)  # squares are finite in float32
    elif kind == "offset":
        values = 1e5 + values
    elif kind == "tiny":
        values = 1e-9 * values
    elif kind == "large":
        values = 1e6 * values
    elif kind == "line":
        values = np.repeat(values[:, :1], d, axis=1) * (1 + 1e-3 * values)
    elif kind == "overflow":  # not in KINDS: many distances are infinite
        largest = np.log10(np.finfo(dtype).max)
        values = np.sign(values) * 10 ** rng.uniform(0, largest, (n, d))
    return values.astype(dtype)


def related(rng, n, dx=1, dy=1, kind="normal", dtype=np.float64):
    """Return dependent x and y of one kind of values."""
    x = sample(rng, n, dx, kind, dtype)
    y = sample(rng, n, dy, kind, dtype)
    shared = min(dx, dy)
    if kind in ("normal", "tiny", "large"):
        y[:, :shared] = dtype(0.6) * x[:, :shared] + dtype(0.8) * y[:, :shared]
    else:
        half = n // 2
        y[:half, :shared] = x[:half, :shared]
    return x, y
