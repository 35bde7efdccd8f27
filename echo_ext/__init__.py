"""Echo noise and k-nearest-neighbour information estimators for PyTorch."""

from echo_ext.channel import ChannelOutput, EchoChannel
from echo_ext.ops import echo_indices, echo_noise, echo_rate, echo_sample, max_scale

__version__ = "0.1.0"

__all__ = [
    "ChannelOutput",
    "EchoChannel",
    "echo_indices",
    "echo_noise",
    "echo_rate",
    "echo_sample",
    "max_scale",
]
