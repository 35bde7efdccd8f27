"""Scikit-learn's digits: 1797 images of 8 x 8 pixels in 17 levels, which ship with it."""

from __future__ import annotations

import numpy as np
import torch

from echo_ext.data.datasets import ImageDataset

__all__ = ["load_digits"]


def load_digits() -> dict[str, ImageDataset]:
    """1297 / 200 / 300 rows.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("digits come with scikit-learn: pip install 'echo-ext[demo]'") from missing
    images, labels = load(return_X_y=True)
    levels = torch.from_numpy(images.reshape(-1, 1, 8, 8).astype(np.uint8))
    digits = ImageDataset(levels, torch.from_numpy(labels.astype(np.int64)), white=16)
    # The rows come writer by writer: shuffle them, so that all parts have the same law.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(digits)))
    return {
        "train": digits.select(order[:1297]),
        "valid": digits.select(order[1297:1497]),
        "test": digits.select(order[1497:]),
    }
