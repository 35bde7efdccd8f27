"""How the benchmarks time calls: with `torch.utils.benchmark`, and several calls in turn.

`torch.utils.benchmark.Timer` warms up, sets the number of threads, and synchronizes CUDA before it reads the clock.
This module adds what a comparison needs. The calls take turns within one run, so that whatever else the machine does
affects all of them, and the ratio of two calls is the median over the rounds.
"""

import math
import statistics
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Measurement, Timer

ROUNDS = 5


@dataclass(frozen=True)
class Times:
    """The measurements of one call, one for each round."""

    rounds: list[Measurement]

    def summary(self):
        """The minimum and the median of all that was measured, in seconds."""
        times = [seconds for measurement in self.rounds for seconds in measurement.times]
        return {"minimum": min(times), "median": statistics.median(times)}

    def ratio(self, other):
        """How many times longer this call takes than another: the median over the rounds."""
        return statistics.median(a.median / b.median for a, b in zip(self.rounds, other.rounds, strict=True))


def make_timer(call, threads=None):
    """A timer of a function without arguments; by default on as many threads as torch now uses."""
    return Timer("call()", globals={"call": call}, num_threads=threads or torch.get_num_threads())


def time_call(call, seconds, threads=None):
    """Summary of one call, timed for so many seconds."""
    return Times([make_timer(call, threads).blocked_autorange(min_run_time=seconds)]).summary()


def time_in_turn(timers, seconds, rounds=ROUNDS):
    """Times of each timer in turn; the order alternates from round to round.

    Args:
        timers: Timers by name.
        seconds: For each timer in all rounds together. A longer call is made twice in each round: once to warm up.
        rounds: More rounds make turns shorter.
    """
    found = {name: [] for name in timers}
    for index in range(rounds):
        for name in list(timers)[:: -1 if index % 2 else 1]:
            found[name].append(timers[name].blocked_autorange(min_run_time=seconds / rounds))
    return {name: Times(measurements) for name, measurements in found.items()}


def time_calls(calls, seconds, threads=None, rounds=ROUNDS):
    """`time_in_turn` of functions without arguments."""
    return time_in_turn({name: make_timer(call, threads) for name, call in calls.items()}, seconds, rounds)


def time_collective(call, repeats):
    """Summary of a collective call, which every rank must make equally often: `blocked_autorange` chooses how often.

    The calls that warm up before each timed one also let the ranks start together.
    """
    timer = make_timer(call)
    return Times([timer.timeit(1) for _ in range(repeats)]).summary()


def recorded(prepare):
    """A CUDA graph of what ``prepare()`` returns, a function without arguments: replaying it costs no launches."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call = prepare()
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()

    def replay(alive=call):  # a graph reads the tensors of what it recorded, but does not keep them
        graph.replay()

    return replay


def growth_exponent(points):
    """The power of the size that fits (size, seconds) best; None for fewer than two points."""
    if len(points) < 2:
        return None
    sizes, seconds = zip(*points, strict=True)
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(t) for t in seconds]).slope
