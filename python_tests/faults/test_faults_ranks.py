"""Ranks that die, are late or skip a call: the others raise an error in time, without hangs or wrong numbers."""

import multiprocessing
import os
import random
import signal
import time

import lost_ranks
import pytest

# Seconds to wait for an error: much longer than the timeout of the process group, because machines may be busy.
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def context():
    """A fork server that has imported torch and everything that a first call imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "echo_ext.distributed"])
    return context


def lose(context, folder, function, scenario, kill_after=None):
    """Run one group of processes; check that the remaining ranks raise an error in time, and return no wrong number."""
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
            assert seconds < WAIT_SECONDS / 2, message
    finally:
        for process in processes:
            process.kill()
            process.join()
        for process in processes:
            process.close()


def receive(connection, rank):
    assert connection.poll(WAIT_SECONDS), f"rank {rank} hangs"
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
def test_lost_rank_raises_on_the_others(context, tmp_path, function, scenario):
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
