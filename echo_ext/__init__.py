"""Echo noise and k-nearest-neighbor information estimators for PyTorch."""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from platform import machine as _machine
from platform import python_version as _python_version
from platform import system as _system
from typing import TYPE_CHECKING as _TYPE_CHECKING

try:
    if _find_spec("echo_ext._C") is None:
        raise ImportError("there is none")
    _import_module("torch")  # first, so that the core does not choose the C++ library that both use
    _import_module("echo_ext._C")
except ImportError as _problem:
    if _problem.name == "torch":
        raise
    _here = f"Python {_python_version()} on {_system()} {_machine()}"
    raise ImportError(
        f"echo_ext's native core is not in {__path__[0]}, or not for {_here} ({_problem}): if this is the source tree "
        "and echo_ext is installed, run Python from another folder, or build it here by pip install -e .; otherwise "
        "install echo-ext again with this Python"
    ) from None

from echo_ext.echo import (
    ChannelOutput,
    EchoChannel,
    EchoMatrixChannel,
    echo_indices,
    echo_noise,
    echo_rate,
    echo_rate_matrix,
    echo_sample,
    echo_sample_matrix,
    max_scale,
)
from echo_ext.estimators import (
    DegenerateDataWarning,
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

if _TYPE_CHECKING:
    from echo_ext import causallearn as causallearn
    from echo_ext import data as data
    from echo_ext import distributed as distributed
    from echo_ext import metrics as metrics
    from echo_ext import models as models
    from echo_ext import plots as plots
    from echo_ext import reference as reference
    from echo_ext import sklearn as sklearn
    from echo_ext import tigramite as tigramite
    from echo_ext import training as training

__version__ = "0.1.0"

__all__ = [
    "ChannelOutput",
    "DegenerateDataWarning",
    "EchoChannel",
    "EchoMatrixChannel",
    "conditional_mutual_information",
    "count_within",
    "delayed_mutual_information",
    "echo_indices",
    "echo_noise",
    "echo_rate",
    "echo_rate_matrix",
    "echo_sample",
    "echo_sample_matrix",
    "entropy",
    "independence_test",
    "knn",
    "max_scale",
    "mutual_information",
    "mutual_information_convergence",
    "mutual_information_discrete",
    "mutual_information_matrix",
    "total_correlation",
    "transfer_entropy",
    "with_standard_error",
]

# Imported when they are first used: some need packages that are optional, and all take time.
_SUBMODULES = (
    "causallearn",
    "data",
    "distributed",
    "metrics",
    "models",
    "plots",
    "reference",
    "sklearn",
    "tigramite",
    "training",
)


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return _import_module(f"echo_ext.{name}")
    raise AttributeError(f"module 'echo_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
