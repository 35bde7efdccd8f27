"""Persistent worker processes, one per rank, that run requested calls of echo_ext.distributed."""

import atexit
import multiprocessing
import tempfile
from datetime import timedelta

import numpy as np
import torch
from torch import distributed as dist

from echo_ext import distributed

WORLD = 3
# In seconds; reached only if the library has a bug.
TIMEOUT = 30.0


class Ranks:
    """WORLD processes; the first two also form a process group of their own."""

    def __init__(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._dynamo", "echo_ext.distributed"])
        self.folder = tempfile.TemporaryDirectory()
        self.connections, self.processes = [], []
        for rank in range(WORLD):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, f"{self.folder.name}/init", there), daemon=True)
            process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)
        atexit.register(self.stop)

    def call(self, calls):
        """Run calls, each a list with one request per rank, and return a list of answers per call.

        An answer is a dictionary of results, or (error type, message).
        """
        for rank, connection in enumerate(self.connections):
            connection.send([(len(requests), requests[rank]) for requests in calls if rank < len(requests)])
        answers = []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(2 * TIMEOUT):
                self.stop()
                raise AssertionError(f"rank {rank} did not answer")
            try:
                answers.append(iter(connection.recv()))
            except EOFError:
                self.stop()
                raise AssertionError(f"rank {rank} died") from None
        return [[next(found) for found in answers[: len(requests)]] for requests in calls]

    def stop(self):
        atexit.unregister(self.stop)
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


_started = []


def ranks():
    """Return the processes, started at the first call and restarted after a failure."""
    if not _started or not all(process.is_alive() for process in _started[0].processes):
        _started[:] = [Ranks()]
    return _started[0]


def _serve(rank, init, connection):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=WORLD, timeout=timeout)
    groups = {2: dist.new_group([0, 1], timeout=timeout), WORLD: None}
    while True:
        try:
            requests = connection.recv()
        except EOFError:
            return
        connection.send([_answer(request, groups[world]) for world, request in requests])


def _answer(request, group):
    try:
        return FUNCTIONS[request["function"]](request, group)
    except Exception as error:
        return type(error).__name__, str(error)


def _echo(request, group):
    f, s = (torch.from_numpy(array).to(request["dtype"]) for array in request["arrays"])
    f.requires_grad_(request["gradient"][0])
    s.requires_grad_(request["gradient"][1])
    with torch.set_grad_enabled(request["grad_mode"]):
        z = distributed.echo_sample(f, s, group=group, **request["options"])
    found = {"z": _numbers(z)}
    if z.requires_grad:
        z.backward(torch.from_numpy(request["weights"]).to(z.dtype))
        found |= {name: _numbers(leaf.grad) for name, leaf in (("f", f), ("s", s)) if leaf.requires_grad}
    return found


def _information(request, group):
    x, y = (array.astype(request["dtype"]) for array in request["arrays"])
    if request["tensors"]:
        x, y = torch.from_numpy(x), torch.from_numpy(y)
    if request["tensors"] and request["gradient"]:
        x.requires_grad_()
    estimate = distributed.mutual_information(x, y, group=group, **request["options"])
    return {"values": _numbers(estimate) if isinstance(estimate, torch.Tensor) else np.asarray(estimate)}


def _numbers(tensor):
    return tensor.detach().double().numpy()


FUNCTIONS = {"echo_sample": _echo, "mutual_information": _information}
