"""One batch over many processes: Echo noise and information estimates on torch.distributed.

Every rank of a group calls the same function with its own rows. Everything on which the ranks must agree (the function,
its options, the shape and dtype of a row, whether a gradient is needed) travels in the first exchange of every call and
of every backward pass, which has one size whatever the ranks call. If ranks disagree, each of them raises the same
error at once, which names the argument, the values and the ranks. If a rank refuses its own arguments, the others raise
an error of the same kind that names this rank and gives its reason. The group can be used again afterwards. A rank that
dies or makes no call ends in the process group's own error on the others, after its time-out.
"""

from echo_ext.distributed.echo import echo_sample, ring_order
from echo_ext.distributed.information import mutual_information

__all__ = ["echo_sample", "mutual_information", "ring_order"]
