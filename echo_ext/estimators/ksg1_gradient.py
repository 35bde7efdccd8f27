"""The gradient of KSG1, whose estimate is a step function of the samples: that of the estimate's expectation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ext.estimators import gradients, local_values
from echo_ext.estimators._metric import CHEBYSHEV
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import Options

__all__ = ["ksg1_with_gradient"]


def ksg1_with_gradient(inputs: Sequence[Tensor], options: Options, width: int) -> Tensor:
    """Return the values of "ksg1", with the gradient of their expectation."""
    variables = [PointSet(x) for x in inputs]
    joint = local_values.join(variables)
    distances, indices = joint.search(options.max_k, exclude_within=options.exclude_within, rows=options.rows)
    radii = joint.backend.select_kth(distances, options.ks)
    nearest = joint.backend.select_kth(indices, options.ks)

    def backward(grad: Tensor) -> tuple[Tensor, ...]:
        margins = [PointSet(variable.expand(joint.batch)) for variable in variables]
        flux_of_each_k = [
            _flux(joint.points, margins, *one_k, options, width) for one_k in zip(grad, radii, nearest, strict=True)
        ]
        return tuple(
            torch.stack(parts).sum(0).sum_to_size(x.shape).to(x.dtype)
            for x, parts in zip(inputs, zip(*flux_of_each_k, strict=True), strict=True)
        )

    return gradients.with_gradient(local_values.ksg1_from_radii(variables, radii, options), backward, *inputs)


def _flux(
    joint: Tensor,
    margins: Sequence[PointSet],
    grad: Tensor,
    radii: Tensor,
    nearest: Tensor,
    options: Options,
    width: int,
) -> list[Tensor]:
    """Return the gradient of one k's values: what the boundary of each ball gains or loses as samples move.

    joint: (*batch, N, D); grad, radii, nearest: (*batch, N), of the k-th neighbor.
    """
    density = torch.where(radii > 0, grad.to(radii.dtype) / radii, 0.0)
    own = -joint.shape[-1] * density.unsqueeze(-1)
    pull = CHEBYSHEV.pull_back(joint, nearest.unsqueeze(-1), own)
    parts = list(torch.split(pull, [margin.dim for margin in margins], -1))
    for i, margin in enumerate(margins):
        near = margin.boundary(radii, nearest, width=width, exclude_within=options.exclude_within, rows=options.rows)
        found = near >= 0
        share = margin.dim * density / found.sum(-1).clamp(min=1)
        weights = share.unsqueeze(-1) * found
        parts[i] = parts[i] + CHEBYSHEV.pull_back(margin.points, near.clamp(min=0), weights)
    return parts
