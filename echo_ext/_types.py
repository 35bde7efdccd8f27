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

# Numbers of neighbors, or fractions of the number of samples.
NumNeighbors: TypeAlias = int | float | Sequence[int | float] | npt.NDArray[np.integer[Any] | np.floating[Any]]

# Which columns of a variable are discrete: all or none, or each as its bool says.
Discrete: TypeAlias = bool | Sequence[bool] | npt.NDArray[np.bool_]

# The trial or recording of each row.
Groups: TypeAlias = Tensor | npt.ArrayLike | Sequence[Hashable]

# The strings that an argument may be; `typing.get_args` gives them to the checks.
Method: TypeAlias = Literal["ksg1", "ksg2", "bi-ksg", "mixed", "plug-in", "miller-madow"]
MultivariateMethod: TypeAlias = Literal["ksg1", "ksg2", "mixed", "plug-in", "miller-madow"]
EntropyMethod: TypeAlias = Literal["knn", "plug-in", "miller-madow"]
CellMethod: TypeAlias = Literal["plug-in", "miller-madow"]  # of discrete variables: there are no neighbors
Metric: TypeAlias = Literal["chebyshev", "euclidean"]
Unit: TypeAlias = Literal["nats", "bits"]
NanPolicy: TypeAlias = Literal["raise", "omit"]
Transform: TypeAlias = Literal["standardize", "rank", "normal"]
Surrogate: TypeAlias = Literal["shuffle", "local", "circular", "block"]
NullDistribution: TypeAlias = Literal["empirical", "gamma", "normal"]
