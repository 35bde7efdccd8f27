"""A user's calls of the estimators, for type checkers alone: they refuse the lines marked `# error`, and no others."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import assert_type

import echo_ext
from echo_ext import (
    conditional_mutual_information,
    count_within,
    delayed_mutual_information,
    entropy,
    independence_test,
    knn,
    mutual_information,
    mutual_information_convergence,
    mutual_information_discrete,
    mutual_information_matrix,
    total_correlation,
    transfer_entropy,
    with_standard_error,
)
from echo_ext.estimators import Convergence, IndependenceTest, MatrixTest, UncertainEstimate
from echo_ext.metrics import knn_accuracy, mig
from echo_ext.sklearn import MutualInformationSelector, mutual_info_classif, mutual_info_regression

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Indices: TypeAlias = npt.NDArray[np.int64]

tensor, labels = torch.randn(30, 2), torch.arange(30) % 2
array: npt.NDArray[np.float64] = np.zeros((30, 2))
numbers = [1.0, 2.0, 3.0, 5.0, 8.0]

# ---- Tensors in, tensors out

assert_type(mutual_information(tensor, tensor), Tensor)
assert_type(mutual_information(x=tensor, y=tensor, k=[3, 5], method="bi-ksg", unit="bits", local=True), Tensor)
assert_type(conditional_mutual_information(tensor, tensor, tensor, method="ksg2"), Tensor)
assert_type(total_correlation(tensor, groups=[[0], [1]]), Tensor)
assert_type(transfer_entropy(tensor, tensor, history=2), Tensor)
assert_type(transfer_entropy(tensor, tensor, given=tensor, given_history=2), Tensor)
assert_type(delayed_mutual_information(tensor, tensor, lags=range(-3, 4), k=[3, 5], groups=labels), Tensor)
assert_type(entropy(tensor, metric="euclidean"), Tensor)
assert_type(entropy(tensor, method="plug-in"), Tensor)
assert_type(conditional_mutual_information(tensor, tensor, tensor, method="mixed", discrete_x=[True, False]), Tensor)
assert_type(mutual_information_discrete(tensor, labels, labels), Tensor)
assert_type(mutual_information_discrete(tensor, labels), Tensor)
assert_type(mutual_information_discrete(tensor, ["a", "b"] * 15), Tensor)
assert_type(mutual_information_matrix(tensor), Tensor)
assert_type(mutual_information_matrix(tensor, tensor), Tensor)
assert_type(mutual_information_matrix(tensor, given=tensor, discrete_given=True, method="mixed"), Tensor)
assert_type(mutual_information_matrix(tensor, n_resamples=9, fdr=True, seed=0), MatrixTest[Tensor])
assert_type(mutual_information(tensor, labels, k=0.1, nan_policy="omit", transform="rank", groups=labels), Tensor)
assert_type(transfer_entropy(tensor, tensor, groups=["a"] * 30, k=[0.1, 3]), Tensor)
assert_type(knn(tensor), tuple[Tensor, Tensor])
assert_type(count_within(tensor, 0.5), Tensor)
assert_type(count_within(tensor, tensor[:, 0], tensor, inclusive=True), Tensor)
assert_type(knn(tensor, tensor, 2), tuple[Tensor, Tensor])
assert_type(with_standard_error(mutual_information, tensor, tensor), UncertainEstimate[Tensor])
assert_type(independence_test(tensor, tensor, tensor).null_distribution, Tensor)
assert_type(mutual_information_convergence(tensor, tensor, sizes=[10, 30]), Convergence[Tensor])
assert_type(echo_ext.distributed.mutual_information(tensor, tensor), Tensor)

# ---- Arrays in, arrays and floats out

assert_type(mutual_information(array, array), Array | float)
assert_type(mutual_information(numbers, numbers), Array | float)
assert_type(mutual_information(array, array, k=np.array([3, 5])), Array | float)
assert_type(conditional_mutual_information(array, array, array), Array | float)
assert_type(total_correlation(array), Array | float)
assert_type(transfer_entropy(array, array), Array | float)
assert_type(transfer_entropy(array, array, given=numbers), Array | float)
assert_type(delayed_mutual_information(array, numbers, lags=np.arange(3)), Array)
assert_type(entropy(array), Array | float)
assert_type(mutual_information_discrete(array, labels), Array | float)
assert_type(mutual_information_discrete(array, ["a", None], given=["b", ("c", 1)]), Array | float)
assert_type(mutual_information(array, np.array(["a", "b"]), method="mixed", discrete_y=True), Array | float)
assert_type(mutual_information_matrix(array), Array)
assert_type(mutual_information_matrix(array, given=numbers, n_resamples=9).pvalue, Array)
assert_type(mutual_information([True, False, True], numbers, k=0.5, transform="normal"), Array | float)
assert_type(entropy(array, groups=("a", None, 3)), Array | float)
assert_type(knn(array), tuple[Array, Indices])
assert_type(count_within(array, [0.5] * 30), Indices)
assert_type(independence_test(array, array), IndependenceTest[Array | float, Array])
assert_type(mutual_information_convergence(array, array, k=0.1, transform="rank", groups=labels).estimates, Array)
assert_type(echo_ext.distributed.mutual_information(array, array), Array | float)
assert_type(mutual_info_regression(array, numbers), npt.NDArray[np.float64])
assert_type(mutual_info_classif(array, numbers, discrete_features=[0]), npt.NDArray[np.float64])
assert_type(MutualInformationSelector(5, criterion="jmi").fit(array, numbers), MutualInformationSelector)

estimate, standard_error = with_standard_error(mutual_information_discrete, array, ["a", "b"] * 15, k=2)
assert_type(estimate, Array | float)
assert_type(standard_error, Array | float)

# ---- Metrics

assert_type(mig(tensor, labels, method="knn"), float)
assert_type(knn_accuracy(array, labels, array, labels), float)

# ---- Mistakes

mutual_information(tensor, tensor, method="ksg3")  # error
mutual_information(array, array, unit="dits")  # error
mutual_information(tensor, tensor, k="3")  # error
mutual_information(tensor)  # error
conditional_mutual_information(tensor, tensor, tensor, method="bi-ksg")  # error
conditional_mutual_information(tensor, tensor, tensor, method="mixed", discrete_z=3)  # error
entropy(array, method="ksg1")  # error
total_correlation(array, method="bi-ksg")  # error
entropy(array, metric="l1")  # error
entropy(array, transform="ranks")  # error
entropy(array, nan_policy="drop")  # error
total_correlation(array, groups=["a", "b"])  # error
mutual_information_discrete(array, labels, groups=labels)  # error
count_within(array, 0.5, metric="l1")  # error
knn(tensor, k=[3, 5])  # error
transfer_entropy(tensor, tensor, method="bi-ksg")  # error
delayed_mutual_information(array, array)  # error
delayed_mutual_information(array, array, lags=3)  # error
mutual_information_matrix(array, local=True)  # error
mutual_information_matrix(tensor, n_resamples=None)  # error
independence_test(array, array, k=[3, 5])  # error
echo_ext.distributed.mutual_information(tensor, tensor, method="ksg3")  # error
mig(tensor, labels, method="tree")  # error
mutual_info_regression(array, numbers, random_state="0")  # error
MutualInformationSelector(criterion="mrmd")  # error
MutualInformationSelector(0.5)  # error
