"""One batch over many processes: Echo noise and information estimates on torch.distributed.

Every rank of a group calls the same function with its own rows. What ranks must agree on (the shape and type of a row)
travels with the numbers themselves, so that a disagreement is reported by name on every rank; a rank that dies or does
not call ends in the process group's own error after its time-out.
"""

from echo_ext.distributed._echo import echo_sample, ring_order
from echo_ext.distributed._information import mutual_information

__all__ = ["echo_sample", "mutual_information", "ring_order"]
