"""A rank that calls a function repeatedly until another rank is lost or it is lost itself."""

import os
import signal
import time
from datetime import timedelta

import torch
from torch import distributed as dist

from echo_ext import distributed

WORLD = 3
TIMEOUT = 3.0  # timeout of the process group, in seconds
LOST = WORLD - 1  # the rank that is lost in a scenario
CALLS_BEFORE = 3


def run(rank, init, function, scenario, connection):
    """Send ("ready", process id) after the first call, and ("error", seconds, message) when a later call fails.

    If a call returns other numbers than the first, ("wrong", message) is sent.
    """
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{init}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    call = FUNCTIONS[function]()
    expected = call(None, _nothing)
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    dist.barrier()
    connection.send(("ready", os.getpid()))
    number = 0
    while True:
        number += 1
        start = time.monotonic()
        lose = SCENARIOS[scenario] if rank == LOST and number > CALLS_BEFORE else {}
        try:
            lose.get("before", _nothing)()
            found = call(group, lose.get("between", _nothing))
        except RuntimeError as error:
            connection.send(("error", time.monotonic() - start, str(error)))
            os._exit(0)  # a broken group cannot be shut down normally
        if any(not torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
            connection.send(("wrong", f"call {number} returned {found}, but the first returned {expected}"))
            os._exit(0)


def _echo(sampling):
    def prepare():
        f = torch.randn(4 + dist.get_rank(), 5, dtype=torch.float64).tanh().requires_grad_()
        s = (0.9 * torch.rand_like(f)).requires_grad_()

        def call(group, between):
            z = distributed.echo_sample(f, s, group=group, seed=1, sampling=sampling)
            between()
            return z.detach(), *torch.autograd.grad(z.square().sum(), (f, s))

        return call

    return prepare


def _information():
    x, y = torch.randn(2, 9 + dist.get_rank(), 1, dtype=torch.float64)

    def call(group, between):
        between()
        return (distributed.mutual_information(x, y, group=group),)

    return call


def _nothing():
    pass


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _sleep():
    time.sleep(2 * TIMEOUT)


def _leave_out():
    time.sleep(4 * TIMEOUT)
    os._exit(0)


FUNCTIONS = {"ring": _echo("ring"), "permutation": _echo("permutation"), "information": _information}
SCENARIOS = {
    "killed at a random moment": {},
    "dead before the call": {"before": _die},
    "dead before the backward pass": {"between": _die},
    "late": {"before": _sleep},
    "leaves out the backward pass": {"between": _leave_out},
}
