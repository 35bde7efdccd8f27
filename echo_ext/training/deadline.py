"""The time at which training stops, to be continued later."""

from __future__ import annotations

import dataclasses
import time

from echo_ext import _checks

__all__ = ["Deadline", "TimeLimitReached"]


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A point in time, on the clock that all processes of a machine share.

    Args:
        at: The time, in seconds of :func:`time.monotonic`.
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline this many seconds from now.

        Raises:
            TypeError: ``seconds`` is not a number.
            ValueError: ``seconds`` is not positive.
        """
        return cls(time.monotonic() + _checks.number("time_limit", seconds, above=0))

    @property
    def has_passed(self) -> bool:
        """Whether training must stop."""
        return time.monotonic() >= self.at


class TimeLimitReached(Exception):
    """Training stopped at its deadline. A checkpoint is saved, from which resuming continues with the next step."""
