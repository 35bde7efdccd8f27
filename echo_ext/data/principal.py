"""Projection of images on their principal components, which the MIM papers use as vectors of real data."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ext.data.datasets import ImageDataset, VectorDataset

__all__ = ["principal_axes", "project"]


def principal_axes(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean, the first principal axes and the share of the variance along each.

    Args:
        x: The data, (rows, columns).
        count: Number of axes.

    Returns:
        The mean (columns,), the orthonormal axes (columns, count) and the shares (count,) in descending order, all
        float64.
    """
    x = x.to(torch.float64)
    mean = x.mean(0)
    variances, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    axes = axes.flip(1)[:, :count]
    # The sign of an axis is arbitrary; make its largest entry positive.
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return mean, axes * largest.sign(), variances.flip(0)[:count] / variances.sum()


def project(parts: dict[str, ImageDataset], count: int) -> dict[str, VectorDataset]:
    """Project every image on the principal axes of the training images; the coordinates are float32."""
    mean, axes, _ = principal_axes(parts["train"].values(slice(None)).flatten(1), count)
    offset, axes = (mean @ axes).to(torch.float32), axes.to(torch.float32)
    return {
        part: VectorDataset(images.values(slice(None)).flatten(1) @ axes - offset, images.labels)
        for part, images in parts.items()
    }
