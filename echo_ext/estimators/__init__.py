"""Estimators of information from nearest neighbors, for tensors and arrays.

On CUDA they wait for the device twice, so a CUDA graph cannot record them: first to learn whether the input is finite,
and at the end to learn how many samples are tied (`DegenerateDataWarning`). Nothing in between waits, unless values are
missing, variables are discrete or rows are out of order.
"""

from echo_ext.estimators.convergence import Convergence, mutual_information_convergence
from echo_ext.estimators.count_within import count_within
from echo_ext.estimators.delays import delayed_mutual_information
from echo_ext.estimators.discrete import mutual_information_discrete
from echo_ext.estimators.entropy import entropy
from echo_ext.estimators.evaluation import DegenerateDataWarning
from echo_ext.estimators.independence import IndependenceTest, independence_test
from echo_ext.estimators.knn import knn
from echo_ext.estimators.ksg import conditional_mutual_information, mutual_information, total_correlation
from echo_ext.estimators.matrix import MatrixTest, mutual_information_matrix
from echo_ext.estimators.transfer import transfer_entropy
from echo_ext.estimators.uncertainty import UncertainEstimate, with_standard_error

__all__ = [
    "Convergence",
    "DegenerateDataWarning",
    "IndependenceTest",
    "MatrixTest",
    "UncertainEstimate",
    "conditional_mutual_information",
    "count_within",
    "delayed_mutual_information",
    "entropy",
    "independence_test",
    "knn",
    "mutual_information",
    "mutual_information_convergence",
    "mutual_information_discrete",
    "mutual_information_matrix",
    "total_correlation",
    "transfer_entropy",
    "with_standard_error",
]


def __dir__() -> list[str]:
    return sorted(__all__)
