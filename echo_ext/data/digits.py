"""The digits data set of scikit-learn: 1797 images of 8 x 8 pixels with 17 gray levels."""

from __future__ import annotations

import numpy as np
import torch

from echo_ext import _checks
from echo_ext.data.datasets import ImageDataset, split

__all__ = ["load_digits"]


def load_digits() -> dict[str, ImageDataset]:
    """Load 1297 / 200 / 300 rows.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    _checks.installed("sklearn", purpose="the data set digits", extra="demo")
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    levels = torch.from_numpy(images.reshape(-1, 1, 8, 8).astype(np.uint8))
    # The rows are sorted by writer, so they are shuffled for parts of the same distribution.
    return split(ImageDataset(levels, torch.from_numpy(labels.astype(np.int64)), white=16), valid=200, test=300)
