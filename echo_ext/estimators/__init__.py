"""Estimators of information from nearest neighbors, for tensors and arrays.

On CUDA they wait for the device once, to learn whether the input is finite, so a CUDA graph cannot record them.
Nothing after that waits.
"""

from echo_ext.estimators.discrete import mutual_information_discrete
from echo_ext.estimators.entropy import entropy
from echo_ext.estimators.knn import knn
from echo_ext.estimators.ksg import conditional_mutual_information, mutual_information, total_correlation
from echo_ext.estimators.pairs import mutual_information_matrix
from echo_ext.estimators.transfer import transfer_entropy
from echo_ext.estimators.uncertainty import (
    PermutationTest,
    UncertainEstimate,
    permutation_test,
    with_standard_error,
)

__all__ = [
    "PermutationTest",
    "UncertainEstimate",
    "conditional_mutual_information",
    "entropy",
    "knn",
    "mutual_information",
    "mutual_information_discrete",
    "mutual_information_matrix",
    "permutation_test",
    "total_correlation",
    "transfer_entropy",
    "with_standard_error",
]


def __dir__() -> list[str]:
    return sorted(__all__)
