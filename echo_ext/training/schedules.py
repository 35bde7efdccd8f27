"""Everything that changes with the epoch: the learning rate, the warm-up weight, random streams, the rows of each step.

All are functions of the epoch only. Nothing here has a state, so a resumed run continues exactly as if it had not been
interrupted.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from echo_ext import _checks

SCHEDULES = ("constant-then-linear", "constant", "inverse-square-root")


class Stream(enum.IntEnum):
    """The uses of random numbers, each of which has a stream of its own."""

    WEIGHTS = 0
    ROWS = 1
    NOISE = 2
    REFRESH = 3
    MEASURE = 4
    FIGURES = 5


def derive_seed(seed: int, stream: Stream, *counters: int) -> int:
    """Return the seed of one stream of a run, which differs between streams, counters (epoch, rank) and seeds."""
    state = np.random.SeedSequence((seed, int(stream), *counters)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def learning_rate_factor(schedule: str, epoch: int, epochs: int, warm_up_epochs: int = 0) -> float:
    """The factor of the learning rate in ``epoch``, counted from 0.

    "constant" is 1. "constant-then-linear" is 1 for the first half of the epochs and then falls linearly to 0 after the
    last one (Brekelmans et al. 2019, section 5.1 and appendix E). "inverse-square-root" rises linearly to 1 in the last
    epoch of the warm-up and then falls as the inverse square root of the epoch (Vaswani et al. 2017, section 5.3, by
    steps; by epochs in the code of Livne et al. 2019).

    Raises:
        ValueError: The schedule is unknown, or "inverse-square-root" has no warm-up.
    """
    _checks.choice("schedule", schedule, SCHEDULES)
    if schedule == "inverse-square-root":
        if warm_up_epochs < 1:
            raise ValueError(f"warm_up_epochs must be at least 1 for schedule {schedule!r}, got {warm_up_epochs}")
        progress = (epoch + 1) / warm_up_epochs
        return min(progress, 1 / math.sqrt(progress))
    return 1.0 if schedule == "constant" else min(1.0, 2 * (1 - epoch / epochs))


def warm_up_weight(epoch: int, warm_up_epochs: int, *, from_zero: bool = True) -> float:
    """The ``Model.warm_up_weight`` in ``epoch``, counted from 0, which rises linearly to 1 over ``warm_up_epochs``.

    It begins with 0, or else with ``1 / warm_up_epochs``, and is then 1 one epoch earlier.
    """
    return min(1.0, (epoch if from_zero else epoch + 1) / warm_up_epochs) if warm_up_epochs else 1.0


def best_epoch(history: Sequence[Mapping[str, float]], warm_up_epochs: int = 0) -> int:
    """The epoch with the lowest ``valid_loss``, counted from 1, or the first of several.

    Those of the warm-up count only as long as there are no others.
    """
    first = warm_up_epochs if len(history) > warm_up_epochs else 0
    losses = [row["valid_loss"] for row in history[first:]]
    return first + losses.index(min(losses)) + 1


def should_stop_early(history: Sequence[Mapping[str, float]], patience: int | None, warm_up_epochs: int = 0) -> bool:
    """Whether the warm-up has ended and the :func:`best_epoch` is ``patience`` epochs ago; never if that is None."""
    if patience is None or len(history) <= warm_up_epochs:
        return False
    return len(history) - best_epoch(history, warm_up_epochs) >= patience


def epoch_rows(
    rows: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[Tensor]:
    """The rows of each step of one epoch, int64 (at most batch_size,): all rows, shuffled and split over the processes.

    All processes have the same number and sizes of batches. All batches except the last are full. A last batch of less
    than half the size is left out, since its gradient would be too noisy.

    Raises:
        ValueError: There are fewer rows than processes.
    """
    if rows < world_size:
        raise ValueError(f"the data must have at least {world_size} training rows, one for each process, got {rows}")
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.ROWS, epoch))
    order = torch.randperm(rows, generator=generator, device="cpu")
    batches = list(order[: rows - rows % world_size][rank::world_size].split(batch_size))
    if len(batches) > 1 and 2 * len(batches[-1]) < batch_size:
        batches.pop()
    return batches
