"""The types of arguments and results in public signatures."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Indices: TypeAlias = npt.NDArray[np.int64]
TensorOrArray: TypeAlias = Tensor | npt.ArrayLike
Labels: TypeAlias = Tensor | npt.ArrayLike | Sequence[Hashable]

# Of tensors a tensor; of arrays an array, or a float for a single number.
Estimate: TypeAlias = Tensor | Array | float

NumNeighbors: TypeAlias = int | Sequence[int] | npt.NDArray[np.integer[Any]]

# The strings that an argument may be; `typing.get_args` gives them to the checks.
Method: TypeAlias = Literal["ksg1", "ksg2", "bi-ksg", "mixed", "plug-in", "miller-madow"]
MultivariateMethod: TypeAlias = Literal["ksg1", "ksg2", "mixed", "plug-in", "miller-madow"]
EntropyMethod: TypeAlias = Literal["knn", "plug-in", "miller-madow"]
CellMethod: TypeAlias = Literal["plug-in", "miller-madow"]  # of discrete variables: there are no neighbors
Metric: TypeAlias = Literal["chebyshev", "euclidean"]
Unit: TypeAlias = Literal["nats", "bits"]
