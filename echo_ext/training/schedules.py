"""Everything that changes with the epoch: the learning rate, the warm-up weight, random streams, the rows of each step.

All are functions of the epoch only. Nothing here has a state, so a resumed run continues exactly as if it had not been
interrupted.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["SCHEDULES", "Stream", "derive_seed", "epoch_rows", "has_run_out", "learning_rate_factor", "warm_up_weight"]

SCHEDULES = ("constant-then-linear", "constant")


class Stream(enum.IntEnum):
    """What random numbers are for; each use has a stream of its own."""

    WEIGHTS = 0
    ROWS = 1
    NOISE = 2
    REFRESH = 3
    MEASURE = 4
    FIGURES = 5


def derive_seed(seed: int, stream: Stream, *counters: int) -> int:
    """A seed for one stream of a run, independent of those of other streams, counters (epoch, rank) and seeds."""
    state = np.random.SeedSequence((seed, int(stream), *counters)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def learning_rate_factor(schedule: str, epoch: int, epochs: int) -> float:
    """What the learning rate is multiplied by in ``epoch`` (from 0).

    "constant-then-linear" is 1 for the first half of the epochs and then falls linearly, to reach 0 after the last
    (Brekelmans et al. 2019, appendix).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "constant-then-linear":
        return min(1.0, 2 * (1 - epoch / epochs))
    raise ValueError(f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")


def warm_up_weight(epoch: int, warm_up_epochs: int) -> float:
    """``Model.warm_up_weight`` in ``epoch`` (from 0): from 0 linearly to 1 after ``warm_up_epochs``."""
    return min(1.0, epoch / warm_up_epochs) if warm_up_epochs else 1.0


def has_run_out(history: Sequence[Mapping[str, float]], patience: int | None, warm_up_epochs: int = 0) -> bool:
    """Whether the last ``patience`` epochs brought no better ``valid_loss``. Epochs of the warm-up do not count."""
    losses = [row["valid_loss"] for row in history[warm_up_epochs:]]
    return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience if losses else False


def epoch_rows(
    rows: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[Tensor]:
    """The rows of each step of one epoch, int64 (at most batch_size,): a shuffle of all, split over the processes.

    Every process has as many steps of the same sizes. A last batch below half the size is left out, for its gradient
    would be too noisy; all other batches but the last are full.

    Raises:
        ValueError: fewer rows than processes.
    """
    if rows < world_size:
        raise ValueError(f"{rows} training rows are too few for {world_size} processes")
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.ROWS, epoch))
    order = torch.randperm(rows, generator=generator, device="cpu")
    batches = list(order[: rows - rows % world_size][rank::world_size].split(batch_size))
    if len(batches) > 1 and 2 * len(batches[-1]) < batch_size:
        batches.pop()
    return batches
