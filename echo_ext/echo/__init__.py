"""Echo noise: the functions, the matrix form, and the modules that take the place of the reparameterization trick."""

from echo_ext.echo.channel import ChannelOutput, EchoChannel, EchoMatrixChannel
from echo_ext.echo.matrix import echo_rate_matrix, echo_sample_matrix
from echo_ext.echo.ops import echo_indices, echo_noise, echo_rate, echo_sample, max_scale

__all__ = [
    "ChannelOutput",
    "EchoChannel",
    "EchoMatrixChannel",
    "echo_indices",
    "echo_noise",
    "echo_rate",
    "echo_rate_matrix",
    "echo_sample",
    "echo_sample_matrix",
    "max_scale",
]
