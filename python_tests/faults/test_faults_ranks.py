"""Ranks that die, are late or leave out a call: an error for the others in time, no hang and no wrong number."""

import multiprocessing
import os
import random
import signal
import time

import lost_ranks
import pytest

# Seconds for an error to arrive: the process group's time-out, and much more for a machine that is busy.
PATIENCE = 60


@pytest.fixture(scope="module")
def context():
    """Processes that need not import torch again, nor what a first call imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "echo_ext.distributed"])
    return context


def lose(context, folder, function, scenario, kill_after=None):
    """Run one world: the ranks that are left have an error in time, and never a wrong number."""
    connections, processes = [], []
    for rank in range(lost_ranks.WORLD):
        here, there = context.Pipe()
        arguments = (rank, str(folder / "init"), function, scenario, there)
        processes.append(context.Process(target=lost_ranks.run, args=arguments, daemon=True))
        processes[-1].start()
        there.close()
        connections.append(here)
    try:
        ready = [receive(connection, rank) for rank, connection in enumerate(connections)]
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(ready[lost_ranks.LOST][1], signal.SIGKILL)
        for rank in range(lost_ranks.LOST):
            kind, *what = receive(connections[rank], rank)
            assert kind == "error", what
            seconds, message = what
            assert seconds < PATIENCE / 2, message
    finally:
        for process in processes:
            process.kill()
            process.join()
        for process in processes:
            process.close()


def receive(connection, rank):
    assert connection.poll(PATIENCE), f"rank {rank} hangs"
    return connection.recv()


@pytest.mark.parametrize(
    ("function", "scenario"),
    [
        ("ring", "dead before the call"),
        ("ring", "dead before the backward pass"),
        ("ring", "late"),
        ("ring", "leaves out the backward pass"),
        ("permutation", "dead before the backward pass"),
        ("permutation", "leaves out the backward pass"),
        ("information", "dead before the call"),
        ("information", "late"),
    ],
)
def test_lost_rank_ends_in_an_error(context, tmp_path, function, scenario):
    lose(context, tmp_path, function, scenario)


def kill_at_random(context, tmp_path, times):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        function = generator.choice(list(lost_ranks.FUNCTIONS))
        lose(context, folder, function, "killed at a random moment", kill_after=generator.uniform(0, 0.3))


def test_rank_killed_at_a_random_moment(context, tmp_path):
    kill_at_random(context, tmp_path, 3)


@pytest.mark.faults
def test_many_ranks_killed_at_random_moments(context, tmp_path):
    kill_at_random(context, tmp_path, 100)
