"""Echo noise and information estimates of one batch whose rows lie on many processes of torch.distributed.

Every rank of a group calls the same function with its own rows. Everything that the ranks must agree on (the function,
its options, the shape and dtype of a row, whether a gradient is needed) is part of the first exchange of every call and
of every backward pass, which has the same size whatever the ranks call. If ranks disagree, each of them raises the same
error immediately; it names the argument, the values and the ranks. If a rank rejects its own arguments, the others
raise an error of the same type that names this rank and gives its reason. The group can be used again afterwards. If a
rank dies or makes no call, the others end with the process group's own error, after its timeout.
"""

from echo_ext.distributed.echo import echo_sample, ring_order
from echo_ext.distributed.information import mutual_information

__all__ = ["echo_sample", "mutual_information", "ring_order"]


def __dir__() -> list[str]:
    return sorted(__all__)
