"""Echo noise and k-nearest-neighbour information estimators for PyTorch."""

from echo_ext.estimators import (
    conditional_mutual_information,
    entropy,
    knn,
    mutual_information,
    mutual_information_discrete,
    mutual_information_error,
    mutual_information_matrix,
    permutation_test,
    total_correlation,
    transfer_entropy,
)

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
