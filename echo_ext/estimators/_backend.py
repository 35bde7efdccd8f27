"""What depends on the device: the kernels, and the array steps around them. Which device is decided here alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from echo_ext._types import Metric
from echo_ext.estimators._backend_cpu import Cpu
from echo_ext.estimators._backend_cuda import Cuda

if TYPE_CHECKING:
    from echo_ext.estimators.options import Options

Margin: TypeAlias = tuple[tuple[int, ...], float]
"""Which of the variables samples are counted in together, and the factor of the digamma of their number."""


class Backend(Protocol):
    """Searches, counts and array steps on one kind of device.

    The tensors that a kernel reads are contiguous, and so are those that it fills; none requires grad.
    """

    block_scale: int
    """How many times as much memory as on the CPU a block of work takes: more where each block costs launches."""

    def prepare(self, points: Tensor) -> Any:
        """Return what searches and counts need of points (*batch, N, d): a tree, where they can share one."""

    def part(self, prepared: Any, begin: int, end: int) -> Any:
        """Return what was prepared, for some of the first dimension of the batch."""

    def search(
        self,
        prepared: Any,
        k: int,
        *,
        queries: Tensor | None,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
        indices: Tensor | None,
    ) -> None:
        """Find the k nearest points of each query, or of each point where there are no queries."""

    def search_kth(
        self,
        prepared: Any,
        ks: Sequence[int],
        *,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
    ) -> None:
        """Find the distances from each point to its ks-th nearest others: (K, *batch, N)."""

    def search_reaches(
        self,
        prepared: Any,
        ks: Sequence[int],
        groups: Sequence[int],
        *,
        exclude_within: int,
        rows: Tensor | None,
        distances: Tensor,
        reaches: Tensor,
    ) -> None:
        """Find the distances (K, *batch, N) from each point to its ks-th nearest others, and their reaches.

        These are how far the k nearest reach in each group of columns: (K, G, *batch, N).
        """

    def count(
        self,
        prepared: Any,
        radii: Tensor,
        *,
        groups: Sequence[int],
        num_radii: int,
        inclusive: bool,
        metric: Metric,
        exclude_within: int,
        rows: Tensor | None,
        counts: Tensor,
    ) -> None:
        """Count the points within each radius: radii (num_radii, *own batch, num_groups, N)."""

    def boundary(
        self,
        prepared: Any,
        radii: Tensor,
        skip: Tensor,
        *,
        width: int,
        exclude_within: int,
        rows: Tensor | None,
        indices: Tensor,
    ) -> None:
        """Find the points whose rank by distance is nearest to each radius."""

    def estimate_pairs(self, x: Tensor, y: Tensor | None, ks: Sequence[int]) -> Tensor | None:
        """Estimate all pairs of columns by "ksg1" in one kernel, or return None where there is none for them.

        Columns (*batch, p, N) and (*batch, q, N), or None for x itself; estimates (K, *batch, p, q) float64, those
        below the diagonal 0 if y is None.
        """

    def add_margins(
        self, values: Tensor, variables: Sequence[Tensor], margins: Sequence[Margin], options: Options
    ) -> Tensor | None:
        """Add ``factor * psi(n + 1)`` for each margin to float64 values (K, *batch, N) in place, in one call.

        n counts the samples that are strictly nearer in the margin than the k-th neighbor in all variables, which are
        (*batch, N, d), all with the same batch.

        Returns:
            Which share of the samples has its k-th neighbor at distance 0, float64 (K, *batch); None if there is no
            such kernel, and nothing was added.
        """

    def estimate_surrogates(self, variables: Sequence[Tensor], orders: Tensor, options: Options) -> Tensor | None:
        """Estimate I(x; y | z) by "ksg1" with surrogates of y in one kernel, or return None where there is none.

        Variables (*batch, N, d), broadcasting; orders of y's rows (num, *batch or nothing, N); estimates (num, *batch)
        float64.
        """

    def add_digamma(self, values: Tensor, counts: Tensor, *, shift: int = 0, factor: float = 1.0) -> None:
        """Add ``factor * psi(counts + shift)`` to float64 values, in place."""

    def contiguous(self, tensor: Tensor) -> Tensor:
        """Return the tensor, detached, with its elements contiguous in memory."""

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenate along the last dimension."""

    def select_kth(self, sorted_values: Tensor, ks: Sequence[int]) -> Tensor:
        """Select from (..., k) the ks-th values, counted from 1: (K, ...), contiguous."""

    def fill(self, each: Sequence[float], shape: Sequence[int], device: torch.device) -> Tensor:
        """Return one number for each k at all samples: float64 (K, *batch, N), contiguous."""

    def mean(self, values: Tensor) -> Tensor:
        """Average over the last dimension."""

    def share_of_zeros(self, values: Tensor) -> Tensor:
        """Return which share of the values is 0, along the last dimension: float64."""

    def all_finite(self, values: Tensor) -> bool:
        """Return whether no value is NaN or infinite."""

    def maybe_any(self, mask: Tensor) -> bool:
        """Return whether the mask may have a true element; to be sure, a GPU would have to be waited for."""


BACKENDS: dict[str, Backend] = {"cpu": Cpu(), "cuda": Cuda()}


def backend_of(tensor: Tensor) -> Backend:
    """Return the backend of a tensor's device."""
    return BACKENDS["cuda" if tensor.is_cuda else "cpu"]  # tensor.device.type takes seven times as long


def digamma(counts: Tensor) -> Tensor:
    """Return the digamma function of counts, as float64."""
    values = torch.zeros(counts.shape, dtype=torch.float64, device=counts.device)
    backend_of(counts).add_digamma(values, counts)
    return values
