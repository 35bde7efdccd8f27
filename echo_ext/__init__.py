"""Echo noise and k-nearest-neighbour information estimators for PyTorch."""

from importlib.util import find_spec

if find_spec("echo_ext._C") is None:
    raise ImportError(
        f"echo_ext's native core is not in {__path__[0]}, where Python found it: if this is the source tree and "
        "echo_ext is installed, run Python from another folder; CONTRIBUTING.md builds the core into the source tree"
    )

from echo_ext.channel import ChannelOutput, EchoChannel, EchoMatrixChannel
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
from echo_ext.matrix import echo_rate_matrix, echo_sample_matrix
from echo_ext.ops import echo_indices, echo_noise, echo_rate, echo_sample, max_scale

__version__ = "0.1.0"

__all__ = [
    "ChannelOutput",
    "EchoChannel",
    "EchoMatrixChannel",
    "conditional_mutual_information",
    "echo_indices",
    "echo_noise",
    "echo_rate",
    "echo_rate_matrix",
    "echo_sample",
    "echo_sample_matrix",
    "entropy",
    "knn",
    "max_scale",
    "mutual_information",
    "mutual_information_discrete",
    "mutual_information_error",
    "mutual_information_matrix",
    "permutation_test",
    "total_correlation",
    "transfer_entropy",
]
