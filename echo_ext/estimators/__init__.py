"""Information estimators by nearest neighbours, for tensors and arrays.

On CUDA they wait for the device once, to know whether the input is finite, so that a CUDA graph cannot record them;
nothing after that waits.
"""

from .discrete import mutual_information_discrete
from .entropy import entropy
from .knn import knn
from .ksg import conditional_mutual_information, mutual_information, total_correlation
from .matrix import mutual_information_matrix
from .transfer import transfer_entropy
from .uncertainty import mutual_information_error, permutation_test

__all__ = [
    "conditional_mutual_information",
    "entropy",
    "knn",
    "mutual_information",
    "mutual_information_discrete",
    "mutual_information_error",
    "mutual_information_matrix",
    "permutation_test",
    "total_correlation",
    "transfer_entropy",
]
