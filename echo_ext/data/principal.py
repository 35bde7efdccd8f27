"""Projection of images on their principal components, which the MIM papers use as vectors of real data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from echo_ext import _checks
from echo_ext.data.datasets import ImageDataset, VectorDataset

__all__ = ["fit_pca", "project"]


def fit_pca(x: Tensor, count: int) -> Any:
    """Fit scikit-learn's ``PCA`` in float64 to rows; the largest entry of each component is positive.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: There are fewer rows or columns than components.
    """
    _checks.installed("sklearn", purpose="the projection on principal components", extra="demo")
    from sklearn.decomposition import PCA

    return PCA(count, svd_solver="covariance_eigh").fit(x.numpy().astype("float64"))


def project(parts: Mapping[str, ImageDataset], count: int) -> dict[str, VectorDataset]:
    """Project every image on the principal components of the training images; the coordinates are float32."""
    rows = {part: images.values(slice(None)).flatten(1) for part, images in parts.items()}
    pca = fit_pca(rows["train"], count)
    return {
        part: VectorDataset(torch.from_numpy(pca.transform(x.numpy())).to(torch.float32), parts[part].labels)
        for part, x in rows.items()
    }
